"""Pretrained weights at submission: what is refused, what is pinned, and what the plan can tell of files that are elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torchvision.models import squeezenet1_1

from api import schemas
from core import hashes
from core.models.build import get_model
from core.places import Places
from core.spec import JobSpec
from store import commands, jobs, pins
from store.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]  # the sandbox imports torch once

SMALL = {"dataset": {"source": "sklearn:digits", "image_size": 32}, "model": {"name": "torchvision:squeezenet1_1"}}
with torch.random.fork_rng():
    torch.manual_seed(0)  # the hash stands in names of tests, which all processes that run them must agree on
    WEIGHTS = save(squeezenet1_1().state_dict())
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def allow(app: Any) -> Iterator[Any]:
    """Let the running service download from these hosts."""
    service = app.state.service

    def make(*hosts: str, **values: Any) -> Settings:
        changes = {"download": True, "download_hosts": list(hosts), "download_private": True, **values}
        settings = service.settings.model_copy(update=changes)
        app.state.service = dataclasses.replace(service, settings=settings)
        return settings

    yield make
    app.state.service = service


def plan(client: httpx.Client, source: str, **more: Any) -> httpx.Response:
    return client.post("/plans", json={**SMALL, "pretrained": {"source": source, **more}})


def refusal(client: httpx.Client, source: str, **more: Any) -> tuple[str, str]:
    answer = plan(client, source, **more)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    return error["pointer"], error["message"]


@pytest.mark.parametrize(
    ("source", "sha256", "pointer", "said"),
    [
        ("https://example.org/w.pth", None, "/pretrained/sha256", "needs its SHA-256"),
        ("https://example.org/w.pth", "abc", "/pretrained/sha256", "64 digits in hex"),
        ("https://example.org/w.pth", SHA256, "/pretrained/source", "GRAFT_DOWNLOAD_HOSTS: huggingface.co)"),
        ("https://me:pw@example.org/w.pth", SHA256, "/pretrained/source", "leave them out"),
        ("https://example.org/w.zip", SHA256, "/pretrained/source", "those end in .safetensors"),
        ("https:///w.pth", SHA256, "/pretrained/source", "names no file of weights"),
        ("http://example.org/w.pth", SHA256, "/pretrained/source", "only https is"),
        ("hf:lonely", None, "/pretrained/source", "write hf:ORG/REPO"),
        ("timm:resnet18.a1_in1x", None, "/pretrained/source", "Did you mean 'resnet18.a1_in1k'?"),
        ("torchvision:squeezenet1_1/IMAGENET1K_V1", SHA256, "/pretrained/source", "'download.pytorch.org' is not on"),
    ],
)
def test_what_could_not_be_fetched_is_refused_with_the_way_out(client, allow, source, sha256, pointer, said):
    allow("huggingface.co")
    found = refusal(client, source, **({"sha256": sha256} if sha256 else {}))
    assert found[0] == pointer
    assert said in found[1]


@pytest.mark.parametrize("source", ["https://example.org/w.pth", "hf:org/repo", "timm:resnet18.a1_in1k"])
def test_where_downloads_are_off_the_setting_is_named(client, source):
    pointer, message = refusal(client, source, **({"sha256": SHA256} if source.startswith("https") else {}))
    assert pointer == "/pretrained/source"
    assert "GRAFT_DOWNLOAD=true" in message


def test_a_host_with_a_private_address_is_refused_at_submission(client, allow, elsewhere):
    allow(elsewhere.host, download_private=False)
    _, message = refusal(client, elsewhere.url("/w.pth"), sha256=SHA256)
    assert "GRAFT_DOWNLOAD_PRIVATE=true" in message
    assert elsewhere.asked == []


def test_safetensors_elsewhere_are_planned_by_their_header(client, allow, elsewhere):
    settings = allow(elsewhere.host)
    elsewhere.file("/w.safetensors", WEIGHTS)
    answer = plan(client, elsewhere.url("/w.safetensors"), sha256=SHA256.upper())
    assert answer.status_code == 200, answer.text
    found = schemas.Plan.model_validate(answer.json())
    assert found.transfer is not None
    assert found.transfer.loaded_share == 1
    assert found.pinned is not None
    assert (found.pinned.sha256, found.pinned.file, found.transfer.sha256) == (SHA256, "w.safetensors", SHA256)
    asked = [headers["Range"] for _, headers in elsewhere.asked]
    assert asked == ["bytes=0-65535"]
    assert list(settings.data_dir.glob("cache/plan-*")) == []


def test_of_a_pickle_elsewhere_nothing_is_known_before_it_is_fetched_and_the_plan_says_so(client, allow, elsewhere):
    allow(elsewhere.host)
    answer = plan(client, elsewhere.url("/w.pth"), sha256=SHA256)
    assert answer.status_code == 200, answer.text
    assert answer.json()["transfer"] is None
    assert "checked by the worker" in " ".join(answer.json()["warnings"])
    made = client.post("/jobs", json={**SMALL, "pretrained": {"source": elsewhere.url("/w.pth"), "sha256": SHA256}})
    assert made.status_code == 201, made.text
    assert elsewhere.asked == []


def test_a_file_that_was_fetched_before_is_planned_from_the_cache_even_where_downloads_are_off(client, app):
    buffer = io.BytesIO()
    torch.save(squeezenet1_1().state_dict(), buffer)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    cache = app.state.service.settings.data_dir / "cache" / "weights"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / f"{sha256}.pth").write_bytes(buffer.getvalue())
    answer = plan(client, "https://example.org/w.pth", sha256=sha256)
    assert answer.status_code == 200, answer.text
    assert answer.json()["transfer"]["loaded_share"] == 1


def test_a_file_with_two_state_dicts_that_was_fetched_before_is_refused_and_the_choice_is_named(client, app):
    state, buffer = squeezenet1_1().state_dict(), io.BytesIO()
    torch.save({"model": state, "model_ema": state}, buffer)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    cache = app.state.service.settings.data_dir / "cache" / "weights"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / f"{sha256}.pth").write_bytes(buffer.getvalue())
    wish = {"source": "https://example.org/two.pth", "sha256": sha256}
    answer = client.post("/jobs", json={**SMALL, "pretrained": wish})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/pretrained/source"
    assert "more than one state dict (model, model_ema); say which by 'container'" in error["message"]
    made = client.post("/jobs", json={**SMALL, "pretrained": {**wish, "container": "model_ema"}})
    assert made.status_code == 201, made.text


def test_a_repository_of_the_hub_is_pinned_to_its_commit(client, allow, elsewhere, monkeypatch):
    allow(elsewhere.host)
    monkeypatch.setenv("HF_ENDPOINT", elsewhere.url(""))
    elsewhere.repository("org/squeeze", {"model.safetensors": WEIGHTS}, commit="ab" * 20)
    answer = client.post("/jobs", json={**SMALL, "pretrained": {"source": "hf:org/squeeze"}})
    assert answer.status_code == 201, answer.text
    job = schemas.Job.model_validate(answer.json())
    assert job.pinned is not None
    assert (job.pinned.repository, job.pinned.revision, job.pinned.sha256) == ("org/squeeze", "ab" * 20, SHA256)
    assert client.get(f"/jobs/{job.id}").json()["pinned"] == answer.json()["pinned"]
    pointer, message = refusal(client, "hf:org/squeeze", sha256="0" * 64)
    assert (pointer, SHA256 in message) == ("/pretrained/sha256", True)
    assert "has no file 'x.safetensors'" in refusal(client, "hf:org/squeeze/x.safetensors")[1]


def test_timms_weights_are_pinned_by_the_hub_too(client, allow, elsewhere, monkeypatch):
    allow(elsewhere.host)
    monkeypatch.setenv("HF_ENDPOINT", elsewhere.url(""))
    weights = save(timm.create_model("test_resnet").state_dict())
    elsewhere.repository("timm/test_resnet.r160_in1k", {"model.safetensors": weights}, commit="ab" * 20)
    spec = {**SMALL, "model": {"name": "timm:test_resnet"}, "pretrained": {"source": "timm:test_resnet.r160_in1k"}}
    answer = client.post("/plans", json=spec)
    assert answer.status_code == 200, answer.text
    found = schemas.Plan.model_validate(answer.json())
    assert found.transfer is not None
    assert found.transfer.loaded_share == 1
    assert found.pinned is not None
    pinned = (found.pinned.repository, found.pinned.revision, found.pinned.file, found.pinned.sha256)
    assert pinned == ("timm/test_resnet.r160_in1k", "ab" * 20, "model.safetensors", hashlib.sha256(weights).hexdigest())
    pointer, _ = refusal(client, "timm:test_resnet.r160_in1k", min_loaded=0)  # nothing of it fits a SqueezeNet
    assert pointer.startswith("/pretrained")


def test_official_weights_are_pinned_to_their_file(client, allow):
    allow("download.pytorch.org", download_private=True)
    answer = plan(client, "torchvision:squeezenet1_1/IMAGENET1K_V1")
    assert answer.status_code == 200, answer.text
    pinned = answer.json()["pinned"]
    assert pinned["file"] == "squeezenet1_1-b8a52dc0.pth"
    assert pinned["url"] == "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert answer.json()["transfer"]["loaded_share"] == 1
    assert refusal(client, "torchvision:squeezenet1_1/IMAGENET1K_V1", sha256=SHA256) == (
        "/pretrained/sha256",
        "the SHA-256 of squeezenet1_1-b8a52dc0.pth begins with b8a52dc0",
    )


def test_a_file_below_the_inputs_is_pinned_to_its_hash(client, app):
    path = app.state.service.settings.inputs / "squeeze.safetensors"
    save_file(squeezenet1_1().state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    answer = client.post("/jobs", json={**SMALL, "pretrained": {"source": "file:squeeze.safetensors"}})
    assert answer.status_code == 201, answer.text
    pinned = answer.json()["pinned"]
    assert (pinned["sha256"], pinned["bytes"], pinned["file"]) == (sha256, path.stat().st_size, "squeeze.safetensors")
    assert refusal(client, "file:squeeze.safetensors", sha256="0" * 64)[0] == "/pretrained/sha256"


def test_a_number_that_is_none_is_refused_at_submission_and_a_file_without_any_need_not_be_looked_through_again(client, app):
    inputs = app.state.service.settings.inputs
    state = squeezenet1_1().state_dict()
    save_file(state, inputs / "whole.safetensors")
    whole = {**SMALL, "pretrained": {"source": "file:whole.safetensors"}}
    job = client.post("/jobs", json=whole).json()
    with app.state.service.database.read() as session:
        (stored,) = jobs.get(session, job["id"]).plan["pinned"].values()
    assert stored["finite"]
    assert hashes.is_finite(stored["sha256"])

    state["features.0.bias"][0] = float("nan")
    save_file(state, inputs / "broken.safetensors")
    pointer, message = refusal(client, "file:broken.safetensors")
    assert pointer == "/pretrained/source"
    assert "holds NaN or infinity in 'features.0.bias' (as float32). Take another file" in message
    assert '"exclude": ["features.0.bias"]' in message

    answer = plan(client, "file:broken.safetensors", exclude=["features.0.*"])
    assert answer.status_code == 200, answer.text


def test_a_plan_shows_the_very_report_that_training_will_write(client, app):
    settings = app.state.service.settings
    save_file(squeezenet1_1().state_dict(), settings.inputs / "planned.safetensors")
    answer = plan(client, "file:planned.safetensors")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["transfer"]["sha256"] == found["pinned"]["sha256"]
    spec = JobSpec.model_validate(found["spec"])
    classes = tuple(found["dataset"]["classes"])
    _, trained = get_model(spec, len(classes), Places.model_validate(settings.places()), classes)
    assert found["transfer"] == trained.model_dump(mode="json")


def test_a_job_holds_the_checkpoint_that_it_begins_with(client, bench):
    early = bench.running(checkpoint={"keep_last": 1, "keep_best": 1})
    folder = bench.checkpoint(early, epoch=0, step=1, top1=0.5, weights=WEIGHTS)
    (folder / "model.json").write_text("{}")
    answer = client.post("/jobs", json={**SMALL, "pretrained": {"source": f"job:{early}@last"}})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["pinned"]["job"], answer.json()["pinned"]["step"]) == (early, 1)
    bench.checkpoint(early, epoch=1, step=2, top1=0.9)
    listed = [item["step"] for item in client.get(f"/jobs/{early}/checkpoints").json()["data"]]
    assert listed == [1, 2]
    with bench.database.write() as session:
        commands.cancel(session, answer.json()["id"], "test")
        assert pins.steps(session, early) == []
    assert [item["step"] for item in client.get(f"/jobs/{early}/checkpoints").json()["data"]] == [2]


def test_a_checkpoint_that_is_pruned_while_a_job_is_planned_gives_way_to_the_one_of_now(app, client, bench, monkeypatch):
    from api import jobs as routes

    early = bench.running(checkpoint={"keep_last": 1, "keep_best": 1})
    (bench.checkpoint(early, epoch=0, step=1, top1=0.5, weights=WEIGHTS) / "model.json").write_text("{}")
    create, calls = routes._create, []

    def slow(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            (bench.checkpoint(early, epoch=1, step=2, top1=0.9, weights=WEIGHTS) / "model.json").write_text("{}")
        return create(*arguments)

    monkeypatch.setattr(routes, "_create", slow)
    answer = client.post("/jobs", json={**SMALL, "pretrained": {"source": f"job:{early}"}})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["pinned"]["step"], len(calls)) == (2, 2)
