"""`graft serve`: the api and one worker as child processes, on one data directory, until it is stopped."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from client.http import Client, GraftError

DATA_DIR = "graft-data"
WORKER_NAME = "embedded"
"""Fixed, so that a worker that starts again knows the leases of the one that died, and gives them back at once."""
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
LONGEST_BACKOFF = 30.0
_STOPPING = (
    "Stopping: what trains writes a checkpoint and goes back into its queue, to go on from there at the next start. "
    "Ctrl-C again kills it at once."
)
_KILLING = "Killing what still runs; its jobs go on from their last checkpoints at the next start."
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServeError(GraftError):
    """The service cannot start, or stopped by itself. The message says why and what to do."""


@dataclass(frozen=True)
class Ready:
    """What a started service tells."""

    url: str
    pid: int
    data_dir: Path
    inputs_dir: Path
    seconds: float
    worker: bool
    """Whether the worker is warm as well; until it is, jobs wait in their queue."""

    def json(self) -> str:
        """As one line, which `of_json` reads."""
        return json.dumps({**asdict(self), "data_dir": str(self.data_dir), "inputs_dir": str(self.inputs_dir)})

    @classmethod
    def of_json(cls, line: bytes) -> Ready:
        """The inverse of `json`."""
        told = json.loads(line)
        return cls(**{**told, "data_dir": Path(told["data_dir"]), "inputs_dir": Path(told["inputs_dir"])})


def serve(host: str, port: int, *, ready: Callable[[Ready], None], note: Callable[[str], None]) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP. `ready` is called once, `note` for what a person should know.

    A child that dies is started again, the api on the same port. Raises ServeError where the data directory or the port is taken,
    and where the api stops before it ever was ready: then its settings are at fault, and it would stop again.
    """
    begun = time.monotonic()
    environment = _environment()
    data_dir = Path(environment["GRAFT_DATA_DIR"])
    with _signals() as stopping, _locked(data_dir):
        port = _free_port(host, port)
        _migrate(environment)
        if stopping:
            return
        api = Child("api", ["--with-parent", "--host", host, "--port", str(port)], environment)
        worker = Child("worker", ["--with-parent"], environment, may_leave=True)
        url = f"http://{_reachable(host)}:{port}"
        inputs = Path(environment.get("GRAFT_INPUTS_DIR") or data_dir / "inputs")
        try:
            with Client(url, timeout=2.0) as client:
                told = False
                while not stopping:
                    if not told and not api.alive():
                        raise ServeError(f"the api stopped by itself ({api.ending()}); what it printed says why")
                    api.keep(note)
                    worker.keep(note)
                    if not told and client.ready():
                        told = True
                        warm = any(one["alive"] and one["devices"].get("ready") for one in client.workers()["data"])
                        ready(Ready(url, os.getpid(), data_dir, inputs, time.monotonic() - begun, warm))
                    if not told and time.monotonic() - begun > READY_SECONDS:
                        raise ServeError(f"not ready after {READY_SECONDS:.0f} s; GET {url}/health/ready says what is missing")
                    time.sleep(0.1)
        finally:
            if stopping:
                note(_STOPPING)
            _stop([worker, api], stopping, note)
            if stopping:
                note("Stopped.")


