"""The forkserver's own life: warm once, replaced when it dies, gone with its owner.

Nothing is preloaded here, so each starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import Sandbox, SandboxLost
from sandbox.children import Child

TARGETS = Path(__file__).parent.parent / "targets"


@pytest.fixture
def bare() -> Iterator[Sandbox]:
    """A sandbox that preloads nothing."""
    made = Sandbox(import_path=[TARGETS], preload=["is_not_installed"])
    yield made
    made.close()


def pid_of(sandbox: Sandbox) -> int:
    return sandbox._server._process.pid


def test_it_is_ready_only_once_everything_is_imported(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "slow_import.py").write_text(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        made = Sandbox(preload=["slow_import"])
        made.start()

    assert not made.ready
    assert not made.wait_ready(0.2)
    gate.touch()
    assert made.wait_ready(5)
    assert made.ready
    made.close()


def test_starting_twice_starts_one(bare: Sandbox) -> None:
    bare.start()
    first = pid_of(bare)
    bare.start()

    assert pid_of(bare) == first


def test_a_call_that_waits_when_the_forkserver_dies_is_told_and_the_next_one_works(
    bare: Sandbox, gone: Callable[[int], bool]
) -> None:
    bare.wait_ready()
    told: list[Exception] = []

    def call() -> None:
        try:
            bare.call("answers:sleep", {"seconds": 60})
        except SandboxLost as error:
            told.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    time.sleep(0.2)
    os.kill(pid_of(bare), signal.SIGKILL)
    waiting.join(60)

    assert "try again" in str(told[0])
    assert bare.call("answers:echo", {}) == {"echo": {}}


def test_children_die_with_the_forkserver(bare: Sandbox, gone: Callable[[int], bool]) -> None:
    child = bare.spawn("answers:converse")
    os.kill(pid_of(bare), signal.SIGKILL)

    assert gone(child.pid)
    status = child.wait(2)
    assert status.lost
    child.close()


def test_closing_ends_every_child(bare: Sandbox, gone: Callable[[int], bool]) -> None:
    children: list[Child] = [bare.spawn("answers:converse") for _ in range(3)]
    forkserver = pid_of(bare)
    bare.close()

    assert gone(forkserver)
    assert all(gone(child.pid) for child in children)
    for child in children:
        child.close()


def test_nothing_outlives_an_owner_that_was_killed(tmp_path: Path, gone: Callable[[int], bool]) -> None:
    script = f"""
from sandbox import Sandbox
made = Sandbox(import_path=[{str(TARGETS)!r}], preload=[])
child = made.spawn("sandbox.child:answer")
child.channel.send({{"target": "answers:sleep_with_a_helper", "payload": {{"tell": {str(tmp_path / "helper")!r}}}}})
print(made._server._process.pid, child.pid, flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        deadline = time.monotonic() + 5
        while not ((tmp_path / "helper").exists() and (tmp_path / "helper").read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        owner.kill()

    assert all(gone(pid) for pid in [*pids, int((tmp_path / "helper").read_text())])


def test_a_module_that_breaks_while_it_is_preloaded_is_left_to_those_who_need_it(tmp_path: Path) -> None:
    (tmp_path / "broken_import.py").write_text("raise RuntimeError('no such device')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        made = Sandbox(import_path=[TARGETS], preload=["broken_import"])

        assert made.call("answers:echo", {}) == {"echo": {}}
    made.close()


def test_a_target_that_cannot_be_imported_says_so_on_its_error_stream(bare: Sandbox) -> None:
    with bare.spawn("nowhere:run") as child:
        assert child.wait(60).code == 1

        assert b"No module named 'nowhere'" in os.read(child.errors, 10_000)
