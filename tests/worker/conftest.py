"""A job, a claim, a supervisor: real ones, with a real child, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from sandbox import Limits, Sandbox
from store import events, jobs, leases
from store.database import Database
from store.events import StoredEvent
from store.leases import Capacity, Claim
from store.settings import Settings
from store.tables import Job
from worker.devices import Slot
from worker.supervisor import Supervisor


@dataclass
class Bench:
    """Submit, supervise, read."""

    database: Database
    sandbox: Sandbox
    settings: Settings
    make_spec: Callable[..., dict[str, Any]]
    stop: threading.Event = field(default_factory=threading.Event)

    def submit(self, **parts: Any) -> int:
        with self.database.write() as session:
            job, _ = jobs.create(session, spec=self.make_spec(**parts), plan={"steps": {"total": 1}})
            return job.id

    def claim(self, owner: str = "this-worker", gpus: int = 0) -> Claim | None:
        with self.database.write() as session:
            return leases.claim(
                session,
                owner=owner,
                queues=["default"],
                capacity=Capacity(gpus, gpus, 1),
                seconds=self.settings.lease_seconds,
            )

    def supervisor(self, target: str | None, **options: Any) -> Supervisor:
        """Of the next job, which is given these `gpus`."""
        claimed_at = time.monotonic()
        slot = Slot(tuple(options.pop("gpus", ())))
        claim = self.claim(gpus=len(slot.gpus))
        assert claim is not None
        return Supervisor(
            claim,
            slot,
            claimed_at=claimed_at,
            database=self.database,
            sandbox=self.sandbox,
            settings=self.settings,
            stop=self.stop,
            limits=options.pop("limits", Limits(cores=1)),
            **({"target": target} if target else {}),
            **options,
        )

    def run(self, target: str | None = None, **options: Any) -> None:
        """The next job, until its attempt is over."""
        self.supervisor(target, **options).run()

    def run_aside(self, target: str | None = None, **options: Any) -> threading.Thread:
        thread = threading.Thread(target=self.supervisor(target, **options).run)
        thread.start()
        return thread

    def job(self, job_id: int) -> Job:
        with self.database.read() as session:
            return jobs.get(session, job_id)

    def log(self, job_id: int, *kinds: str) -> list[StoredEvent]:
        with self.database.read() as session:
            return events.read(session, job_id, limit=100_000, kinds=kinds or None)

    def data(self, job_id: int, *kinds: str) -> list[dict[str, Any]]:
        return [orjson.loads(event.data) for event in self.log(job_id, *kinds)]

    def lines(self, job_id: int) -> list[tuple[str, str]]:
        return [(data["level"], data["message"]) for data in self.data(job_id, "log")]

    def wait_for(self, job_id: int, kind: str, count: int = 1, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while len(self.log(job_id, kind)) < count:
            assert time.monotonic() < deadline, f"no {kind} within {seconds} s"
            time.sleep(0.01)

    def replace(self, **values: Any) -> None:
        self.settings = self.settings.model_copy(update=values)


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    """It would work on with a database that another test has by then."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(30)
    assert [thread.name for thread in left if thread.is_alive()] == []


@pytest.fixture
def bench(stack: Any, sandbox: Sandbox, tmp_path: Path, make_spec: Callable[..., dict[str, Any]]) -> Iterator[Bench]:
    """Everything around a supervisor, on either stack and in a data directory of the test's own."""
    sandbox.wait_ready()
    urls = {"database_url": stack.database_url, "broker_url": stack.broker_url}
    settings = Settings(data_dir=tmp_path, plugins=["plugins"], gpus="", threads=1, **urls)
    database = Database(settings.database)
    yield Bench(database, sandbox, settings, make_spec)
    database.dispose()
