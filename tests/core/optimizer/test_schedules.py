"""Schedules in a job: what a spec may say, what the plan fills in, that training goes by it, and goes on by it bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from core.catalog import catalog_request, schedule_defaults
from core.errors import SpecError
from core.events import EpochData, Iteration
from core.optimizer.curves import Curve
from core.optimizer.forms import FORMS
from core.optimizer.schedules import set_rates
from core.places import Places
from core.plan import plan
from core.planned import Plan
from core.prepare import prepare
from core.spec import JobSpec
from core.training.evaluation import evaluate
from core.training.job import fit

Spec = Callable[..., JobSpec]
EPOCHS, PER_EPOCH = 4, 7
TOTAL = EPOCHS * PER_EPOCH


@pytest.fixture
def spec(tiny_spec: Spec) -> Spec:
    """Four epochs of seven steps with that schedule: `spec({"name": …}, head={"name": …})`, the head in a group of its own."""

    def make(schedule: Any = None, head: Any = None, optimizer: Any = None, **parts: Any) -> JobSpec:
        group = {"name": "head", "params": "5.*", "lr": 0.05, **({"schedule": head} if head is not None else {})}
        parts = {"loader": {"batch_size": 256}, "optimizer": {"lr": 0.01, "groups": [group], **(optimizer or {})}, **parts}
        return tiny_spec(**{"epochs": EPOCHS, **parts}, **({"schedule": schedule} if schedule is not None else {}))

    return make


@pytest.fixture
def planned(spec: Spec, places: Places) -> Callable[..., Plan]:
    return lambda *schedules, **parts: plan(spec(*schedules, **parts), places)


@pytest.fixture
def filled(planned: Callable[..., Plan]) -> Callable[..., Any]:
    """The schedule of each group, with everything filled in."""
    return lambda *args, **parts: {row.name: row.schedule for row in planned(*args, **parts).groups.groups}


@pytest.fixture
def faults(spec: Spec, places: Places) -> Callable[..., dict[str, str]]:
    """What the plan refuses, by pointer."""

    def of(*args: Any, **parts: Any) -> dict[str, str]:
        with pytest.raises(SpecError) as refused:
            plan(spec(*args, **parts), places)
        return {fault.pointer: fault.message for fault in refused.value.faults}

    return of


# --- what is filled in --------------------------------------------------------------------------------------------------------


def test_without_a_schedule_lr_is_constant(planned: Callable[..., Plan]) -> None:
    found = planned()
    assert (found.spec.schedule, [row.schedule for row in found.groups.groups], found.momentum) == (None, [None, None], {})
    assert found.lr == {"head": [(0, 0.05), (TOTAL - 1, 0.05)], "default": [(0, 0.01), (TOTAL - 1, 0.01)]}


def test_a_cosine_lasts_as_long_as_its_warmup_leaves_of_the_job(filled: Callable[..., Any], planned: Callable[..., Plan]) -> None:
    cosine = {"name": "CosineAnnealingLR", "warmup_steps": 5}
    whole = {**cosine, "per": "step", "warmup_start": 0.01, "T_max": 23, "eta_min": 0.0}
    assert filled(cosine) == {"head": whole, "default": whole}
    lr = planned(cosine).lr["head"]
    assert lr[:2] == [(0, 0.0005), (5, 0.05)]
    assert lr[-1] == (27, pytest.approx(0.05 * (1 + torch.cos(torch.tensor(torch.pi * 22 / 23)).item()) / 2, rel=1e-4))
    assert (
        planned(cosine).spec.schedule
        == JobSpec.model_validate({"dataset": {"source": "x"}, "model": {"name": "x"}, "schedule": cosine}).schedule
    ), "the spec stays as it was sent: a fork for more epochs gets a longer curve"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "CosineAnnealingLR", "per": "epoch", "warmup_epochs": 1}, {"T_max": 3, "warmup_steps": 7, "per": "epoch"}),
        ({"name": "CosineAnnealingLR", "per": "epoch", "warmup_epochs": 1.5}, {"T_max": 3, "warmup_steps": 10}),
        ({"name": "PolynomialLR"}, {"total_iters": 28, "power": 1.0, "per": "step"}),
        ({"name": "StepLR", "step_size": 2}, {"gamma": 0.1, "per": "epoch"}),
        ({"name": "OneCycleLR"}, {"total_steps": 28, "max_lr": 0.01, "cycle_momentum": True, "div_factor": 25.0}),
        ({"name": "OneCycleLR", "warmup_steps": 3, "max_lr": 1}, {"total_steps": 25, "max_lr": 1}),
        ({"name": "OneCycleLR", "epochs": 5}, {"total_steps": 35}),
        ({"name": "OneCycleLR", "per": "epoch"}, {"total_steps": 4}),
        ({"name": "OneCycleLR", "epochs": 4, "steps_per_epoch": 8}, {"total_steps": 32}),
        ({"name": "OneCycleLR", "max_lr": [0.5, 0.25], "base_momentum": [0.8, 0.7]}, {"max_lr": 0.25, "base_momentum": 0.7}),
        ({"name": "ReduceLROnPlateau"}, {"metric": "loss", "mode": "min", "patience": 10, "per": "epoch"}),
        ({"name": "ReduceLROnPlateau", "mode": "max"}, {"metric": "top1", "mode": "max"}),
        ({"name": "ReduceLROnPlateau", "metric": "top1", "min_lr": [1e-3, 1e-4]}, {"mode": "max", "min_lr": 1e-4}),
        ({"warmup_steps": 9}, {"warmup_steps": 9, "warmup_start": 0.01, "per": "step"}),
    ],
)
def test_what_a_spec_leaves_out_is_filled_in(filled: Callable[..., Any], schedule: Any, expected: dict[str, Any]) -> None:
    found = filled(schedule)["default"]
    assert {key: found[key] for key in expected} == expected
    assert None not in found.values()


def test_a_group_has_its_own_schedule_or_none_or_that_of_the_job(planned: Callable[..., Plan]) -> None:
    step = {"name": "StepLR", "step_size": 1, "gamma": 0.5}
    own = planned(step, head={"name": "PolynomialLR"})
    assert own.lr["head"] == [(0, 0.05), (27, pytest.approx(0.05 / 28))]
    assert own.lr["default"][:3] == [(0, 0.01), (6, 0.01), (7, 0.005)]
    assert planned(step, head={}).lr["head"] == [(0, 0.05), (27, 0.05)]
    assert planned(None, head=step).lr["default"] == [(0, 0.01), (27, 0.01)]


def test_groups_are_run_as_one_only_where_their_schedules_are_one_too(planned: Callable[..., Plan]) -> None:
    alike = [{"name": name, "params": params} for name, params in (("a", "0.*"), ("b", "1.*"), ("c", "5.*"))]

    def runs(schedule: Any, *own: Any) -> int:
        groups = [{**group, **({"schedule": one} if one else {})} for group, one in zip(alike, own, strict=True)]
        return planned(schedule, optimizer={"lr": 0.1, "groups": groups}).groups.executed_groups

    cosine = {"name": "CosineAnnealingLR"}
    assert runs(cosine, None, None, None) == 1
    assert runs(None, cosine, cosine, None) == 2
    assert runs(cosine, None, {**cosine, "T_max": TOTAL}, None) == 1, "it says what is filled in anyway"
    assert runs(cosine, None, {**cosine, "eta_min": 0.01}, {"name": "PolynomialLR"}) == 3


def test_momentum_is_in_the_plan_where_it_is_scheduled(planned: Callable[..., Plan]) -> None:
    found = planned({"name": "OneCycleLR", "anneal_strategy": "linear", "pct_start": 0.5}, head={"name": "PolynomialLR"})
    assert found.momentum == {"default": [(0, 0.95), (13, 0.85), (27, pytest.approx(0.95))]}
    assert found.warnings[1:] == []


# --- what is refused, and what is warned of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "pointer", "message"),
    [
        ({"name": "CosineAnealingLR"}, "/name", "Did you mean 'CosineAnnealingLR'?"),
        ({"name": "LambdaLR"}, "/name", "takes a function, which JSON cannot carry; there are ConstantLR"),
        ({"name": "StepLR"}, "/step_size", "StepLR needs it"),
        ({"name": "StepLR", "step_size": 0}, "/step_size", "expects an integer of 1 or more, got 0"),
        ({"name": "StepLR", "step_size": 2.5}, "/step_size", "expects int, got 2.5"),
        ({"name": "StepLR", "step_size": 2, "gama": 0.1}, "/gama", "Did you mean 'gamma'?"),
        ({"name": "StepLR", "step_size": 2, "last_epoch": 4}, "/last_epoch", "a job knows how far it is"),
        ({"name": "ExponentialLR", "gamma": -0.5}, "/gamma", "expects 0 or more, got -0.5"),
        ({"name": "ExponentialLR", "gamma": 1e200}, "", "lr would grow beyond all numbers"),
        ({"name": "MultiStepLR", "milestones": [1, -2]}, "/milestones", "expects integers of 0 or more, got [1, -2]"),
        ({"name": "MultiStepLR", "milestones": 3}, "/milestones", "expects a list of integers, got 3"),
        ({"name": "MultiStepLR", "milestones": [1, "2"]}, "/milestones", "expects integers of 0 or more, got [1, '2']"),
        ({"name": "MultiStepLR", "milestones": [1], "gamma": "0.1"}, "/gamma", "expects a number, got '0.1'"),
        ({"name": "CosineAnnealingLR", "T_max": 0}, "/T_max", "expects an integer of 1 or more, got 0"),
        ({"name": "LinearLR", "start_factor": 2.0}, "", "torch refuses it: Starting multiplicative factor expected"),
        ({"name": "OneCycleLR", "pct_start": 1.5}, "/pct_start", "torch refuses it: Expected float between 0 and 1"),
        ({"name": "OneCycleLR", "total_steps": 20, "pct_start": 0.05, "per": "epoch"}, "", "would have no steps"),
        ({"name": "OneCycleLR", "total_steps": 27}, "/total_steps", "over after 27, but the job goes on for 28"),
        ({"name": "OneCycleLR", "epochs": 3}, "/epochs", "over after 21, but the job goes on for 28"),
        ({"name": "OneCycleLR", "max_momentum": 1.0}, "/max_momentum", "from 0 to below 1"),
        ({"name": "OneCycleLR", "max_lr": [0.1]}, "/max_lr", "1 numbers, but there are 2 groups"),
        ({"name": "OneCycleLR", "div_factor": 0}, "/div_factor", "above 0"),
        ({"name": "ReduceLROnPlateau", "factor": 1.0}, "/factor", "torch refuses it: Factor should be < 1.0"),
        ({"name": "ReduceLROnPlateau", "per": "step"}, "/per", "goes by the validation"),
        ({"name": "ReduceLROnPlateau", "metric": "top1", "mode": "min"}, "/mode", "of top1 the best is the max"),
        ({"name": "StepLR", "step_size": 1, "metric": "loss"}, "/metric", "ReduceLROnPlateau alone reads it"),
        ({"warmup_step": 3}, "/warmup_step", "unknown keyword of constant. Did you mean 'warmup_steps'?"),
        ({"name": "CosineAnnealingLR", "warmup_steps": 28}, "/warmup_steps", "takes 28 steps, but the job has 28"),
        ({"warmup_epochs": 4}, "/warmup_epochs", "takes 28 steps, but the job has 28"),
        ({"T_max": 3}, "/T_max", "unknown keyword"),
    ],
)
def test_what_cannot_work_is_refused_at_its_place(
    faults: Callable[..., dict[str, str]], schedule: Any, pointer: str, message: str
) -> None:
    [(place, said)] = faults(schedule).items()
    assert (place, message in said) == (f"/schedule{pointer}", True), said


def test_a_groups_own_schedule_is_refused_at_the_group_by_training_too(
    faults: Callable[..., dict[str, str]], spec: Spec, places: Places
) -> None:
    cases = [
        ({"name": "StepLR"}, "step_size"),
        ({"warmup_steps": 28}, "warmup_steps"),
        ({"name": "OneCycleLR", "max_lr": [1]}, "max_lr"),
    ]
    for own, key in cases:
        found = faults(None, head=own)
        assert set(found) == {f"/optimizer/groups/0/schedule/{key}"}
        with pytest.raises(SpecError) as refused:
            prepare(spec(None, head=own), places, torch.device("cpu"))
        assert {fault.pointer: fault.message for fault in refused.value.faults} == found


def test_every_fault_is_told_once_with_those_of_the_rest(faults: Callable[..., dict[str, str]]) -> None:
    found = faults({"name": "StepLR"}, head={"name": "OneCycleLR", "max_lr": [0.1]}, loss={"name": "CTCLoss"})
    assert set(found) >= {"/schedule/step_size", "/loss/name"}
    optimizer = {"name": "Adafactor"}
    assert "must support momentum" in faults({"name": "OneCycleLR"}, optimizer=optimizer)["/schedule/cycle_momentum"]


def test_keywords_are_checked_where_there_is_no_dataset_to_count_steps_by(spec: Spec, places: Places) -> None:
    with pytest.raises(SpecError) as refused:
        plan(
            spec(
                {"name": "StepLR", "step_size": -1, "warmup_steps": 1000}, dataset={"source": "folder:nowhere", "image_size": 8}
            ),
            places,
        )
    assert {fault.pointer for fault in refused.value.faults} == {"/dataset/source", "/schedule/step_size"}


@pytest.mark.parametrize(
    ("schedule", "warning"),
    [
        ({"name": "CosineAnnealingLR", "T_max": 1000}, "CosineAnnealingLR: T_max is 1000, but the job ends after 28 steps"),
        ({"name": "LinearLR"}, "LinearLR: total_iters is 5, but the job ends after 4 epochs"),
        ({"name": "MultiStepLR", "milestones": [2, 30, 60]}, "the milestones 30, 60 have no effect: the job has 4 epochs"),
        ({"name": "PolynomialLR", "total_iters": 20}, "group 'head': from step 20 on lr is 0 and nothing is learnt"),
        ({"name": "CosineAnnealingLR", "eta_min": 0.02}, "group 'default': eta_min is above its lr, so the schedule raises it"),
        ({"name": "OneCycleLR", "max_lr": 0.05}, "group 'default': its lr of 0.01 has no effect, OneCycleLR goes up to max_lr"),
        ({"name": "ReduceLROnPlateau"}, "ReduceLROnPlateau goes by the validation of each epoch: the plan shows lr as it begins"),
    ],
)
def test_what_may_not_be_meant_is_warned_of_once(planned: Callable[..., Plan], schedule: Any, warning: str) -> None:
    warnings = planned(schedule).warnings
    assert [each for each in warnings if warning in each] == [
        each for each in warnings[1:] if "'default'" not in each or each == warning
    ]
    assert sum(warning in each for each in warnings) == 1


def test_a_frozen_groups_own_schedule_has_no_effect_and_that_is_said(planned: Callable[..., Plan]) -> None:
    frozen = {"name": "head", "params": "5.*", "freeze": True, "schedule": {"name": "PolynomialLR", "total_iters": 3}}
    assert planned(optimizer={"groups": [frozen]}).warnings[1:] == [
        "frozen at random values, as nothing is loaded into them: 5.weight, 5.bias",
        "group 'head' is frozen: its schedule has no effect",
    ]


def test_the_catalog_has_every_schedule_with_what_it_leaves_open() -> None:
    found = json.loads(json.dumps(catalog_request({})))["schedules"]
    assert {name for name, entry in found.items() if entry["refused"] is None} == set(FORMS)
    assert found["CosineAnnealingLR"] == {"keywords": {"T_max": None, "eta_min": 0.0}, "refused": None, "per": "step"}
    assert found["StepLR"] == {"keywords": {"step_size": None, "gamma": 0.1}, "refused": None, "per": "epoch"}
    of_torch = {
        name for name, one in vars(lr_scheduler).items() if isinstance(one, type) and issubclass(one, lr_scheduler.LRScheduler)
    }
    assert of_torch - {"LRScheduler", "_LRScheduler"} == set(found), "each of torch's is here, served or refused with a reason"


# --- training -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(places: Places) -> Callable[..., tuple[list[Iteration], list[EpochData]]]:
    """A job, to its end or until it has done a step: its iterations, and its epochs."""

    def run(asked: JobSpec, directory: Path, until: int = 10**9, **more: Any) -> tuple[list[Iteration], list[EpochData]]:
        iterations: list[Iteration] = []
        epochs: list[EpochData] = []
        with closing(fit(asked, places, directory, **more)) as job:
            for event in job:
                if isinstance(event, Iteration):
                    iterations.append(event)
                    if event.step == until:
                        break
                elif isinstance(event[1], EpochData):
                    epochs.append(event[1])
        return iterations, epochs

    return run


PLATEAU = {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.5, "threshold": 0.9}
COSINE = {"name": "CosineAnnealingLR", "warmup_steps": 9, "eta_min": 1e-4}


def test_a_job_trains_as_torchs_scheduler_would_have_it_and_says_so(
    spec: Spec, places: Places, tmp_path: Path, train: Any
) -> None:
    asked = spec({"name": "OneCycleLR"}, optimizer={"name": "SGD", "momentum": 0.5})
    told, _ = train(asked, tmp_path / "job")
    job = prepare(asked, places, torch.device("cpu"))
    by_hand = torch.optim.SGD(
        [{"params": [parameter for _, parameter in job.model.named_parameters()][4:], "lr": 0.05},
         {"params": [parameter for _, parameter in job.model.named_parameters()][:4], "lr": 0.01}],
        momentum=0.5, fused=True,
    )  # fmt: skip
    scheduler = lr_scheduler.OneCycleLR(by_hand, max_lr=[0.05, 0.01], total_steps=TOTAL)
    losses, rates = [], []
    for epoch in range(EPOCHS):
        job.model.train()
        for images, targets in job.train.batches(epoch):
            by_hand.zero_grad()
            loss = job.loss(job.model(images), targets)
            loss.backward()
            by_hand.step()
            losses.append(loss.item())
            rates.append([group["lr"] for group in by_hand.param_groups])
            scheduler.step()
        evaluate(job.model, job.validation, job.loss)
    job.train.close()
    job.validation.close()
    assert [[each.lr["head"], each.lr["default"]] for each in told] == rates
    assert [each.loss for each in told] == losses


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [(COSINE, {"name": "Adam"}), ({"name": "OneCycleLR"}, {"name": "AdamW"}), (PLATEAU, {"name": "SGD", "momentum": 0.9})],
    ids=["cosine", "one-cycle", "plateau"],
)
def test_a_job_cut_within_an_epoch_goes_on_at_the_same_lr_and_bits(
    spec: Spec, train: Any, tmp_path: Path, schedule: Any, optimizer: Any
) -> None:
    asked = spec(schedule, head=PLATEAU, optimizer=optimizer, checkpoint={"every": {"steps": 5}, "keep_best": 0})
    whole, epochs = train(asked, tmp_path / "whole")
    assert len({each.lr["default"] for each in whole}) > 1
    assert len({each.lr["head"] for each in whole}) > 1, "the plateau was reached"
    train(asked, tmp_path / "cut", until=19)
    rest, later = train(asked, tmp_path / "rest", resume=[tmp_path / "cut" / "15"])
    assert (rest[0].step, rest) == (15, whole[15:])
    assert [epoch.validation for epoch in later] == [epoch.validation for epoch in epochs[2:]]
    for name in ("model.safetensors", "state.safetensors"):
        assert (tmp_path / "rest/28" / name).read_bytes() == (tmp_path / "whole/28" / name).read_bytes()
    figures = json.loads((tmp_path / "rest/28/state.json").read_text())["progress"]["history"]
    assert figures == [epoch.validation for epoch in epochs]


def test_a_plateau_goes_by_the_validation_that_the_log_has(spec: Spec, train: Any, tmp_path: Path) -> None:
    iterations, epochs = train(spec(PLATEAU, head={}, optimizer={"name": "SGD"}), tmp_path / "job")
    stepper = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = lr_scheduler.ReduceLROnPlateau(stepper, patience=0, factor=0.5, threshold=0.9)
    for epoch in epochs:
        first = epoch.epoch * PER_EPOCH
        trained = {json.dumps(each.lr) for each in iterations[first : first + PER_EPOCH]}
        assert trained == {json.dumps({"head": 0.05, "default": stepper.param_groups[0]["lr"]})}
        scheduler.step(epoch.validation["loss"])
    assert iterations[-1].lr["default"] == 0.0025


def test_the_present_values_are_set_before_each_step_and_what_has_no_curve_is_left_alone(spec: Spec, places: Places) -> None:
    job = prepare(spec({"name": "OneCycleLR"}, head={}, optimizer={"name": "AdamW"}), places, torch.device("cpu"))
    head, rest = job.optimizer.param_groups
    curve: Curve = rest["curve"]
    for step in (0, 8, 20):
        set_rates(job.optimizer, step)
        assert (rest["lr"], rest["betas"]) == (curve.lr(step), (curve.momentum(step), 0.999))
        assert (head["lr"], head["betas"], head["curve"]) == (0.05, (0.9, 0.999), None)
    rest["curve"] = curve.rebased(20, 1.0)
    assert [low < high for (_, low), (_, high) in pairwise(rest["curve"].points(TOTAL)[-3:])] == [False, False]
    set_rates(job.optimizer, 20)
    assert rest["lr"] == 1.0
    job.train.close()
    job.validation.close()


def test_torchs_defaults_are_kept_but_for_lengths_that_are_the_jobs() -> None:
    assert {name: [key for key, value in schedule_defaults(name).items() if value is None] for name in FORMS} == {
        "ConstantLR": [], "LinearLR": [], "ExponentialLR": ["gamma"], "StepLR": ["step_size"], "MultiStepLR": ["milestones"],
        "PolynomialLR": ["total_iters"], "CosineAnnealingLR": ["T_max"], "CosineAnnealingWarmRestarts": ["T_0"],
        "OneCycleLR": ["max_lr", "total_steps", "epochs", "steps_per_epoch"], "ReduceLROnPlateau": [],
    }  # fmt: skip
