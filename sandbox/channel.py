"""JSON lines over a stream socket, the same at both ends."""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import Any

import orjson

_READ = 1 << 18
_LONGEST = 256 << 20


class ChannelError(RuntimeError):
    """The other end sent what is no JSON line."""


class Channel:
    """One end of a conversation in JSON objects.

    Any thread may send; one thread at a time may receive. Nothing here blocks the other direction.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        self._rest = bytearray()
        self._lines: list[bytes] = []
        self.ended = False
        """The other end is closed and everything that it sent has been read off the socket."""

    def fileno(self) -> int:
        """The descriptor to wait on for `drain`."""
        return self._socket.fileno()

    def send(self, message: Any, *, timeout: float | None = None) -> None:
        """Send one object, waiting while the other end is behind.

        Raises TimeoutError after `timeout` seconds (the channel is unusable then) and BrokenPipeError when the other end is gone.
        """
        left = memoryview(orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._sending:
            while left:
                try:
                    left = left[self._socket.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    if not _wait(self._socket, select.POLLOUT, deadline):
                        raise TimeoutError("the other end of the channel does not read") from None

    def receive(self, timeout: float | None = None) -> Any:
        """The next object; None when the other end is closed. Raises TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._lines:
            if self.ended:
                return None
            if not _wait(self._socket, select.POLLIN, deadline):
                raise TimeoutError("nothing came over the channel")
            self._fill()
        return _parse(self._lines.pop(0))

    def drain(self) -> list[Any]:
        """Every object that one read brings, without waiting; sets `ended` at the end."""
        self._fill()
        lines, self._lines = self._lines, []
        return [_parse(line) for line in lines]

    def rest(self) -> list[Any]:
        """Every object that a dead other end has left behind."""
        while self._fill():
            continue
        return self.drain()

    def close(self) -> None:
        """Close this end; the other sees the end of the conversation."""
        self._socket.close()

    def _fill(self) -> bool:
        """One read; whether it brought anything."""
        try:
            got = self._socket.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            got = b""
        if not got:
            self.ended = True
            return False
        *whole, rest = got.split(b"\n")
        if not whole:
            self._rest += rest
            if len(self._rest) > _LONGEST:
                raise ChannelError(f"a line of more than {_LONGEST >> 20} MiB came over the channel")
            return True
        whole[0] = bytes(self._rest) + whole[0]
        self._rest = bytearray(rest)
        self._lines += whole
        return True


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ChannelError(f"no JSON came over the channel: {line[:80]!r} ({error})") from None


def _wait(end: socket.socket, event: int, deadline: float | None) -> bool:
    poll = select.poll()
    poll.register(end, event)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(left))
