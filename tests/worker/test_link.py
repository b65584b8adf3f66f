"""The trainer's end of the conversation: order, permits, cancel."""

from __future__ import annotations

import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from core.adjustments import RULES
from core.events import AdjustedData, CheckpointData, EpochData, Iteration, RewoundData, RuleData
from sandbox import Channel
from worker.link import CancelledError, Link, PausedError
from worker.printed import Capture

FOREVER = float("inf")


def iteration(step: int, epoch: int = 0) -> Iteration:
    return Iteration(step=step, epoch=epoch, loss=0.1, samples=1, lr={"default": 0.01})


@pytest.fixture
def supervisor() -> Iterator[Channel]:
    """The other end of what `link_of` makes."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    channel.theirs = theirs
    yield channel
    channel.close()
    theirs.close()


@pytest.fixture
def link_of(supervisor: Channel) -> Iterator[Callable[[float], Link]]:
    """A link with this permit; its thread ends with the test."""
    links = []

    def make(permit: float) -> Link:
        links.append(Link(Channel(supervisor.theirs), permit, orphaned=lambda: None))
        return links[-1]

    yield make
    supervisor._socket.shutdown(socket.SHUT_RDWR)
    for link in links:
        link.thread.join(60)


def test_the_first_loss_goes_at_once_and_the_next_ones_together(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(FOREVER)
    link.iteration(iteration(0))
    assert supervisor.receive(2)["data"]["losses"] == [0.1]

    for step in range(1, 6):
        link.iteration(iteration(step))
    message = supervisor.receive(2)
    assert (message["step"], message["data"]["first"], len(message["data"]["losses"])) == (6, 1, 5)


def test_what_came_together_with_the_start_message_is_heard(supervisor: Channel) -> None:
    """Else it waits for the next permit, a third of a lease away."""
    for kind in ("start", "pause"):
        supervisor.send({"kind": kind})
    channel = Channel(supervisor.theirs)
    assert channel.receive()["kind"] == "start"
    link = Link(channel, FOREVER, orphaned=lambda: None)
    assert link._heard.wait(10)
    assert link.paused
    supervisor._socket.shutdown(socket.SHUT_RDWR)
    link.thread.join(60)


def test_losses_leave_though_no_further_step_is_done(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(FOREVER)
    link.iteration(iteration(0))
    link.iteration(iteration(1))

    assert supervisor.receive(2)["step"] == 1
    assert supervisor.receive(2)["step"] == 2


def test_an_event_and_a_line_come_after_every_loss_before_them(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(FOREVER)
    for step in range(3):
        link.iteration(iteration(step))
    link.line("info", "printed")
    link.iteration(iteration(3, epoch=1))
    link.event(4, EpochData(epoch=1, mean_loss=0.1, validation=None, seconds=1, samples_per_second=1))
    link.end(kind="done")

    messages = []
    while not messages or messages[-1]["kind"] != "done":
        messages.append(supervisor.receive(2))
    assert [message["kind"] for message in messages] == ["iterations", "iterations", "log", "iterations", "epoch", "done"]
    assert messages[2]["step"] == 3


def test_the_cuts_of_a_rule_go_with_its_own_event_or_not_at_all(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(FOREVER)
    cuts = [AdjustedData(group=name, step=8, changes={}, by=RULES, factor=0.5) for name in ("head", "default")]
    fired = RuleData(rule="nan", action="rollback", step=9, message="the loss became nan")
    link.event(8, RewoundData(to_step=8))
    for cut in cuts:
        link.event(8, cut)
    link.event(8, fired)
    link.event(8, cuts[0])
    link.end(kind="paused")

    messages = [supervisor.receive(2) for _ in range(3)]
    assert [message["kind"] for message in messages] == ["rewound", "several", "paused"]
    assert [one["kind"] for one in messages[1]["events"]] == ["adjusted", "adjusted", "rule"]


def test_early_stopping_goes_with_the_last_checkpoint_or_not_at_all(
    supervisor: Channel, link_of: Callable[[float], Link]
) -> None:
    link = link_of(FOREVER)
    stops = RuleData(rule="early_stopping", action="stop", step=8, message="no better")
    saved = CheckpointData(step=8, epoch=0, figures={"loss": 1.0}, best=True, path="8", sha256="0", bytes=1)
    link.event(8, stops)
    link.event(8, saved)
    link.event(8, stops)
    link.end(kind="failed")

    messages = [supervisor.receive(2) for _ in range(2)]
    assert [message["kind"] for message in messages] == ["several", "failed"]
    assert [one["kind"] for one in messages[0]["events"]] == ["rule", "checkpoint"]


def test_a_chunk_never_spans_two_epochs(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(FOREVER)
    for step, epoch in (0, 0), (1, 0), (2, 1):
        link.iteration(iteration(step, epoch))

    assert [supervisor.receive(2)["data"]["epoch"] for _ in range(3)] == [0, 0, 1]


def test_past_its_permit_a_trainer_waits_until_a_new_one_comes(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(time.monotonic() - 1)
    passed = threading.Event()
    threading.Thread(target=lambda: (link.wait(), passed.set()), daemon=True).start()

    assert not passed.wait(0.2)
    supervisor.send({"kind": "permit", "until": time.monotonic() + 60})
    assert passed.wait(1)


def test_cancel_reaches_a_trainer_that_waits_for_its_permit(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    link = link_of(time.monotonic() - 1)
    supervisor.send({"kind": "cancel"})

    with pytest.raises(CancelledError):
        link.wait()


def test_a_pause_stops_the_next_step_but_not_a_checkpoint_that_is_about_to_appear(
    supervisor: Channel, link_of: Callable[[float], Link]
) -> None:
    link = link_of(time.monotonic() - 1)
    supervisor.send({"kind": "pause"})
    supervisor.send({"kind": "permit", "until": time.monotonic() + 60})

    with pytest.raises(PausedError):
        link.wait()
    link.finish()


def test_prints_and_warnings_are_lines_each_place_warns_once(supervisor: Channel, link_of: Callable[[float], Link]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        capture = Capture(link_of(FOREVER))
        try:
            sys.stdout.reconfigure(line_buffering=True)
            sys.stdout.write("half a ")
            sys.stdout.write("line\nand a second\n")
            sys.stderr.write("problem\n")
            for number in range(3):
                warnings.warn(f"number {number}", stacklevel=1)
            sys.stdout.write("unended \udcff")
        finally:
            capture.finish()

    told = [supervisor.receive(2)["data"] for _ in range(5)]
    assert [(data["level"], data["message"].split(" (")[0]) for data in told] == [
        ("info", "half a line"),
        ("info", "and a second"),
        ("warning", "problem"),
        ("warning", "UserWarning: number 0"),
        ("info", "unended \\udcff"),
    ]
    with pytest.raises(TimeoutError):
        supervisor.receive(0)
