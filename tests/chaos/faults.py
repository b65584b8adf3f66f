"""The kinds of faults. Each strikes a running job once, at a moment that chance picks; False where the job ended before."""

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
from typing import Any

from sqlalchemy.exc import OperationalError
from stacks import LEASE, PATIENCE, STACKS, STEPS_PER_EPOCH, Stack

from core.events import CheckpointData
from store import events

TAKEN = 20.0
"""Seconds within which a frozen worker's job is taken over; one that froze inside a transaction of SQLite holds up everyone."""


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


# --- the kinds ----------------------------------------------------------------------------------------------------------------


def overtaken(scene: Scene) -> bool:
    """The worker stands still past its lease, with its trainer or without, until another one has its job.

    When it goes on it must write nothing, which the log shows, and its trainer must die.
    """
    stack = scene.stack
    if not scene.further():
        return False
    trainers, before = scene.trainer(), stack.job(scene.job)
    whole = scene.worker() + (scene.forkserver() + trainers if scene.rng.random() < 0.5 else [])
    pidfds = [os.pidfd_open(pid) for pid in trainers if command(pid)]
    with frozen(whole):
        deadline = time.monotonic() + TAKEN

        def taken() -> bool:
            with suppress(OperationalError):
                if len(stack.workers) == 1 and time.monotonic() > deadline - TAKEN + LEASE:
                    stack.reap()
            return stack.job(scene.job).attempt > before.attempt or time.monotonic() > deadline

        if len(stack.workers) == 1:
            stack.until(scene.job, lambda: taken() or stack.job(scene.job).state == "queued")
        else:
            stack.until(scene.job, taken)
        time.sleep(scene.rng.uniform(0, 0.5))
    now = stack.job(scene.job)
    for pidfd in pidfds:
        if (now.attempt, now.state) != (before.attempt, "running"):
            await_death(pidfd)
        os.close(pidfd)
    return bool(pidfds)


def await_death(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(PATIENCE * 1000):
        raise TimeoutError("the trainer of a worker that lost its lease lives on")


def held_up(scene: Scene) -> bool:
    """The worker stands still, for less than its lease."""
    if not scene.further():
        return False
    with frozen(scene.worker()):
        time.sleep(scene.rng.uniform(0.05, LEASE / 2))
    return True


def api(scene: Scene) -> bool:
    """kill -9 of the api, while somebody follows the job; it starts again a moment later."""
    if not scene.further() or scene.stack.api is None:
        return False
    scene.stack.api.kill()
    scene.stack.api.wait()
    time.sleep(scene.rng.uniform(0, 0.5))
    return True


def broker(scene: Scene) -> bool:
    """Valkey goes, kindly or not, for a while, and comes back empty. Hints meanwhile fail, and fail at once."""
    valkey = scene.stack.valkey
    if valkey is None or not scene.further():
        return False
    valkey.stop(scene.rng.choice([signal.SIGTERM, signal.SIGKILL]))
    end = time.monotonic() + scene.outage
    assert not scene.stack.hints.send("default")
    time.sleep(max(0.0, end - time.monotonic()))
    valkey.start()
    assert scene.stack.hints.send("default")
    return True


def broker_hangs(scene: Scene) -> bool:
    """Valkey stands still for a while, with every connection open."""
    valkey = scene.stack.valkey
    if valkey is None or not scene.further():
        return False
    with frozen([valkey.pid]):
        end = time.monotonic() + scene.outage
        assert not scene.stack.hints.send("default")
        time.sleep(max(0.0, end - time.monotonic()))
    return True


def restarted(mode: str) -> Callable[[Scene], bool]:
    """PostgreSQL is stopped, `fast` or `immediate`, and started again a moment later."""

    def strike(scene: Scene) -> bool:
        postgres = scene.stack.postgres
        if postgres is None or not scene.further():
            return False
        postgres.stop(mode)
        time.sleep(scene.rng.uniform(0, 1))
        postgres.start()
        return True

    return strike


@dataclass(frozen=True)
class Kind:
    """How it strikes, on which stacks there is such a thing, and whether somebody follows the job meanwhile."""

    strike: Callable[[Scene], bool]
    stacks: tuple[str, ...] = STACKS
    followed: bool = False


def _when(condition: Callable[[Scene], Any], victims: Callable[[Scene], list[int]]) -> Callable[[Scene], bool]:
    return lambda scene: scene.kill(lambda: victims(scene) if condition(scene) else [])


KINDS: dict[str, Kind] = {
    "trainer": Kind(lambda scene: scene.kill(scene.trainer)),
    "checkpoint": Kind(_when(Scene.saving, Scene.trainer)),
    "forkserver": Kind(lambda scene: scene.kill(scene.forkserver)),
    "worker": Kind(lambda scene: scene.kill(scene.worker)),
    "worker-saves": Kind(_when(Scene.saving, Scene.worker)),
    "worker-commits": Kind(_when(Scene.uncommitted, Scene.worker)),
    "overtaken": Kind(overtaken),
    "held-up": Kind(held_up),
    "api": Kind(api, followed=True),
    "broker": Kind(broker, ("postgres",), followed=True),
    "broker-hangs": Kind(broker_hangs, ("postgres",)),
    "db-restarts": Kind(restarted("fast"), ("postgres",), followed=True),
    "db-crashes": Kind(restarted("immediate"), ("postgres",), followed=True),
}
