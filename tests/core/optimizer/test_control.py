"""Parameter groups that change while they train: at the step that was asked for, and bit for bit as if by hand."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.adjustments import Adjustment, Adjustments, patch_of
from core.errors import SpecError
from core.events import AdjustedData, CheckpointData, Iteration
from core.optimizer.control import GroupControl
from core.optimizer.curves import Curve
from core.optimizer.groups import build_optimizer, learning_rates
from core.optimizer.schedules import assign, set_rates
from core.places import Places
from core.spec import JobSpec, OptimizerSpec, ScheduleSpec
from core.training.job import fit
from core.training.loop import train_fn

CPU = torch.device("cpu")
PARTS = [{"name": "stem", "params": ["stem.*", "norm.*"]}, {"name": "head", "params": "fc.*"}]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(stem=nn.Linear(5, 4), norm=nn.BatchNorm1d(4), body=nn.Linear(4, 4), fc=nn.Linear(4, 3)))


def control_of(model: nn.Module, **keywords: Any) -> tuple[GroupControl, torch.optim.Optimizer]:
    spec = OptimizerSpec(**{"groups": PARTS, **keywords})
    optimizer, groups = build_optimizer(model, spec, CPU, head=["fc"])
    control = GroupControl(model, optimizer, groups)
    control.begin(0)
    return control, optimizer


class Given:
    """Batches of a few rows, the same for each step."""

    def batches(self, _epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start, 12):
            yield torch.randn(6, 5, generator=torch.Generator().manual_seed(step)), torch.arange(6) % 3


def state(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def trained(model: nn.Module, control: GroupControl, optimizer: torch.optim.Optimizer) -> list[Any]:
    return list(train_fn(0, Given(), model, optimizer, nn.CrossEntropyLoss(), adjust=control.due))


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, change: Callable[[int], None]) -> None:
    """The article's loop."""
    model.train()
    for step, (images, targets) in enumerate(Given().batches(0)):
        change(step)
        optimizer.zero_grad(set_to_none=True)
        nn.CrossEntropyLoss()(model(images), targets).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "keywords", "changes"),
    [
        ("Adam", {"lr": 0.01}, {"lr": 0.05}),
        ("AdamW", {"lr": 0.01}, {"lr": 0.0, "betas": [0.5, 0.6], "weight_decay": 0.3}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "lr": 0.2}),
        ("RMSprop", {"lr": 0.01}, {"weight_decay": 0.1}),
    ],
)
def test_a_change_is_what_it_would_be_by_hand_with_one_group_per_parameter(name: str, keywords: Any, changes: Any) -> None:
    model, twin = net(), net()
    control, optimizer = control_of(model, name=name, **keywords)
    control.adjustments.adjust("head", at_step=5, **changes)
    events = trained(model, control, optimizer)
    told = [event for event in events if isinstance(event, AdjustedData)]
    assert [(event.step, event.group, {key: change.to for key, change in event.changes.items()}) for event in told] == [
        (5, "head", changes)
    ]
    assert [events.index(event) for event in told] == [5], "behind the losses of the steps before it"

    fused = {"fused": True} if optimizer.defaults.get("fused") else {}
    apart = getattr(torch.optim, name)([{"params": [one]} for one in twin.parameters()], **keywords, **fused)

    def change(step: int) -> None:
        for group in apart.param_groups[-2:] if step == 5 else ():
            group.update({key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()})

    by_hand(twin, apart, change)
    assert equal(state(model), state(twin))
    assert all(group.get("fused") == optimizer.defaults.get("fused") for group in optimizer.param_groups), "fused stays fused"


def test_groups_part_when_they_differ_and_run_as_one_again_when_they_are_equal() -> None:
    model = net()
    control, optimizer = control_of(model, lr=0.1)
    assert [group["names"] for group in optimizer.param_groups] == [["stem", "head", "default"]]
    control.adjustments.adjust("head", lr=0.5)
    (told,) = control.due(0)
    assert told.changes["lr"].before == 0.1
    assert [group["names"] for group in optimizer.param_groups] == [["stem", "default"], ["head"]]
    assert learning_rates(optimizer) == {"stem": 0.1, "default": 0.1, "head": 0.5}
    control.adjustments.adjust("head", lr=0.1)
    control.due(1)
    assert [group["names"] for group in optimizer.param_groups] == [["stem", "head", "default"]]


