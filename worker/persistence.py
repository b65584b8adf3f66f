"""Writes of a running job that outlive a database which is away, locked or full for a while."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy.orm import Session

from store import events
from store.database import Database
from store.engines import AWAY, reason
from store.events import NewEvent
from store.leases import Lease

T = TypeVar("T")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """The worker stops, and the database did not come back before."""


class Persistence:
    """Transactions of one attempt, tried again until the database takes them; once the worker stops, for `patience` seconds more.

    The trainer's permit runs out meanwhile, and it waits: so nothing is lost, and nobody is overtaken.
    """

    def __init__(self, database: Database, lease: Lease, stop: threading.Event, patience: float) -> None:
        self._database, self._lease, self._stop, self._patience = database, lease, stop, patience
        self._seq = 0

    def start(self, read: Callable[[Session], T]) -> T:
        """Read what an attempt starts from, and where its log stands."""

        def work(session: Session) -> T:
            self._seq, _ = events.last_seq(session, self._lease.job_id)
            return read(session)

        return self.read(work)

    def read(self, work: Callable[[Session], T]) -> T:
        """A reading transaction."""
        return self._insist(lambda _: self._run(work, write=False))

    def write(self, work: Callable[[Session], T]) -> T:
        """A writing transaction. Raises LeaseLost as `work` does, and StoppedError."""
        return self._insist(lambda _: self._run(work, write=True))

    def append(self, batch: Sequence[NewEvent], then: Callable[[Session], T]) -> T:
        """Append events and do `then`, in one transaction."""

        def work(session: Session, again: bool) -> T:
            # A connection that broke at the commit leaves open whether it happened; the log's own numbers say it.
            there = again and events.last_seq(session, self._lease.job_id)[0] >= self._seq + len(batch)
            if batch and not there:
                events.append(session, self._lease, batch)
            return then(session)

        result = self._insist(lambda again: self._run(lambda session: work(session, again), write=True))
        self._seq += len(batch)
        return result

    def _run(self, work: Callable[[Session], T], *, write: bool) -> T:
        with self._database.write() if write else self._database.read() as session:
            return work(session)

    def _insist(self, transaction: Callable[[bool], T]) -> T:
        pause, again, stopped_at = _SHORTEST_PAUSE, False, math.inf
        while True:
            stopping = self._stop.is_set()
            try:
                return transaction(again)
            except AWAY as error:
                pause = _SHORTEST_PAUSE if stopping else pause
                log.warning("job %d: the database failed, trying again in %.1f s: %s", self._lease.job_id, pause, reason(error))
            if stopping:  # what trains is writing a checkpoint: one failure must not be the end of it
                stopped_at = min(stopped_at, time.monotonic())
                if time.monotonic() - stopped_at >= self._patience:
                    raise StoppedError
                time.sleep(pause)
            else:
                self._stop.wait(pause)
            pause, again = min(2 * pause, _LONGEST_PAUSE), True
