"""Datasets by upload: over real sockets into a real sandbox, and nothing left of what was refused, cut off or killed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import schemas, uploads
from store import datasets
from store.database import Database
from store.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]  # the sandbox imports torch once

ZIP = {"Content-Type": "application/zip"}
HEAD = "POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def root(settings: Settings) -> Path:
    return settings.uploads


@pytest.fixture
def unfinished(root: Path) -> Callable[[], list[str]]:
    """What lies in the uploads directory beside datasets."""
    return lambda: sorted(path.name for path in root.iterdir() if not path.name.isdecimal()) if root.is_dir() else []


@pytest.fixture
def allow(app: Any) -> Iterator[Callable[..., None]]:
    """`allow(upload_bytes=4000)`: other settings for the running service."""
    service = app.state.service

    def change(**changed: Any) -> None:
        app.state.service = dataclasses.replace(service, settings=service.settings.model_copy(update=changed))

    yield change
    app.state.service = service


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    def until(holds: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return until


def connect(url: str, sent: bytes, size: int = 1_000_000) -> socket.socket:
    """An upload of which no more is sent for now."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall((HEAD % size).encode() + sent)
    return connection


@pytest.mark.parametrize(
    ("number", "kind", "media"),
    [
        (10, "zip", "application/zip"),
        (20, "tar", "application/x-tar"),
        (30, "tar.gz", "application/gzip; x=y"),
        (40, "tar.xz", None),
    ],
)
def test_an_archive_is_stored_checked_and_found_again(client, pack, pictures, root, unfinished, number, kind, media):
    names = [f"{kind}/train/{name}" for name in ("cats", "dogs")]
    files = {**pictures(*names, first=number), f"{kind}/train/dogs/bad.png": b"no picture"}
    headers = {"Content-Type": media} if media else {}
    answer = client.post("/datasets", params={"name": "pets"}, content=pack(files, kind), headers=headers)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    schemas.Dataset.model_validate(told)
    assert (told["name"], told["source"], told["images"]) == ("pets", f"upload:{told['id']}", 5)
    assert told["classes"] == [
        {"name": "cats", "train": 2, "validation": 0},
        {"name": "dogs", "train": 3, "validation": 0},
    ]
    assert [one["name"] for one in told["corrupt"]] == ["train/dogs/bad.png"]
    assert client.get(answer.headers["location"]).json() == told
    assert sorted(path.name for path in (root / str(told["id"])).iterdir()) == ["train"]
    assert unfinished() == []


def test_the_same_files_are_one_dataset_by_whatever_they_are_packed(client, pack, pictures, unfinished):
    files = pictures("cats", "dogs", first=500)
    first = client.post("/datasets?name=first", content=pack(files, "zip"), headers=ZIP)
    again = client.post("/datasets?name=again", content=iter([pack({f"x/{name}": files[name] for name in files})]))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert unfinished() == []


def test_two_uploads_of_the_same_at_once_are_one_dataset(url, pack, pictures, unfinished):
    archive, answers = pack(pictures("cats", "dogs", first=600)), []

    def send() -> None:
        answers.append(httpx.post(f"{url}/datasets", content=archive, timeout=60))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert unfinished() == []


def test_a_dataset_whose_files_are_gone_is_put_there_again(client, pack, pictures, root):
    archive = pack(pictures("cats", "dogs", first=700))
    dataset_id = client.post("/datasets", content=archive).json()["id"]
    uploads.discard(root, dataset_id)
    assert client.post("/datasets", content=archive).status_code == 200
    assert (root / str(dataset_id) / "cats").is_dir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda archive: archive[: len(archive) // 2], "damaged, or was cut off"),
        (lambda archive: archive.replace(b"cats/0", b"../out"), "leads out of the archive"),
        (lambda archive: b"GIF89a" + archive, "neither a zip nor a tar"),
    ],
)
def test_a_bad_archive_is_422_and_nothing_of_it_stays(client, pack, pictures, root, spoil, said):
    there = sorted(root.iterdir())
    answer = client.post("/datasets", content=spoil(pack(pictures("cats", "dogs", first=800), "zip")), headers=ZIP)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:graft:problem:invalid-dataset")
    assert said in answer.json()["errors"][0]["message"]
    assert sorted(root.iterdir()) == there
    assert not (root / "out.png").exists()


def test_one_class_is_422_and_says_what_was_found(client, pack, pictures):
    answer = client.post("/datasets", content=pack(pictures("cats")))
    assert answer.status_code == 422
    assert "one class, 'cats', of 2 images" in answer.json()["detail"]


