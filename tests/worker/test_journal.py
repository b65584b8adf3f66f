"""Events between the trainer and the database."""

from __future__ import annotations

from typing import Any

import pytest

from worker.journal import Journal, MalformedEventError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def iterations(first: int, count: int = 1, epoch: int = 0) -> dict[str, Any]:
    data = {"epoch": epoch, "first": first, "losses": [0.5] * count, "lr": {"default": float(first)}}
    return {"step": first + count, "kind": "iterations", "data": data}


def test_losses_that_follow_each_other_become_one_event_with_the_last_lr() -> None:
    journal = Journal()
    for message in iterations(0, 2), iterations(2, 3), iterations(5):
        journal.add(message)

    (event,) = journal.take()
    assert (event.step, event.data["first"], len(event.data["losses"])) == (6, 0, 6)
    assert event.data["lr"] == {"default": 5.0}


@pytest.mark.parametrize("second", [iterations(3), iterations(2, epoch=1)])
def test_a_gap_or_another_epoch_begins_another_event(second: dict[str, Any]) -> None:
    journal = Journal()
    journal.add(iterations(0, 2))
    journal.add(second)

    assert len(journal.take()) == 2


def test_lines_stay_between_the_losses_where_they_were_printed() -> None:
    journal = Journal()
    journal.add(iterations(0))
    journal.lines(["in between"], "info")
    journal.add(iterations(1))

    assert [(event.kind, event.step) for event in journal.take()] == [("iterations", 1), ("log", 1), ("iterations", 2)]


def test_what_was_taken_is_gone_and_what_came_later_is_next() -> None:
    journal = Journal()
    journal.add(iterations(0))
    journal.take()
    journal.add(iterations(1))

    assert [event.data["first"] for event in journal.take()] == [1]
    assert not len(journal)


def test_beyond_the_rate_only_lines_are_dropped_and_their_number_is_told() -> None:
    clock = Clock()
    journal = Journal(clock)
    journal.lines((f"line {number}" for number in range(1500)), "info")
    journal.add(iterations(0))
    clock.now = 1.0
    journal.lines(["later"], "info")

    events = journal.take()
    assert [event.kind for event in events].count("iterations") == 1
    told = [event.data["message"] for event in events if event.kind == "log"]
    assert told[999] == "line 999"
    assert told[1000] == "500 printed lines were left out here: the log takes 100 a second"
    assert told[-1] == "later"


def test_the_last_lines_are_known_though_they_were_dropped() -> None:
    journal = Journal(Clock())
    journal.lines((f"line {number}" for number in range(5000)), "info")

    assert journal.last_lines() == [f"line {number}" for number in range(4980, 5000)]
    assert "left out" in journal.take_last()[-1].data["message"]


def test_what_a_crash_prints_of_itself_does_not_push_out_what_was_printed_before() -> None:
    journal = Journal()
    journal.lines([f"line {number}" for number in range(30)], "info")
    journal.lines(["Fatal Python error: Segmentation fault", *(f"frame {number}" for number in range(50))], "warning")
    journal.add({"step": 0, "kind": "log", "data": {"level": "info", "message": "read late"}})

    lines = journal.last_lines()
    assert lines[18:22] == ["line 29", "read late", "Fatal Python error: Segmentation fault", "frame 0"]
    assert len(lines) == 40


def test_a_long_line_is_cut_and_counts_for_several() -> None:
    journal = Journal(Clock())
    journal.lines(["x" * 5000] * 100, "info")

    messages = [event.data["message"] for event in journal.take() if event.kind == "log"]
    assert messages[0].endswith("… (1000 more characters)")
    assert 10 < len(messages) < 60


def test_a_line_that_no_database_can_hold_is_mended() -> None:
    journal = Journal()
    journal.lines(["a\x00b\udcffc"], "info")

    assert journal.take()[0].data["message"] == "a\ufffdb?c"


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "end", "step": 1, "data": {"state": "succeeded", "last_seq": 1}},
        {"kind": "state", "step": 1, "data": {"state": "succeeded"}},
        {"kind": "unknown", "step": 1, "data": {}},
        {"kind": "epoch", "step": "1", "data": {}},
        {"kind": "epoch", "step": 1, "data": {"epoch": 1}},
        {"kind": "epoch", "step": 1, "data": None},
        {},
    ],
)
def test_what_is_no_event_of_a_trainer_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError):
        Journal().add(message)


def test_it_says_when_it_is_full() -> None:
    journal = Journal()
    journal.add(iterations(0, 300_000))

    assert journal.full
    journal.take()
    assert not journal.full
