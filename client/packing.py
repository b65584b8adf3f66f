"""What an upload sends: an archive as it is, or a folder packed as a tar while it is sent."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.errors import FileError

_PIECE = 1 << 18
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_TYPES = {".zip": "application/zip", ".tar": "application/x-tar", ".gz": "application/gzip", ".tgz": "application/gzip"}


@dataclass(frozen=True)
class Parcel:
    """What is sent: its size in bytes and its type are known before the first piece is read."""

    size: int
    media_type: str
    _parts: list[bytes | tuple[Path, int]]
    """Bytes, and files of so many bytes."""

    def pieces(self) -> Iterator[bytes]:
        """The bytes. Raises FileError where a file is another one than it was when it was measured."""
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _read(*part)


def parcel(path: Path) -> Parcel:
    """The archive, or the folder, at `path`. Raises FileError where it cannot be read."""
    try:
        if path.is_dir():
            parts = list(_packed(path))
            return Parcel(sum(len(part) if isinstance(part, bytes) else part[1] for part in parts), "application/x-tar", parts)
        size = path.stat().st_size
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    return Parcel(size, _TYPES.get(path.suffix.lower(), "application/octet-stream"), [(path, size)])


def _packed(root: Path) -> Iterator[bytes | tuple[Path, int]]:
    """A folder as a tar: headers, files and padding. Hidden files stay here; links are followed, each folder once."""
    seen = {root.resolve()}
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and _first_time(here / name, seen))
        for name in folders:
            yield _header(root, here / name, None)
        for name in sorted(files):
            if not name.startswith(".") and (path := here / name).is_file():
                size = path.stat().st_size
                yield _header(root, path, size)
                yield path, size
                yield bytes(-size % _BLOCK)
    yield _END


def _first_time(folder: Path, seen: set[Path]) -> bool:
    """Whether this folder was not walked yet: links may lead in a circle."""
    real, before = folder.resolve(), len(seen)
    seen.add(real)
    return len(seen) > before


def _header(root: Path, path: Path, size: int | None) -> bytes:
    """That of a file of so many bytes, or of a folder."""
    info = tarfile.TarInfo(path.relative_to(root).as_posix())
    info.size, info.type = size or 0, tarfile.DIRTYPE if size is None else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT)


def _read(path: Path, size: int) -> Iterator[bytes]:
    left = size
    try:
        with path.open("rb") as file:
            while left and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    if left:
        raise FileError(f"{path} became shorter while it was sent; send it again")
