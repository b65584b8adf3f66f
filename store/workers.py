"""Workers, as their heartbeats tell of them. Nothing depends on it: leases say who runs what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.clock import now
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
    started_at: float
    seen_at: float
    alive: bool


def heartbeat(
    session: Session, *, name: str, host: str, queues: Collection[str], devices: dict[str, Any], running: Collection[int]
) -> None:
    """Say that this worker lives, what it has and what it runs."""
    at = now(session)
    told = {"host": host, "queues": list(queues), "devices": devices, "running": sorted(running), "seen_at": at}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(
        insert(Worker).values(name=name, started_at=at, **told).on_conflict_do_update(index_elements=["name"], set_=told)
    )


def listing(session: Session, silent: float = SILENT_SECONDS) -> list[WorkerStatus]:
    """All workers, those alive first, then by name."""
    at = now(session)
    found = [
        WorkerStatus(w.name, w.host, w.queues, w.devices, w.running, w.started_at, w.seen_at, alive=at - w.seen_at <= silent)
        for w in session.scalars(select(Worker))
    ]
    return sorted(found, key=lambda worker: (not worker.alive, worker.name))


def forget(session: Session, name: str) -> None:
    """Leave a worker out of the listing: it stopped, or it is known to be dead."""
    session.execute(delete(Worker).where(Worker.name == name), execution_options={"synchronize_session": False})
