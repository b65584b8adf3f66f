"""The owner's side: the sandbox, and the children that it has started."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from sandbox.calls import converse
from sandbox.channel import Channel
from sandbox.children import Child, close_all
from sandbox.environment import clean
from sandbox.errors import SandboxLost
from sandbox.limits import Limits

DEFAULT_PRELOAD = (
    "torch",
    "torch._dynamo",  # the first optimizer imports it
    "torchvision",
    "torchvision.models",
    "torchvision.transforms.v2",
    "torchvision.datasets",
    "numpy",
    "PIL.Image:init",  # its decoders are modules that the first image would import
    "pydantic.main",  # pydantic loads its parts when they are first named
    "pydantic.json_schema",
    "pydantic.type_adapter",
    "pydantic.types",
    "safetensors.torch",
    "orjson",
    "sklearn.datasets",
    "torchmetrics",  # the first validation imports it, and scipy with it
    "timm",  # where it is installed: a second of imports that each plan and each job with one of its models would pay
)
_NO_LIMITS = Limits()


class Sandbox:
    """One forkserver with `preload` imported, and the children that it forks in a few milliseconds each.

    `preload` are libraries, and what of its owner's code each child would import anew: it must start no thread, nor touch CUDA.
    `import_path` is put first on the import path of children (not of the forkserver: nothing there can shadow what is preloaded).
    Any thread may use it. A forkserver that died is replaced by the next `start`, `spawn` or `call`.
    """

    def __init__(self, *, import_path: Sequence[str | Path] = (), preload: Sequence[str] = DEFAULT_PRELOAD) -> None:
        self._import_path = [str(path) for path in import_path]
        self._preload = list(preload)
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> None:
        """Start to warm up, and return at once; a forkserver that lives is left alone."""
        self._living()

    @property
    def ready(self) -> bool:
        """Whether a child can be had without waiting for imports."""
        server = self._server
        return server is not None and server.alive and server.wait_ready(0)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Start if need be, and wait; False after `timeout` seconds. Raises SandboxLost when the forkserver dies meanwhile."""
        return self._living().wait_ready(timeout)

    def spawn(
        self,
        target: str,
        *,
        limits: Limits = _NO_LIMITS,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """A new child that runs `package.module:function` with its `Channel`; waits for the sandbox to be warm.

        Close the child, or use it as a context manager: leaving kills it.
        """
        request = {
            "target": target,
            "limits": asdict(limits),
            "environment": dict(environment or {}),
            "import_path": self._import_path,
            "cwd": None if cwd is None else str(cwd),
        }
        server = self._living()
        server.wait_ready(None)
        try:
            return server.fork(request)
        except SandboxLost:  # it died a moment ago, and the child that it may have forked with it
            server.end()
            server = self._living()
            server.wait_ready(None)
            return server.fork(request)

    def call(
        self,
        target: str,
        payload: Mapping[str, Any],
        *,
        limits: Limits = _NO_LIMITS,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> dict[str, Any]:
        """`function(payload)` in a child of its own; both are JSON objects.

        Raises CallRefused, CallFailed, CallTimeout, CallKilled or SandboxLost.
        """
        with self.spawn("sandbox.child:answer", limits=limits, environment=environment, cwd=cwd) as child:
            return converse(child, {"target": target, "payload": payload}, limits)

    def close(self) -> None:
        """End the forkserver and every child."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.end()

    def _living(self) -> _Server:
        with self._lock:
            if self._server is None or not self._server.alive:
                if self._server is not None:
                    self._server.end()
                self._server = _Server(self._preload)
            return self._server


class _Server:
    """One forkserver process. Its descriptors stay open while any thread still uses the object."""

    def __init__(self, preload: Sequence[str]) -> None:
        # Whole messages, and the end of either side is seen by the other.
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready, their_ready = socket.socketpair()
        with theirs, their_ready:
            inherited = theirs.fileno(), their_ready.fileno()
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter)
                [sys.executable, "-P", "-m", "sandbox.forkserver", *map(str, inherited), *preload],
                env=clean(),
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return False
        # The byte is looked at and left, so that every thread sees it. A dead forkserver hangs up without one.
        if not self._ready.recv(1, socket.MSG_PEEK):
            raise SandboxLost("the forkserver died while it started; its standard error says why")
        return True

    def fork(self, request: dict[str, Any]) -> Child:
        channel, their_channel = socket.socketpair()
        status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, their_output = os.pipe()
        errors, their_errors = os.pipe()
        mine = channel, status, output, errors
        try:
            with their_channel, their_status:
                theirs = [their_channel.fileno(), their_output, their_errors, their_status.fileno()]
                with self._lock:
                    socket.send_fds(self._requests, [orjson.dumps(request)], theirs)
            reply, descriptors, _, _ = socket.recv_fds(status, 4096, 1)
        except OSError as error:
            close_all(*mine)
            raise SandboxLost(f"the forkserver is gone ({error.strerror}); try again") from None
        finally:
            close_all(their_output, their_errors)
        message: dict[str, Any] = orjson.loads(reply) if reply else {"error": "the forkserver died; try again"}
        if not descriptors:
            close_all(*mine)
            raise SandboxLost(message["error"])
        return Child(
            pid=message["pid"],
            pidfd=descriptors[0],
            channel=Channel(channel),
            status=status,
            output=output,
            errors=errors,
        )

    def end(self) -> None:
        with suppress(OSError):
            self._requests.shutdown(socket.SHUT_RDWR)  # it kills its children, and exits
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:  # still importing
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        with suppress(AttributeError):
            close_all(self._requests, self._ready)
