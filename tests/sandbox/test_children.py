"""A child of the sandbox: clean, limited, alone."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox
from sandbox.environment import clean


def test_the_process_that_forks_has_one_thread(sandbox: Sandbox) -> None:
    assert sandbox.wait_ready()

    assert len(list(Path(f"/proc/{sandbox._server._process.pid}/task").iterdir())) == 1


def test_a_child_sees_no_secret_of_its_owner(sandbox: Sandbox) -> None:
    seen = sandbox.call("answers:environment", {})

    assert "a-secret" not in str(seen)
    assert seen["python"]["PATH"] == os.environ["PATH"]


def test_what_is_about_the_machine_passes_and_nothing_that_is_not_named() -> None:
    passed = clean({"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "1", "http_proxy": "http://proxy", "GRAFT_X": "1", "X": "1"})

    assert {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "http_proxy"} <= passed.keys()
    assert not {"GRAFT_X", "X"} & passed.keys()


def test_a_proxy_with_a_password_does_not_pass() -> None:
    assert "https_proxy" not in clean({"https_proxy": "http://me:password@proxy:3128"})


def test_a_child_starts_with_what_it_needs_loaded_cuda_untouched_and_nothing_of_the_service(sandbox: Sandbox) -> None:
    found = sandbox.call("answers:circumstances", {})

    assert {"torch", "torchvision", "PIL.JpegImagePlugin", "torch._dynamo", "worker.trainer"} <= set(found["modules"])
    assert not found["cuda"]
    of_the_service = {"api", "client", "store", "celery", "sqlalchemy"}
    assert not {name for name in found["modules"] if name.partition(".")[0] in of_the_service}


def test_what_is_preloaded_leaves_the_forkserver_with_one_thread(sandbox: Sandbox) -> None:
    assert sandbox.call("answers:circumstances", {})["forkserver_threads"] == 1


def test_a_child_has_a_session_of_its_own_and_no_descriptor_but_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    found = sandbox.call("answers:circumstances", {}, cwd=tmp_path)

    assert found["leader"]
    assert found["interrupt_ignored"]
    assert found["core_limit"] == 0
    assert found["descriptors"] == [0, 1, 2, 3]
    assert found["cwd"] == str(tmp_path)


def test_a_child_has_the_environment_and_the_threads_that_it_was_given(sandbox: Sandbox) -> None:
    limits = Limits(cores=1)

    assert sandbox.call("answers:circumstances", {}, limits=limits)["threads"] == 1
    assert (
        sandbox.call("answers:environment", {}, environment={"CUDA_VISIBLE_DEVICES": "7"})["python"]["CUDA_VISIBLE_DEVICES"]
        == "7"
    )


def test_two_children_draw_different_numbers(sandbox: Sandbox) -> None:
    first, second = sandbox.call("answers:draw", {}), sandbox.call("answers:draw", {})

    assert all(first[library] != second[library] for library in ("random", "numpy", "torch"))


def test_a_child_speaks_both_ways_until_its_owner_closes(sandbox: Sandbox) -> None:
    with sandbox.spawn("answers:converse") as child:
        for number in range(3):
            child.channel.send({"number": number})
            assert child.channel.receive(5) == {"heard": {"number": number}}
        child.channel._socket.shutdown(1)

        assert child.channel.receive(5) is None
        assert child.wait(60).code == 0


def test_a_killed_child_is_seen_dead_at_once(sandbox: Sandbox) -> None:
    with sandbox.spawn("answers:converse") as child:
        child.kill()

        assert child.wait(2).signal == signal.SIGKILL


def test_a_child_takes_its_own_processes_with_it(sandbox: Sandbox, tmp_path: Path, gone: Callable[[int], bool]) -> None:
    note = tmp_path / "pid"
    with sandbox.spawn("sandbox.child:answer") as child:
        child.channel.send({"target": "answers:sleep_with_a_helper", "payload": {"tell": str(note)}})
        deadline = time.monotonic() + 5
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait(2)

    assert gone(int(note.read_text()))


def test_memory_beyond_the_limit_is_a_memory_error_in_the_child_alone(sandbox: Sandbox) -> None:
    limits = Limits(memory=64 << 20)

    assert sandbox.call("answers:allocate", {"bytes": 32 << 20}, limits=limits)["bytes"] == 32 << 20
    with pytest.raises(RuntimeError, match="MemoryError") as caught:
        sandbox.call("answers:allocate", {"bytes": 128 << 20}, limits=limits)
    assert caught.value.kind == "out_of_memory"


def test_a_file_beyond_the_limit_is_an_error_of_the_write(sandbox: Sandbox, tmp_path: Path) -> None:
    payload = {"path": str(tmp_path / "file"), "bytes": 2 << 20}

    with pytest.raises(RuntimeError, match=os.strerror(errno.EFBIG)):
        sandbox.call("answers:write", payload, limits=Limits(file_bytes=1 << 20))