def test_a_schedule_goes_on_from_the_new_lr_and_does_not_overwrite_it() -> None:
    model = net()
    spec = OptimizerSpec(name="SGD", lr=1.0, groups=PARTS)
    optimizer, groups = build_optimizer(model, spec, CPU, head=["fc"])
    curve = Curve(
        base=1.0, schedule=ScheduleSpec.model_validate({"name": "ExponentialLR", "per": "step", "gamma": 0.5}), per_epoch=12
    )
    control = GroupControl(model, optimizer, [replace(group, curve=curve) for group in groups])
    control.adjustments.adjust("stem", at_step=0, lr=1.0)  # brings the curves into the optimizer
    control.adjustments.adjust("head", at_step=2, lr=8.0)
    control.adjustments.adjust("stem", at_step=3, lr=8.0)
    seen = []
    for step in range(5):
        told = control.due(step)
        set_rates(optimizer, step)
        rates = learning_rates(optimizer)
        seen.append((rates["default"], rates["head"], rates["stem"]))
    assert seen == [(1, 1, 1), (0.5, 0.5, 0.5), (0.25, 8, 0.25), (0.125, 4, 8), (0.0625, 2, 4)]
    assert told == []
    assert len(optimizer.param_groups) == 3, "equal values at one step, but other curves"


def test_a_momentum_that_a_schedule_moves_stays_where_it_is_set() -> None:
    spec = JobSpec.model_validate(
        {"dataset": {"source": "sklearn:digits"}, "model": {"name": "x"}, "schedule": {"name": "OneCycleLR"},
         "training": {"epochs": 2}, "optimizer": {"name": "Adam", "groups": PARTS}}
    )  # fmt: skip
    model = net()
    optimizer, groups = build_optimizer(model, spec.optimizer, CPU, head=["fc"], schedule=lambda own: assign(own, spec, 6))
    control = GroupControl(model, optimizer, groups)
    control.begin(0)
    planned = next(group.curve for group in control.groups if group.curve).momentum(3)
    control.adjustments.adjust("head", at_step=3, betas=[0.5, 0.6])
    (told,) = control.due(3)
    assert told.changes["betas"].before == [planned, 0.999]
    for step in range(3, 6):
        set_rates(optimizer, step)
        betas = {name: group["betas"] for group in optimizer.param_groups for name in group["names"]}
        assert betas["head"] == (0.5, 0.6)
        assert betas["stem"][0] != 0.5


def test_what_is_frozen_does_not_move_by_a_bit_and_thawed_it_goes_on_with_its_state() -> None:
    model = net()
    control, optimizer = control_of(model, lr=0.01)
    stem = [*model.stem.parameters(), *model.norm.parameters()]
    control.adjustments.adjust("stem", at_step=4, freeze=True)
    control.adjustments.adjust("stem", at_step=8, freeze=False, lr=0.02)
    seen: dict[int, list[Tensor]] = {}
    moments: dict[int, Tensor] = {}
    for event in train_fn(0, Given(), model, optimizer, nn.CrossEntropyLoss(), adjust=control.due):
        if isinstance(event, Iteration):
            seen[event.step] = [value.clone() for key, value in model.state_dict().items() if key.startswith(("stem", "norm"))]
            moments[event.step] = optimizer.state[stem[0]]["exp_avg"].clone()
            frozen = 4 <= event.step < 8
            assert all(one.requires_grad is not frozen and (one.grad is None) is frozen for one in stem)
            assert model.norm.training is not frozen
    assert all(equal(seen[3], seen[step]) for step in range(4, 8)), "weights and running statistics"
    assert torch.equal(moments[3], moments[7])
    assert not any(torch.equal(a, b) for a, b in zip(seen[7], seen[8], strict=True) if a.ndim)
    assert optimizer.state[stem[0]]["step"] == 8, "its first steps and those since it was thawed"