def test_limits_of_the_settings_are_named(allow, client, pack, pictures, unfinished):
    for changed, status, said in [
        ({"upload_bytes": 4000}, 413, "4000 bytes (GRAFT_UPLOAD_BYTES)"),
        ({"upload_unpacked_bytes": 100}, 422, "(GRAFT_UPLOAD_UNPACKED_BYTES)"),
        ({"upload_files": 3}, 422, "(GRAFT_UPLOAD_FILES)"),
        ({"upload_memory": 1 << 20}, 422, "(GRAFT_UPLOAD_MEMORY)"),
        ({"upload_seconds": 0.0}, 422, "(GRAFT_UPLOAD_SECONDS)"),
    ]:
        allow(**changed)
        for content in (pack(pictures("cats", "dogs")), iter([pack(pictures("cats", "dogs"))])):  # declared, and not
            answer = client.post("/datasets", content=content)
            assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert unfinished() == []


def test_a_job_is_planned_on_it_and_holds_it_until_it_has_ended(client, pack, pictures, root):
    dataset_id = client.post("/datasets", content=pack(pictures("cats", "dogs", count=8, first=900))).json()["id"]
    spec = {"dataset": {"source": f"upload:{dataset_id}", "image_size": 32}, "model": {"name": "torchvision:squeezenet1_1"}}
    planned = client.post("/plans", json=spec)
    assert planned.status_code == 200, planned.text
    assert planned.json()["dataset"]["classes"] == ["cats", "dogs"]
    job = client.post("/jobs", json=spec).json()
    refused = client.delete(f"/datasets/{dataset_id}")
    assert (refused.status_code, f"have not ended: {job['id']}" in refused.json()["detail"]) == (409, True)
    assert (root / str(dataset_id)).is_dir()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert not (root / str(dataset_id)).exists()
    assert client.get(f"/datasets/{dataset_id}").status_code == 404
    (fault,) = client.post("/jobs", json=spec).json()["errors"]
    assert fault["pointer"] == "/dataset/source"
    assert "GET /datasets lists them, POST /datasets takes one" in fault["message"]


def test_a_job_that_a_corrupt_image_would_end_is_refused_when_it_is_planned(client, pack, pictures):
    files = {**pictures("cats", "dogs", count=8, first=1100), "dogs/bad.png": b"no picture"}
    dataset_id = client.post("/datasets", content=pack(files)).json()["id"]
    dataset = {"source": f"upload:{dataset_id}", "image_size": 32}
    spec = {"dataset": dataset, "model": {"name": "torchvision:squeezenet1_1"}}
    (fault,) = client.post("/plans", json=spec).json()["errors"]
    assert fault["pointer"] == "/dataset/corrupt"
    assert "'dogs/bad.png' could not be read; set skip" in fault["message"]
    planned = client.post("/plans", json={**spec, "dataset": {**dataset, "corrupt": "skip"}}).json()
    assert any("'dogs/bad.png' could not be read; what cannot be read is left out" in warning for warning in planned["warnings"])


def report(sha256: str) -> dict[str, Any]:
    counts = dict.fromkeys(schemas.DatasetCounts.model_fields, 1)
    return {
        "sha256": sha256, "task": "multiclass", "images": 2, "bytes": 3, "counts": counts, "warnings": ["w"],
        "classes": [], "corrupt": [], "empty_classes": [], "duplicates": {"repeated": [], "conflicting": [], "leaking": []},
    }  # fmt: skip


def test_the_page_about_datasets_works_as_it_stands(url, pack, pictures, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for name, content in pictures("pets/cats", "pets/dogs", count=5, first=1000).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    answers, made = [], "1"
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        script = re.sub(r"(upload:|datasets/)1\b", rf"\g<1>{made}", block.replace("http://127.0.0.1:8000", url))
        said = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        answers.append([json.loads(line) for line in said.stdout.splitlines()])
        made = str(answers[0][0]["id"])
    (uploaded,), (plan,), (listed, shown) = answers
    assert (uploaded["name"], uploaded["images"]) == ("pets", 10)
    assert plan["dataset"]["classes"] == ["cats", "dogs"]
    assert (listed["data"][0]["id"], shown) == (uploaded["id"], uploaded)
    assert httpx.get(f"{url}/datasets/{made}").status_code == 404, "the last of its commands"


def test_datasets_are_listed_newest_first_by_pages_without_their_long_lists(client, bench):
    with bench.database.write() as session:
        made = [datasets.create(session, name=None, report=report(f"listed-{number}"))[0].id for number in range(3)]
    first = client.get("/datasets?limit=2").json()
    schemas.DatasetPage.model_validate(first)
    assert [one["id"] for one in first["data"]] == [made[2], made[1]]
    assert (first["has_more"], first["next"]) == (True, made[1])
    assert set(first["data"][0]) == set(schemas.DatasetSummary.model_fields)
    assert client.get(f"/datasets?after={made[1]}").json()["data"][0]["id"] == made[0]


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "image/png"])
def test_another_content_type_is_415_and_says_how_to_send_a_file(client, kind):
    answer = client.post("/datasets", content=b"x", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "--data-binary @FILE" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["", "n" * 201, "a%00b"])
