"""A real server on a real database; a stand-in for the worker writes the log through the store, as the worker does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.app import create_app
from core.events import Failure
from core.spec import JobSpec
from sandbox import Sandbox
from store import events, jobs, leases
from store.database import Database
from store.events import NewEvent
from store.leases import Capacity, Lease
from store.settings import Settings

SPEC = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}}
_queues = (f"queue-{number}" for number in itertools.count())


@dataclass
class Bench:
    """What a worker does to a job, one step at a time."""

    database: Database
    data_dir: Path
    lease: dict[int, Lease] = field(default_factory=dict)

    def job(self, *, steps: int = 100, epochs: int = 2, plan: dict[str, Any] | None = None, **spec: Any) -> int:
        """A queued job, in a queue of its own."""
        body = {**SPEC, "training": {"epochs": epochs}, "resources": {"queue": next(_queues)}, **spec}
        resolved = JobSpec.model_validate(body).model_dump(mode="json")
        with self.database.write() as session:
            job, _ = jobs.create(session, spec=resolved, plan={"steps": {"total": steps}, "warnings": [], **(plan or {})})
        return job.id

    def running(self, **options: Any) -> int:
        """A job that a worker has claimed."""
        job_id = self.job(**options)
        with self.database.write() as session:
            queue = jobs.get(session, job_id).queue
            claim = leases.claim(session, owner="bench", queues=[queue], capacity=Capacity(0, 0, 1), seconds=600)
        assert claim is not None
        self.lease[job_id] = claim.lease
        return job_id

    def append(self, job_id: int, *events_: tuple[int, str, dict[str, Any]]) -> int:
        with self.database.write() as session:
            return events.append(session, self.lease[job_id], [NewEvent(*event) for event in events_])

    def losses(self, job_id: int, first: int, losses: Sequence[Any], epoch: int = 0) -> int:
        data = {"epoch": epoch, "first": first, "losses": list(losses), "lr": {"default": 0.001}}
        return self.append(job_id, (first + len(losses), "iterations", data))

    def epoch(self, job_id: int, epoch: int, step: int, mean_loss: Any = 0.5, top1: float | None = 0.9) -> int:
        validation = None if top1 is None else {"loss": 0.4, "top1": top1}
        figures = {"mean_loss": mean_loss, "validation": validation, "seconds": 1.5, "samples_per_second": 200.0}
        return self.append(job_id, (step, "epoch", {"epoch": epoch, **figures}))

    def checkpoint(self, job_id: int, epoch: int, step: int, top1: float | None, weights: bytes = b"weights") -> Path:
        """A checkpoint as the worker leaves it: files first, then the event."""
        attempt = self.lease[job_id].attempt
        path = Path("jobs", str(job_id), str(attempt), str(step))
        (self.data_dir / path).mkdir(parents=True)
        (self.data_dir / path / "model.safetensors").write_bytes(weights)
        (self.data_dir / path / "model.json").write_text('{"classes": ["a", "b"]}')
        figures = {"mean_loss": 0.5} | ({} if top1 is None else {"loss": 0.4, "top1": top1})
        data = {
            "step": step, "epoch": epoch, "figures": figures, "best": True,
            "path": str(path), "sha256": f"{step:064x}", "bytes": len(weights),
        }  # fmt: skip
        self.append(job_id, (step, "checkpoint", data))
        return self.data_dir / path

    def finish(self, job_id: int, state: str = "succeeded", failure: Failure | None = None) -> None:
        with self.database.write() as session:
            leases.finish(session, self.lease[job_id], state, failure)

    def last_seq(self, job_id: int) -> int:
        with self.database.read() as session:
            return events.last_seq(session, job_id)[0]


class ThreadedServer:
    """uvicorn in a thread of this process: real sockets, and one import of everything."""

    def __init__(self, settings: Settings) -> None:
        config = uvicorn.Config(
            create_app(settings), host="127.0.0.1", port=0, log_level="error", lifespan="on", ws="none",
            server_header=False, log_config=None, timeout_graceful_shutdown=5,
        )  # fmt: skip
        self.app = config.app
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(15)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    data = tmp_path_factory.mktemp("data")
    (data / "inputs").mkdir()
    return Settings(data_dir=data, heartbeat_seconds=0.3, max_body=200_000, cors_origins=["https://lab.example.org"])


@pytest.fixture(scope="session")
def server(settings: Settings) -> ThreadedServer:
    return ThreadedServer(settings)


@pytest.fixture(scope="session")
def url(server: ThreadedServer, sandbox: Sandbox) -> Iterator[str]:
    """Where it answers. It plans in the tests' one warm sandbox: one of its own would import torch once more."""
    with ExitStack() as life:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("api.app.Sandbox", lambda **_: sandbox)
            url = life.enter_context(server)
        yield url


@pytest.fixture(scope="session")
def app(server: ThreadedServer, url: str) -> Any:
    """The running application."""
    return server.app


@pytest.fixture(scope="session")
def bench(settings: Settings, url: str) -> Iterator[Bench]:
    database = Database(settings.database)
    yield Bench(database, settings.data_dir)
    database.dispose()


@pytest.fixture(scope="session")
def make_bench() -> type[Bench]:
    """For tests on a database of their own."""
    return Bench


@pytest.fixture(scope="session")
def start_server() -> Any:
    """For tests on a server of their own: `with start_server(settings) as (app, url)`."""

    @contextmanager
    def start(settings: Settings) -> Iterator[tuple[Any, str]]:
        server = ThreadedServer(settings)
        with server as url:
            yield server.app, url

    return start


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def transfer() -> dict[str, Any]:
    """A transfer report."""
    count = {"tensors": 1, "elements": 4}
    entry = {"source_key": None, "source_shape": None, "reason": None, "cast": None}
    return {
        "source": "file:a.pth", "format": "torch", "sha256": "0" * 64, "head": ["fc"], "loaded_share": 1.0,
        "totals": {"loaded": count, "reinit": count}, "source_totals": {"used": count},
        "modules": [{"module": "conv", "loaded": count, "total": count}],
        "targets": [
            {**entry, "key": "conv.weight", "status": "loaded", "shape": [4]},
            {**entry, "key": "fc.weight", "status": "reinit", "shape": [4], "reason": "the head starts anew"},
        ],
        "sources": [{"key": "conv.weight", "status": "used", "shape": [4], "renamed": None, "reason": None}],
    }  # fmt: skip


@pytest.fixture
def groups() -> dict[str, Any]:
    """A table of parameter groups."""
    row = {"tensors": 1, "elements": 4, "frozen": False, "until_epoch": None}
    still = {**row, "frozen": True}
    parameter = {"shape": [4], "elements": 4, "type": "Linear", "frozen": None}
    return {
        "optimizer": "Adam", "executed_groups": 1, "fused": True,
        "groups": [
            {**row, "name": "head", "of": "head", "hyperparameters": {"lr": 0.01}, "parameters": ["fc.weight"]},
            {**still, "name": "stem", "of": "stem", "hyperparameters": {"lr": 0.001}, "parameters": ["conv.weight"]},
        ],
        "parameters": [
            {**parameter, "names": ["fc.weight"], "group": "head", "depth": 1, "roles": ["head"]},
            {**parameter, "names": ["conv.weight"], "group": "stem", "depth": 0, "roles": ["backbone"], "frozen": "group"},
        ],
    }  # fmt: skip


@pytest.fixture(scope="session")
def warm(url: str) -> None:
    """The server's sandbox, ready to plan."""
    deadline = time.monotonic() + 100
    while httpx.get(f"{url}/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
