"""A file that is downloaded: it appears whole or not at all, and what was cut off is kept to go on from."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from client.errors import FileError, GraftError

_BLOCK = 1 << 20


class Part:
    """What has come of a file so far, and its digest. `size`: its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        file.seek(0)
        while block := file.read(_BLOCK):  # hashed again: what lies on a disk may be another's, or half written
            self._digest.update(block)
            self.size += len(block)

    def write(self, block: bytes) -> None:
        """The next bytes."""
        self._file.write(block)
        self._digest.update(block)
        self.size += len(block)

    def restart(self) -> None:
        """Forget what has come."""
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size = hashlib.sha256(), 0

    def sha256(self) -> str:
        """Of all that has come."""
        return self._digest.hexdigest()


def holds(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this hash."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


@contextmanager
def saved(target: Path, sha256: str | None) -> Iterator[Part]:
    """Write `target`, beside which the part lies until it is whole; one with a known hash stays there when it is cut off.

    Raises GraftError where the whole has another hash, and FileError where it cannot be written here.
    """
    part = target.with_name(f".{target.name}.{sha256[:16] if sha256 else 'new'}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileError(f"{target} is being downloaded by another process") from None
            came = Part(file)
            try:
                if sha256 is None:
                    came.restart()
                yield came
                file.flush()
                if sha256 is not None and came.sha256() != sha256:
                    came.restart()
                    raise GraftError(f"{target.name} arrived damaged; download it again")
                part.replace(target)
            finally:
                if sha256 is None or not came.size:
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{target} cannot be written: {error.strerror or error}") from None
