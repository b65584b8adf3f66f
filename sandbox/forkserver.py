"""The process that has everything imported already, and forks: `python -m sandbox.forkserver OWNER READY MODULE...`.

It is single threaded, imports what its owner names and no plug-in, never touches CUDA, and does not outlive its owner. The owner
sends requests over a socket, each with the descriptors of one child: its channel, its output, its errors, and a status socket on
which the pid and a pidfd come back at once and the exit status when there is one.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from sandbox import child

_LARGEST_REQUEST = 1 << 17


@dataclass
class _Kid:
    pid: int
    pidfd: int
    status: socket.socket
    deadline: float | None
    timed_out: bool = False


def main(arguments: Sequence[str]) -> None:
    """Preload, say that it is ready, serve until the owner is gone."""
    owner = socket.socket(fileno=int(arguments[0]))
    ready = int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    for name in arguments[2:]:
        if _hung_up(owner):
            return
        _preload(name)
    gc.collect()
    gc.freeze()  # a child's collections then leave the shared pages alone
    os.write(ready, b"1")
    with selectors.DefaultSelector() as selector:
        _serve(owner, selector)


def _preload(name: str) -> None:
    """Import `module`, or `module:function` and call it. What is not installed is left out."""
    module, _, function = name.partition(":")
    try:
        loaded = importlib.import_module(module)
        if function:
            getattr(loaded, function)()
    except ModuleNotFoundError:
        return
    except Exception:  # a child that needs it will say so; the others can still live
        sys.stderr.write(f"sandbox: cannot preload {name}:\n{traceback.format_exc()}")


def _hung_up(owner: socket.socket) -> bool:
    poll = select.poll()
    poll.register(owner, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _serve(owner: socket.socket, selector: selectors.BaseSelector) -> None:
    kids: dict[int, _Kid] = {}
    selector.register(owner, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select(_patience(kids)):
            if key.fileobj is not owner:
                selector.unregister(key.fd)
                _bury(kids.pop(key.fd))
                continue
            message, descriptors, _, _ = socket.recv_fds(owner, _LARGEST_REQUEST, 4)
            if not message:
                for kid in kids.values():
                    _end_group(kid.pid)
                return
            if born := _fork(orjson.loads(message), descriptors):
                kids[born.pidfd] = born
                selector.register(born.pidfd, selectors.EVENT_READ)  # readable when it has died
        _enforce(kids)


def _patience(kids: dict[int, _Kid]) -> float | None:
    deadlines = [kid.deadline for kid in kids.values() if kid.deadline is not None]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _enforce(kids: dict[int, _Kid]) -> None:
    now = time.monotonic()
    for kid in kids.values():
        if kid.deadline is not None and kid.deadline <= now:
            kid.deadline, kid.timed_out = None, True
            _end_group(kid.pid)


def _fork(message: dict[str, Any], descriptors: list[int]) -> _Kid | None:
    channel, output, errors, status = descriptors
    request = child.Request.read(message)
    me = os.getpid()
    reply = socket.socket(fileno=status)
    try:
        pid = os.fork()
    except OSError as error:
        _tell(reply, {"error": f"cannot fork: {error}"})
        reply.close()
        return None
    finally:
        if os.getpid() == me:
            for descriptor in channel, output, errors:
                os.close(descriptor)
    if pid == 0:
        _child(request, forkserver=me, channel=channel, output=output, errors=errors)
    seconds = request.limits.seconds
    kid = _Kid(pid, os.pidfd_open(pid), reply, None if seconds is None else time.monotonic() + seconds)
    with suppress(OSError):
        socket.send_fds(reply, [orjson.dumps({"pid": pid})], [kid.pidfd])
    return kid


def _child(request: child.Request, **descriptors: int) -> None:
    """Never returns."""
    code = 1
    try:
        gc.enable()
        child.live(request, **descriptors)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # printed, and then the process is over
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _bury(kid: _Kid) -> None:
    """Reap a dead child, after all that it had started, and tell its owner how it ended."""
    os.waitid(os.P_PIDFD, kid.pidfd, os.WEXITED | os.WNOWAIT)
    _end_group(kid.pid)  # while the zombie still holds the number, no other process can have it
    _, status = os.waitpid(kid.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    _tell(kid.status, {"code": max(code, 0), "signal": max(-code, 0), "timed_out": kid.timed_out})
    kid.status.close()
    os.close(kid.pidfd)


def _end_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it may not have made its group yet
        os.kill(pid, signal.SIGKILL)


def _tell(status: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # an owner that no longer listens
        status.send(orjson.dumps(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # there is nothing worth half a second of taking torch apart
