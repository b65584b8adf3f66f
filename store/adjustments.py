"""Adjustments: other values for a parameter group, asked of a job that waits, runs or is paused.

Each is a command until its `adjusted` event commits, with its done mark (`store.events.append`). What a later `rewound` makes
void is not lost: an attempt is told of all that the log has, and does them again at their steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.adjustments import RULES, Adjustment
from core.events import AdjustedData, GroupsData
from store.clock import now
from store.commands import Pending, unfinished
from store.errors import Conflict
from store.events import folded, latest
from store.jobs import get
from store.tables import Command, EventRecord, Job


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
    return [one for one in history(session, job_id) if one.by != RULES]


def history(session: Session, job_id: int) -> list[Adjustment]:
    """What an attempt has to do again: as `done`, and the cuts that rules have made, but for void ones: they are decided anew.

    By step, and for one step in the order in which they were done.
    """
    valid = [_told(row.data) for row in folded(session, job_id, {AdjustedData.kind}) if not row.data["refused"]]
    return sorted([*valid, *_void(session, job_id)], key=lambda one: one.step or 0)


def _void(session: Session, job_id: int) -> list[Adjustment]:
    """What people have asked for, was done, and is void, oldest first: it is done again at its step."""
    valid = {row.data["id"] for row in folded(session, job_id, {AdjustedData.kind})}
    kind = EventRecord.job_id == job_id, EventRecord.kind == AdjustedData.kind
    told = map(orjson.loads, session.scalars(select(EventRecord.data).where(*kind)))
    found = {data["id"]: _told(data) for data in told if not data["refused"] and data["id"] is not None}
    return sorted((one for one in found.values() if one.id not in valid), key=lambda one: one.id or 0)


def pending(session: Session, job: Job) -> list[Adjustment]:
    """What is to come: those that are asked for, and those that a rewind made void and that are done again at their steps."""
    if job.ended_at is not None:
        return []
    return sorted([*_void(session, job.id), *asked(session, job.id)], key=lambda one: one.id or 0)


def table(session: Session, job_id: int) -> dict[str, Any] | None:
    """The parameter groups as they begin: as the log tells of them, before that as the plan does, without their parameters.

    None where neither knows. Raises NotFound.
    """
    job = get(session, job_id)
    found = latest(session, job_id, GroupsData.kind) or job.plan.get("groups")
    return None if found is None else {**found, "groups": [{"parameters": [], **row} for row in found["groups"]]}


def _of(number: int, by: str, payload: dict[str, Any]) -> Adjustment:
    return Adjustment(**payload, by=by, id=number)


def _told(data: dict[str, Any]) -> Adjustment:
    changes = {key: change["to"] for key, change in data["changes"].items()}
    return Adjustment(data["group"], changes, data["step"], data["by"], data["id"], data.get("factor"))
