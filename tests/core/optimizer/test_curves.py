"""Curves are those of torch's own schedulers, step by step over whole jobs; each can be read anywhere, and rebased."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from core.catalog import schedule_defaults
from core.optimizer.curves import Curve
from core.optimizer.forms import FORMS, PLATEAU
from core.spec import ScheduleSpec

STEPS = 60


def curve(name: str | None, base: float = 0.1, per_epoch: int = 10, past: Sequence[float] = (), **keywords: Any) -> Curve:
    """With torch's defaults for what is left out; it goes by the step."""
    filled = {**(schedule_defaults(name) if name else {}), **keywords}
    if name == "OneCycleLR":
        filled = {"max_lr": base, **{key: value for key, value in filled.items() if value is not None}}
    schedule = ScheduleSpec.model_validate({"name": name, "per": "step", **filled})
    return Curve(base, schedule, per_epoch, tuple(past))


def torchs(name: str, bases: Sequence[float] = (0.1,), steps: int = STEPS, optimizer: str = "SGD", **keywords: Any) -> Any:
    """torch's scheduler over so many steps, one group for each base: per step the lr and the momentum of each group."""
    kind = getattr(torch.optim, optimizer)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": base} for base in bases]
    stepper = kind(groups, **({"momentum": 0.9} if optimizer == "SGD" else {}))
    scheduler = getattr(lr_scheduler, name)(stepper, **keywords)
    seen = []
    with warnings.catch_warnings(action="ignore"):
        for step in range(steps):
            if step:
                scheduler.step()
            seen.append(
                [(group["lr"], group["betas"][0] if "betas" in group else group["momentum"]) for group in stepper.param_groups]
            )
    return seen


def close(ours: float, torchs: float, base: float = 0.1) -> bool:
    """Equal but for rounding: torch multiplies its way from step to step, which at 0 leaves some 1e-17 of the base."""
    return ours == pytest.approx(torchs, rel=1e-12, abs=1e-15 * base)


CASES = [
    ("ConstantLR", {}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 17}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.01, "end_factor": 0.5, "total_iters": 33}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 60}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("ExponentialLR", {"gamma": 1.1}),
    ("StepLR", {"step_size": 7}),
    ("StepLR", {"step_size": 1, "gamma": 0.97}),
    ("MultiStepLR", {"milestones": [10, 11, 40, 40, 90], "gamma": 0.3}),
    ("MultiStepLR", {"milestones": [0, 30]}),
    ("PolynomialLR", {"total_iters": 50}),
    ("PolynomialLR", {"total_iters": 60, "power": 2.5}),
    ("CosineAnnealingLR", {"T_max": 60}),
    ("CosineAnnealingLR", {"T_max": 45, "eta_min": 0.003}),
    ("CosineAnnealingWarmRestarts", {"T_0": 7}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 1e-4}),
    ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 3}),
]


@pytest.mark.parametrize(("name", "keywords"), CASES)
@pytest.mark.parametrize("base", [0.1, 3e-5])
def test_each_step_has_the_lr_of_torchs_scheduler(name: str, keywords: dict[str, Any], base: float) -> None:
    ours = curve(name, base, **keywords)
    for step, [(lr, _)] in enumerate(torchs(name, [base], **keywords)):
        assert close(ours.lr(step), lr, base), step


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize(
    "keywords",
    [
        {}, {"pct_start": 0.25, "anneal_strategy": "linear"}, {"three_phase": True}, {"pct_start": 0.77, "div_factor": 3.0},
        {"base_momentum": 0.5, "max_momentum": 0.6, "final_div_factor": 10.0}, {"cycle_momentum": False}, {"pct_start": 1.0},
        {"pct_start": 0.0}, {"three_phase": True, "pct_start": 0.4, "anneal_strategy": "linear"}, {"total_steps": 61},
    ],
)  # fmt: skip
def test_one_cycle_moves_lr_and_momentum_as_torch_does_up_to_each_groups_own_lr(optimizer: str, keywords: dict[str, Any]) -> None:
    bases = [0.1, 0.004]
    cycle = {"total_steps": STEPS, **keywords}
    seen = torchs("OneCycleLR", bases, optimizer=optimizer, max_lr=bases, **cycle)
    for index, base in enumerate(bases):
        ours = curve("OneCycleLR", base, **cycle)
        for step, groups in enumerate(seen):
            lr, momentum = groups[index]
            assert close(ours.lr(step), lr, base), step
            moved = ours.momentum(step)
            assert (moved is None) == (keywords.get("cycle_momentum") is False)
            assert moved is None or close(moved, momentum, 1.0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_keywords_whole_jobs_are_torchs(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(set(FORMS) - {PLATEAU})))
    times, share = st.integers(1, 80), st.floats(0.05, 1)
    drawn = {
        "factor": share, "start_factor": share, "end_factor": st.floats(0.01, 1), "total_iters": times,
        "gamma": st.floats(0.5, 1.2), "step_size": times, "milestones": st.lists(st.integers(0, 80), max_size=5),
        "power": st.floats(0.1, 4), "T_max": st.integers(STEPS, 200), "eta_min": st.floats(0, 0.2), "T_0": times,
        "T_mult": st.integers(1, 4), "total_steps": st.integers(STEPS, 200), "three_phase": st.booleans(),
        "anneal_strategy": st.sampled_from(["cos", "linear"]), "div_factor": st.floats(1, 100),
        "final_div_factor": st.floats(1, 1e4), "base_momentum": st.floats(0, 0.9), "max_momentum": st.floats(0, 0.9),
    }  # fmt: skip
    base = data.draw(st.floats(1e-6, 1))
    keywords = {key: data.draw(drawn[key], label=key) for key in schedule_defaults(name) if key in drawn}
    ours = curve(name, base, **keywords)
    seen = torchs(name, [base], **keywords, **({"max_lr": base} if name == "OneCycleLR" else {}))
    for step, [(lr, momentum)] in enumerate(seen):
        assert close(ours.lr(step), lr, max(base, keywords.get("eta_min", 0))), step
        moved = ours.momentum(step)
        assert moved is None or close(moved, momentum, 1.0)


