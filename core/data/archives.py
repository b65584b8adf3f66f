"""Read an archive that a stranger has packed: zip or tar, member by member, believing nothing that it says of itself.

Names are checked before anybody opens them; bytes are counted as they come out, for headers lie. Imports no torch.
"""

from __future__ import annotations

import errno
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from core.errors import SpecError

DEEPEST, LONGEST_NAME, LONGEST_PATH = 16, 255, 1024
"""Folders below each other, bytes of one name (what file systems take), bytes of a whole path."""
_PIECE = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_BLOCK = tarfile.BLOCKSIZE
_PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
"""By its first bytes, how a tar is compressed, as tarfile calls it."""


@dataclass(frozen=True)
class Bounds:
    """What an archive may hold: members, folders and ignored ones too, and bytes once they are unpacked.

    `why` names who set each: an error says it.
    """

    files: int
    bytes: int
    why_files: str = "the limit on files"
    why_bytes: str = "the limit on unpacked bytes"


@dataclass(frozen=True)
class Member:
    """A regular file or a folder. `pieces` gives a file's bytes, once, before the next member is asked for."""

    path: PurePosixPath
    """Relative, without `..`, in Unicode's composed form, which macOS does not write."""
    folder: bool
    pieces: Callable[[], Iterator[bytes]]


def members(archive: Path, bounds: Bounds) -> Iterator[Member]:
    """The files and folders of a zip or tar archive (plain, or compressed by gzip, bzip2 or xz), as its first bytes say.

    Raises SpecError at the whole where it is damaged, encrypted, beyond its bounds, or has a member with no place in a dataset: a
    link, a device, a name that leads out of it.
    """
    meter = _Meter(bounds)
    with archive.open("rb") as file:
        read = _zipped if file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"} else _tarred
        file.seek(0)
        yield from read(file, meter)


def refused(message: str) -> SpecError:
    """What is said of an archive as a whole."""
    return SpecError.at("", message)


class _Meter:
    """Counts what comes out of an archive. Raises SpecError beyond the bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._files = self._bytes = 0

    def member(self) -> None:
        self._files += 1
        if self._files > self._bounds.files:
            raise refused(f"it has more than {self._bounds.files} files ({self._bounds.why_files}); pack fewer in one archive")

    def count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._bounds.bytes:
            raise refused(f"unpacked it has more than {self._bounds.bytes} bytes ({self._bounds.why_bytes})")

    def pieces(self, file: IO[bytes], kind: str) -> Iterator[bytes]:
        """The rest of a file, counted."""
        while piece := _read(file, kind):
            self.count(len(piece))
            yield piece


def _zipped(file: IO[bytes], meter: _Meter) -> Iterator[Member]:
    with _damage("zip"):
        archive = zipfile.ZipFile(file)
    with archive:
        for info in archive.infolist():
            meter.member()
            path = _checked(_zip_name(info))
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise _odd(path, "a link" if mode == stat.S_IFLNK else "a device or the like")
            if info.flag_bits & 0x1:
                raise refused("it is encrypted; pack it without a password")
            yield Member(path, info.is_dir() or mode == stat.S_IFDIR, lambda info=info: _unzip(archive, info, meter))  # type: ignore[misc]  # bound now


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: _Meter) -> Iterator[bytes]:
    with _damage("zip"):
        file = archive.open(info)
    with file:
        yield from meter.pieces(file, "zip")


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Its name as it was meant: macOS writes UTF-8 and does not say so, old packers of Windows write `\\` for `/`."""
    name = info.orig_filename  # `filename` ends at a NUL
    if not info.flag_bits & 0x800:  # not said to be UTF-8: read as the code page of DOS
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    return name.replace("\\", "/")


