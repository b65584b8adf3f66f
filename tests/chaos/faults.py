"""`make chaos`: jobs on a real worker, kill -9 at random moments, and what is left of them against a job that nobody disturbed.

A line for each kind of fault: how many fell, on how many jobs with how many steps; how many of the steps are not in the log,
more than once, or with another loss; and how many jobs ended otherwise, or with other weights or optimizer state, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.events import IterationsData
from core.spec import JobSpec
from store import events, jobs
from store.database import Database
from store.hints import Hints
from store.settings import Settings

EPOCHS, STEPS_PER_EPOCH = 4, 13
SPEC = {
    "dataset": {"source": "sklearn:digits"},
    "loader": {"batch_size": 128},
    "model": {"name": "python:unsteady:Unsteady"},
    "training": {"epochs": EPOCHS, "deterministic": True},
    "checkpoint": {"every": {"steps": 3}},
    "resources": {"max_attempts": 100},
}
COLUMNS = ("faults", "jobs", "steps", "lost", "doubled", "wrong", "other end")
PATIENCE = 120.0


class Host:
    """A worker on SQLite and the file system, which is started again when it died."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder)
        self._variables = {
            "GRAFT_DATA_DIR": str(folder),
            "GRAFT_WORKER_NAME": "chaos",
            "GRAFT_PLUGINS": "unsteady",
            "GRAFT_PLUGINS_DIR": str(Path(__file__).parent / "plugins"),
            "GRAFT_GPUS": "",
            "GRAFT_THREADS": "1",
            "GRAFT_POLL_SECONDS": "0.2",
        }
        self.database = Database(self.settings.database)
        self.database.upgrade()
        self._log = (folder / "worker.log").open("ab")
        self.worker = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "worker", "--with-parent"]
        return subprocess.Popen(command, env={**os.environ, **self._variables}, stdout=self._log, stderr=self._log)

    def tend(self) -> None:
        if self.worker.poll() is not None:
            self.worker = self._start()

    def submit(self) -> int:
        with self.database.write() as session:
            spec = JobSpec.model_validate(SPEC).model_dump(mode="json")
            job, _ = jobs.create(session, spec=spec, plan={"steps": {"total": EPOCHS * STEPS_PER_EPOCH}})
        Hints(self.settings.broker).send("default")
        return job.id

    def state(self, job: int) -> tuple[str, int]:
        with self.database.read() as session:
            found = jobs.get(session, job)
        return found.state, found.step

    def until(self, job: int, condition: Callable[[], bool]) -> bool:
        """Wait until it holds, True; or the job has ended, False."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.tend()
            if self.state(job)[0] not in ("queued", "running"):
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {self.state(job)} after {PATIENCE:g} s")
            time.sleep(0.002)
        return True

    def close(self) -> None:
        self.worker.terminate()
        self.worker.wait(20)
        self.database.dispose()
        self._log.close()


# --- the faults ------------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def forkservers(host: Host) -> Iterator[int]:
    for pid in children(host.worker.pid):
        with suppress(OSError):
            if b"sandbox.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield pid


def trainers(host: Host) -> list[int]:
    return [pid for server in forkservers(host) for pid in children(server)]


def saving(host: Host, job: int) -> list[int]:
    """The trainer, while it writes a checkpoint."""
    return trainers(host) if any((host.settings.data_dir / "jobs" / str(job)).glob("*/.*.partial")) else []


KINDS: dict[str, Callable[[Host, int], list[int]]] = {
    "trainer": lambda host, _: trainers(host),
    "checkpoint": saving,
    "forkserver": lambda host, _: list(forkservers(host)),
    "worker": lambda host, _: [host.worker.pid],
}


def strike(host: Host, job: int, kind: str, rng: random.Random) -> bool:
    """Kill, once the job has come some random steps further; False where it ended before."""
    further = host.state(job)[1] + rng.randint(0, STEPS_PER_EPOCH)
    if not host.until(job, lambda: host.state(job)[0] == "running" and host.state(job)[1] >= further):
        return False
    time.sleep(rng.uniform(0, 0.05))
    hit: list[int] = []

    def kill() -> bool:
        hit.extend(KINDS[kind](host, job))
        for pid in hit:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(hit)

    return host.until(job, kill)


# --- what is left ------------------------------------------------------------------------------------------------------------


def left_of(host: Host, job: int) -> tuple[list[tuple[int, float]], Any]:
    """The folded losses by step, and how the job ended: state, last weights, optimizer and generators."""
    with host.database.read() as session:
        rows = events.folded(session, job, {IterationsData.kind})
        kept = events.checkpoints(session, job)
    losses = [(row.data["first"] + at, loss) for row in rows for at, loss in enumerate(row.data["losses"])]
    place = host.settings.data_dir / kept[-1]["path"]
    return losses, [host.state(job), *((place / f"{name}.safetensors").read_bytes() for name in ("model", "state"))]


def compare(host: Host, job: int, truth: tuple[list[tuple[int, float]], Any]) -> Counter[str]:
    losses, end = left_of(host, job)
    undisturbed, seen = dict(truth[0]), Counter(step for step, _ in losses)
    return Counter(
        {
            "jobs": 1,
            "steps": len(undisturbed),
            "lost": len(undisturbed.keys() - seen.keys()),
            "doubled": sum(count > 1 for count in seen.values()),
            "wrong": sum(undisturbed.get(step) != loss for step, loss in losses),
            "other end": int(end != truth[1]),
        }
    )


def main() -> int:
    """0 where nothing was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description="Kill at random what trains jobs, and see that nobody can tell.")
    parser.add_argument("--faults", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    table = {kind: Counter[str]() for kind in asked.kinds}
    with tempfile.TemporaryDirectory(prefix="graft-chaos-") as folder:
        host = Host(Path(folder))
        calm = host.submit()
        host.until(calm, lambda: False)
        truth = left_of(host, calm)
        assert [step for step, _ in truth[0]] == list(range(EPOCHS * STEPS_PER_EPOCH)), host.state(calm)
        print(f"{'seed ' + str(asked.seed):<12}", *(f"{column:>9}" for column in COLUMNS), flush=True)
        for kind, row in table.items():
            while row["faults"] < asked.faults:
                job = host.submit()
                for _ in range(min(rng.randint(1, 3), asked.faults - row["faults"])):
                    row["faults"] += strike(host, job, kind, rng)
                host.until(job, lambda: False)
                row.update(compare(host, job, truth))
            print(f"{kind:<12}", *(f"{row[column]:>9}" for column in COLUMNS), flush=True)
        host.close()
    return int(any(row[column] for row in table.values() for column in ("lost", "doubled", "wrong", "other end")))


if __name__ == "__main__":
    sys.exit(main())
