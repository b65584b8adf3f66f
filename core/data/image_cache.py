"""Decoded images on disk, for every job that wants the same ones at the same size: made by one process, mapped by all.

Each entry is one file: a page of JSON that says what it is, uint8 [N, C, S, S], and a byte for each image that says whether it
could be read. Its name is a hash of the state of the images' files, so a file that changes makes another entry. Any of them,
and the whole folder, may be deleted at any time: whoever has one mapped keeps it, and whoever comes later makes it anew.

Entries are synced before they get their name, so a crash leaves whole ones. Of one that is there the header and the length are
checked, no pixel: a CRC-32 of all takes half a second for each GB, and an entry may have a hundred, of which a mapped one is
not even read at first. Bytes that a disk changes later are trained on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import PIL
import torch
from torch import Tensor

from core.data.images import Images
from core.data.tiers import Piece

_DECODER = 1
"""To be raised when `core.data.tiers.fit` or the reading of files gives other pixels than before."""
_PAGE = 4096
_LOOK_AGAIN = 0.2
_FORGOTTEN = 86400.0
"""Seconds after which an unfinished file is nobody's, where the file system has no locks."""
_MOST_SPARED = 16 << 30


class Stored(NamedTuple):
    """A mapped entry. It stays whole while either tensor is there, whatever becomes of the file; neither may be written to."""

    pixels: Tensor
    """uint8 [N, C, S, S]; black where an image could not be read."""
    sound: Tensor
    """bool [N]: whether it could be."""


@dataclass(frozen=True)
class Entry:
    """What a file of the cache holds."""

    name: str
    shape: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        """Bytes of the images."""
        samples, channels, height, width = self.shape
        return samples * channels * height * width

    @property
    def size(self) -> int:
        """Of the file."""
        return _PAGE + self.pixels + self.shape[0]

    @property
    def header(self) -> bytes:
        """How the file begins."""
        return json.dumps({"graft": "decoded images", "entry": self.name, "shape": self.shape}).encode().ljust(_PAGE)


def entry_of(images: Images, size: int, channels: int, *, again: bool = False) -> Entry | None:
    """The entry of these images in the state that their files are in (`Images.stamp`); None where they have no files.

    With `size` 0 it has no pixels, and says only which images can be read.
    """
    if (stamp := images.stamp(again=again)) is None:
        return None
    made_by = f"{_DECODER} {PIL.__version__} {torch.__version__} {channels} {size} "
    return Entry(hashlib.sha256(made_by.encode() + stamp).hexdigest(), (len(images), channels, size, size))


def find(folder: Path, entry: Entry, say: Callable[[str], None]) -> Stored | None:
    """The entry, if it is there; one of another length or header goes. Raises OSError."""
    path = folder / entry.name
    try:
        with path.open("rb") as file:
            _lock(file, fcntl.LOCK_SH)
            stored = _mapped(file, entry)
    except FileNotFoundError:
        return None
    if stored is None:
        say("decoded images on disk are damaged; they are made anew")
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the least recently used one goes first
    return stored


def make(
    folder: Path, entry: Entry, *, limit: int, pieces: Callable[[], Iterable[Piece]], unchanged: Callable[[], bool],
    say: Callable[[str], None],
) -> Stored:  # fmt: skip
    """The entry, made of `pieces` (all images, in order), unless another process makes it already: then it is waited for.

    It is kept if the files are `unchanged` when it is done. `limit`: bytes of the whole cache; the least recently used entries
    that nobody has mapped make room. Raises OSError where there is none (`core.errors.is_no_room`) or the disk fails.
    """
    with _alone(folder / f".{entry.name}.part", say) as file:
        part = Path(file.name)
        try:
            if (found := find(folder, entry, say)) is not None:  # another one was faster
                return found
            _make_room(folder, entry, limit, file)
            _write(file, entry, pieces())
            stored = _mapped(file, entry)
            if stored is None:
                raise OSError(errno.EIO, "the file of decoded images is not what was written to it")
            _lock(file, fcntl.LOCK_SH)
            if unchanged():
                with contextlib.suppress(FileNotFoundError):  # somebody deleted the folder meanwhile
                    part.replace(folder / entry.name)
            return stored
        finally:
            if _is_at(part, file):
                part.unlink(missing_ok=True)


