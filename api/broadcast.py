"""One reader per watched job, however many watch it.

The log in the database is the truth and `seq` the only cursor. A *tail* reads a job's new events once for all its viewers, while
there are any, and keeps the recent ones, encoded once. A viewer is a cursor: it takes what is past its cursor from the tail, and
from the database where it is further behind than the tail remembers. So nothing is lost and nothing comes twice, whatever joins,
lags or restarts; and a slow viewer holds up itself alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar, TypeVarTuple, Unpack

import anyio.to_thread

from core.events import EndData
from store import events
from store.database import Database
from store.engines import AWAY, reason
from store.errors import NotFound
from store.events import StoredEvent

log = logging.getLogger(__name__)

Encoder = Callable[[StoredEvent], bytes]
"""Hashable, so that viewers who want the same bytes share them."""

REMEMBERED = 1000
REMEMBERED_BYTES = 4 << 20
"""Events that a tail keeps, at most, and their data."""
PAGE = 250
"""Events in one read of the database."""
CHUNK_BYTES = 256 << 10
"""Encoded events are handed on in chunks of about so much: a server holds a chunk in memory until its reader takes it."""
AWAY_SECONDS = 1.0
"""Until a database that is away is asked again."""
READERS = 8
"""Threads that read logs; requests have their own."""
_PAST_ALL = 2**63 - 1
"""A cursor at the end of a log that is gone: the job was deleted."""

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Frame:
    """A stored event, encoded at most once per encoder."""

    __slots__ = ("_encoded", "event")

    def __init__(self, event: StoredEvent) -> None:
        self.event = event
        self._encoded: dict[Encoder, bytes] = {}

    def encoded(self, encoder: Encoder) -> bytes:
        """The event in the form of `encoder`."""
        done = self._encoded.get(encoder)
        if done is None:
            done = self._encoded[encoder] = encoder(self.event)
        return done


class Tail:
    """The recent events of one job: those with a `seq` in (`start`, `last`], without a gap."""

    def __init__(self) -> None:
        self.start: int | None = None
        self.last = 0
        self.ended = False
        self.viewers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._frames: deque[Frame] = deque()
        self._size = 0

    def begin(self, last: int, *, ended: bool) -> None:
        """Remember from here on."""
        self.start = self.last = last
        self.ended = ended
        self.wake()

    def add(self, found: Sequence[StoredEvent]) -> None:
        """The next events of the log."""
        for event in found:
            self._frames.append(Frame(event))
            self._size += len(event.data)
            while len(self._frames) > REMEMBERED or (self._size > REMEMBERED_BYTES and len(self._frames) > 1):
                oldest = self._frames.popleft().event
                self._size -= len(oldest.data)
                self.start = oldest.seq
            self.last = event.seq
            self.ended = event.kind == EndData.kind
        if found:
            self.wake()

    def wake(self) -> None:
        """Let every viewer look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def covers(self, cursor: int) -> bool:
        """Whether everything past `cursor` is remembered."""
        return self.start is not None and cursor >= self.start

    def after(self, cursor: int) -> list[Frame]:
        """The remembered events past `cursor`, oldest first. Costs only what is new."""
        newest: list[Frame] = []
        for frame in reversed(self._frames):
            if frame.event.seq <= cursor:
                break
            newest.append(frame)
        return newest[::-1]


