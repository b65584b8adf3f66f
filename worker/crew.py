"""The processes of one attempt, one per rank: they start together and end together."""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from sandbox import Child
from sandbox.channel import Channel
from worker.devices import Slot

_SLOW = 10.0
"""Seconds after which it is told that a killed process does not die."""

log = logging.getLogger(__name__)


class Crew:
    """A child for each device of a slot; a job on one device has one child, which knows nothing of ranks.

    Leaving kills all of them, and returns when all are dead: no memory of a device is held then.
    """

    def __init__(self, slot: Slot, spawn: Callable[[Mapping[str, str]], Child]) -> None:
        """`spawn` makes a child with these variables in its environment."""
        self.children: list[Child] = []
        self._held = ExitStack()
        try:
            for environment in self._environments(slot):
                self.children.append(spawn(environment))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Rank 0's process."""
        return self.children[0].pid

    @property
    def channel(self) -> Channel:
        """Rank 0's: it hears of permits and commands, and the others do as it does, since no step is done without it."""
        return self.children[0].channel

    def kill(self) -> None:
        """Kill every one. Harmless when they are dead already."""
        for child in self.children:
            child.kill()

    def close(self) -> None:
        """Kill them, wait until they are dead, however long that takes, and let go of their descriptors."""
        self.kill()
        for child in self.children:
            _await_death(child)
            child.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _environments(self, slot: Slot) -> Iterator[dict[str, str]]:
        size = len(slot.devices)
        if size == 1:
            yield slot.environment
            return
        port = self._hold_port()
        for rank in range(size):
            yield {
                **slot.environment,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
            }  # fmt: skip

    def _hold_port(self) -> int:
        """A free port of the loopback. It stays bound here, so that nobody but rank 0, by SO_REUSEPORT, can listen on it."""
        held = self._held.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def _await_death(child: Child) -> None:
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    while not poll.poll(_SLOW * 1000):
        log.warning("process %d was killed and is not dead yet; its slot waits for it", child.pid)