def room(folder: Path, limit: int) -> int:
    """Bytes that an entry may have, about: within `limit`, and what the disk can spare when all others have gone."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    disk = shutil.disk_usage(there)
    return min(limit, disk.free + sum(size for _, size, _ in _entries(folder)) - _spared(disk.total))


def _mapped(file: BinaryIO, entry: Entry) -> Stored | None:
    """The open file's content; None where it has another length or header. Its lock lasts as long as the tensors do."""
    if os.fstat(file.fileno()).st_size != entry.size:
        return None
    mapped = mmap.mmap(file.fileno(), entry.size, access=mmap.ACCESS_READ)
    if mapped[:_PAGE] != entry.header:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        content = torch.frombuffer(mapped, dtype=torch.uint8, offset=_PAGE)
    return Stored(content[: entry.pixels].view(entry.shape), content[entry.pixels :] != 0)


def _write(file: BinaryIO, entry: Entry, pieces: Iterable[Piece]) -> None:
    """Fill the file and sync it, so that no crash of the machine leaves an entry with a hole in it."""
    sound = bytearray()
    file.seek(0)
    file.write(entry.header)
    for pixels, lost in pieces:
        file.write(pixels.contiguous().numpy().data)
        sound += bytearray(position not in lost for position in range(len(pixels)))
    file.write(sound)
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[BinaryIO]:
    """The unfinished file, locked. The lock ends with the process that holds it, whatever becomes of that.

    Where the file system has no locks each process writes a file of its own, and the last one stays.
    """
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b", opener=_or_new) as file:
            locked = _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if locked and _is_at(path, file):
                yield file
                return
        if locked is None:
            with path.with_name(f"{path.stem}-{uuid.uuid4().hex}.part").open("x+b") as own:
                yield own
                return
        if not locked:
            if not told:
                say("another job decodes these images already; waiting for it")
            told = True
            time.sleep(_LOOK_AGAIN)


def _or_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO, kind: int) -> bool | None:
    """Whether it is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _make_room(folder: Path, entry: Entry, limit: int, part: BinaryIO) -> None:
    """Let the least recently used entries go until `entry` fits, and let `part` count with its whole size from now on."""
    with (folder / ".lock").open("wb") as turn:
        _lock(turn, fcntl.LOCK_EX)
        part.truncate(0)
        _sweep(folder)
        disk = shutil.disk_usage(folder)
        written = sum(path.stat().st_size for path in folder.glob(".*.part"))
        over = max(
            written + sum(size for _, size, _ in _entries(folder)) + entry.size - limit,
            entry.size + _spared(disk.total) - disk.free,
        )
        gone: list[Path] = []
        with contextlib.ExitStack() as held:
            for _, size, path in sorted(_entries(folder)):
                if over <= 0:
                    break
                if _idle(path, held):
                    gone.append(path)
                    over -= size
            if over > 0:
                raise OSError(
                    errno.ENOSPC, f"{entry.size:,} bytes of decoded images do not fit the cache of {limit:,} bytes, or the disk"
                )
            for path in gone:
                path.unlink(missing_ok=True)
        part.truncate(entry.size)


def _idle(path: Path, held: contextlib.ExitStack) -> bool:
    """Whether nobody has it mapped, or nobody can tell; nobody will while `held` is open."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return _lock(held.enter_context(path.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB) is not False
    return False


def _sweep(folder: Path) -> None:
    """Remove unfinished files of processes that are gone."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:
            locked = _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if locked or (locked is None and time.time() - path.stat().st_mtime > _FORGOTTEN):
                path.unlink()


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """(last used, bytes, path) of each."""
    found = []
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    return found


def _spared(total: int) -> int:
    """What of a disk is left free, for checkpoints and the database: a twentieth."""
    return min(total // 20, _MOST_SPARED)
