"""What is known of a file once it was read, for as long as it stays the same: its SHA-256, and whether its numbers are finite.

A file is taken for the same while its path, size, inode and time of change are: its *stamp*. A pin carries the stamp with the
hash, so that a process that starts later need not read the file for it again. Of what has the same hash the rest is true, too.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KEPT = 1024
_CHUNK = 1 << 20
_known: OrderedDict[tuple[str, str], str] = OrderedDict()
_finite: OrderedDict[str, None] = OrderedDict()
_lock = threading.Lock()


def stamp_of(path: Path) -> str:
    """Size, inode and time of change of a file. Raises OSError."""
    return _stamp(path.stat())


def sha256_of(path: Path, pause: Callable[[], None] = lambda: None) -> str:
    """SHA-256 in hex; read anew only where the stamp is another than the last time. Raises OSError.

    `pause` is called between pieces, and may raise to stop.
    """
    with path.open("rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        with _lock:
            known = _known.get((str(path), stamp))
        if known is not None:
            return known
        sha = hashlib.sha256()
        while piece := file.read(_CHUNK):
            sha.update(piece)
            pause()
    remember(path, sha.hexdigest(), stamp)
    return sha.hexdigest()


def remember(path: Path, sha256: str, stamp: str | None = None) -> None:
    """Keep a hash that is known: computed while the file was written, or by another process when it had this stamp."""
    _keep(_known, (str(path), stamp or stamp_of(path)), sha256)


def remember_finite(sha256: str) -> None:
    """Keep that the file of this hash was looked through, and that every number in it is finite."""
    _keep(_finite, sha256, None)


def is_finite(sha256: str | None) -> bool:
    """Whether that is known of it."""
    with _lock:
        return sha256 in _finite


def _keep(known: OrderedDict[K, V], key: K, fact: V) -> None:
    with _lock:
        known[key] = fact
        known.move_to_end(key)
        while len(known) > _KEPT:
            known.popitem(last=False)


def _stamp(facts: os.stat_result) -> str:
    return f"{facts.st_size}-{facts.st_ino}-{facts.st_mtime_ns}"
