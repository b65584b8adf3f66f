"""Processes that take turns on one machine: each trains a block of iterations, then stands still while the others train theirs.

A contender is a module of this folder, run as a process: it imports its library once, and forks for each workload, so that no
training inherits anything from the one before. Whoever holds the other end of its pipe says when it goes on.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch._dynamo  # torch does so at an optimizer's first step: seconds that are nobody's
from contenders.workloads import WORKLOADS, Split, Workload
from torch.optim.optimizer import register_optimizer_step_post_hook

TURN = 1.0
"""Seconds, where not iterations are counted."""


@dataclass(frozen=True)
class Task:
    """What a process is asked to train."""

    workload: int
    """Its number."""
    samples: int
    """Of its training split."""
    data: Path
    """A file with its decoded splits."""
    inputs: Path
    """Where its images are, for whoever decodes them itself."""
    directory: Path
    """Where checkpoints and logs may go."""
    epochs: int
    block: int | None
    """Iterations in a turn; without it a turn lasts a second."""


@dataclass(frozen=True)
class Block:
    """What a process did in its turn."""

    seconds: float = 0.0
    """From its begin to its end, with all that is not an iteration. Of the first block: until all was decoded and built."""
    iterations: list[float] = field(default_factory=list)
    """The seconds of each iteration but the first of the turn, and the first of an epoch."""
    finished: bool = False
    failure: str | None = None


class Enough(BaseException):
    """The process is told to stop, in the middle of its training. No `except Exception` of a library may catch it."""


class Turns:
    """A process's own side: it tells what it did, and waits."""

    def __init__(self, connection: Connection, task: Task) -> None:
        self._connection = connection
        self._task = task
        self._per_epoch = 0
        self._count = 0
        self._begun = self._last = time.perf_counter()
        self._seconds: list[float] = []

    @property
    def workload(self) -> Workload:
        """What to train."""
        return next(one for one in WORKLOADS if one.number == self._task.workload)

    @property
    def task(self) -> Task:
        """What was asked."""
        return self._task

    def data(self) -> dict[str, Split]:
        """The decoded splits, in this process's own memory."""
        return {name: Split(*split) for name, split in torch.load(self._task.data).items()}

    def begin(self, per_epoch: int) -> None:
        """Wait for the first turn: all is imported, decoded and built. `per_epoch`: the iterations of an epoch."""
        self._per_epoch = per_epoch
        self.tell(Block(time.perf_counter() - self._begun))

    def iteration(self, *_: object) -> None:
        """An iteration is done. Waits where the turn is over; raises Enough."""
        now = time.perf_counter()
        if self._last != self._begun and self._count % self._per_epoch:
            self._seconds.append(now - self._last)
        self._last = now
        self._count += 1
        block = self._task.block
        if now - self._begun >= TURN if block is None else self._count % block == 0:
            self.tell(Block(now - self._begun, self._seconds))

    def after_each_step(self) -> None:
        """Count an iteration after the step of any optimizer of torch, whoever calls it."""
        register_optimizer_step_post_hook(self.iteration)

    def end(self) -> None:
        """The training ended by itself."""
        self._connection.send(Block(time.perf_counter() - self._begun, self._seconds, finished=True))

    def tell(self, block: Block) -> None:
        """Tell what was done, and wait for the next turn. Raises Enough."""
        self._connection.send(block)
        if not self._connection.recv():
            raise Enough
        self._seconds = []
        self._begun = self._last = time.perf_counter()


def contend(train: Callable[[Turns], None]) -> None:
    """Train whatever this process is asked to, one after the other, until it is asked no more.

    Its arguments: the descriptor of its end of a pipe, and the number of threads.
    """
    connection = Connection(int(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    gc.collect()
    gc.freeze()  # as a job's process has it: no training has the imports' objects looked through
    connection.send(Block())
    while (task := connection.recv()) is not None:
        child = os.fork()
        if not child:
            _train(train, connection, task)
        os.waitpid(child, 0)
        connection.send(None)


def _train(train: Callable[[Turns], None], connection: Connection, task: Task) -> None:
    os.chdir(task.directory)
    turns = Turns(connection, task)
    try:
        train(turns)
        turns.end()
    except Enough:
        pass
    except BaseException as error:
        traceback.print_exc()
        connection.send(Block(failure=f"{type(error).__name__}: {error}".splitlines()[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
