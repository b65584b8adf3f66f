"""The store's tests run on SQLite and on PostgreSQL, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.events import CheckpointData, EpochData, IterationsData
from store import jobs, leases
from store.database import Database
from store.events import NewEvent
from store.leases import Capacity, Lease
from store.tables import Job


class Clock:
    """Time stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])


@pytest.fixture
def database(url: str, clock: Clock) -> Iterator[Database]:
    made = Database(url, clock)
    yield made
    made.dispose()


@pytest.fixture
def submit(database: Database, make_spec: Callable[..., dict[str, Any]]) -> Callable[..., Job]:
    """Create a job: `submit(priority=3)` sets resources, `spec=` parts of the spec, `key=` the idempotency key."""

    def make(*, spec: dict[str, Any] | None = None, key: str | None = None, body: str | None = None, **resources: Any) -> Job:
        whole = make_spec(**{"resources": resources, **(spec or {})})
        with database.write() as session:
            return jobs.create(session, spec=whole, plan={"steps": {"total": 100}}, key=key, body_hash=body)[0]

    return make


@pytest.fixture
def take(database: Database) -> Callable[..., leases.Claim | None]:
    """Claim the best waiting job."""

    def claim(
        owner: str = "one", queues: tuple[str, ...] = ("default",), cpu: int = 1, gpus: int = 0, free: int | None = None
    ) -> Any:
        capacity = Capacity(gpus_free=gpus if free is None else free, gpus=gpus, cpu_free=cpu)
        with database.write() as session:
            return leases.claim(session, owner=owner, queues=queues, capacity=capacity, seconds=60)

    return claim


@pytest.fixture
def running(submit: Callable[..., Job], take: Callable[..., leases.Claim]) -> Lease:
    """The lease of a job that runs."""
    submit()
    return take().lease


@pytest.fixture
def iterations() -> Callable[..., NewEvent]:
    """An `iterations` event: `iterations(first, losses)`."""

    def make(first: int, losses: list[Any], epoch: int = 0, lr: float = 0.1) -> NewEvent:
        data = IterationsData(epoch=epoch, first=first, losses=losses, lr={"default": lr})
        return NewEvent(first + len(losses), data.kind, data.model_dump())

    return make


@pytest.fixture
def checkpoint() -> Callable[..., NewEvent]:
    """A `checkpoint` event: `checkpoint(step, top1=0.9)`."""

    def make(step: int, epoch: int = 0, best: bool = True, **figures: Any) -> NewEvent:
        told = {"path": f"jobs/1/1/{step}", "sha256": "0" * 64, "bytes": 1}
        data = CheckpointData(step=step, epoch=epoch, figures=figures, best=best, **told)
        return NewEvent(step, data.kind, data.model_dump())

    return make


@pytest.fixture
def epoch() -> Callable[..., NewEvent]:
    """An `epoch` event: `epoch(number, step)`."""

    def make(number: int, step: int, mean_loss: float = 0.5, **validation: float) -> NewEvent:
        data = EpochData(epoch=number, mean_loss=mean_loss, validation=validation or None, seconds=1, samples_per_second=100)
        return NewEvent(step, data.kind, data.model_dump())

    return make
