"""A question to a child, and each thing that can come back."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox import CallFailed, CallKilled, CallRefused, CallTimeout, Limits, Sandbox


def test_a_call_gives_what_the_function_returns(sandbox: Sandbox) -> None:
    assert sandbox.call("answers:echo", {"a": [1, None, "ü"]}) == {"echo": {"a": [1, None, "ü"]}}


def test_a_large_question_has_a_large_answer(sandbox: Sandbox) -> None:
    payload = {"keys": [f"layer{number}.weight" for number in range(100_000)]}

    assert sandbox.call("answers:echo", payload) == {"echo": payload}


def test_faults_come_back_each_with_its_pointer(sandbox: Sandbox) -> None:
    with pytest.raises(CallRefused) as caught:
        sandbox.call("answers:refuse", {})

    assert caught.value.faults == [
        {"pointer": "/model/name", "message": "there is no such model"},
        {"pointer": "/loss", "message": "nor such a loss"},
    ]


def test_an_exception_comes_back_with_its_type_and_the_last_lines(sandbox: Sandbox) -> None:
    with pytest.raises(CallFailed) as caught:
        sandbox.call("answers:fail", {})

    assert (caught.value.type, caught.value.message) == ("KeyError", "'missing'")
    assert caught.value.lines[0] == "on the way"
    assert "answers.py" in "".join(caught.value.lines)


def test_a_function_that_is_not_there_is_a_failure_like_any_other(sandbox: Sandbox) -> None:
    with pytest.raises(CallFailed, match="No module named 'nowhere'"):
        sandbox.call("nowhere:function", {})


def test_a_crash_names_the_signal_and_the_last_lines_without_noise(sandbox: Sandbox) -> None:
    with pytest.raises(CallKilled) as caught:
        sandbox.call("answers:segfault", {})

    assert caught.value.signal == signal.SIGSEGV
    assert "before the end" in caught.value.lines
    assert "Fatal Python error: Segmentation fault" in caught.value.lines
    assert not any("Extension modules" in line for line in caught.value.lines)


def test_leaving_without_an_answer_names_the_exit_code(sandbox: Sandbox) -> None:
    with pytest.raises(CallKilled, match="exit code 3") as caught:
        sandbox.call("answers:leave", {})

    assert caught.value.signal is None


def test_a_call_over_its_time_is_stopped(sandbox: Sandbox) -> None:
    sandbox.wait_ready()
    started = time.monotonic()

    with pytest.raises(CallTimeout, match=r"longer than 0\.2 s"):
        sandbox.call("answers:sleep", {"seconds": 60}, limits=Limits(seconds=0.2))
    assert time.monotonic() - started < 30


def test_what_a_child_prints_is_never_its_answer_and_never_blocks_it(sandbox: Sandbox) -> None:
    assert sandbox.call("answers:chatter", {"lines": 20_000}) == {"lines": 20_000}


def test_many_threads_may_call_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: sandbox.call("answers:echo", {"number": number}), range(16)))

    assert [answer["echo"]["number"] for answer in answers] == list(range(16))
