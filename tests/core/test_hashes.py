"""SHA-256 of files, and when one is computed anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

from core import hashes


def test_a_file_is_read_again_only_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    read = []
    for content, changes in ((b"one", True), (b"one", False), (b"another", True)):
        if changes:
            path.write_bytes(content)
        assert hashes.sha256_of(path, lambda: read.append(path)) == hashlib.sha256(content).hexdigest()
    assert len(read) == 2


def test_a_hash_that_is_known_goes_with_its_stamp(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    stamp = hashes.stamp_of(path)
    hashes.remember(path, "ab" * 32, stamp)
    assert hashes.sha256_of(path) == "ab" * 32
    path.write_bytes(b"another")
    hashes.remember(path, "ab" * 32, stamp)
    assert hashes.sha256_of(path) == hashlib.sha256(b"another").hexdigest()