def _tarred(file: IO[bytes], meter: _Meter) -> Iterator[Member]:
    start = file.read(_BLOCK)
    file.seek(0)
    packed = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), "")
    if not packed and start[257:262] != b"ustar" and start != bytes(_BLOCK):  # the last: nothing is in it
        raise refused("it is neither a zip nor a tar archive (plain, or compressed by gzip, bzip2 or xz)")
    with _damage("tar"):
        archive = tarfile.open(fileobj=file, mode=f"r:{packed}")  # type: ignore[call-overload]  # noqa: SIM115 - closed below
    with archive:
        while (info := _next(archive)) is not None:
            meter.member()
            path = _checked(info.name)
            if not info.isdir() and (not info.isreg() or info.issparse()):
                links = "a link (tar --dereference --hard-dereference packs what it leads to)"
                raise _odd(path, links if info.islnk() or info.issym() else "a device, a sparse file or the like")
            begun = _position(archive)
            yield Member(path, info.isdir(), lambda info=info: _untar(archive, info, meter))  # type: ignore[misc]  # bound now
            if _position(archive) == begun:  # it was not read: tarfile unpacks it to go past it
                meter.count(info.size)
        _check_end(archive, meter)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _damage("tar"):
        info = archive.next()
    archive.members = []  # type: ignore[attr-defined]  # it would keep them all, for lookups by name
    return info


def _position(archive: tarfile.TarFile) -> int:
    assert archive.fileobj is not None  # noqa: S101 - for the types: it is open
    return archive.fileobj.tell()


def _untar(archive: tarfile.TarFile, info: tarfile.TarInfo, meter: _Meter) -> Iterator[bytes]:
    with _damage("tar"):
        file = archive.extractfile(info)
    if file is not None:
        yield from meter.pieces(file, "tar")


def _check_end(archive: tarfile.TarFile, meter: _Meter) -> None:
    """That a block of zeros ends it: tarfile takes the end of the file, and any damaged header, for the end too.

    What follows is read for the checksum at the end of a compressed file.
    """
    file = archive.fileobj
    assert file is not None  # noqa: S101 - for the types: it is open
    with _damage("tar"):
        file.seek(archive.offset)
        block = file.read(_BLOCK)
    if block != bytes(_BLOCK):
        raise refused("the tar archive is damaged, or was cut off: it has no end; pack and send it again")
    for _ in meter.pieces(file, "tar"):  # type: ignore[arg-type]  # tarfile's own protocol of a file
        continue


def _checked(name: str) -> PurePosixPath:
    """The path of a member. Raises SpecError where it leads out of the archive, or no file can have it."""
    shown = repr(name[:200])
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # tarfile keeps what is no UTF-8 as lone surrogates
        raise refused(f"a file has a name that is no UTF-8, {shown}; rename it, and pack again") from None
    if _CONTROL.search(name):
        raise refused(f"the name {shown} has a control character in it; rename it, and pack again")
    parts = [part for part in unicodedata.normalize("NFC", name).split("/") if part not in {"", "."}]
    if name.startswith("/") or _DRIVE.match(name) or ".." in parts:
        raise refused(f"the name {shown} leads out of the archive; pack with names relative to one folder")
    if size > LONGEST_PATH or len(parts) > DEEPEST or any(len(part.encode()) > LONGEST_NAME for part in parts):
        raise refused(
            f"the name {shown} is too long or too deep: a path may have {DEEPEST} folders and {LONGEST_PATH} bytes, "
            f"a name {LONGEST_NAME}"
        )
    return PurePosixPath(*parts)


def _odd(path: PurePosixPath, what: str) -> SpecError:
    return refused(f"'{path}' is {what}; a dataset has files and folders alone")


def _read(file: IO[bytes], kind: str) -> bytes:
    with _damage(kind):
        return file.read(_PIECE)


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Whatever the reader of a damaged archive raises, as one error; not what the system says, nor a lack of memory."""
    try:
        yield
    except (MemoryError, SpecError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:  # EINVAL: it says that a file begins at -17
            raise
        reason = str(error) or type(error).__name__
        raise refused(f"the {kind} archive is damaged, or was cut off: {reason}; pack and send it again") from None