class Broadcaster:
    """The tails of one process."""

    def __init__(self, database: Database, *, poll_seconds: float, heartbeat_seconds: float) -> None:
        self._database = database
        self._poll = poll_seconds
        self._heartbeat = heartbeat_seconds
        self._tails: dict[int, Tail] = {}
        self._threads = anyio.CapacityLimiter(READERS)
        self._stopping = False

    @property
    def watched(self) -> dict[int, int]:
        """How many watch which job."""
        return {job_id: tail.viewers for job_id, tail in self._tails.items()}

    def stop(self) -> None:
        """End every stream, now and to come. Call it on the event loop."""
        self._stopping = True
        for tail in self._tails.values():
            tail.wake()

    async def follow(
        self, job_id: int, after: int, encoder: Encoder, kinds: Collection[str] | None = None
    ) -> AsyncIterator[bytes]:
        """The job's events past `after` as they come, until `end` (which comes whatever `kinds` says) or `stop`.

        Yields whole encoded events, several at a time, and `b""` when nothing came for a heartbeat.
        """
        wanted = None if kinds is None else {*kinds, EndData.kind}
        loop = asyncio.get_running_loop()
        beat = loop.time() + self._heartbeat
        cursor = after
        with self._watching(job_id) as tail:
            while not self._stopping:
                changed, again = tail.changed, math.inf  # taken before the look, so that what comes meanwhile is not slept over
                if tail.covers(cursor):
                    found = tail.after(cursor)
                    ended = tail.ended
                    cursor = max(cursor, tail.last)
                    chunks = _chunks(f.encoded(encoder) for f in found if wanted is None or f.event.kind in wanted)
                    behind = False
                elif (page := await self._page_if_any(job_id, cursor, encoder, wanted)) is not None:
                    chunks, seen, ended = page
                    behind, cursor = seen > cursor, seen
                else:
                    chunks, ended, behind, again = [], False, False, loop.time() + AWAY_SECONDS
                for chunk in chunks:
                    yield chunk
                    beat = loop.time() + self._heartbeat
                if ended and cursor >= tail.last:
                    return
                if not behind and not await _set_before(changed, min(beat, again)) and loop.time() >= beat:
                    yield b""
                    beat = loop.time() + self._heartbeat

    async def replay(
        self, job_id: int, after: int, encoder: Encoder, kinds: Collection[str] | None = None
    ) -> AsyncIterator[bytes]:
        """The job's events past `after` that are there now, a few hundred at a time."""
        cursor, ended, more = after, False, True
        while more and not ended and not self._stopping:
            before = cursor
            chunks, cursor, ended = await self._page(job_id, cursor, encoder, kinds)
            more = cursor > before
            for chunk in chunks:
                yield chunk

    @contextlib.contextmanager
    def _watching(self, job_id: int) -> Iterator[Tail]:
        """The job's tail, which runs from its first viewer to its last."""
        tail = self._tails.get(job_id)
        if tail is None:
            tail = self._tails[job_id] = Tail()
            tail.task = asyncio.create_task(self._run(job_id, tail))
        tail.viewers += 1
        try:
            yield tail
        finally:
            tail.viewers -= 1
            if not tail.viewers:
                del self._tails[job_id]
                if tail.task is not None:
                    tail.task.cancel()

    async def _run(self, job_id: int, tail: Tail) -> None:
        """Read what is new, every `poll_seconds`, until the job has ended. A database that is away is waited for."""
        loop = asyncio.get_running_loop()
        look = loop.time() + self._heartbeat
        while not tail.ended:
            due = loop.time() + self._poll
            try:
                if loop.time() >= look:  # nothing came for long: is the job still there?
                    look = loop.time() + self._heartbeat
                    last, _ = await self._in_thread(self._last_seq, job_id)
                    if last == _PAST_ALL:
                        tail.begin(last, ended=True)
                        return
                if tail.start is None:
                    last, ended = await self._in_thread(self._last_seq, job_id)
                    tail.begin(last, ended=ended)
                found = await self._in_thread(self._events, job_id, tail.last, None)
            except AWAY as error:
                log.warning("job %d: its log cannot be read; trying again in %g s: %s", job_id, AWAY_SECONDS, reason(error))
                due, found = loop.time() + AWAY_SECONDS, []
            except Exception:
                log.exception("job %d: its log cannot be read; trying again", job_id)
                due, found = loop.time() + AWAY_SECONDS, []
            tail.add(found)
            if found:
                look = loop.time() + self._heartbeat
            if len(found) < PAGE:
                await asyncio.sleep(max(0, due - loop.time()))

    async def _page_if_any(
        self, job_id: int, cursor: int, encoder: Encoder, kinds: Collection[str] | None
    ) -> tuple[list[bytes], int, bool] | None:
        """`_page`, or None while the database is away."""
        try:
            return await self._page(job_id, cursor, encoder, kinds)
        except AWAY as error:
            log.warning("job %d: its log cannot be read; trying again in %g s: %s", job_id, AWAY_SECONDS, reason(error))
            return None

    async def _page(
        self, job_id: int, cursor: int, encoder: Encoder, kinds: Collection[str] | None
    ) -> tuple[list[bytes], int, bool]:
        """From the database: the next events in chunks, the `seq` up to which all were seen, and whether the log ends there."""
        return await self._in_thread(self._encoded_page, job_id, cursor, encoder, kinds)

    def _encoded_page(
        self, job_id: int, cursor: int, encoder: Encoder, kinds: Collection[str] | None
    ) -> tuple[list[bytes], int, bool]:
        with self._database.read() as session:
            try:
                last, ended = events.last_seq(session, job_id)
            except NotFound:  # deleted while it was read
                return [], _PAST_ALL, True
            found = events.read(session, job_id, after=cursor, limit=PAGE, kinds=kinds)
        newest = found[-1].seq if found else cursor
        seen = newest if len(found) == PAGE else max(newest, last)  # a short page has all there was, of these kinds
        at_end = (ended and seen >= last) or bool(found and found[-1].kind == EndData.kind)
        return _chunks(map(encoder, found)), seen, at_end

    def _last_seq(self, job_id: int) -> tuple[int, bool]:
        with self._database.read() as session:
            try:
                return events.last_seq(session, job_id)
            except NotFound:
                return _PAST_ALL, True

    def _events(self, job_id: int, after: int, kinds: Collection[str] | None) -> list[StoredEvent]:
        with self._database.read() as session:
            return events.read(session, job_id, after=after, limit=PAGE, kinds=kinds)

    async def _in_thread(self, function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)


def _chunks(encoded: Iterable[bytes]) -> list[bytes]:
    """The events joined, none cut, into as few chunks as `CHUNK_BYTES` allows; an event that is longer makes one alone."""
    chunks: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for event in encoded:
        if waiting and size + len(event) > CHUNK_BYTES:
            chunks.append(b"".join(waiting))
            waiting, size = [], 0
        waiting.append(event)
        size += len(event)
    if size:
        chunks.append(b"".join(waiting))
    return chunks


async def _set_before(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await event.wait()
    except TimeoutError:
        return False
    return True
