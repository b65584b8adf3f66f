"""Fetch what a job needs from elsewhere, before its trainer starts: that one needs no network and no secret.

A fetch runs in a thread of the worker while the supervisor goes on to renew the lease and to obey commands. It hears what a
trainer hears, and has a last word as one has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core import hashes
from core.errors import DiskFullError, TransferError, is_no_room
from core.events import Failure
from core.places import PinnedWeights, Places
from fetching.cache import StoppedError, Watch, fetch
from fetching.policy import Policy
from store.settings import Settings

_SHARE, _SECONDS, _AT_LEAST = 0.1, 10.0, 1.0
"""A line of progress each tenth, or each ten seconds; never two within a second."""

log = logging.getLogger(__name__)


class Fetch:
    """The files of one job, on their way.

    `pinned` is what the job's plan stored, by source. Where everything is here already, it is done at once.
    """

    def __init__(self, settings: Settings, pinned: Mapping[str, Any]) -> None:
        self.pinned = {source: PinnedWeights.model_validate(one) for source, one in pinned.items()}
        """With the `path` of each file that lies here, once it is done."""
        self.failure: Failure | None = None
        self.pid = 0  # it is no process of its own
        self.channel = self
        self._places = Places.model_validate(settings.places())
        self._policy = Policy(**settings.policy())
        self._lines: deque[str] = deque()
        self._watch = Watch(say=self._lines.append)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="graft-fetch", daemon=True)

    def __enter__(self) -> Self:
        missing = False
        for source, one in self.pinned.items():
            if one.url is None:
                continue
            path = self._local(one)
            missing = missing or path is None
            self.pinned[source] = one.model_copy(update={"path": path})
        if missing:
            self._thread.start()
        else:
            self._done.set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.stop()

    def wait(self, seconds: float) -> bool:
        """Whether it is over: everything is here, or `failure` says why not, or it was told to stop."""
        return self._done.wait(seconds)

    def lines(self) -> list[str]:
        """What it says since the last call."""
        found = []
        while self._lines:
            found.append(self._lines.popleft())
        return found

    def send(self, message: Mapping[str, Any], timeout: float | None = None) -> None:  # noqa: ARG002  (as a channel has it)
        """Hear what a trainer hears: a cancel and a pause end it at once; what came is kept for the next attempt."""
        if message["kind"] in {"cancel", "pause"}:
            self.kill()

    def kill(self) -> None:
        """End it."""
        self._watch.stop()
        self._done.set()

    def _local(self, one: PinnedWeights) -> Path | None:
        """A copy that somebody put below the inputs, whose hash the trainer checks. The cache's are checked here, by `fetch`."""
        path = self._places.find(one)
        return None if path is None or path.is_relative_to(self._places.weights_cache) else path

    def _run(self) -> None:
        try:
            for source, one in self.pinned.items():
                if one.url is not None and one.path is None:
                    path = self._one(one)
                    known = {"sha256": hashes.sha256_of(path), "stamp": hashes.stamp_of(path)}
                    self.pinned[source] = one.model_copy(update={"path": path, **known})
        except StoppedError:
            pass
        except TransferError as error:
            self.failure = Failure(type="transfer", message=str(error)[:4000], hint=error.hint)
        except OSError as error:
            full = is_no_room(error)
            hint = DiskFullError.hint if full else "Look at the worker's own log, and at its data directory."
            self.failure = Failure(type="disk_full" if full else "transfer", message=f"fetching: {error}", hint=hint)
        except Exception as error:
            log.exception("a fetch failed")
            hint = "Look at the worker's own log."
            self.failure = Failure(type="crashed", message=f"fetching: {type(error).__name__}: {error}"[:4000], hint=hint)
        self._done.set()

    def _one(self, one: PinnedWeights) -> Path:
        self._watch.progress = _Progress(one.file or "a file", self._lines.append)
        return fetch(one, self._places, self._policy, self._watch)


class _Progress:
    """Says how far a file is, now and then."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._began: tuple[float, int] | None = None
        self._said_at, self._said = 0.0, 0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        at_end = done == total
        far = total is not None and done - self._said >= _SHARE * total
        since = now - self._said_at
        if not at_end and (since < _AT_LEAST or not (far or since >= _SECONDS)):
            return
        began, first = self._began
        rate = (done - first) / max(now - began, 1e-3)
        share = "" if total is None else f" of {_size(total)} ({done / max(1, total):.0%})"
        self._say(f"fetching {self._name}: {_size(done)}{share}, {_size(rate)}/s")
        self._said_at, self._said = now, done


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
