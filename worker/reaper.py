"""What a worker does beside its jobs, each so often: look for work, take back dead leases, say that it lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox import SandboxError
from store import jobs, leases
from store.engines import AWAY, reason
from store.hints import Hints
from worker.pruning import tidy
from worker.runner import Runner

_BEAT = 5.0
_NEXT_TRY = 2.0

log = logging.getLogger(__name__)


@dataclass
class _Chore:
    action: Callable[[], None]
    seconds: float
    due: float = 0.0
    failing: bool = False
    """The database did not answer it the last time."""


class Reaper:
    """The chores of a worker, in one thread, until the runner stops. A chore that fails is tried again at its next time."""

    def __init__(self, runner: Runner, hints: Hints, *, leave: Callable[[], None]) -> None:
        """`leave` is called once the worker has drained."""
        self._runner, self._hints, self._leave = runner, hints, leave
        settings = runner.settings
        self._chores: Sequence[_Chore] = (
            _Chore(self._beat, min(_BEAT, settings.poll_seconds)),
            _Chore(self._warm_up, _NEXT_TRY),
            _Chore(self.reap, settings.reap_seconds),
            _Chore(self.let_go, settings.reap_seconds),
            _Chore(runner.work_aside, settings.poll_seconds),
        )
        self._thread = threading.Thread(target=self._run, name="graft-reaper", daemon=True)

    def start(self) -> None:
        """Begin, every chore at once."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the end, once the runner stops."""
        self._thread.join(timeout)

    def reap(self) -> None:
        """Take back the jobs of dead workers, and hint again at every queue where jobs wait."""
        with self._runner.database.write() as session:
            taken = leases.reap(session)
        for job in taken:
            log.warning("job %d: its lease ran out, it was taken back", job)
        with self._runner.database.read() as session:
            waiting = [queue for queue, states in jobs.counts(session).items() if states.get("queued")]
        for queue in waiting:
            if not self._hints.send(queue):
                return  # a broker that hangs must not keep this thread from its other chores for long

    def let_go(self) -> None:
        """Delete the checkpoints that were kept for other jobs alone, once those have ended, and what deleted jobs left."""
        for path in tidy(self._runner.database, self._runner.settings.data_dir):
            log.info("%s: deleted; no job needs it any more", path)

    def _beat(self) -> None:
        if self._runner.beat():
            log.info("drained; leaving")
            self._leave()

    def _warm_up(self) -> None:
        """Have a warm sandbox; when one has become so, say it and look for work at once."""
        sandbox = self._runner.sandbox
        if sandbox.ready:
            return
        try:
            if not sandbox.wait_ready(_NEXT_TRY):
                return
        except SandboxError as error:
            log.error("%s", error)  # noqa: TRY400  (its own standard error has the traceback)
            return
        log.info("the sandbox is warm")
        self._runner.beat()
        self._runner.work_aside()

    def _run(self) -> None:
        stop = self._runner.stop
        while not stop.is_set():
            for chore in self._chores:
                if time.monotonic() >= chore.due and not stop.is_set():
                    self._do(chore)
            stop.wait(max(0.0, min(chore.due for chore in self._chores) - time.monotonic()))

    def _do(self, chore: _Chore) -> None:
        try:
            chore.action()
        except AWAY as error:
            if not chore.failing:  # once, however long it lasts
                log.warning("the database does not answer; a chore is tried again each %g s: %s", chore.seconds, reason(error))
            chore.failing = True
        except Exception:
            log.exception("a chore failed; it is tried again in %g s", chore.seconds)
        else:
            if chore.failing:
                log.info("the database answers again")
            chore.failing = False
        chore.due = time.monotonic() + chore.seconds
