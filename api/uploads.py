"""Uploads on the disk: received beside their place, put there by one rename, removed by another.

In the uploads directory a dataset lies in a folder named by its id. An upload under way has the archive `.TOKEN.archive`, which
its process holds locked, and the folder `.TOKEN.folder`. A lock ends with its process, so whoever starts can tell what a crash
left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from api.problems import ProblemError
from core.errors import is_no_room
from store import datasets
from store.database import Database

_PIECE = 1 << 20
_ARCHIVE, _FOLDER = ".archive", ".folder"


class Upload:
    """An upload under way: `file` is the archive, open and locked; `folder` is where it is unpacked, and not there yet."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.file = _locked(root)
        self.archive = Path(self.file.name)
        self.folder = self.archive.with_suffix(_FOLDER)

    async def receive(self, request: Request, limit: int) -> None:
        """Write the request's body into the archive, piece by piece.

        Raises ProblemError: 413 where it has more than `limit` bytes, 507 where the disk has no room.
        """
        self._expect(request.headers.get("content-length", ""), limit)
        piece, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            piece += part
            if len(piece) >= _PIECE:
                await run_in_threadpool(self._write, piece)
                piece = bytearray()
        await run_in_threadpool(self._write, piece)

    def put(self, dataset_id: int) -> None:
        """Put the unpacked folder at its place. What lies there already has no row: a crash left it."""
        place = self.root / str(dataset_id)
        discard(self.root, dataset_id)
        self.folder.rename(place)
        _sync(self.root)

    def clear(self) -> None:
        """Remove what is still here, and let go of the lock."""
        for folder in self.root.glob(f"{self.folder.name}*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.archive.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what found no room before finds none now
            self.file.close()

    def _expect(self, declared: str, limit: int) -> None:
        """Refuse what says of itself that it does not fit, before it is read."""
        size = int(declared) if declared.isdecimal() else 0
        if size > limit:
            raise _too_large(limit)
        if size > shutil.disk_usage(self.root).free:
            raise no_room()

    def _write(self, piece: bytearray) -> None:
        try:
            self.file.write(piece)
            self.file.flush()
        except OSError as error:
            if is_no_room(error):
                raise no_room() from None
            raise


def discard(root: Path, dataset_id: int) -> None:
    """Remove a dataset's files: out of sight at once, then from the disk."""
    gone = root / f".{secrets.token_hex(8)}{_FOLDER}"
    with contextlib.suppress(FileNotFoundError):
        (root / str(dataset_id)).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(root: Path, database: Database) -> None:
    """Remove what crashes left: uploads whose process is gone, and folders that no row names. Uploads under way stay."""
    if not root.is_dir():
        return
    for archive in root.glob(f".*{_ARCHIVE}"):
        _unlink_abandoned(archive)
    with database.write() as session:
        known = datasets.ids(session)  # while we hold this, nobody is between the rename and the commit
        for path in root.iterdir():
            if path.name.isdecimal() and int(path.name) not in known:
                path.rename(root / f".{secrets.token_hex(8)}{_FOLDER}")
    for folder in root.glob(f".*{_FOLDER}*"):
        if not (root / f"{folder.name.partition(_FOLDER)[0]}{_ARCHIVE}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def no_room() -> ProblemError:
    """The disk is full."""
    detail = "there is no room for it on the service's disk; free space below its data directory, then send it again"
    return ProblemError(507, "disk-full", detail, headers={"Connection": "close"})


def _too_large(limit: int) -> ProblemError:
    # The rest of the body is not read, so the connection cannot be used again.
    detail = f"an upload may have {limit} bytes (GRAFT_UPLOAD_BYTES)"
    return ProblemError(413, "too-large", detail, headers={"Connection": "close"})


def _locked(root: Path) -> BinaryIO:
    """A new archive, locked. One that is swept between its making and its lock is made anew."""
    while True:
        file = (root / f".{secrets.token_hex(8)}{_ARCHIVE}").open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _unlink_abandoned(archive: Path) -> None:
    """Remove it if its process is gone, under its lock: whoever is just making it sees that, and makes another."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), archive.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        archive.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
