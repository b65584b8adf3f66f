"""SHA-256 of files, computed once for each state of a file."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

_KEPT = 1024
_CHUNK = 1 << 20
_known: OrderedDict[tuple[str, int, int, int], str] = OrderedDict()
_lock = threading.Lock()


def sha256_of(path: Path, pause: Callable[[], None] = lambda: None) -> str:
    """SHA-256 in hex; read anew only where size, inode or time of change are others than the last time. Raises OSError.

    `pause` is called between pieces, and may raise to stop.
    """
    with path.open("rb") as file:
        there = Path(file.name).stat()
        key = (str(path), there.st_size, there.st_mtime_ns, there.st_ino)
        with _lock:
            if key in _known:
                _known.move_to_end(key)
                return _known[key]
        sha = hashlib.sha256()
        while piece := file.read(_CHUNK):
            sha.update(piece)
            pause()
    remember(path, sha.hexdigest(), key)
    return sha.hexdigest()


def remember(path: Path, sha256: str, key: tuple[str, int, int, int] | None = None) -> None:
    """Keep what was computed on the way, while the file was written."""
    if key is None:
        there = path.stat()
        key = (str(path), there.st_size, there.st_mtime_ns, there.st_ino)
    with _lock:
        _known[key] = sha256
        while len(_known) > _KEPT:
            _known.popitem(last=False)
