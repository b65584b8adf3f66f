"""The log: append to it, read it, fold it. `seq` runs from 1 without gaps, and commit order is `seq` order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from core import events as schema
from core.events import (
    AdjustedData,
    CheckpointData,
    EndData,
    EvaluationData,
    Firing,
    IterationsData,
    RewoundData,
    Row,
    RuleData,
    StateData,
)
from store import pins
from store.clock import iso, moment
from store.errors import NotFound
from store.fence import Lease, held, lost
from store.losses import Losses, buckets
from store.progress import KINDS as PROGRESS
from store.progress import Progress
from store.states import FINAL
from store.tables import Command, EventRecord, Job

__all__ = [
    "Losses",
    "NewEvent",
    "StoredEvent",
    "append",
    "buckets",
    "checkpoints",
    "evaluation",
    "firings",
    "folded",
    "last_seq",
    "latest",
    "losses",
    "of_kinds",
    "read",
    "record",
]

OURS = frozenset({StateData.kind, EndData.kind})
"""Kinds that only a change of state writes."""


@dataclass(frozen=True)
class NewEvent:
    """An event before it has its number."""

    step: int
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class StoredEvent:
    """An event of the log. `data` is raw JSON, `at` ISO 8601 in UTC."""

    seq: int
    at: str
    attempt: int
    step: int
    kind: str
    data: str

    def envelope(self) -> bytes:
        """The event as one JSON object, on one line, without the newline."""
        head = f'{{"seq":{self.seq},"at":"{self.at}","attempt":{self.attempt},"step":{self.step},"kind":"{self.kind}","data":'
        return f"{head}{self.data}}}".encode()


def append(session: Session, lease: Lease, events: Sequence[NewEvent]) -> int:
    """Write events of a running job; the last one's `seq` is returned.

    One fenced UPDATE takes the numbers and keeps the job's progress; the command that an `adjusted` obeys is done with it.
    Raises LeaseLost, ValueError for a kind that is no event of a trainer.
    """
    for event in events:
        if event.kind in OURS or event.kind not in schema.KINDS:
            raise ValueError(f"'{event.kind}' is no event that a trainer writes")
    statement = (
        update(Job)
        .where(held(lease))
        .values(last_seq=Job.last_seq + len(events), **_progress(session, lease, events))
        .returning(Job.last_seq, moment(session))
    )
    row = session.execute(statement, execution_options={"synchronize_session": False}).one_or_none()
    if row is None:
        raise lost(lease)
    seq, at = row
    record(session, lease.job_id, attempt=lease.attempt, last_seq=seq, at=at, events=events)
    if obeyed := [event.data["id"] for event in events if event.kind == AdjustedData.kind and event.data["id"] is not None]:
        waiting = Command.job_id == lease.job_id, Command.id.in_(obeyed), Command.done_at.is_(None)
        session.execute(update(Command).where(*waiting).values(done_at=at), execution_options={"synchronize_session": False})
    return seq


def _progress(session: Session, lease: Lease, events: Sequence[NewEvent]) -> dict[str, Any]:
    """The columns that these events change. Only the lease's holder writes them, so reading them first is safe."""
    rows = [Row(0, event.step, event.kind, event.data) for event in events if event.kind in PROGRESS]
    if not rows:
        return {}
    if any(row.kind == RewoundData.kind for row in rows):
        progress = Progress().after_all(schema.fold([*of_kinds(session, lease.job_id, PROGRESS), *rows]))
    else:
        columns = select(Job.step, Job.epoch, Job.latest, Job.best).where(Job.id == lease.job_id)
        stored = session.execute(columns).one_or_none()
        if stored is None:
            raise lost(lease)
        progress = Progress(*stored).after_all(rows)
    values: dict[str, Any] = vars(progress)
    if any(row.kind == CheckpointData.kind for row in rows):
        values = {**values, "failures": 0}  # what follows is a new try, not one more of the same
    return values


def record(session: Session, job_id: int, *, attempt: int, last_seq: int, at: float, events: Sequence[NewEvent]) -> None:
    """Insert events whose numbers, ending with `last_seq`, an UPDATE of the job has just taken."""
    first = last_seq - len(events) + 1
    if not events:
        return
    session.execute(
        insert(EventRecord),
        [
            {
                "job_id": job_id,
                "seq": seq,
                "at": at,
                "attempt": attempt,
                "step": event.step,
                "kind": event.kind,
                "data": orjson.dumps(event.data).decode(),
            }
            for seq, event in enumerate(events, first)
        ],
    )


