"""How an attempt ends: by the trainer's last word, by what was asked of it, or by its death."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from core.errors import DiskFullError, is_no_room
from core.events import Failure, JobState
from sandbox import ExitStatus, SandboxError
from store import leases
from store.leases import Lease
from worker.failures import crash
from worker.link import NO_DEVICE

Asked = Literal["cancel", "timeout", "stop", "pause"]
"""What an attempt is asked to stop for: a command, its worker's own stop, or that its job has run for `max_hours`."""

STOPS = "the worker stops"


@dataclass(frozen=True)
class Ending:
    """All that is known once the trainer is dead."""

    word: Mapping[str, Any] | None
    asked: Asked | None
    stopping: bool
    """Whether the worker stops."""
    status: ExitStatus
    lines: Sequence[str]
    """The last that it printed."""
    starved: bool = False
    """Whether the kernel has killed a process of the worker's for want of memory meanwhile."""


def conclude(session: Session, lease: Lease, spec: Mapping[str, Any], ending: Ending) -> JobState:
    """End the attempt, in the state that is returned. Raises LeaseLost."""
    if ending.word is not None and (state := _take(session, lease, ending, ending.word)) is not None:
        return state
    if ending.asked is not None:
        return _obey(session, lease, spec, ending.asked)
    if ending.stopping:
        return leases.give_back(session, lease, reason=STOPS)
    failure = crash(ending.status, ending.lines, starved=ending.starved)
    return leases.give_back(session, lease, reason=failure.message, failure=failure, counted=True)


def _take(session: Session, lease: Lease, ending: Ending, word: Mapping[str, Any]) -> JobState | None:
    """What the trainer's last word comes to; None where it only obeys what was asked, which decides."""
    if word["kind"] == "failed":
        return _finish(session, lease, Failure.model_validate({**word["failure"], "lines": list(ending.lines)}))
    if word["kind"] == NO_DEVICE:  # it waits for another GPU, and that does not count
        return leases.give_back(session, lease, reason=f"a GPU of {lease.owner} cannot be used: {word['message']}")
    if word["kind"] == "done":
        leases.finish(session, lease, "succeeded", None)
        return "succeeded"
    if "reason" in word and ending.asked not in ("cancel", "timeout"):
        return leases.pause(session, lease, reason=word["reason"])
    return None


def _obey(session: Session, lease: Lease, spec: Mapping[str, Any], asked: Asked) -> JobState:
    if asked == "cancel":
        leases.finish(session, lease, "cancelled", None)
        return "cancelled"
    if asked == "stop":
        return leases.give_back(session, lease, reason=STOPS)
    if asked == "timeout":
        return _finish(session, lease, timeout(lease.job_id, spec["resources"]["max_hours"]))
    return leases.give_back(session, lease, reason="the pause was withdrawn")  # or pauses the job, if it was not


def timeout(job_id: int, hours: float) -> Failure:
    """The failure of a job that has run for as long as its spec allows."""
    message = f"it has run for resources.max_hours, {hours:g} in all"
    hint = f"Its checkpoints are kept: fork it with more hours, and the new job begins with their weights (graft fork {job_id})."
    return Failure(type="timeout", message=message, hint=hint)


def excuse(session: Session, lease: Lease, error: Exception) -> None:
    """The supervisor itself could not go on: the job ends where that is final, else it is tried again. Raises LeaseLost."""
    full = is_no_room(error)
    hint = DiskFullError.hint if full else "Look at the worker's own log."
    kind = "disk_full" if full else "worker_lost" if isinstance(error, SandboxError) else "crashed"
    failure = Failure.model_validate({"type": kind, "message": f"{type(error).__name__}: {error}"[:1000], "hint": hint})
    if full:
        _finish(session, lease, failure)
    else:
        leases.give_back(session, lease, reason=failure.message, failure=failure, counted=True)


def _finish(session: Session, lease: Lease, failure: Failure) -> JobState:
    leases.finish(session, lease, "failed", failure)
    return "failed"
