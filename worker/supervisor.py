"""The supervisor of one attempt: the only writer of a running job.

It starts the trainer, commits its events in order, renews the lease and passes it on as a permit, obeys commands, and says how
it ended. Whatever it does is fenced: when the lease is lost it kills the trainer and writes nothing.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.adjustments import Adjustment
from core.events import CheckpointData, Firing, JobState
from sandbox import Child, ExitStatus, Limits, Sandbox
from store import adjustments, commands, events, leases
from store.database import Database
from store.errors import LeaseLost
from store.leases import Claim
from store.settings import Settings
from worker.crew import Crew
from worker.devices import Slot
from worker.ending import Asked, Ending, conclude, excuse
from worker.failures import oom_kills
from worker.fetch import Fetch
from worker.intake import Intake
from worker.journal import Journal
from worker.link import NO_DEVICE
from worker.persistence import Persistence, StoppedError
from worker.pruning import NOTHING, prune

TARGET = "worker.trainer:run"
_GRACE = 0.5
"""Seconds that a cancelled trainer has to end its step."""
_STRENGTH: dict[Asked | None, int] = {None: 0, "pause": 1, "stop": 2, "timeout": 3, "cancel": 4}
_LEAVE = 2.0
"""Seconds that a trainer has to exit after its last word."""
_MARGIN = 1 / 6
"""Of the lease: so long before its end does the trainer stand still."""

log = logging.getLogger(__name__)

Listener = Crew | Fetch
"""Who hears of permits and commands: the trainers, or before them the fetch of what they need."""


class Supervisor:
    """One attempt of one job, from its claim to its end. `claimed_at` is monotonic, taken before the claim."""

    def __init__(
        self,
        claim: Claim,
        slot: Slot,
        *,
        claimed_at: float,
        database: Database,
        sandbox: Sandbox,
        settings: Settings,
        stop: threading.Event,
        limits: Limits | None = None,
        target: str = TARGET,
    ) -> None:
        self._claim, self._lease, self._slot = claim, claim.lease, slot
        self._sandbox, self._settings, self._stop = sandbox, settings, stop
        self._limits = limits or Limits(cores=threads(settings, len(slot.devices)))
        self._target = target
        self._persistence = Persistence(database, claim.lease, stop, settings.stop_seconds)
        self._journal = Journal()
        self._folder = settings.data_dir / "jobs" / str(self._lease.job_id)
        self._directory = self._folder / str(self._lease.attempt)
        self._word: dict[str, Any] | None = None
        self._asked: Asked | None = None
        self._told: set[int | None] = set()
        self._ends_at = math.inf if claim.seconds_left is None else claimed_at + claim.seconds_left
        self._held_at = claimed_at
        self._pinned: dict[str, Any] = {}
        self._renew_at = claimed_at + settings.renew_seconds
        self._command_at = self._commit_at = 0.0
        self._kill_at: float | None = None
        self._oom_kills = oom_kills()

    @property
    def device_fault(self) -> str | None:
        """Once it has run: why a GPU of its slot cannot be used; None where they can."""
        return self._word["message"] if self._word is not None and self._word["kind"] == NO_DEVICE else None

    def run(self) -> None:
        """Run the attempt. Never raises for what a job or its lease can do."""
        try:
            kept = self._begin()
            status = self._fetch()
            if status is None:
                with self._spawn(kept) as crew:
                    status = self._watch(crew)
            state = self._conclude(status)
        except LeaseLost as error:
            log.warning("%s", error)
        except StoppedError:
            log.warning("job %d: stopped while the database was away; its lease will run out", self._lease.job_id)
        except Exception as error:
            log.exception("job %d, attempt %d: the supervisor failed", self._lease.job_id, self._lease.attempt)
            self._excuse(error)
        else:
            log.info("job %d, attempt %d: %s", self._lease.job_id, self._lease.attempt, state)

    # -- the start

    def _begin(self) -> list[Path]:
        """The attempt's own directory, and the checkpoints that it may go on from, oldest first."""
        self._directory.mkdir(parents=True, exist_ok=True)
        kept = self._persistence.start(self._kept)
        prune(self._folder, kept, attempt=self._lease.attempt, committed=NOTHING)
        return kept

    def _fetch(self) -> ExitStatus | None:
        """Bring what the job needs from elsewhere; the end of an attempt that gets no further, or None."""
        with Fetch(self._settings, self._claim.plan.get("pinned", {})) as fetch:
            while not fetch.wait(self._patience()):
                self._journal.lines(fetch.lines(), "info")
                self._serve(fetch)
        self._journal.lines(fetch.lines(), "info")
        self._pinned = {source: one.model_dump(mode="json") for source, one in fetch.pinned.items()}
        if fetch.failure is not None:
            self._word = {"kind": "failed", "failure": fetch.failure.model_dump()}
        self._kill_at = None
        return ExitStatus(0) if self._asked is not None or fetch.failure is not None else None

    def _spawn(self, kept: list[Path]) -> Crew:
        done, asked, fired = self._persistence.read(self._history)
        self._told = {one.id for one in asked}
        message: dict[str, Any] = {
            "kind": "start",
            "job": self._lease.job_id,
            "attempt": self._lease.attempt,
            "spec": self._claim.spec,
            "places": self._places(),
            "directory": str(self._directory),
            "resume": None if self._lease.attempt == 1 else [str(path) for path in reversed(kept)],
            "adjusted": [asdict(one) for one in done],
            "adjust": [asdict(one) for one in asked],
            "fired": [list(one) for one in fired],
            "permit": self._permit(self._held_at),
        }
        while not self._sandbox.wait_ready(self._settings.renew_seconds):  # its forkserver died, and another one warms up
            message["permit"] = self._permit(self._hold())

        def spawn(environment: Mapping[str, str]) -> Child:
            return self._sandbox.spawn(self._target, limits=self._limits, environment=environment, cwd=self._directory)

        crew = Crew(self._slot, spawn)
        for child, device in zip(crew.children, self._slot.devices, strict=True):
            try:
                child.channel.send({**message, "device": device})
            except OSError:
                log.debug("job %d: the trainer died at once", self._lease.job_id)  # its status says how
        return crew

    def _places(self) -> dict[str, object]:
        return {**self._settings.places(), "pinned": self._pinned}

    def _history(self, session: Session) -> tuple[list[Adjustment], list[Adjustment], list[Firing]]:
        """The adjustments that earlier attempts have done, those that are to be done, and the rules that have acted."""
        job = self._lease.job_id
        return adjustments.history(session, job), adjustments.asked(session, job), events.firings(session, job)

    def _kept(self, session: Session) -> list[Path]:
        """The directories of the checkpoints that the log keeps, oldest first."""
        root = self._settings.data_dir
        return [root / checkpoint["path"] for checkpoint in events.checkpoints(session, self._lease.job_id)]

    def _permit(self, renewed_at: float) -> float:
        return renewed_at + self._lease.seconds * (1 - _MARGIN)

    # -- the watch

    def _watch(self, crew: Crew) -> ExitStatus:
        """Read and serve the crew until it is dead; everything that it said is in the journal then, or committed.

        The end of one rank is the end of all: the others have a moment to say why, for it may be they who know.
        """
        folder = f"jobs/{self._lease.job_id}/{self._lease.attempt}"
        with Intake(crew.children, self._journal, folder) as intake:
            while intake.pump(self._patience()):
                if intake.urgent:
                    intake.urgent, self._commit_at = False, 0.0
                if intake.over:
                    self._kill_at = min(self._kill_at or math.inf, time.monotonic() + _LEAVE)
                self._serve(crew)
            self._word = intake.word
            return intake.status

    # -- what is due

    def _patience(self) -> float:
        due = [self._renew_at, self._command_at]
        if len(self._journal):
            due.append(self._commit_at)
        if self._kill_at is not None:
            due.append(self._kill_at)
        return max(0.0, min(due) - time.monotonic())

    def _serve(self, listener: Listener) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            listener.kill()
        if now >= self._renew_at:
            _tell(listener, {"kind": "permit", "until": self._permit(self._hold())})
        if len(self._journal) and (now >= self._commit_at or self._journal.full):
            self._commit()
        if now >= self._command_at:
            self._obey(listener)

    def _hold(self) -> float:
        """Hold the lease for longer, from the monotonic time that is returned; a late one counts if nobody took the job."""
        asked_at = 0.0

        def work(session: Session) -> bool:
            nonlocal asked_at
            asked_at = time.monotonic()  # before the database's own clock is read
            return leases.renew(session, self._lease)

        if not self._persistence.write(work):
            raise LeaseLost(f"attempt {self._lease.attempt} of job {self._lease.job_id} was taken over; it is stopped")
        self._renew_at = asked_at + self._settings.renew_seconds
        self._held_at = asked_at
        return asked_at

    def _obey(self, listener: Listener) -> None:
        self._command_at = time.monotonic() + self._settings.command_seconds
        if self._stop.is_set():
            self._ask(listener, "stop", self._settings.stop_seconds)
        pending = self._persistence.read(lambda session: commands.pending(session, self._lease))
        for command in pending:
            if command.kind == "adjust" and command.id not in self._told:
                self._told.add(command.id)
                _tell(listener, {"kind": "adjust", "adjustment": asdict(adjustments.of(command))})
        kinds = {command.kind for command in pending}
        if "cancel" in kinds:
            self._ask(listener, "cancel", _GRACE)
        elif time.monotonic() >= self._ends_at:
            self._ask(listener, "timeout", _GRACE)
        elif "pause" in kinds:
            self._ask(listener, "pause", None)  # a validation may take an hour, and its epoch is not to be lost

    def _ask(self, listener: Listener, what: Asked, grace: float | None) -> None:
        """Have the trainer stop within `grace` seconds. What is asked once stays asked, unless something stronger comes."""
        if _STRENGTH[what] <= _STRENGTH[self._asked]:
            return
        self._asked = what
        self._kill_at = None if grace is None else time.monotonic() + grace
        _tell(listener, {"kind": "pause" if what in ("pause", "stop") else "cancel"})

    def _commit(self) -> None:
        batch = self._journal.take()
        started = time.monotonic()
        saved = [Path(event.data["path"]).name for event in batch if event.kind == CheckpointData.kind]
        kept = self._persistence.append(batch, self._kept if saved else lambda _: [])
        self._commit_at = started + self._settings.commit_seconds
        if saved:
            prune(self._folder, kept, attempt=self._lease.attempt, committed=saved[-1])

    # -- the end

    def _conclude(self, status: ExitStatus) -> JobState:
        """Commit what is left, and how it ended, at once."""
        batch, lines = self._journal.take_last(), self._journal.last_lines()
        starved = oom_kills() > self._oom_kills
        ending = Ending(self._word, self._asked, self._stop.is_set(), status, lines, starved)

        def end(session: Session) -> tuple[JobState, list[Path]]:
            return conclude(session, self._lease, self._claim.spec, ending), self._kept(session)

        state, kept = self._persistence.append(batch, end)
        if state not in ("queued", "paused"):  # else the next attempt may be running already, and prunes
            prune(self._folder, kept, attempt=self._lease.attempt, committed=None)
        return state

    def _excuse(self, error: Exception) -> None:
        try:
            self._persistence.write(lambda session: excuse(session, self._lease, error))
        except (LeaseLost, StoppedError) as lost:
            log.warning("job %d: %s", self._lease.job_id, lost)


def threads(settings: Settings, ranks: int = 1) -> int:
    """CPU threads of a trainer, or of each of its ranks."""
    return settings.threads or max(1, len(os.sched_getaffinity(0)) // max(1, settings.cpu_slots) // ranks)


def _tell(listener: Listener, message: dict[str, Any]) -> None:
    """A few bytes that always fit, unless the trainer has not listened for hours, or is gone: then its end is at hand anyway."""
    try:
        listener.channel.send(message, timeout=1)
    except OSError:
        log.debug("process %d does not listen", listener.pid)
