"""What the rules decide, loss by loss; which of them hold in a log; and what a spec may say."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import DivergedError, NonFiniteLossError
from core.events import Firing, Iteration, Row, figure, firings
from core.optimizer.curves import Curve
from core.spec import DivergenceSpec, JobSpec, ScheduleSpec, faults_of
from core.training.divergence import Watch, Watched

SPIKE = {"action": "cut_lr", "factor": 4, "window": 4, "patience": 1}


def iteration(step: int, loss: float) -> Iteration:
    return Iteration(step=step, epoch=step // 10, loss=loss, samples=1, lr={})


def watch(losses: list[float], *, lag: int = 0, **rules: Any) -> Watch:
    made = Watch(DivergenceSpec(**rules), lag)
    for step, loss in enumerate(losses):
        made.hear(iteration(step, loss))
    return made


def fires(losses: list[float], **rules: Any) -> tuple[int, int] | None:
    """The first step of the trouble, and the one at which a rule fires."""
    trouble = watch(losses, spike={**SPIKE, "action": "stop", **rules}).trouble
    return None if trouble is None else (trouble.first, trouble.step)


@pytest.mark.parametrize(
    ("losses", "rules", "at"),
    [
        ([1, 1, 4.0], {}, None),  # not above it
        ([1, 1, 4.1], {}, (2, 2)),
        ([1, 9], {}, None),  # one loss is less than half a window
        ([1, 3, 8.1], {}, (2, 2)),  # the median of two is between them
        ([1, 3, 5, 12.1], {}, (3, 3)),
        ([9, 9, 1, 1, 1, 1, 4.1], {}, (6, 6)),  # the oldest have left the window
        ([9, 9, 9, 1, 1, 4.1], {}, None),  # not yet
        ([1, 1, 5, 5, 5], {"patience": 3}, (2, 4)),
        ([1, 1, 5, 5, 1, 5, 5], {"patience": 3}, None),  # not in a row
        ([1, 1, 5, 5, 5, 5, 5, 5, 5], {"patience": 7}, (2, 8)),  # what is a spike does not become the median
        ([0.0, 0.0, 5, 5], {}, None),  # of 0 no factor is far
        ([-1, -1, 5, 5], {}, None),
        ([1, 1, 1, 3], {"factor": 2.5}, (3, 3)),
    ],
)
def test_a_spike_is_far_above_the_median_of_those_before_it(losses: list[float], rules: Any, at: Any) -> None:
    assert fires(losses, **rules) == at


@pytest.mark.parametrize(
    ("loss", "rule", "message"), [(math.nan, "nan", "nan"), (math.inf, "inf", "inf"), (-math.inf, "inf", "-inf")]
)
def test_what_is_not_finite_ends_it_at_once(loss: float, rule: str, message: str) -> None:
    made = watch([1.0] * 12 + [loss, 5.0, math.nan])
    assert made.trouble is not None
    assert (made.trouble.rule, made.trouble.action, made.trouble.first, made.trouble.step) == (rule, "stop", 12, 12)
    assert made.heard == 15, "what was on its way behind it is heard, and says nothing"
    told = made.trouble.told()
    assert (told.value, told.limit, told.message) == (figure(loss), None, f"the loss became {message} at step 12, in epoch 2")
    assert isinstance(made.trouble.error(), NonFiniteLossError)


def test_the_failure_of_a_spike_says_how_far_it_was() -> None:
    trouble = watch([0.5, 0.5, 0.5, 3, 4], spike={**SPIKE, "action": "stop", "patience": 2}).trouble
    assert trouble is not None
    error = trouble.error()
    assert (type(error), error.kind) == (DivergedError, "diverged")
    assert str(error) == "the loss was 4 at step 4, above 4 times its running median, for 2 steps in a row, in epoch 1"
    assert (trouble.value, trouble.limit) == (4, 2)


@pytest.mark.parametrize("lag", [0, 2])
def test_a_cut_is_due_at_a_step_that_does_not_depend_on_when_the_loss_was_heard(lag: int) -> None:
    made = watch([1, 1, 9], lag=lag, spike=SPIKE)
    assert made.trouble is None
    assert [made.due(step) is not None for step in (2 + lag, 3 + lag, 4 + lag)] == [False, True, False]
    made.hear(iteration(3, 100.0))
    assert made.state == Watched(recent=(100.0,)), "it begins anew with the losses of the new lr"


def test_what_a_checkpoint_holds_goes_on_as_if_nothing_had_been() -> None:
    losses = [1.0, 0.9, 1.2, 0.7, 1.0, 5.0, 6.0, 0.8, 7.0, 6.5, 9.0, 1.0, 1.0, 8.0]
    rules = {"spike": {**SPIKE, "patience": 2}, "times": 9}
    whole = watch(losses, lag=2, **rules)
    for cut in range(len(losses)):
        first = watch(losses[:cut], lag=2, **rules)
        rest = Watch(DivergenceSpec(**rules), lag=2)
        rest.restart(Watched.of(json.loads(json.dumps(asdict(first.state)))), cut)
        for step in range(cut, len(losses)):
            rest.hear(iteration(step, losses[step]))
        assert rest.state == whole.state


def test_a_cut_that_the_log_tells_of_is_not_made_again() -> None:
    decided = watch([1, 1, 9], spike=SPIKE).state
    assert decided.cut is not None
    for fired, again in [([], True), ([Firing(3, 2, 1)], False), ([Firing(3, 8, 1)], True)]:
        rest = Watch(DivergenceSpec(spike=SPIKE), 0, fired)
        rest.restart(decided, 3)
        assert (rest.due(3) is not None) is again


def test_they_act_so_often_and_then_they_stop() -> None:
    made = Watch(DivergenceSpec(non_finite="rollback", times=2), 0, [Firing(0, 4, 1), Firing(5, 7, 2)])
    made.hear(iteration(6, math.nan))
    assert made.trouble is not None
    assert made.trouble.action == "stop"
    assert "have acted 2 times before" in str(made.trouble.error())
    made.restart(Watched(), 3)  # a checkpoint from before the second of them
    assert made.used == 1


# --- in a log ------------------------------------------------------------------------------------------------------------------


def rule(at: int, step: int, action: str = "cut_lr") -> tuple[int, str, dict[str, Any]]:
    return at, "rule", {"rule": "spike", "action": action, "step": step}


def rewound(to: int) -> tuple[int, str, dict[str, Any]]:
    return to, "rewound", {"to_step": to}


@pytest.mark.parametrize(
    ("log", "held"),
    [
        ([rule(8, 7), rule(20, 19)], [(8, 7, 1), (20, 19, 2)]),
        ([rule(8, 7), rewound(6)], []),  # killed, and it fires again
        ([rule(8, 7), rewound(6), rule(8, 7)], [(8, 7, 1)]),
        ([rule(8, 7), rewound(8)], [(8, 7, 1)]),
        ([rewound(6), rule(6, 9, "rollback")], [(6, 9, 1)]),
        ([rule(8, 7), rewound(6), rule(6, 9, "rollback")], [(6, 9, 2)]),  # it has made a cut void, which has acted all the same
        ([rewound(6), rule(6, 9, "rollback"), rewound(6), rule(6, 9, "rollback")], [(6, 9, 1), (6, 9, 2)]),
        ([rewound(6), rule(6, 9, "rollback"), rewound(6)], [(6, 9, 1)]),  # killed before the next checkpoint
        ([rewound(6), rule(6, 9, "rollback"), rewound(4)], []),  # and that checkpoint is damaged
        ([rule(8, 7), rewound(6), rewound(6)], []),  # killed while it went back
        ([rewound(0), rule(0, 3, "pause")], [(0, 3, 1)]),
        ([rule(8, 8, "stop"), rule(9, 9, "none")], []),
    ],
)
def test_which_rules_have_acted_is_what_the_log_says(log: Any, held: Any) -> None:
    rows = [Row(seq, step, kind, data) for seq, (step, kind, data) in enumerate(log, 1)]
    assert [tuple(one) for one in firings(rows)] == held


# --- the lr --------------------------------------------------------------------------------------------------------------------


def curve(**schedule: Any) -> Curve:
    return Curve(base=0.1, schedule=ScheduleSpec(per="step", **schedule), per_epoch=10)


def test_a_cut_keeps_the_shape_of_the_schedule_and_its_warmup() -> None:
    bare = curve(name="CosineAnnealingLR", T_max=90, eta_min=0.0, warmup_steps=10, warmup_start=0.1)
    cut = bare.scaled(4, 0.5)
    assert [cut.lr(step) for step in (0, 3)] == [bare.lr(step) for step in (0, 3)]
    assert [cut.lr(step) for step in (4, 9, 10, 50, 99)] == [0.5 * bare.lr(step) for step in (4, 9, 10, 50, 99)]
    assert cut.scaled(50, 0.5).lr(60) == 0.25 * bare.lr(60)


def test_a_word_of_a_person_counts_from_its_step_on_and_a_cut_after_it_too() -> None:
    bare = curve()
    assert bare.scaled(5, 0.5).rebased(7, 1.0).lr(8) == 1.0
    assert bare.scaled(5, 0.5).rebased(5, 1.0).lr(8) == 1.0
    assert bare.rebased(5, 1.0).scaled(5, 0.5).lr(8) == 0.5
    assert bare.rebased(5, 1.0).scaled(5, 0.5).lr(4) == 0.1


# --- the spec ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "pointer", "says"),
    [
        ({"non_finite": "cut_lr"}, "/non_finite", "no lr heals weights that have become NaN"),
        ({"spike": {"factor": 4}}, "/spike/action", "this key is required"),
        ({"spike": {"action": "cut_lr"}, "lr_factor": 1}, "", "with lr_factor 1 'cut_lr' has no effect"),
        ({"spike": {"action": "stop", "factor": 1}}, "/spike/factor", "greater than 1"),
        ({"spike": {"action": "stop", "window": 1}}, "/spike/window", "greater than or equal to 2"),
        ({"spike": {"action": "none"}}, "/spike/action", "'stop', 'pause', 'cut_lr' or 'rollback'"),
        ({"lr_factor": 1.5}, "/lr_factor", "less than or equal to 1"),
        ({"time": 5}, "/time", "Did you mean 'times'?"),
    ],
)
def test_what_cannot_help_is_refused_with_its_place(rules: Any, pointer: str, says: str) -> None:
    spec = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "x"}, "training": {"divergence": rules}}
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(spec)
    (fault,) = faults_of(refused.value)
    assert fault.pointer == f"/training/divergence{pointer}"
    assert says in fault.message


def test_by_default_only_what_is_not_finite_stops_a_job() -> None:
    rules = DivergenceSpec()
    assert (rules.non_finite, rules.spike, rules.rolls_back) == ("stop", None, False)
    assert DivergenceSpec(spike={"action": "rollback"}).rolls_back
