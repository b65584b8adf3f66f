"""SHA-256 of files, computed once for each state of a file.

A file is taken for the same while its path, size, inode and time of change are: its *stamp*. A pin carries the stamp with the
hash, so that a process that starts later need not read the file for it again. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

_KEPT = 1024
_CHUNK = 1 << 20
_known: OrderedDict[tuple[str, str], str] = OrderedDict()
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
    key = str(path), stamp or stamp_of(path)
    with _lock:
        _known[key] = sha256
        _known.move_to_end(key)
        while len(_known) > _KEPT:
            _known.popitem(last=False)


def _stamp(facts: os.stat_result) -> str:
    return f"{facts.st_size}-{facts.st_ino}-{facts.st_mtime_ns}"