def read(session: Session, job_id: int, *, after: int = 0, limit: int, kinds: Collection[str] | None = None) -> list[StoredEvent]:
    """A page of the log: what follows `after`, oldest first; `kinds` leaves the others out."""
    columns = (EventRecord.seq, EventRecord.at, EventRecord.attempt, EventRecord.step, EventRecord.kind, EventRecord.data)
    statement = select(*columns).where(EventRecord.job_id == job_id, EventRecord.seq > after)
    if kinds is not None:
        statement = statement.where(EventRecord.kind.in_(kinds))
    rows = session.execute(statement.order_by(EventRecord.seq).limit(limit))
    return [StoredEvent(seq, iso(at), attempt, step, kind, data) for seq, at, attempt, step, kind, data in rows]


def last_seq(session: Session, job_id: int) -> tuple[int, bool]:
    """The `seq` of the last event, and whether nothing will follow it. Raises NotFound."""
    row = session.execute(select(Job.last_seq, Job.state).where(Job.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row[0], row[1] in FINAL


def latest(session: Session, job_id: int, kind: str) -> dict[str, Any] | None:
    """The data of the last event of this kind, or None before there is one."""
    statement = select(EventRecord.data).where(EventRecord.job_id == job_id, EventRecord.kind == kind)
    data = session.execute(statement.order_by(EventRecord.seq.desc()).limit(1)).scalar_one_or_none()
    return None if data is None else orjson.loads(data)


def folded(session: Session, job_id: int, kinds: Collection[str]) -> list[Row]:
    """The events of these kinds with `rewound` applied: each step once."""
    rows = schema.fold(of_kinds(session, job_id, {*kinds, RewoundData.kind}))
    return [row for row in rows if row.kind in kinds]


def evaluation(session: Session, job_id: int, epoch: int | None = None) -> tuple[int, dict[str, Any]] | None:
    """The step and data of the `evaluation` of an epoch (None: the last one) with `rewound` applied; None where there is none."""
    kind = EventRecord.kind == EvaluationData.kind
    rewinds = of_kinds(session, job_id, {RewoundData.kind})
    columns = (EventRecord.seq, EventRecord.step, EventRecord.data)
    for seq, step, data in session.execute(
        select(*columns).where(EventRecord.job_id == job_id, kind).order_by(EventRecord.seq.desc()).execution_options(yield_per=1)
    ):
        if any(row.seq > seq and row.data["to_step"] < step for row in rewinds):
            continue
        found = orjson.loads(data)
        if epoch is None or found["epoch"] == epoch:
            return step, found
    return None


def losses(session: Session, job_id: int) -> Losses:
    """Every optimizer step's loss, each once."""
    kinds = (IterationsData.kind, RewoundData.kind)
    statement = select(EventRecord.kind, EventRecord.data).where(EventRecord.job_id == job_id, EventRecord.kind.in_(kinds))
    return Losses.of((kind, data) for kind, data in session.execute(statement.order_by(EventRecord.seq)))


def firings(session: Session, job_id: int) -> list[Firing]:
    """The rules that have acted, as the log has them now."""
    return schema.firings(of_kinds(session, job_id, {RuleData.kind, RewoundData.kind}))


def checkpoints(session: Session, job_id: int) -> list[dict[str, Any]]:
    """The checkpoints that are kept, oldest first: each event's data, with `best` true for the best one of now.

    Those are the ones that the spec's rule keeps, and those that a job which has not ended was pinned to (`store.pins`).

    Raises NotFound.
    """
    spec = session.execute(select(Job.spec).where(Job.id == job_id)).scalar_one_or_none()
    if spec is None:
        raise NotFound(f"there is no job {job_id}")
    rule = spec["checkpoint"]
    pinned = pins.steps(session, job_id)

    def keep(written: list[dict[str, Any]]) -> list[int]:
        return schema.retained(written, rule["keep_last"], rule["keep_best"], rule["metric"]) + pinned

    written: list[dict[str, Any]] = []
    for row in of_kinds(session, job_id, {CheckpointData.kind, RewoundData.kind}):
        if row.kind == CheckpointData.kind:
            written.append(row.data)
        else:  # what the rule has let go is gone, though it were the last now
            kept = keep(written)
            written = [data for data in written if data["step"] in kept and data["step"] <= row.data["to_step"]]
    kept, best = keep(written), schema.best(written, rule["metric"])
    return [{**data, "best": data is best} for data in written if data["step"] in kept]


def of_kinds(session: Session, job_id: int, kinds: Collection[str]) -> list[Row]:
    """The events of these kinds as they are in the log."""
    columns = (EventRecord.seq, EventRecord.step, EventRecord.kind, EventRecord.data)
    # sorted here: told to sort, SQLite would walk the whole log in order, instead of the few of these kinds
    rows = session.execute(select(*columns).where(EventRecord.job_id == job_id, EventRecord.kind.in_(kinds)))
    return sorted((Row(seq, step, kind, orjson.loads(data)) for seq, step, kind, data in rows), key=lambda row: row.seq)
