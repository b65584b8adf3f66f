"""Files of tensors: what is hashed is what is written, however far the hash is behind."""

import hashlib

import pytest
import safetensors.torch
import torch

from core.transfer import tensorfile
from core.transfer.tensorfile import write, write_tensors

SIZES = [0, 1, 7, 1 << 20, (1 << 20) - 1, 3, 5 << 20, 2, 1 << 19, 1 << 19, 1 << 18]
"""Of chunks: small ones before, between and behind large ones, and some that are large only together."""


@pytest.mark.parametrize("ahead", [0, 1 << 20, tensorfile._AHEAD])
def test_the_hash_is_that_of_the_file(monkeypatch, tmp_path, ahead):
    monkeypatch.setattr(tensorfile, "_AHEAD", ahead)
    chunks = [bytes([place + 1]) * size for place, size in enumerate(SIZES)]
    written = write(tmp_path / "x", iter(chunks))
    content = (tmp_path / "x").read_bytes()
    assert content == b"".join(chunks)
    assert written == (hashlib.sha256(content).hexdigest(), len(content))


def test_large_and_small_tensors_come_back(tmp_path):
    tensors = {f"t{size}": torch.randn(size) for size in (1, 300_000, 2, 900_000, 100_000, 180_000, 0)}
    write_tensors(tmp_path / "x", tensors, {})
    read = safetensors.torch.load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "x").write_bytes(b"here already")
    with pytest.raises(FileExistsError):
        write(tmp_path / "x", iter([b"new"]))
    assert (tmp_path / "x").read_bytes() == b"here already"
