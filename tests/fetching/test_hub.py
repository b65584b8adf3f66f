"""The hub, by a stand-in that the hub's own client understands."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import save

from fetching import header, hub
from fetching.client import Client
from fetching.policy import Policy, RefusedError

WEIGHTS = save({"conv.weight": torch.ones(2, 3), "fc.weight": torch.zeros(1000, 512)})


@pytest.fixture
def client(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_ENDPOINT", elsewhere.url(""))
    with Client(Policy(download=True, hosts=(elsewhere.host,), private=True, max_bytes=10_000_000)) as made:
        yield made


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:org/repo", ("org/repo", None, None)),
        ("hf:org/repo@v1.0", ("org/repo", None, "v1.0")),
        ("hf:org/repo/sub/model.pth@refs/pr/1", ("org/repo", "sub/model.pth", "refs/pr/1")),
    ],
)
def test_a_source_is_taken_apart(source: str, parts: tuple[str | None, ...]) -> None:
    name = hub.parse(source)
    assert (name.repository, name.file, name.revision) == parts


@pytest.mark.parametrize("source", ["hf:", "hf:repo", "hf:../x", "hf:org/..", "hf:org/repo/../../x.pth", "hf:org/repo/README.md"])
def test_what_names_no_file_of_weights_is_refused(source: str) -> None:
    with pytest.raises(RefusedError):
        hub.parse(source)


def test_the_stand_in_is_one_that_the_hubs_own_client_understands(elsewhere: Any, client: Client) -> None:
    elsewhere.repository("org/repo", {"model.safetensors": WEIGHTS})
    info = HfApi(endpoint=elsewhere.url("")).model_info("org/repo", files_metadata=True)
    found = hub.look_up(hub.parse("hf:org/repo"), client)
    assert info.siblings is not None
    assert info.siblings[0].lfs is not None
    assert (found.revision, found.sha256) == (info.sha, info.siblings[0].lfs.sha256)


def test_a_file_is_pinned_to_the_commit_and_its_hash(elsewhere: Any, client: Client) -> None:
    elsewhere.repository(
        "org/repo", {"README.md": b"x", "pytorch_model.bin": b"x", "model.safetensors": WEIGHTS}, commit="ab" * 20
    )
    found = hub.look_up(hub.parse("hf:org/repo@main"), client)
    assert (found.file, found.revision, found.bytes) == ("model.safetensors", "ab" * 20, len(WEIGHTS))
    assert found.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert found.url == elsewhere.url(f"/org/repo/resolve/{'ab' * 20}/model.safetensors")


def test_what_there_is_instead_is_said(elsewhere: Any, client: Client) -> None:
    elsewhere.repository("org/two", {"a.safetensors": b"x", "b.safetensors": b"x"})
    elsewhere.repository("org/none", {"README.md": b"x"})
    elsewhere.status("/api/models/org/repo/revision/v9", 404, X_Error_Code="RevisionNotFound")
    for source, said in [
        ("hf:org/two", "name one, as hf:org/two/a.safetensors"),
        ("hf:org/two/c.safetensors", "has no file 'c.safetensors'. Did you mean"),
        ("hf:org/none", "has no file of weights at its top"),
        ("hf:org/repo@v9", "has no revision 'v9'"),
        ("hf:org/missing", "a private or gated one needs the operator's token (GRAFT_HF_TOKEN"),
    ]:
        with pytest.raises(RefusedError) as refused:
            hub.look_up(hub.parse(source), client)
        assert said in str(refused.value)


def test_names_and_shapes_are_known_from_the_header_alone(elsewhere: Any, client: Client, tmp_path: Path) -> None:
    elsewhere.file("/w.safetensors", WEIGHTS)
    assert header.stand_in(elsewhere.url("/w.safetensors"), tmp_path / "h.safetensors", client)
    with safe_open(tmp_path / "h.safetensors", framework="pt") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {  # noqa: SIM118  (it is no dict)
            "conv.weight": [2, 3], "fc.weight": [1000, 512],
        }  # fmt: skip
    assert (tmp_path / "h.safetensors").stat().st_size == len(WEIGHTS)


@pytest.mark.parametrize("content", [b"", b"short", (1 << 62).to_bytes(8, "little") + b"x" * 100])
def test_what_has_no_such_header_gives_none(elsewhere: Any, client: Client, tmp_path: Path, content: bytes) -> None:
    elsewhere.file("/w.safetensors", content)
    assert not header.stand_in(elsewhere.url("/w.safetensors"), tmp_path / "h.safetensors", client)


def test_a_file_that_is_not_there_is_said_to_be_missing_at_once(elsewhere: Any, client: Client, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="localhost answered 404"):
        header.stand_in(elsewhere.url("/gone.safetensors"), tmp_path / "h.safetensors", client)