def test_a_name_of_the_spec_means_all_parts_and_tells_what_each_had() -> None:
    model = net()
    control, optimizer = control_of(
        model, name="AdamW", lr=0.1, weight_decay=0.5, no_decay=True, groups=[{"name": "all", "params": "*"}]
    )
    names = [group.name for group in control.groups]
    assert len(names) == 2
    control.adjustments.adjust("all", weight_decay=0.25)
    control.adjustments.adjust("all", lr=0.2)
    decay, lr = control.due(0)
    assert decay.changes["weight_decay"].before == dict(zip(names, [0.5, 0.0], strict=True))
    assert lr.changes["lr"].before == 0.1
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("group", "changes", "said"),
    [
        ("haed", {"lr": 1.0}, "Did you mean 'head'?"),
        ("head", {"momentum": 0.9}, "a group of Adam has no momentum"),
    ],
)
def test_what_cannot_be_done_changes_nothing_and_says_why(group: str, changes: Any, said: str) -> None:
    model = net()
    control, optimizer = control_of(model, lr=0.1)
    control.adjustments.adjust(group, **changes)
    (told,) = control.due(3)
    assert told.changes == {}
    assert said in (told.refused or "")
    assert learning_rates(optimizer) == {"stem": 0.1, "head": 0.1, "default": 0.1}


def test_the_last_group_that_trains_is_not_frozen() -> None:
    model = net()
    control, _ = control_of(model)
    for group in ("stem", "head", "default"):
        control.adjustments.adjust(group, freeze=True)
    assert [told.refused for told in control.due(0)] == [None, None, "every parameter would be frozen: nothing would train"]
    assert any(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize(
    ("values", "pointer", "said"),
    [
        ({"lr": -1.0}, "/lr", "greater than or equal to 0"),
        ({"lr": "0.1"}, "/lr", "number"),
        ({"lr": float("nan")}, "/lr", "finite"),
        ({"betas": [0.9]}, "/betas", "at least 2 items"),
        ({"betas": [0.9, 1.0]}, "/betas/1", "less than 1"),
        ({"freeze": 1}, "/freeze", "boolean"),
        ({"at_step": -1, "lr": 1.0}, "/at_step", "greater than or equal to 0"),
        ({"wieght_decay": 0.1}, "/wieght_decay", "Did you mean 'weight_decay'?"),
        ({"at_step": 3}, "", "nothing changes"),
    ],
)
def test_values_that_fit_no_group_are_refused_with_their_place(values: Any, pointer: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        patch_of(values)
    assert [fault.pointer for fault in refused.value.faults] == [pointer]
    assert said in refused.value.faults[0].message


def test_they_are_due_at_their_step_in_the_order_in_which_they_were_asked_for() -> None:
    asked = Adjustments([Adjustment("a", {"lr": 1.0}, 9, id=1), Adjustment("a", {"lr": 2.0}, 4, id=2)])
    asked.ask(Adjustment("a", {"lr": 3.0}, None, id=4))
    asked.ask(Adjustment("a", {"lr": 4.0}, 6, id=3))
    assert [one.id for one in asked.settled(5)] == [2]
    assert [[(one.id, one.step) for one in asked.due(step)] for step in (5, 6, 8, 9, 10)] == [
        [(4, 5)],
        [(3, 6)],
        [],
        [(1, 9)],
        [],
    ]


# --- a whole job ---------------------------------------------------------------------------------------------------------------

SPEC = {
    "loader": {"batch_size": 256},  # seven steps an epoch
    "checkpoint": {"every": {"steps": 1}},
    "optimizer": {
        "name": "SGD",
        "lr": 0.05,
        "groups": [{"name": "head", "params": "5.*"}, {"name": "stem", "params": ["0.*", "1.*"], "freeze": True}],
    },
}
CHANGES = [
    Adjustment("head", {"lr": 0.5}, 0, id=1),
    Adjustment("stem", {"freeze": False, "lr": 0.01}, 3, id=2),
    Adjustment("head", {"momentum": 0.9}, 5, id=3),
    Adjustment("head", {"lr": 0.01, "weight_decay": 0.1}, 9, id=4),
    Adjustment("stem", {"freeze": True}, 11, id=5),
]


def tell(spec: JobSpec, places: Places, directory: Path, asked: Adjustments, **more: Any) -> dict[str, Any]:
    story: dict[str, Any] = {"losses": {}, "lr": {}, "adjusted": []}
    with closing(fit(spec, places, directory, adjustments=asked, **more)) as job:
        for event in job:
            if isinstance(event, Iteration):
                story["losses"][event.step], story["lr"][event.step] = event.loss, event.lr
            elif isinstance(event[1], AdjustedData):
                story["adjusted"].append(event)
            elif isinstance(event[1], CheckpointData):
                story["last"] = event[0]
    end = directory / str(story["last"])
    return {**story, "files": {path.name: path.read_bytes() for path in end.glob("*.safetensors")},
            "values": json.loads((end / "state.json").read_text())["values"]}  # fmt: skip


@pytest.mark.slow  # fifteen jobs, each from another checkpoint
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({"name": "CosineAnnealingLR"}, (1, 3, 4, 5, 7, 9, 11, 13)),
        ({"name": "OneCycleLR"}, (4, 9)),
        ({"name": "ReduceLROnPlateau", "patience": 0, "threshold": 10.0, "threshold_mode": "abs"}, (4, 9)),
    ],
    ids=["falls", "moves momentum too", "goes by the validation"],
)
def test_a_job_that_goes_on_anywhere_equals_one_that_never_stopped(
    tiny_spec: Callable[..., JobSpec], places: Places, tmp_path: Path, schedule: Any, steps: Sequence[int]
) -> None:
    spec = tiny_spec(epochs=2, **{**SPEC, "schedule": schedule})
    asked = Adjustments()
    for one in CHANGES:
        asked.ask(one)
    whole = tell(spec, places, tmp_path / "whole", asked)
    assert [(step, data.id, data.step, data.refused) for step, data in whole["adjusted"]] == [
        (one.step, one.id, one.step, None) for one in CHANGES
    ]
    assert [whole["lr"][step]["head"] for step in (0, 9)] == [0.5, 0.01]
    assert whole["lr"][13]["head"] < 0.01 or schedule["name"] == "ReduceLROnPlateau", "the schedule goes on"
    for step in steps:
        rest = tell(spec, places, tmp_path / str(step), Adjustments(CHANGES), resume=[tmp_path / "whole" / str(step)])
        assert [data.id for _, data in rest["adjusted"]] == [one.id for one in CHANGES if one.step > step]
        assert rest["losses"] == {at: loss for at, loss in whole["losses"].items() if at >= step}
        assert rest["lr"] == {at: lr for at, lr in whole["lr"].items() if at >= step}
        assert (rest["files"], rest["values"]) == (whole["files"], whole["values"])


