"""A real worker process: Celery on either stack's broker, its database, a warm sandbox, real jobs.

Slow, since each worker imports torch for its sandbox once; so one serves most tests, and what ends workers comes last: on either
stack another end of the second one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from store import commands, events, jobs, workers
from store.database import Database
from store.hints import Hints
from store.losses import Losses
from store.settings import Settings

pytestmark = pytest.mark.slow
WORKER = [sys.executable, "-m", "worker"]
PARENT = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"


@dataclass
class Host:
    """A data directory, and the worker that serves it."""

    settings: Settings
    environment: dict[str, str]
    database: Database
    hints: Hints
    worker: int = 0
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """A worker, started by a process that only does this, as `graft serve` starts it; returns when it is warm."""
        command = [sys.executable, "-c", PARENT, *WORKER, "--with-parent"]
        with (self.settings.data_dir / "worker.log").open("ab") as log:
            self.started.append(subprocess.Popen(command, env=self.environment, stdin=-1, stdout=-1, stderr=log))
        self.worker = int(self.started[-1].stdout.readline())
        self.wait(self.ready, 90)

    def ready(self) -> bool:
        with self.database.read() as session:
            return any(worker.devices.get("ready") for worker in workers.listing(session))

    def submit(self, spec: dict[str, Any], *, hint: bool = True) -> int:
        with self.database.write() as session:
            job, _ = jobs.create(session, spec=spec, plan={"steps": {"total": 1}})
        if hint:
            self.hints.send("default")
        return job.id

    def state(self, job: int) -> str:
        with self.database.read() as session:
            return jobs.get(session, job).state

    def count(self, job: int, kind: str) -> int:
        with self.database.read() as session:
            return len(events.read(session, job, limit=10_000, kinds=[kind]))

    def losses(self, job: int) -> dict[int, float]:
        """By step, as the log tells of them in the end."""
        with self.database.read() as session:
            log = events.read(session, job, limit=10_000, kinds=["iterations", "rewound"])
        folded = Losses.of((event.kind, event.data) for event in log)
        return dict(zip(folded.steps.tolist(), folded.values.tolist(), strict=True))

    def wait(self, condition: Callable[[], bool], seconds: float) -> float:
        """Seconds until it held."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, (self.settings.data_dir / "worker.log").read_text()[-3000:]
            time.sleep(0.01)
        return time.monotonic() - started


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_stack: Callable[..., Any]
) -> Iterator[Host]:
    """A host with a warm worker, on either stack."""
    folder = tmp_path_factory.mktemp("host")
    stack = make_stack(request.param, folder)
    variables = {
        "GRAFT_DATA_DIR": str(folder),
        "GRAFT_DATABASE_URL": stack.database_url,
        "GRAFT_BROKER_URL": stack.broker_url,
        "GRAFT_WORKER_NAME": "the-worker",
        "GRAFT_PLUGINS": "plugins",
        "GRAFT_PLUGINS_DIR": str(Path(__file__).parent.parent / "targets"),
        "GRAFT_GPUS": "",
        "GRAFT_THREADS": "1",
        "GRAFT_POLL_SECONDS": "0.5",
    }
    settings = Settings(data_dir=folder, database_url=stack.database_url, broker_url=stack.broker_url)
    made = Host(settings, {**os.environ, **variables}, Database(settings.database), Hints(settings.broker))
    made.start()
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    made.database.dispose()


