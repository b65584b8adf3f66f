"""Adjustments: other values for a parameter group, asked of a job that waits, runs or is paused.

Each is a command until its `adjusted` event commits, with its done mark (`store.events.append`). What a later `rewound` makes
void is not lost: an attempt is told of all that the log has, and does them again at their steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.adjustments import RULES, Adjustment, Told
from core.events import GroupsData
from store.clock import now
from store.commands import Pending, unfinished
from store.errors import Conflict
from store.events import latest, of_kinds
from store.jobs import get
from store.tables import Command, Job


def open_job(session: Session, job_id: int) -> Job:
    """The job whose groups are to be adjusted, locked until the transaction ends.

    Raises NotFound, and Conflict where it has ended or is being cancelled.
    """
    job = unfinished(session, job_id)
    if job.requested == "cancel":
        raise Conflict(f"job {job_id} is being cancelled; its groups cannot be adjusted any more")
    return job


def adjust(session: Session, job: Job, adjustment: Adjustment) -> Adjustment:
    """Ask it of an `open_job`; the answer has its id. They are done in the order in which they were asked for.

    Raises Conflict where its step is over already.
    """
    if adjustment.step is not None and adjustment.step < job.step:
        raise Conflict(f"step {adjustment.step} is over: job {job.id} is at step {job.step}; leave at_step out for the next one")
    payload = {"group": adjustment.group, "changes": adjustment.changes, "step": adjustment.step}
    command = Command(job_id=job.id, kind="adjust", payload=payload, by=adjustment.by, created_at=now(session))
    session.add(command)
    session.flush()
    return _of(command.id, command.by, payload)


def adopt(session: Session, job: Job, adjustments: Iterable[Adjustment]) -> None:
    """Ask the same of a new job, each at its step."""
    for one in adjustments:
        adjust(session, job, one)


def asked(session: Session, job_id: int) -> list[Adjustment]:
    """Those that are still to be done, oldest first."""
    columns = (Command.id, Command.by, Command.payload)
    still = Command.done_at.is_(None), Command.kind == "adjust", Command.job_id == job_id
    return [_of(*row) for row in session.execute(select(*columns).where(*still).order_by(Command.id))]


def of(command: Pending) -> Adjustment:
    """What a command of the kind `adjust` asks for."""
    return _of(command.id, command.by, command.payload or {})


def done(session: Session, job_id: int) -> list[Adjustment]:
    """Those that people have asked for and that the log tells of, each once, void ones too; in order.

    Those that were refused are not among them: they have changed nothing.
    """
    return [replace(one, changes=one.values, order=None, cuts=()) for one in history(session, job_id) if one.by != RULES]


def history(session: Session, job_id: int) -> list[Adjustment]:
    """What an attempt has to do again: as `done`, and the cuts that rules have made, but for void ones: they are decided anew.

    By step, and for one step in the order in which they were done.
    """
    return Told(of_kinds(session, job_id, Told.kinds)).history()


def pending(session: Session, job: Job) -> list[Adjustment]:
    """What is to come: those that are asked for, and those that a rewind made void and that are done again at their steps."""
    if job.ended_at is not None:
        return []
    void = [replace(one, changes=one.values) for one in Told(of_kinds(session, job.id, Told.kinds)).void()]
    return sorted([*void, *asked(session, job.id)], key=lambda one: one.id or 0)


def table(session: Session, job_id: int) -> dict[str, Any] | None:
    """The parameter groups as they begin: as the log tells of them, before that as the plan does, without their parameters.

    None where neither knows. Raises NotFound.
    """
    job = get(session, job_id)
    found = latest(session, job_id, GroupsData.kind) or job.plan.get("groups")
    return None if found is None else {**found, "groups": [{"parameters": [], **row} for row in found["groups"]]}


def _of(number: int, by: str, payload: dict[str, Any]) -> Adjustment:
    return Adjustment(**payload, by=by, id=number)
