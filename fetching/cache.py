"""Fetch a file into the cache: resumed where it was cut, hashed as it is read, renamed into place, by one process at a time.

The cache is a folder of files named by their SHA-256. Whatever lies in it may be deleted at any time; a link named by a URL
stands for a file whose hash only the fetched file could tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx

from core import hashes
from core.errors import TransferError
from core.places import PinnedWeights, Places
from fetching.client import Client, SlowError
from fetching.policy import Policy, RefusedError

_TRIES = 4
"""In a row without a byte more, or with so few that it would never end."""
_PIECE = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LOOK_AGAIN = 0.2
_HINT = "Submit the job again later, or put the file into the inputs directory and name it there."


class StoppedError(Exception):
    """Whoever wanted the file does not want it any more."""


@dataclass
class Watch:
    """What a fetch tells, and how it is stopped. `progress` gets the bytes that are there, and of how many, if that is known."""

    say: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int | None], None] = lambda _done, _total: None
    first_pause: float = 1.0
    """Seconds before a second try; doubled before each further one."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _client: Client | None = None

    def stop(self) -> None:
        """End the fetch, whatever it waits for."""
        self._stop.set()
        if (client := self._client) is not None:
            client.hang_up()

    def check(self) -> None:
        """Raises StoppedError once stopped."""
        if self._stop.is_set():
            raise StoppedError

    def pause(self, seconds: float) -> None:
        """Wait. Raises StoppedError."""
        if self._stop.wait(seconds):
            raise StoppedError

    @contextlib.contextmanager
    def client(self, policy: Policy) -> Iterator[Client]:
        """A client that `stop` hangs up."""
        with Client(policy) as client:
            self._client = client
            try:
                self.check()
                yield client
            finally:
                self._client = None


class _CutError(Exception):
    """It ended too early; what came is kept, and the rest can be asked for."""


def fetch(wanted: PinnedWeights, places: Places, policy: Policy, watch: Watch) -> Path:
    """The file in the cache, fetched if it is not there. Its hash is right.

    What was cut goes on where it was, by a later call too; of several callers one fetches and the others wait. Raises
    TransferError with what to do, StoppedError, OSError.
    """
    folder = places.weights_cache
    folder.mkdir(parents=True, exist_ok=True)
    name = wanted.cache_names[0]
    if (found := _sound(folder, wanted, watch)) is not None:
        return found
    with _alone(folder / f".{name}.part", watch) as part:
        if (found := _sound(folder, wanted, watch)) is not None:  # another one was faster
            Path(part.name).unlink(missing_ok=True)
            return found
        sha256 = _complete(wanted, part, policy, watch)
        return _put(wanted, part, sha256, folder)


def _sound(folder: Path, wanted: PinnedWeights, watch: Watch) -> Path | None:
    """The cached file, if it is there and undamaged; a damaged one goes."""
    for name in wanted.cache_names:
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            sha256 = hashes.sha256_of(path, watch.check)
            if _fits(wanted, sha256):
                return path.resolve()
            watch.say(f"{wanted.file} in the cache is damaged; it is fetched again")
            path.resolve().unlink(missing_ok=True)
    return None


def _fits(wanted: PinnedWeights, sha256: str) -> bool:
    return sha256 == wanted.sha256 if wanted.sha256 else sha256.startswith(wanted.sha256_begins)


@contextlib.contextmanager
def _alone(path: Path, watch: Watch) -> Iterator[BinaryIO]:
    """The unfinished file, locked, to append to. The lock ends with the process that holds it, whatever becomes of that."""
    told = False
    while True:
        with path.open("a+b") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    watch.say("this file is being fetched already; waiting for it")
                told = True
            else:
                if _is_at(path, part):
                    yield part
                    return
                continue  # it was finished, and has another name now
        watch.pause(_LOOK_AGAIN)


