"""The kinds of faults. Each strikes a running job once, at a moment that chance picks; False where the job ended before."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from scene import Scene, await_death, frozen, pidfd
from sqlalchemy.exc import OperationalError
from stacks import LEASE, STACKS

from store.tables import Job

TAKEN = 30.0
"""Seconds within which a frozen worker's job is taken over; one that froze inside a transaction of SQLite holds up everyone."""


def overtaken(scene: Scene) -> bool:
    """The worker stands still past its lease, with its trainer or without, until another one has its job.

    When it goes on it must write nothing, which the log shows, and its trainer must die.
    """
    if not scene.further():
        return False
    before, trainers = scene.stack.job(scene.job), scene.trainer()
    beside = scene.forkserver() + trainers if scene.rng.random() < 0.5 else []
    with ExitStack() as watched:
        pidfds = [number for pid in trainers if (number := watched.enter_context(pidfd(pid))) is not None]
        with frozen(scene.worker() + beside):
            taken_over(scene, before)
            time.sleep(scene.rng.uniform(0, 0.5))
        after = scene.stack.job(scene.job)
        if (after.attempt, after.state) != (before.attempt, before.state):
            for number in pidfds:
                await_death(number)
    return bool(pidfds)


def taken_over(scene: Scene, before: Job) -> None:
    """Wait for another worker; where there is none, take the job back in its stead."""
    stack, alone = scene.stack, len(scene.stack.workers) == 1
    deadline = time.monotonic() + TAKEN

    def taken() -> bool:
        if alone:
            with suppress(OperationalError):
                stack.reap()
        found = stack.job(scene.job)
        return found.attempt > before.attempt or (alone and found.state == "queued") or time.monotonic() > deadline

    stack.until(scene.job, taken)


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


def _when(condition: Callable[[Scene], bool], victims: Callable[[Scene], list[int]]) -> Callable[[Scene], bool]:
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
