"""A child process, as its owner holds it."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from sandbox.channel import Channel


@dataclass(frozen=True)
class ExitStatus:
    """How a child ended: `code` is 0 or more, or -N for signal N.

    `lost` says that nobody knows, since the forkserver died, and the child with it.
    """

    code: int
    timed_out: bool = False
    lost: bool = False

    @property
    def signal(self) -> int | None:
        """The signal that killed it, if one did."""
        return -self.code if self.code < 0 else None


class Child:
    """A process of the sandbox.

    `channel` speaks with its target; `output` and `errors` are the reading ends (non-blocking) of its standard streams, which
    must be read, or it waits once they are full; `pidfd` becomes readable when it dies.
    """

    def __init__(self, *, pid: int, pidfd: int, channel: Channel, status: socket.socket, output: int, errors: int) -> None:
        self.pid, self.pidfd, self.channel = pid, pidfd, channel
        self.output, self.errors = output, errors
        os.set_blocking(output, False)
        os.set_blocking(errors, False)
        self._status = status
        self._exit: ExitStatus | None = None

    def status_fileno(self) -> int:
        """The descriptor that becomes readable when `wait` will return at once: all of its process group is dead then."""
        return self._status.fileno()

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """How it ended, once it has. Raises TimeoutError after `timeout` seconds."""
        if self._exit is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            reply = self._status.recv(4096)
            if reply:
                said = orjson.loads(reply)
                self._exit = ExitStatus(said["code"] - said["signal"], said["timed_out"])
            else:
                self._exit = ExitStatus(-signal.SIGKILL, lost=True)
        return self._exit

    def kill(self) -> None:
        """Kill it, and with it every process of its group. Harmless when it is dead already."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, wait for its end, and let go of its descriptors."""
        if self.pidfd < 0:
            return
        self.kill()
        with suppress(TimeoutError):
            self.wait(10)
        self.channel.close()
        close_all(self._status, self.pidfd, self.output, self.errors)
        self.pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def close_all(*descriptors: int | socket.socket) -> None:
    """Close each that is still open."""
    for descriptor in descriptors:
        with suppress(OSError):
            if isinstance(descriptor, socket.socket):
                descriptor.close()
            else:
                os.close(descriptor)