def test_a_name_that_cannot_be_stored_is_422(client, name):
    answer = client.post(f"/datasets?name={name}", content=b"x")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["query/name"]


def test_a_body_that_declares_too_much_is_refused_before_it_is_sent(url, unfinished):
    with connect(url, b"", size=1 << 40) as connection:
        assert b" 413 " in connection.recv(4096)
    assert unfinished() == []


def test_a_disk_without_room_is_507_declared_or_not_and_nothing_stays(client, unfinished, monkeypatch):
    class Usage:
        free = 1000

    written = uploads.Upload._write

    def write(upload: uploads.Upload, piece: bytearray) -> None:
        with Path("/dev/full").open("wb") as full:  # what is written to it finds no room
            os.dup2(full.fileno(), upload.file.fileno())
        written(upload, piece)

    monkeypatch.setattr("api.uploads.shutil.disk_usage", lambda _: Usage)
    monkeypatch.setattr(uploads.Upload, "_write", write)
    for content in (b"x" * 2000, iter([b"x" * 2000])):
        answer = client.post("/datasets", content=content)
        assert (answer.status_code, answer.json()["type"]) == (507, "urn:graft:problem:disk-full")
        assert "free space below its data directory" in answer.json()["detail"]
    assert unfinished() == []


def test_an_upload_that_is_cut_off_leaves_nothing(url, unfinished, until):
    with connect(url, b"x" * 100_000):
        until(lambda: [name for name in unfinished() if name.endswith(".archive")])
    until(lambda: unfinished() == [])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Database]:
    """A database of its own, at head; uploads lie in `tmp_path / "uploads"`."""
    database = Database(f"sqlite:///{tmp_path}/graft.db")
    database.upgrade()
    (tmp_path / "uploads").mkdir()
    yield database
    database.dispose()


def test_the_next_start_removes_what_a_kill_left_beside_an_upload_that_goes_on(own, tmp_path):
    root = tmp_path / "uploads"
    with own.write() as session:
        dataset, _ = datasets.create(session, name=None, report=report("kept"))
    for name in (f"{dataset.id}/cats", "99/cats", ".0aff.folder/cats", ".0aff.folder.outer/dogs", ".0bff.folder"):
        (root / name).mkdir(parents=True)
    (root / ".0aff.archive").write_bytes(b"half")
    alive = uploads.Upload(root)
    alive.folder.mkdir()
    uploads.sweep(root, own)
    left = {path.name for path in root.iterdir()}
    assert left == {str(dataset.id), alive.archive.name, alive.folder.name}
    alive.clear()
    assert [path.name for path in root.iterdir()] == [str(dataset.id)]


def test_a_folder_that_a_crash_left_at_the_place_of_a_new_dataset_gives_way(own, tmp_path):
    root = tmp_path / "uploads"
    (root / "1" / "old").mkdir(parents=True)
    upload = uploads.Upload(root)
    (upload.folder / "new").mkdir(parents=True)
    with own.write() as session:
        dataset, _ = datasets.create(session, name=None, report=report("new"))
        upload.put(dataset.id)
    upload.clear()
    assert [str(path.relative_to(root)) for path in sorted(root.rglob("*"))] == ["1", "1/new"]


# In a process of its own, for it is killed.
RECEIVING = """
import sys, time
from pathlib import Path
from api.uploads import Upload

upload = Upload(Path(sys.argv[1]))
upload._write(b"x" * 100_000)
(upload.folder / "cats").mkdir(parents=True)
print("receiving", flush=True)
time.sleep(600)
"""


def test_a_kill_in_mid_upload_leaves_nothing_once_somebody_starts(own, tmp_path):
    root = tmp_path / "uploads"
    command = [sys.executable, "-c", RECEIVING, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        uploads.sweep(root, own)
        assert len(list(root.iterdir())) == 2, "it goes on, and another api has started beside it"
        process.kill()
    uploads.sweep(root, own)
    assert list(root.iterdir()) == []