def _is_at(path: Path, part: BinaryIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(part.fileno()).st_ino
    except FileNotFoundError:
        return False


def _complete(wanted: PinnedWeights, part: BinaryIO, policy: Policy, watch: Watch) -> str:
    """Fill the file, by as many requests as it takes; its SHA-256."""
    resumed = part.seek(0, os.SEEK_END) > 0
    if resumed and not (wanted.sha256 or wanted.sha256_begins):
        part.truncate(0)  # nothing would tell whether both halves belong together
    with watch.client(policy) as client:
        sha256 = _insist(wanted, part, client, watch)
        if not _fits(wanted, sha256) and resumed:
            watch.say("what an earlier try had fetched was damaged; starting anew")
            part.truncate(0)
            sha256 = _insist(wanted, part, client, watch)
    if not _fits(wanted, sha256):
        part.truncate(0)
        expected = wanted.sha256 or f"{wanted.sha256_begins}…"
        raise TransferError(
            f"{_host(wanted)} sent {wanted.file} with the SHA-256 {sha256}, and not {expected}",
            "The file there is another one now, or was damaged on its way: compare the hashes, then submit the job again.",
        )
    return sha256


def _insist(wanted: PinnedWeights, part: BinaryIO, client: Client, watch: Watch) -> str:
    """Ask again, from where it was cut, as long as that helps."""
    tries, there = 0, part.seek(0, os.SEEK_END)
    while True:
        try:
            return _receive(wanted, part, client, watch)
        except RefusedError as error:
            raise TransferError(f"{wanted.file} may not be fetched: {error}", _HINT) from error
        except (httpx.HTTPError, httpx.InvalidURL, _CutError) as error:
            watch.check()
            size = part.seek(0, os.SEEK_END)
            in_vain = size <= there or (isinstance(error, SlowError) and error.from_start)
            tries, there = (tries + 1 if in_vain else 1), size
            if tries == _TRIES or not isinstance(error, httpx.TransportError | _CutError):
                raise TransferError(f"{wanted.file} could not be fetched from {_host(wanted)}: {error}", _HINT) from error
            pause = watch.first_pause * 2 ** (tries - 1)
            watch.say(f"{wanted.file}: {error}; trying again in {pause:g} s")
        watch.pause(pause)


def _receive(wanted: PinnedWeights, part: BinaryIO, client: Client, watch: Watch) -> str:
    """One request: append what is missing; the SHA-256 of the whole file."""
    sha = hashlib.sha256()
    done = _hash_into(sha, part, watch)
    headers = {"Range": f"bytes={done}-"} if done else {}
    with client.get(wanted.url or "", **headers) as answer:
        done = _begin(answer, done, part)
        if not done:
            sha = hashlib.sha256()
        length = answer.headers.get("content-length", "")
        total = done + int(length) if length.isdecimal() else None
        client.policy.check_size(total or 0)
        for piece in answer.iter_raw():  # as they come: a gathered piece would be lost with the connection
            watch.check()
            part.write(piece)
            sha.update(piece)
            done += len(piece)
            client.policy.check_size(done)
            watch.progress(done, total)
    part.flush()
    os.fsync(part.fileno())
    return sha.hexdigest()


def _hash_into(sha: hashlib._Hash, part: BinaryIO, watch: Watch) -> int:
    part.seek(0)
    while piece := part.read(_PIECE):
        sha.update(piece)
        watch.check()
    return part.tell()


def _begin(answer: httpx.Response, done: int, part: BinaryIO) -> int:
    """From which byte on the answer goes; what it does not go on from is dropped. Raises _CutError, httpx.HTTPStatusError."""
    if answer.status_code == httpx.codes.PARTIAL_CONTENT and answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
        return done
    if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.truncate(0)
        raise _CutError("the file there is shorter than what was fetched of it; starting anew")
    if answer.status_code in _PASSING:
        raise _CutError(f"the server answered {answer.status_code}")
    if answer.status_code != httpx.codes.OK:
        reason = f"the server answered {answer.status_code} {answer.reason_phrase}"
        raise httpx.HTTPStatusError(reason, request=answer.request, response=answer)
    part.truncate(0)
    return 0


def _put(wanted: PinnedWeights, part: BinaryIO, sha256: str, folder: Path) -> Path:
    """Rename the file to its hash, and link the name of its URL to that."""
    path = folder / f"{sha256}{Path(wanted.cache_names[0]).suffix}"
    Path(part.name).replace(path)
    hashes.remember(path, sha256)
    if wanted.sha256 is None:
        link = folder / f".{wanted.cache_names[0]}.link"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(folder / wanted.cache_names[0])
    return path


def _host(wanted: PinnedWeights) -> str:
    return httpx.URL(wanted.url or "").host
