"""What the health check of a worker says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from store.settings import SILENT_SECONDS, Settings
from worker import heartbeat


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, worker_name="host/1")


def test_a_worker_that_has_just_been_heard_of_is_well(settings: Settings) -> None:
    heartbeat.write(settings, ready=True)

    assert heartbeat.complaint(settings) is None


def test_one_that_was_not_heard_of_yet_is_not(settings: Settings) -> None:
    assert "has not begun" in (heartbeat.complaint(settings) or "")


def test_one_whose_sandbox_is_cold_is_not(settings: Settings) -> None:
    heartbeat.write(settings, ready=False)

    assert "warming up" in (heartbeat.complaint(settings) or "")


@pytest.mark.parametrize("seconds", [SILENT_SECONDS + 1, -1e6])
def test_one_that_is_silent_is_not_nor_one_from_before_the_machine_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    heartbeat.write(settings, ready=True)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + seconds)

    assert "is silent" in (heartbeat.complaint(settings) or "")


def test_one_that_stopped_is_not(settings: Settings) -> None:
    heartbeat.write(settings, ready=True)
    heartbeat.forget(settings)
    heartbeat.forget(settings)

    assert "has stopped" in (heartbeat.complaint(settings) or "")


def test_a_heartbeat_that_did_not_reach_the_database_is_none(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.devices import Devices
    from worker.runner import Runner

    def fail(*_: object, **__: object) -> None:
        raise OSError("the database is away")

    runner = Runner(bench.settings, bench.database, bench.sandbox, Devices([], cpu_slots=1))
    monkeypatch.setattr("store.workers.heartbeat", fail)
    with pytest.raises(OSError, match="away"):
        runner.beat()

    assert heartbeat.complaint(bench.settings) is not None
    monkeypatch.undo()
    runner.beat()
    assert heartbeat.complaint(bench.settings) is None


def test_the_command_says_it_by_its_exit_status_and_knows_no_database(settings: Settings) -> None:
    environment = {"GRAFT_DATA_DIR": str(settings.data_dir), "GRAFT_WORKER_NAME": settings.worker_name}
    code = "import runpy, sys; sys.argv[1:] = []\ntry: runpy.run_module('worker.heartbeat', run_name='__main__')\n"
    code += "finally: assert 'sqlalchemy' not in sys.modules"

    def check() -> int:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode

    assert check() == 1
    heartbeat.write(settings, ready=True)
    assert check() == 0
