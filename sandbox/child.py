"""What a child does first, and how it answers a call."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from sandbox.channel import Channel
from sandbox.limits import Limits, apply

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Request:
    """One child, as its owner wants it."""

    target: str
    limits: Limits
    environment: dict[str, str]
    import_path: list[str]
    cwd: str | None

    @classmethod
    def read(cls, message: dict[str, Any]) -> Request:
        """From the owner's JSON."""
        return cls(**{**message, "limits": Limits(**message["limits"])})


def live(request: Request, *, forkserver: int, channel: int, output: int, errors: int) -> None:
    """The life of a child: called right after the fork, with its own descriptors. Returns when the target does."""
    _die_with(forkserver)
    os.setsid()  # a group of its own: the forkserver ends it as a whole, and a terminal's Ctrl-C does not reach it
    channel = _keep_only(channel, output, errors)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(request.environment)
    sys.path[:0] = request.import_path
    if request.cwd is not None:
        os.chdir(request.cwd)
    faulthandler.enable(file=2, all_threads=False)
    _reseed()
    apply(request.limits)
    find(request.target)(Channel(socket.socket(fileno=channel)))


def find(target: str) -> Callable[[Any], Any]:
    """The function behind `package.module:function`."""
    module, _, name = target.partition(":")
    return cast("Callable[[Any], Any]", getattr(importlib.import_module(module), name))


def answer(channel: Channel) -> None:
    """The target of `Sandbox.call`: run one function on one object and send what came of it."""
    question = channel.receive()
    if question is None:
        return
    try:
        reply: dict[str, Any] = {"result": find(question["target"])(question["payload"])}
    except Exception as error:
        reply = _explain(error)
    channel.send(reply)


def _explain(error: Exception) -> dict[str, Any]:
    if faults := getattr(error, "faults", None):
        return {"refused": [{"pointer": str(fault.pointer), "message": str(fault.message)} for fault in faults]}
    kind = "out_of_memory" if isinstance(error, MemoryError) else getattr(error, "kind", None)
    lines = "".join(traceback.format_exception(error)).splitlines()
    failed = {"name": type(error).__name__, "message": str(error), "kind": kind, "hint": getattr(error, "hint", None)}
    return {"failed": {**failed, "lines": lines[-20:]}}


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent (single threaded, so the thread is the process) dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def _keep_only(channel: int, output: int, errors: int) -> int:
    """Standard streams and the channel (returned, as 3), and no descriptor besides."""
    null = os.open(os.devnull, os.O_RDONLY)
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (null, output, errors, channel)]  # clear of 0 to 3
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=number < 3)
    for name in Path("/proc/self/fd").iterdir():
        if int(name.name) > 3:
            try:
                os.close(int(name.name))
            except OSError:  # the listing's own
                continue
    # The old objects believe in what the descriptors were before (a file that seeks).
    sys.stdout = _text(1)
    sys.stderr = _text(2)
    return 3


def _text(descriptor: int) -> TextIOWrapper:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _reseed() -> None:
    """Children of one forkserver must not draw the same numbers. The standard library does it by itself at a fork."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()
