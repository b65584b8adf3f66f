"""Workers, as their heartbeats tell of them. Leases say who runs what; all that depends on it is `draining`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.capacity import Capacity
from store.clock import now
from store.errors import NotFound
from store.settings import SILENT_SECONDS
from store.tables import Worker


@dataclass(frozen=True)
class WorkerStatus:
    """A worker. Times are epoch seconds."""

    name: str
    host: str
    queues: list[str]
    devices: dict[str, Any]
    running: list[int]
    draining: bool
    started_at: float
    seen_at: float
    alive: bool


def heartbeat(
    session: Session, *, name: str, host: str, queues: Collection[str], devices: dict[str, Any], running: Collection[int]
) -> bool:
    """Say that this worker lives, what it has and what it runs; the answer is whether it shall drain."""
    at = now(session)
    told = {"host": host, "queues": list(queues), "devices": devices, "running": sorted(running), "seen_at": at}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(Worker).values(name=name, started_at=at, draining=False, **told)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_=told)
    return session.execute(statement.returning(Worker.draining)).scalar_one()


def drain(session: Session, name: str) -> None:
    """Give this worker no new job from now on; it leaves once it runs none. Raises NotFound."""
    statement = update(Worker).where(Worker.name == name).values(draining=True).returning(Worker.name)
    if session.execute(statement, execution_options={"synchronize_session": False}).one_or_none() is None:
        raise NotFound(f"there is no worker '{name}'; GET /workers lists them")


def listing(session: Session, silent: float = SILENT_SECONDS) -> list[WorkerStatus]:
    """All workers, those alive first, then by name."""
    at = now(session)
    found = [
        WorkerStatus(
            w.name, w.host, w.queues, w.devices, w.running, w.draining, w.started_at, w.seen_at, alive=at - w.seen_at <= silent
        )
        for w in session.scalars(select(Worker))
    ]
    return sorted(found, key=lambda worker: (not worker.alive, worker.name))


def capacities(session: Session) -> dict[str, set[Capacity]]:
    """Of each queue, what the living workers have that serve it, were all of it free. One that drains serves none.

    One whose GPUs are all out of use has one that is never free.
    """
    served: defaultdict[str, set[Capacity]] = defaultdict(set)
    for worker in listing(session):
        if worker.alive and not worker.draining:
            free = len(worker.devices.get("gpus", ()))
            gpus = max(free, min(1, len(worker.devices.get("gpus_out", ()))))
            for queue in worker.queues:
                served[queue].add(Capacity(free, gpus, worker.devices.get("cpu_slots", 0)))
    return dict(served)


def forget(session: Session, name: str) -> None:
    """Leave a worker out of the listing: it stopped, or it is known to be dead."""
    session.execute(delete(Worker).where(Worker.name == name), execution_options={"synchronize_session": False})
