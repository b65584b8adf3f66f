from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import cli, serve
from client.serve import Child, Ready, ServeError
from store.settings import Settings


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def start(port=0):
    serve.serve("127.0.0.1", port, ready=lambda _: None, note=lambda _: None)


def test_its_default_data_directory_is_that_of_the_settings():
    assert Settings.model_fields["data_dir"].default == Path(serve.DATA_DIR)


def test_a_port_in_use_is_named_before_anything_is_started(own_data_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="choose another one with --port"):
        start(taken.getsockname()[1])
    assert sorted(path.name for path in own_data_dir.iterdir()) == ["serve.lock"]


def test_a_second_service_on_a_data_directory_is_refused_and_the_first_one_named(own_data_dir):
    with serve._locked(own_data_dir), pytest.raises(ServeError, match=f"process {os.getpid()}.*GRAFT_DATA_DIR"):
        start()


def test_a_data_directory_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setenv("GRAFT_DATA_DIR", "/proc/nowhere")
    with pytest.raises(ServeError, match="/proc/nowhere cannot be used"):
        start()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(code)`: the name of a module that a Child can run."""

    def module(code):
        (tmp_path / "short_lived.py").write_text(code)
        return "short_lived", {**os.environ, "PYTHONPATH": str(tmp_path)}

    return module


def test_a_child_that_left_in_order_stays_away_and_that_is_said_once(module):
    notes = []
    name, environment = module("")
    child = Child(name, [], environment, may_leave=True)
    child.process.wait(20)
    for _ in range(3):
        child.keep(notes.append)
    assert notes == [
        "the short_lived has left, as it was told to; for another stop this `graft serve` (Ctrl-C) and start it anew"
    ]


def test_a_child_that_may_not_leave_is_started_again_however_it_ended(module):
    notes = []
    name, environment = module("")
    child = Child(name, [], environment)
    first = child.process
    first.wait(20)
    end = time.monotonic() + 30
    while child.process is first and time.monotonic() < end:
        child.keep(notes.append)
        time.sleep(0.01)
    assert child.process.wait(20) == 0
    assert notes == ["the short_lived died (exit status 0); starting it again in 0.25 s"]


def test_a_child_whose_settings_do_not_fit_is_not_started_again(module):
    name, environment = module("import os, sys; sys.exit(os.EX_CONFIG)")
    child = Child(name, [], environment)
    child.process.wait(20)
    with pytest.raises(ServeError, match="cannot start as it is set up"):
        child.keep(lambda _: None)


def test_settings_that_do_not_fit_are_named_before_anything_is_started(tmp_path):
    environment = {**os.environ, "GRAFT_CPU_SLOTS": "many", "GRAFT_PLUGIN": "mine"}
    command = [sys.executable, "-m", "client", "serve", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "GRAFT_CPU_SLOTS=many: write a whole number" in done.stderr
    assert "did you mean GRAFT_PLUGINS?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_child_that_died_is_started_again_each_time_after_a_longer_pause(module):
    notes = []
    name, environment = module("import sys; sys.exit(3)")
    child = Child(name, [], environment)
    end = time.monotonic() + 20
    while len(notes) < 3 and time.monotonic() < end:
        child.keep(notes.append)
        time.sleep(0.01)
    assert notes == [f"the short_lived died (exit status 3); starting it again in {pause} s" for pause in ("0.25", "0.5", "1")]


def test_a_child_that_does_not_listen_is_killed_at_a_second_signal(module, tmp_path):
    deaf = tmp_path / "deaf"
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    name, environment = module(f"import pathlib, signal, time; {ignore}; pathlib.Path('{deaf}').touch(); time.sleep(60)")
    child = Child(name, [], environment)
    while not deaf.exists():
        time.sleep(0.01)
    begun, notes = time.monotonic(), []

    class Impatient(list):
        def __len__(self):
            return 1 if time.monotonic() - begun < 0.2 else 2

    serve._stop([child], Impatient(), notes.append)
    assert child.process.returncode == -signal.SIGKILL
    assert notes == [serve._KILLING]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1")],  # noqa: S104
)
def test_the_address_that_is_told_can_be_used_on_this_machine(host, address):
    assert serve._reachable(host) == address


def test_the_command_says_what_is_wrong_and_ends_with_status_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "client", "serve", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be had (Address already in use)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("warm", [True, False])
def test_its_ready_line_says_whether_the_worker_is_ready_too(monkeypatch, tmp_path, warm):
    told = Ready("http://127.0.0.1:1", 1, tmp_path, tmp_path, 2.0, worker=warm)
    assert Ready.of_json(told.json().encode()) == told
    monkeypatch.setattr(cli, "run_service", lambda *_, ready, **__: ready(told))
    output = CliRunner().invoke(cli.app, ["serve"]).output
    assert "Ready at http://127.0.0.1:1" in output
    assert ("Its worker is still warming up" in output) is not warm