def test_beyond_t_max_it_goes_up_again_where_torchs_products_lose_digits() -> None:
    ours = curve("CosineAnnealingLR", T_max=20, eta_min=1e-3)
    closed = [
        1e-3 + (0.1 - 1e-3) * (1 + torch.cos(torch.tensor(torch.pi * step / 20, dtype=torch.float64)).item()) / 2
        for step in range(STEPS)
    ]
    for step, [(lr, _)] in enumerate(torchs("CosineAnnealingLR", T_max=20, eta_min=1e-3)):
        assert ours.lr(step) == pytest.approx(closed[step], rel=1e-13)
        assert ours.lr(step) == pytest.approx(lr, rel=1e-9)


FIGURES = [
    1.0,
    0.9,
    0.95,
    0.96,
    0.9,
    0.91,
    0.89999,
    0.9,
    0.5,
    float("nan"),
    0.6,
    float("inf"),
    0.6,
    0.7,
    0.8,
    0.45,
    0.5,
    0.5,
    0.5,
]


@pytest.mark.parametrize(
    "keywords",
    [
        {"patience": 1}, {"patience": 0, "factor": 0.5, "min_lr": 0.02}, {"patience": 2, "cooldown": 2, "threshold": 0.1},
        {"mode": "max", "patience": 1}, {"mode": "max", "patience": 0, "threshold_mode": "abs", "threshold": 0.02},
        {"patience": 0, "threshold_mode": "abs", "threshold": 0.05, "eps": 1e-3}, {"patience": 0, "factor": 0.9, "cooldown": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", [0.1, 0.003])
def test_a_plateau_is_a_function_of_the_figures_so_far_and_torchs(keywords: dict[str, Any], base: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **keywords)
    schedule = ScheduleSpec.model_validate({"name": PLATEAU, "per": "epoch", **schedule_defaults(PLATEAU), **keywords})
    for epoch in range(len(FIGURES) + 1):
        heard = Curve(base, schedule, per_epoch=4, past=tuple(FIGURES[:epoch]))
        assert [heard.lr(4 * epoch + step) for step in range(4)] == [optimizer.param_groups[0]["lr"]] * 4
        later = Curve(base, schedule, per_epoch=4, past=tuple(FIGURES))
        assert later.lr(4 * epoch) == heard.lr(4 * epoch), "what comes later changes nothing before"
        if epoch < len(FIGURES):
            scheduler.step(FIGURES[epoch])


# --- steps, epochs, warmup ----------------------------------------------------------------------------------------------------


def test_per_epoch_it_changes_where_an_epoch_begins() -> None:
    ours = curve("StepLR", per="epoch", per_epoch=5, step_size=2, gamma=0.5)
    assert [ours.lr(step) for step in range(0, 25, 5)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert [ours.lr(step) for step in (9, 10, 14, 19, 20)] == [0.1, 0.05, 0.05, 0.05, 0.025]


@pytest.mark.parametrize(("name", "keywords"), CASES)
def test_a_warmup_leads_to_where_the_schedule_begins_and_then_it_is_torchs(name: str, keywords: dict[str, Any]) -> None:
    ours, bare = curve(name, warmup_steps=8, warmup_start=0.2, **keywords), curve(name, **keywords)
    rise = [0.2 + 0.8 * step / 8 for step in range(8)]
    assert [ours.lr(step) for step in range(8)] == pytest.approx([share * bare.lr(0) for share in rise], rel=1e-15)
    assert [ours.lr(step) for step in range(8, STEPS)] == [bare.lr(step) for step in range(STEPS - 8)]


def test_a_warmup_is_torchs_linear_one_before_another_in_sequence() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    parts = [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=9), lr_scheduler.CosineAnnealingLR(optimizer, 51)]
    both = lr_scheduler.SequentialLR(optimizer, parts, milestones=[9])
    ours = curve("CosineAnnealingLR", T_max=51, warmup_steps=9)
    for step in range(STEPS):
        assert close(ours.lr(step), optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()


def test_without_a_name_it_warms_up_and_stays() -> None:
    ours = curve(None, warmup_steps=4, warmup_start=0.0)
    assert [ours.lr(step) for step in range(7)] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(("warmup", "changes"), [(10, [30, 50]), (13, [30, 50]), (4, [20, 40]), (20, [40, 60])])
def test_epochs_are_counted_from_the_one_in_which_the_warmup_ends(warmup: int, changes: list[int]) -> None:
    ours = curve("MultiStepLR", per="epoch", per_epoch=10, milestones=[2, 4], gamma=0.5, warmup_steps=warmup)
    falls = [step for step in range(warmup + 1, 70) if ours.lr(step) < ours.lr(step - 1)]
    assert falls == changes


def test_a_plateau_hears_nothing_of_the_epochs_of_its_warmup() -> None:
    worse = [1.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    ours = curve(PLATEAU, per="epoch", per_epoch=2, past=worse, patience=1, factor=0.5, warmup_steps=5, warmup_start=1.0)
    assert [ours.lr(2 * epoch) for epoch in range(7)] == [0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]


# --- live changes -------------------------------------------------------------------------------------------------------------


def falling() -> Iterator[Curve]:
    for name, keywords in CASES:
        ours = curve(name, **keywords)
        values = [ours.lr(step) for step in range(STEPS)]
        if all(after <= before for before, after in pairwise(values)):
            yield ours
    yield curve("CosineAnnealingLR", T_max=6, per="epoch", eta_min=1e-3)
    yield curve(PLATEAU, per="epoch", past=[1, 2, 3, 4, 5, 6], patience=1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(falling())), st.integers(0, STEPS - 1), st.floats(1e-7, 10))
def test_a_new_value_holds_at_its_step_and_the_rest_keeps_its_shape(ours: Curve, step: int, value: float) -> None:
    changed = ours.rebased(step, value)
    assert [changed.lr(before) for before in range(step)] == [ours.lr(before) for before in range(step)]
    assert changed.lr(step) == value
    for later in range(step, STEPS):
        expected = value * ours.lr(later) / ours.lr(step) if ours.lr(step) else value
        assert changed.lr(later) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*CASES, ("OneCycleLR", {"total_steps": STEPS})]),
    st.integers(0, 9),
    st.integers(0, STEPS - 1),
    st.floats(1e-6, 1),
)
def test_no_lr_rises_above_the_value_that_was_set(case: tuple[str, dict[str, Any]], warmup: int, step: int, value: float) -> None:
    changed = curve(case[0], warmup_steps=warmup, **case[1]).rebased(step, value)
    values = [changed.lr(later) for later in range(step, STEPS)]
    assert values[0] == value
    assert max(values) <= value * (1 + 1e-12)


def test_a_value_set_in_a_warmup_is_held_until_the_schedule_falls() -> None:
    changed = curve("CosineAnnealingLR", T_max=50, warmup_steps=10).rebased(4, 0.02)
    assert [changed.lr(step) for step in range(4, 11)] == [0.02] * 7
    assert [changed.lr(step) for step in range(10, 60)] == pytest.approx(
        [curve("CosineAnnealingLR", 0.02, T_max=50).lr(step) for step in range(50)]
    )


def test_one_cycle_keeps_to_a_new_value_until_its_peak_has_passed() -> None:
    bare = curve("OneCycleLR", total_steps=60)
    changed = bare.rebased(3, 0.03)
    assert {changed.lr(step) for step in range(3, 18)} == {0.03}
    assert bare.lr(17) == 0.1
    assert [changed.lr(step) for step in range(17, 60)] == pytest.approx([0.3 * bare.lr(step) for step in range(17, 60)])
    assert [changed.momentum(step) for step in range(60)] == [bare.momentum(step) for step in range(60)]


def test_a_restart_goes_back_to_the_new_value() -> None:
    bare = curve("CosineAnnealingWarmRestarts", T_0=10, T_mult=2)
    changed = bare.rebased(8, 0.01)
    assert (changed.lr(8), changed.lr(9)) == (0.01, pytest.approx(0.01 * bare.lr(9) / bare.lr(8)))
    assert [changed.lr(step) for step in range(10, 60)] == pytest.approx([0.1 * bare.lr(step) for step in range(10, 60)])


def test_what_had_come_to_nothing_stays_at_the_new_value() -> None:
    changed = curve("PolynomialLR", total_iters=20).rebased(30, 0.01)
    assert {changed.lr(step) for step in range(30, 60)} == {0.01}


def test_of_two_changes_each_begins_at_its_step_and_a_later_word_on_the_same_step_counts() -> None:
    bare = curve("CosineAnnealingLR", T_max=60)
    changed = bare.rebased(10, 1.0).rebased(20, 0.5).rebased(20, 0.25)
    assert (changed.lr(9), changed.lr(10), changed.lr(20)) == (bare.lr(9), 1.0, 0.25)
    assert changed.lr(40) == pytest.approx(0.25 * bare.lr(40) / bare.lr(20))
    assert changed.changes == ((10, 1.0, False), (20, 0.25, False))


def test_a_momentum_that_was_set_is_held() -> None:
    bare = curve("OneCycleLR", total_steps=60)
    changed = bare.holding(20, 0.7)
    assert [changed.momentum(step) for step in range(20)] == [bare.momentum(step) for step in range(20)]
    assert {changed.momentum(step) for step in range(20, 60)} == {0.7}
    assert [changed.lr(step) for step in range(60)] == [bare.lr(step) for step in range(60)]


# --- points -------------------------------------------------------------------------------------------------------------------


def drawn(points: list[tuple[int, float]], step: int) -> float:
    """The line through the points at that step."""
    (before, low), (after, high) = next(pair for pair in pairwise(points) if pair[0][0] <= step <= pair[1][0])
    return low + (high - low) * (step - before) / (after - before)


@pytest.mark.parametrize(("name", "keywords"), [*CASES, ("OneCycleLR", {"total_steps": 800})])
@pytest.mark.parametrize(("per", "warmup", "steps"), [("step", 0, 120), ("step", 13, 120), ("epoch", 20, 600)])
def test_the_points_tell_the_curve(name: str, keywords: dict[str, Any], per: str, warmup: int, steps: int) -> None:
    ours = curve(name, per=per, warmup_steps=warmup, per_epoch=10, **keywords)
    points = ours.points(steps)
    assert (points[0][0], points[-1][0]) == (0, steps - 1)
    assert len(points) <= 320
    assert all(value == ours.lr(step) for step, value in points)
    top = max(value for _, value in points)
    assert [drawn(points, step) for step in range(steps)] == [
        pytest.approx(ours.lr(step), abs=0.01 * top) for step in range(steps)
    ]


@pytest.mark.parametrize(
    ("name", "keywords", "corners"),
    [
        ("StepLR", {"step_size": 20, "gamma": 0.5}, [(0, 0.1), (19, 0.1), (20, 0.05), (39, 0.05), (40, 0.025), (59, 0.025)]),
        ("PolynomialLR", {"total_iters": 50, "warmup_steps": 5, "warmup_start": 0.0}, [(0, 0.0), (5, 0.1), (55, 0.0), (59, 0.0)]),
        (None, {"warmup_steps": 5, "warmup_start": 0.5}, [(0, 0.05), (5, 0.1), (59, 0.1)]),
    ],
)
def test_what_is_piecewise_linear_has_its_corners(name: str | None, keywords: dict[str, Any], corners: list[Any]) -> None:
    assert curve(name, **keywords).points(STEPS) == [(step, pytest.approx(value)) for step, value in corners]


def test_points_are_few_and_quick_however_long_the_job() -> None:
    for name, keywords in [
        ("StepLR", {"step_size": 1, "gamma": 1.0}),
        ("CosineAnnealingWarmRestarts", {"T_0": 1}),
        ("CosineAnnealingLR", {"T_max": 3}),
    ]:
        assert len(curve(name, **keywords).points(10**9)) <= 320
    assert len(curve("CosineAnnealingLR", T_max=10**5, per="epoch").points(10**6)) <= 320
    assert [curve("CosineAnnealingLR", T_max=9).points(total)[-1][0] for total in (1, 2, 3)] == [0, 1, 2]


def test_a_curve_is_a_value() -> None:
    ours = curve("OneCycleLR", total_steps=60)
    assert copy.deepcopy(ours) == ours == curve("OneCycleLR", total_steps=60)
    ours.lr(3)
    assert copy.deepcopy(ours).lr(3) == ours.lr(3)