@contextmanager
def running_service(environment: Mapping[str, str], log: IO[bytes], *, port: int = 0) -> Iterator[Ready]:
    """`graft serve` in a process of its own, stopped at the end: for the demo, the benchmarks and the tests.

    `environment` holds its settings: those of this process are not its. What it prints goes to `log`. Raises ServeError.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    command = [sys.executable, "-P", "-m", "client", "serve", "--port", str(port), "--json"]
    process = subprocess.Popen(
        command,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (no thread of ours is running yet)
    )
    try:
        assert process.stdout is not None  # noqa: S101 (for the type checker)
        line = process.stdout.readline()
        if not line:
            raise ServeError(f"the service did not start (exit status {process.wait()})")
        yield Ready.of_json(line)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Child:
    """`python -m NAME` as a child process that can be started again. `may_leave`: one that ends with status 0 stays away."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], *, may_leave: bool = False) -> None:
        self.name = name
        self._may_leave = may_leave
        self._command = [sys.executable, "-P", "-m", name, *arguments]
        self._environment = environment
        self._deaths = 0
        self._left = False
        self._start()

    def _start(self) -> None:
        self.begun = time.monotonic()
        self._again: float | None = None
        self.process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what they have to say comes on standard error
            start_new_session=True,  # a Ctrl-C in the terminal is for `serve` alone, which stops the others in order
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (one thread here); they see to it themselves, once they are up
        )

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def ending(self) -> str:
        """How it ended, in words."""
        status = self.process.returncode
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def keep(self, note: Callable[[str], None]) -> None:
        """Start it again if it died: soon at first, later after up to half a minute. One that left in order stays away.

        Raises ServeError where its settings do not fit: it would die each time.
        """
        if self.alive() or self._left:
            return
        if self.process.returncode == 0 and self._may_leave:
            self._left = True
            note(f"the {self.name} has left, as it was told to; for another stop this `graft serve` (Ctrl-C) and start it anew")
            return
        if self.process.returncode == os.EX_CONFIG:
            raise ServeError(f"the {self.name} cannot start as it is set up; what is printed above says what to change")
        now = time.monotonic()
        if self._again is None:
            self._deaths = 1 if now - self.begun > 2 * LONGEST_BACKOFF else self._deaths + 1
            pause = min(0.25 * 2 ** (self._deaths - 1), LONGEST_BACKOFF)
            self._again = now + pause
            note(f"the {self.name} died ({self.ending()}); starting it again in {pause:.2g} s")
        elif now >= self._again:
            self._start()

    def signal(self, number: int) -> None:
        """Send a signal, if there is someone to get it."""
        if self.alive():
            self.process.send_signal(number)


def _stop(children: list[Child], stopping: list[int], note: Callable[[str], None]) -> None:
    """Ask all to stop; kill what has not after a while, or at a second Ctrl-C."""
    for child in children:
        child.signal(signal.SIGTERM)
    signals, until = len(stopping), time.monotonic() + STOP_SECONDS
    while any(child.alive() for child in children):
        if time.monotonic() > until or len(stopping) > signals:
            note(_KILLING)
            for child in children:
                child.signal(signal.SIGKILL)
            signals, until = len(stopping), until + STOP_SECONDS
        time.sleep(0.02)


def _environment() -> dict[str, str]:
    data_dir = Path(os.environ.get("GRAFT_DATA_DIR") or DATA_DIR).expanduser().absolute()
    return {**os.environ, "GRAFT_DATA_DIR": str(data_dir), "GRAFT_WORKER_NAME": WORKER_NAME, "PYTHONUNBUFFERED": "1"}


def _migrate(environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "store.upgrade"],
        env=dict(environment),
        stdout=sys.stderr,
        check=False,
        start_new_session=True,  # a Ctrl-C waits until it is done
        preexec_fn=_die_with_parent,
    )
    if done.returncode == os.EX_CONFIG:
        raise ServeError("it cannot start as it is set up; what is printed above says what to change")
    if done.returncode > 0:
        raise ServeError("the database could not be brought to the present schema; what is printed above says why")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked to stop so far, as a list that grows."""
    seen: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory: two services on one would both restart the other's worker."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "serve.lock").open("a+")
    except OSError as error:
        raise ServeError(f"the data directory {data_dir} cannot be used: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ServeError(
                f"{data_dir} is in use by another `graft serve` (process {file.read().strip() or 'unknown'}); "
                "stop that one, or give this one its own GRAFT_DATA_DIR"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _free_port(host: str, port: int) -> int:
    """`port`, after a look whether it can be had; a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(
                f"port {port} of {host} cannot be had ({error.strerror or error}); choose another one with --port, or 0 for any"
            ) from None
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (translated away)
    return f"[{local}]" if ":" in local else local


def _die_with_parent() -> None:
    """In a new child: be told to stop when the parent is gone, however it went. Linux only; elsewhere it does nothing."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
