"""What a worker has, and which jobs it can run: one rule for whoever claims a job, counts those before it, or warns of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, false, func

from store.tables import Job


@dataclass(frozen=True)
class Capacity:
    """What a worker has free."""

    gpus_free: int
    gpus: int
    """How many it has at all: a job that leaves it open takes one where there is any."""
    cpu_free: int

    def taken(self, gpus: int | None) -> int:
        """How many of its GPUs a job takes that asks for so many; none means a CPU slot."""
        return min(1, self.gpus) if gpus is None else gpus

    def fits(self, gpus: int | None) -> bool:
        """Whether what is free suffices for a job that asks for so many GPUs."""
        taken = self.taken(gpus)
        return 0 < taken <= self.gpus_free or (taken == 0 and self.cpu_free > 0)


def taken(capacity: Capacity) -> ColumnElement[int]:
    """`Capacity.taken` of each job."""
    return func.coalesce(Job.gpus, capacity.taken(None))


def on_gpus(capacity: Capacity) -> ColumnElement[bool]:
    """Whether a job fits into what is free, and takes GPUs of it."""
    return and_(taken(capacity) > 0, taken(capacity) <= capacity.gpus_free)


def on_cpu(capacity: Capacity) -> ColumnElement[bool]:
    """Whether a job fits into what is free, and takes a CPU slot of it."""
    return taken(capacity) == 0 if capacity.cpu_free > 0 else false()


def rivals(capacity: Capacity, gpus: int | None) -> ColumnElement[bool]:
    """Whether a job could have what one that asks for so many GPUs, and fits, waits for: both take GPUs, or both a CPU slot."""
    return on_gpus(capacity) if capacity.taken(gpus) else on_cpu(capacity)
