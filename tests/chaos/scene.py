"""A fault about to fall: the job that it disturbs, the processes that run the job, and the job's checkpoints."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stacks import PATIENCE, STEPS_PER_EPOCH, Stack

from core.events import CheckpointData
from store import events


@dataclass
class Scene:
    """A fault about to fall: on which stack and job, by which chance, and for how long a broker stays away."""

    stack: Stack
    job: int
    rng: random.Random
    outage: float

    def further(self) -> bool:
        """Wait until the job runs, and has come some random steps further."""
        step = self.stack.job(self.job).step + self.rng.randint(0, STEPS_PER_EPOCH)

        def there() -> bool:
            found = self.stack.job(self.job)
            return found.state == "running" and found.step >= step

        held = self.stack.until(self.job, there)
        time.sleep(self.rng.uniform(0, 0.05))
        return held

    def kill(self, victims: Callable[[], list[int]]) -> bool:
        """SIGKILL, once there are victims."""

        def struck() -> bool:
            found = victims()
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return bool(found)

        return self.further() and self.stack.until(self.job, struck)

    # -- who runs the job

    def worker(self) -> list[int]:
        found = self.stack.job(self.job)
        process = self.stack.workers.get(found.lease_owner or "")
        return [process.pid] if process is not None and process.poll() is None else []

    def forkserver(self) -> list[int]:
        return [child for worker in self.worker() for child in children(worker) if b"sandbox.forkserver" in command(child)]

    def trainer(self) -> list[int]:
        return [child for server in self.forkserver() for child in children(server)]

    # -- its checkpoints

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.stack.settings.data_dir / "jobs" / str(self.job)).glob("*/.*.partial"))

    def uncommitted(self) -> bool:
        """Whether a whole checkpoint is there of which the log does not know yet."""
        attempt = f"jobs/{self.job}/{self.stack.job(self.job).attempt}"
        there = {f"{attempt}/{path.name}" for path in (self.stack.settings.data_dir / attempt).glob("[0-9]*")}
        if not there:
            return False
        log = self.stack.ask(lambda s: events.read(s, self.job, limit=100_000, kinds=[CheckpointData.kind]))
        return not all(any(f'"{path}"' in event.data for event in log) for path in there)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT in any case."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def pidfd(pid: int) -> Iterator[int | None]:
    """None for one that is dead already."""
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield number
    finally:
        os.close(number)


def await_death(number: int) -> None:
    """Of the trainer whose pidfd it is."""
    poll = select.poll()
    poll.register(number, select.POLLIN)
    if not poll.poll(PATIENCE * 1000):
        raise TimeoutError("the trainer of a worker that lost its lease lives on")
