"""A whole Graft of processes, on either stack: its servers, its workers and its api, which are started again when they died."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from servers import Postgres, Valkey
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from client.http import Client
from core.spec import JobSpec
from store import jobs, leases
from store.database import Database
from store.hints import Hints
from store.settings import Settings
from store.tables import Job

STACKS = ("sqlite", "postgres")
EPOCHS, STEPS_PER_EPOCH = 4, 7
STEPS = EPOCHS * STEPS_PER_EPOCH
SPEC = {
    "dataset": {"source": "sklearn:digits", "augment": "light"},
    "loader": {"batch_size": 128, "shuffle": True},
    "model": {"name": "python:unsteady:Unsteady"},
    "training": {"epochs": EPOCHS, "deterministic": True, "accumulate": 2, "clip_grad_norm": 1.0, "ema": 0.9, "mixup": 0.2},
    "checkpoint": {"every": {"steps": 3}},
    "resources": {"max_attempts": 100},
}
LEASE = 3.0
PATIENCE = 600.0
"""Seconds within which anything happens that must, on whatever machine."""

T = TypeVar("T")


class Stack:
    """SQLite and hints in files, or PostgreSQL and Valkey; workers `chaos-0`, `chaos-1`… on one data directory; an api."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.api: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._closing = ExitStack()
        try:
            self._open(workers)
        except BaseException:
            self.close()
            raise

    def _open(self, workers: int) -> None:
        # a short path: that of a Unix socket may have 107 characters
        self.folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="graft-chaos-")))
        self._log = self._closing.enter_context((self.folder / "log").open("ab"))
        if self.name == "postgres":
            for part in ("pg", "valkey"):
                (self.folder / part).mkdir()
            self.folder.chmod(0o755)  # where root runs this, PostgreSQL has a user of its own
            self.postgres = Postgres(self.folder / "pg")
            self._closing.callback(self.postgres.close)
            self.valkey = Valkey(self.folder / "valkey")
            self._closing.callback(self.valkey.close)
        urls = {"database_url": self.postgres.url, "broker_url": self.valkey.url} if self.postgres and self.valkey else {}
        self.settings = Settings(data_dir=self.folder / "data", **urls)
        self._variables = {
            "GRAFT_DATA_DIR": str(self.settings.data_dir),
            "GRAFT_DATABASE_URL": self.settings.database_url,
            "GRAFT_BROKER_URL": self.settings.broker_url,
            "GRAFT_PLUGINS": "unsteady",
            "GRAFT_PLUGINS_DIR": str(Path(__file__).parent / "plugins"),
            "GRAFT_GPUS": "",
            "GRAFT_THREADS": "1",
            "GRAFT_POLL_SECONDS": "0.2",
            "GRAFT_REAP_SECONDS": "0.3",
            "GRAFT_LEASE_SECONDS": f"{LEASE}",
            "GRAFT_RENEW_SECONDS": f"{LEASE / 6}",
        }
        self.database = Database(self.settings.database)
        self._closing.callback(self.database.dispose)
        self.database.upgrade()
        self.hints = Hints(self.settings.broker)
        self._closing.callback(self._stop)
        for number in range(workers):
            self._work(f"chaos-{number}")

    def _run(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *words, "--with-parent"]
        return subprocess.Popen(
            command, env={**os.environ, **self._variables, **variables}, stdout=self._log, stderr=self._log
        )  # fmt: skip

    def _work(self, name: str) -> None:
        self.workers[name] = self._run("worker", GRAFT_WORKER_NAME=name)

    def tend(self) -> None:
        """Start again what died."""
        for name, process in self.workers.items():
            if process.poll() is not None:
                self._work(name)
        if self.api is not None and self.api.poll() is not None:
            self.serve()

    def serve(self) -> None:
        """Start an api, on the port that it had before."""
        told = self.folder / "port"
        self.api = self._run("api", "--port", str(self._port), "--port-file", str(told))
        if not self._port:
            self.wait(told.exists)
            self._port = int(told.read_text())

    def client(self) -> Client:
        """Of the api, which is started where there is none."""
        if self.api is None:
            self.serve()
        return Client(f"http://127.0.0.1:{self._port}", patience=PATIENCE)

    def submit(self) -> int:
        """A new job, and its hint."""
        with self.database.write() as session:
            spec = JobSpec.model_validate(SPEC).model_dump(mode="json")
            job, _ = jobs.create(session, spec=spec, plan={"steps": {"total": STEPS}})
        self.hints.send("default")
        return job.id

    def ask(self, question: Callable[[Session], T]) -> T:
        """Of the database, as soon as it answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.database.read() as session:
                    return question(session)
            except (OperationalError, InterfaceError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def job(self, job: int) -> Job:
        return self.ask(lambda session: jobs.get(session, job))

    def reap(self) -> None:
        """As the reaper of one more worker does."""
        with self.database.write() as session:
            leases.reap(session)

    def wait(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Until it holds; what dies meanwhile is started again."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.tend()
            if time.monotonic() > deadline:
                last = (self.folder / "log").read_text(errors="replace")[-5000:]
                raise TimeoutError(f"not so within {seconds:g} s; the last that was logged:\n{last}")
            time.sleep(0.002)

    def until(self, job: int, condition: Callable[[], Any]) -> bool:
        """Wait until it holds, True; or the job has ended, False."""
        held = False

        def over() -> bool:
            nonlocal held
            held = bool(condition())
            return held or self.job(job).state not in ("queued", "running")

        self.wait(over)
        return held

    def close(self) -> None:
        """Stop and remove everything."""
        self._closing.close()

    def _stop(self) -> None:
        running = [*self.workers.values(), *([self.api] if self.api else [])]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
