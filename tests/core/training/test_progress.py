"""When a checkpoint is due."""

from __future__ import annotations

from core.spec import EveryMinutes, EverySteps
from core.training.progress import Pace, Progress, Tally


class Clock:
    """A clock that the test winds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_by_epochs_one_is_due_at_the_end_of_each() -> None:
    pace = Pace("epoch")
    assert [pace.due(step, epoch_ends=step % 5 == 0) for step in range(1, 11)] == [False] * 4 + [True] + [False] * 4 + [True]


def test_by_steps_one_is_due_at_each_multiple_whatever_was_written() -> None:
    pace = Pace(EverySteps(steps=4))
    due = []
    for step in range(1, 14):
        if step == 6:
            pace.written()  # an epoch that was the best
        if pace.due(step, epoch_ends=step == 7):
            due.append(step)
    assert due == [4, 8, 12]


def test_by_minutes_one_is_due_so_long_after_the_last() -> None:
    clock = Clock()
    pace = Pace(EveryMinutes(minutes=2), clock)
    clock.now += 119.9
    assert not pace.due(5, epoch_ends=True)
    clock.now += 0.1
    assert pace.due(6, epoch_ends=False)
    clock.now += 30
    pace.written()
    clock.now += 119.9
    assert not pace.due(7, epoch_ends=False)
    clock.now += 0.1
    assert pace.due(8, epoch_ends=False)


def test_a_tally_adds_each_loss_by_its_samples_in_float64() -> None:
    tally = Tally().plus(0.1, 64).plus(0.2, 64).plus(0.7, 10)
    assert (tally.steps, tally.samples) == (3, 138)
    assert tally.loss_sum == 0.1 * 64 + 0.2 * 64 + 0.7 * 10
    assert tally.mean_loss == tally.loss_sum / 138
    assert Tally().mean_loss == 0


def test_the_epoch_of_the_last_step_is_the_one_that_has_begun_or_the_one_before() -> None:
    assert Progress(step=52, epoch=2).last_epoch == 1
    assert Progress(step=53, epoch=2, tally=Tally(1, 64, 0.5)).last_epoch == 2
