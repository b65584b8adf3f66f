"""`graft upload`, `graft datasets`, `graft dataset`: what is sent, what is shown, and the exit status."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.cli import app
from client.http import Client, GraftError
from client.packing import parcel

TOLD = {
    "id": 3, "name": "[red]pets", "source": "upload:3", "sha256": "0" * 64, "images": 1234, "bytes": 5 << 20,
    "classes": [{"name": f"class-{number}", "train": 40, "validation": 2} for number in range(12)],
    "counts": {"classes": 12, "train": 480, "validation": 24, "corrupt": 11, "repeated": 0, "conflicting": 1, "leaking": 0},
    "corrupt": [{"name": f"cats/{number}.png", "reason": "truncated"} for number in range(11)], "empty_classes": [],
    "duplicates": {
        "repeated": [], "leaking": [], "conflicting": [{"sha256": "1" * 64, "count": 2, "names": ["a/1.png", "b/1.png"]}],
    },
    "warnings": ["11 images cannot be read"], "created_at": "2026-01-31T12:00:00.000Z",
}  # fmt: skip


@pytest.fixture
def graft(service):
    def graft(*arguments):
        return CliRunner().invoke(app, [str(word) for word in arguments], env={"GRAFT_URL": service.url, "COLUMNS": "120"})

    return graft


@pytest.fixture
def pets(tmp_path):
    """A folder of class folders, with what such folders have besides."""
    root = tmp_path / "pets.of.mine"
    files = {"train/cats/1.png": b"1" * 700, "train/dogs/2.png": b"", "train/dogs/.DS_Store": b"x", ".cache/3.png": b"x"}
    files["train/dogs/" + "n" * 120 + "/gr\u00fcn.png"] = b"2" * 512
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "train" / "empty").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "4.png").write_bytes(b"4")
    (root / "train" / "linked").symlink_to(elsewhere)
    (root / "train" / "circle").symlink_to(root)
    (root / "train" / "dangling.png").symlink_to("nowhere")
    return root


def unpacked(sent):
    with tarfile.open(fileobj=io.BytesIO(sent)) as archive:
        files = {info.name: archive.extractfile(info) for info in archive}
        return {name: None if file is None else file.read() for name, file in files.items()}


def test_a_folder_is_packed_while_it_is_sent_without_hidden_files_and_with_what_links_lead_to(service, graft, pets):
    service.answer("/datasets", TOLD, 201)
    result = graft("upload", pets)
    assert result.exit_code == 0, result.output
    ((method, path, query, sent),) = service.asked
    assert (method, path, query) == ("POST", "/datasets", {"name": "pets"})
    assert unpacked(sent) == {
        "train": None, "train/cats": None, "train/dogs": None, "train/empty": None, "train/linked": None,
        "train/dogs/" + "n" * 120: None, "train/cats/1.png": b"1" * 700, "train/dogs/2.png": b"",
        "train/dogs/" + "n" * 120 + "/gr\u00fcn.png": b"2" * 512, "train/linked/4.png": b"4",
    }  # fmt: skip
    assert parcel(pets).size == len(sent)


def test_a_terminal_shows_that_what_was_sent_is_being_checked_and_for_how_long(service, graft, pets, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("client.data.err", Console(file=shown, force_terminal=True, width=120))
    seen = threading.Event()

    def answer(*_):
        end = time.monotonic() + 30
        while not re.search(r"decodes every image once.*0:00:0[1-9]", shown.getvalue()) and time.monotonic() < end:
            time.sleep(0.02)
        if time.monotonic() < end:
            seen.set()
        return 201, "application/json", [json.dumps(TOLD).encode()], True

    service.answers["/datasets"] = answer
    result = graft("upload", pets)
    assert (result.exit_code, seen.is_set()) == (0, True)
    assert "decodes" not in result.stdout


@pytest.mark.parametrize(
    ("name", "media"),
    [("pets.zip", "application/zip"), ("pets.tar.gz", "application/gzip"), ("pets", "application/octet-stream")],
)
def test_an_archive_is_sent_as_it_is(service, graft, tmp_path, name, media):
    (tmp_path / name).write_bytes(b"whatever it is" * 50_000)
    service.answer("/datasets", TOLD)
    assert graft("upload", tmp_path / name, "--name", "mine").exit_code == 0
    assert service.asked == [("POST", "/datasets", {"name": "mine"}, b"whatever it is" * 50_000)]
    assert parcel(tmp_path / name).media_type == media


def test_a_file_that_changes_while_it_is_sent_ends_the_upload(service, pets):
    service.answer("/datasets", TOLD)
    sent = parcel(pets)
    (pets / "train" / "cats" / "1.png").write_bytes(b"short")
    with Client(service.url) as client, pytest.raises(GraftError, match=r"1\.png became shorter while it was sent"):
        client.upload(sent.pieces(), size=sent.size)


def test_what_is_not_there_is_told(graft, tmp_path):
    result = graft("upload", tmp_path / "nothing.zip")
    assert result.exit_code == 2
    assert "nothing.zip cannot be read: No such file or directory" in result.stderr.replace("\n", "")


def test_a_dataset_is_shown_with_what_is_to_mend(service, graft):
    service.answer("/datasets/3", TOLD)
    said = graft("dataset", "3").stdout
    shown = [
        "[red]pets", "1234 images, 5 MiB", "class-9", "and 2 more", "! 11 images cannot be read", "cats/9.png: truncated",
        "and 1 more", "in several classes: a/1.png, b/1.png", '"dataset": {"source": "upload:3"}',
    ]  # fmt: skip
    for part in shown:
        assert part in said, said
    assert "class-10" not in said
    assert json.loads(graft("dataset", "3", "--json").stdout) == TOLD


def test_datasets_are_a_table_or_json(service, graft):
    service.answer("/datasets", {"data": [TOLD], "has_more": False, "next": None})
    assert graft("datasets").stdout.splitlines()[1].split()[:5] == ["upload:3", "[red]pets", "12", "1234", "5"]
    assert [one["id"] for one in json.loads(graft("datasets", "--json").stdout)] == [3]
    assert service.asked[0][2] == {"limit": "20"}


def test_a_dataset_is_deleted(service, graft):
    service.answers["/datasets/3"] = lambda *_: (204, "text/plain", [], True)
    result = graft("dataset", "3", "--delete")
    assert (result.exit_code, result.stdout.strip()) == (0, "Dataset 3 is deleted.")
    assert service.asked == [("DELETE", "/datasets/3", {}, None)]


@pytest.mark.parametrize(("answered", "status"), [(422, 2), (413, 2), (404, 3), (409, 3), (507, 4)])
def test_the_exit_status_tells_whose_fault_a_refusal_is(service, graft, pets, answered, status):
    problem = {"title": "T", "status": answered, "detail": "because", "errors": [{"pointer": "", "message": "because"}]}
    service.answer("/datasets", problem, answered)
    service.answer("/datasets/3", problem, answered)
    for words in (("upload", pets), ("dataset", "3", "--delete")):
        result = graft(*words)
        assert (result.exit_code, "because" in result.stderr) == (status, True), result.output