def test_a_notebook_changes_the_lr_while_it_trains(tiny_spec: Callable[..., JobSpec], places: Places, tmp_path: Path) -> None:
    asked, rates = Adjustments(), {}
    for event in fit(tiny_spec(epochs=1, **SPEC), places, tmp_path / "job", adjustments=asked):
        if isinstance(event, Iteration):
            rates[event.step] = event.lr["head"]
            if event.step == 2:
                asked.adjust("head", lr=0.25)
    assert list(rates.values()) == [0.05] * 3 + [0.25] * 4


def test_what_was_done_once_its_group_was_not_the_only_one_to_train_is_done_again():
    groups = [{"name": "rest", "params": ["stem.*", "norm.*", "body.*"], "freeze": {"until_epoch": 2}}, PARTS[1]]
    model, again = net(), net()
    control, optimizer = control_of(model, groups=groups)
    control.begin(3)
    control.adjustments.ask(Adjustment("head", {"freeze": True, "lr": 0.01}))
    (told,) = control.due(30)
    assert told.refused is None

    anew, other = control_of(again, groups=groups)
    gone_on = GroupControl(again, other, anew.groups, Adjustments(control.adjustments.done))
    gone_on.settle(30)
    gone_on.begin(3)
    assert [one.requires_grad for one in again.parameters()] == [one.requires_grad for one in model.parameters()]
    assert learning_rates(other) == learning_rates(optimizer) == {"rest": 0.001, "head": 0.01}