@pytest.fixture
def spec_of(make_spec: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def make(model: str, **parts: Any) -> dict[str, Any]:
        return make_spec(
            dataset={"source": "sklearn:digits", "image_size": 8}, model={"name": f"python:plugins:{model}"}, **parts
        )

    return make


def below(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    others = [path for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
    children += [child for path in others for child in (path / "children").read_text().split()]
    return [pid, *(descendant for child in children for descendant in below(int(child)))]


def alive(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return [pid for pid in pids if lives(pid)]


def test_a_hint_starts_a_job_within_a_moment(host: Host, spec_of: Callable[..., dict[str, Any]]) -> None:
    job = host.submit(spec_of("Tiny"))

    assert host.wait(lambda: host.count(job, "iterations") > 0, 60) < 10
    host.wait(lambda: host.state(job) == "succeeded", 20)


def test_a_job_whose_hint_was_lost_is_found_by_the_poll(host: Host, spec_of: Callable[..., dict[str, Any]]) -> None:
    job = host.submit(spec_of("Tiny"), hint=False)

    host.wait(lambda: host.state(job) == "succeeded", 20)


def test_jobs_run_one_after_the_other_on_one_slot(host: Host, spec_of: Callable[..., dict[str, Any]]) -> None:
    submitted = [host.submit(spec_of("Tiny")) for _ in range(3)]

    host.wait(lambda: all(host.state(job) == "succeeded" for job in submitted), 90)
    with host.database.read() as session:
        ran = [jobs.get(session, job) for job in submitted]
    assert [job.started_at for job in ran] == sorted(job.started_at for job in ran)
    assert all(first.ended_at <= second.started_at for first, second in pairwise(ran))


def test_a_running_job_that_is_cancelled_ends(host: Host, spec_of: Callable[..., dict[str, Any]]) -> None:
    """How soon is the machine's affair too: benchmarks/latency.py tells it."""
    job = host.submit(spec_of("Slow", training={"epochs": 1000}))
    host.wait(lambda: host.count(job, "iterations") > 0, 60)
    with host.database.write() as session:
        commands.cancel(session, job, by="api")

    host.wait(lambda: host.state(job) == "cancelled", 60)
    assert host.count(job, "end") == 1


@pytest.mark.parametrize("host", ["sqlite", pytest.param("postgres", marks=pytest.mark.other_stack)], indirect=True)
def test_a_worker_that_was_killed_leaves_nothing_and_the_next_one_goes_on_at_once(
    host: Host, spec_of: Callable[..., dict[str, Any]]
) -> None:
    spec = spec_of("Slow", training={"epochs": 4})
    undisturbed = host.submit(spec)
    host.wait(lambda: host.state(undisturbed) == "succeeded", 60)
    job = host.submit(spec)
    host.wait(lambda: host.count(job, "checkpoint") > 0, 60)
    pids = below(host.worker)
    assert len(pids) >= 3  # itself, its forkserver, the trainer
    os.kill(host.worker, signal.SIGKILL)

    host.wait(lambda: alive(pids) == [], 30)
    assert host.state(job) == "running"  # its lease holds for a minute; nobody need wait for it
    host.start()
    host.wait(lambda: host.state(job) == "succeeded", 90)
    assert host.count(job, "rewound") == 1
    losses = host.losses(job)
    assert list(losses) == list(range(len(losses))), "each step once"
    assert losses == host.losses(undisturbed), "bit for bit"


@pytest.mark.parametrize("host", ["sqlite", pytest.param("postgres", marks=pytest.mark.other_stack)], indirect=True)
def test_a_worker_stops_with_its_parent_and_gives_its_job_back_uncounted(
    host: Host, spec_of: Callable[..., dict[str, Any]]
) -> None:
    job = host.submit(spec_of("Slow", training={"epochs": 1000}))
    host.wait(lambda: host.count(job, "iterations") > 0, 60)
    pids = below(host.worker)
    host.started[-1].kill()

    host.wait(lambda: alive(pids) == [], 30)
    with host.database.read() as session:
        found = jobs.get(session, job)
        saved = events.latest(session, job, "checkpoint")
        assert workers.listing(session) == []
    assert (found.state, found.failures) == ("queued", 0)
    assert saved["step"] == found.step > 0, "nothing that it has done is lost"


@pytest.mark.parametrize("host", ["postgres", pytest.param("sqlite", marks=pytest.mark.other_stack)], indirect=True)
def test_a_drained_worker_finishes_its_job_takes_no_other_and_exits_in_order(
    host: Host, spec_of: Callable[..., dict[str, Any]]
) -> None:
    first = host.submit(spec_of("Slow", training={"epochs": 2}))
    host.wait(lambda: host.count(first, "iterations") > 0, 60)
    with host.database.write() as session:
        workers.drain(session, "the-worker")
    second = host.submit(spec_of("Tiny"))

    host.wait(lambda: alive([host.worker]) == [], 30)
    assert (host.state(first), host.state(second)) == ("succeeded", "queued")
    with host.database.read() as session:
        assert jobs.get(session, first).attempt == 1
