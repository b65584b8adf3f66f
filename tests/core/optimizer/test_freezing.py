"""Freezing: what is frozen keeps every bit whatever the training code does, thaws by a flag, and a resume cannot tell."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from core.errors import SpecError
from core.events import CheckpointData, Iteration
from core.optimizer.assignment import Group
from core.optimizer.freezing import freeze
from core.optimizer.groups import build_optimizer
from core.places import Places
from core.plan import plan
from core.spec import JobSpec, OptimizerSpec
from core.training.job import fit

CPU = torch.device("cpu")


class Counter(nn.Module):
    """Counts its batches in a buffer, as a quantizer or a moving average would; and has a module in it that may train."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.drop(x * self.scale)


class Net(nn.Module):
    """Everything that changes in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.body = nn.Sequential(
            OrderedDict(
                plain=nn.BatchNorm1d(4, affine=False), count=Counter(), spectral=spectral_norm(nn.Linear(4, 4)),
                group=nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            )
        )  # fmt: skip
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body[:3](self.bn(self.stem(x)))
        return self.fc(self.body.group(torch.stack([x, x**2, -x], dim=2)).mean(dim=2))


FROZEN = [{"name": "trunk", "params": ["stem.*", "bn.*", "body.*"], "freeze": True}]


def build(model: nn.Module, *groups: Any, **optimizer: Any) -> tuple[torch.optim.Optimizer, list[Group]]:
    return build_optimizer(model, OptimizerSpec(**{"name": "AdamW", "lr": 0.1, **optimizer}, groups=list(groups)), CPU)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, set_to_none: bool = True) -> None:
    optimizer.zero_grad(set_to_none=set_to_none)
    nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 3).backward()
    optimizer.step()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in copy.deepcopy(model).state_dict().items()}


def moved(model: nn.Module, before: dict[str, bytes]) -> set[str]:
    return {name for name, value in bits(model).items() if value != before[name]}


def nothing(_: nn.Module) -> None:
    pass


def by_flags(model: nn.Module) -> None:
    model.train(False)
    model.train()


def each(model: nn.Module) -> None:
    for module in model.modules():
        module.train()


def inner(model: nn.Module) -> None:
    model.get_submodule("body").train(mode=True)


@pytest.mark.parametrize("meddle", [nothing, by_flags, each, inner])
def test_whatever_calls_train_frozen_parameters_and_buffers_keep_every_bit(meddle: Callable[[nn.Module], None]) -> None:
    model = Net()
    optimizer, _ = build(model, *FROZEN, weight_decay=0.5)
    before = bits(model)
    model.train()
    for _ in range(3):
        meddle(model)
        step(model, optimizer)
    assert moved(model, before) == {"fc.weight", "fc.bias"}
    held = [name for name, module in model.named_modules() if not module.training]
    assert {"bn", "body.plain", "body.count", "body.group"} <= set(held)
    assert model.get_submodule("body.count.drop").training, "dropout is no state: it goes on in what is frozen"


def test_a_model_whose_own_forward_calls_train_is_held_too() -> None:
    class Stubborn(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.train()
            return super().forward(x)

    model = Stubborn()
    optimizer, _ = build(model, *FROZEN)
    before = bits(model)
    step(model, optimizer)
    model.eval()
    step(model, optimizer)
    assert moved(model, before) == {"fc.weight", "fc.bias"}


def test_what_is_frozen_does_not_move_by_decay_or_momentum_where_gradients_are_zeroed_and_not_dropped() -> None:
    model = Net()
    optimizer, groups = build(model, {"name": "stem", "params": "stem.*"}, name="SGD", momentum=0.9, weight_decay=0.1)
    model.train()
    step(model, optimizer)
    frozen = [Group(**{**vars(group), "freeze": group.name == "stem"}) for group in groups]
    freeze(model, frozen, epoch=0)
    before = bits(model)
    step(model, optimizer, set_to_none=False)
    assert {name for name in moved(model, before) if name.startswith("stem")} == set()
    assert model.stem.weight.grad is None


def test_a_norm_that_is_frozen_in_part_learns_its_statistics_and_only_the_free_part_moves() -> None:
    model = Net()
    optimizer, _ = build(model, {"params": ["body.group.weight", "stem.bias"], "freeze": True})
    before = bits(model)
    model.train()
    step(model, optimizer)
    changed = moved(model, before)
    assert {"body.group.bias", "body.group.running_mean", "stem.weight"} <= changed
    assert not {"body.group.weight", "stem.bias"} & changed


def test_a_copy_of_a_model_is_held_by_itself() -> None:
    model = Net()
    build(model, *FROZEN)
    twin = copy.deepcopy(model)
    twin.train()
    assert not twin.bn.training
    freeze(twin, [], epoch=0)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    freeze(twin, [], epoch=0)
    assert (twin.train().bn.training, model.train().bn.training) == (True, False)


def test_thawing_is_a_flag_the_parameters_were_in_the_optimizer_all_along() -> None:
    model = Net()
    optimizer, groups = build(model, {**FROZEN[0], "freeze": {"until_epoch": 2}})
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in model.parameters())
    for epoch in range(4):
        freeze(model, groups, epoch)
        model.train()
        before = bits(model)
        step(model, optimizer)
        assert ("stem.weight" in moved(model, before)) == (model.bn.training) == ("bn.running_mean" in moved(model, before))
        assert model.bn.training == (epoch >= 2)
        assert (model.stem.weight in optimizer.state) == (epoch >= 2), "its state begins then"
    assert [id(one) for group in optimizer.param_groups for one in group["params"]] == held


def test_to_freeze_again_changes_nothing_and_modules_that_thaw_follow_the_model() -> None:
    model = Net().eval()
    _, groups = build(model, {**FROZEN[0], "freeze": {"until_epoch": 1}})
    freeze(model, groups, 0)
    freeze(model, groups, 1)
    freeze(model, groups, 1)
    assert not model.bn.training, "as the model"
    assert "train" not in vars(model.bn)
    freeze(model, groups, 0)
    assert not model.train().bn.training


def test_what_the_models_own_code_froze_stays_frozen() -> None:
    model = Net()
    model.stem.weight.requires_grad_(False)
    _, groups = build(model, {**FROZEN[0], "freeze": {"until_epoch": 1}})
    freeze(model, groups, 1)
    assert (model.stem.weight.requires_grad, model.stem.bias.requires_grad) == (False, True)


def test_a_model_that_is_frozen_all_over_at_first_is_an_error() -> None:
    with pytest.raises(SpecError, match="nothing would train in the first epoch"):
        build(Net(), {"params": "*", "freeze": {"until_epoch": 1}})


# --- in a job ------------------------------------------------------------------------------------------------------------------

THAWS = {"name": "Adam", "lr": 0.01, "groups": [{"name": "trunk", "params": ["0.*", "1.*"], "freeze": {"until_epoch": 1}}]}


def run(spec: JobSpec, places: Places, directory: Path, resume: int | None = None) -> tuple[dict[int, float], dict[int, bytes]]:
    """The losses by step, and each checkpoint's state and weights."""
    losses: dict[int, float] = {}
    saved: dict[int, bytes] = {}
    job = fit(spec, places, directory, resume=None if resume is None else [directory.parent / "whole" / str(resume)])
    for event in job:
        if isinstance(event, Iteration):
            losses[event.step] = event.loss
        elif isinstance(event[1], CheckpointData):
            saved[event[0]] = b"".join(path.read_bytes() for path in sorted((directory / str(event[0])).glob("*.safetensors")))
    return losses, saved


@pytest.mark.parametrize("optimizer", [THAWS, {**THAWS, "name": "SGD", "momentum": 0.9}], ids=["Adam", "SGD"])
def test_a_job_that_thaws_goes_on_bit_for_bit_from_before_at_and_after_the_boundary(
    tiny_spec: Callable[..., JobSpec], places: Places, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    every = {"every": {"steps": 1}, "keep_last": 99}
    spec = tiny_spec(epochs=2, optimizer=optimizer, loader={"batch_size": 512}, checkpoint=every)
    losses, saved = run(spec, places, tmp_path / "whole")
    boundary = len(losses) // 2
    for at in (boundary - 1, boundary, boundary + 1):
        again, kept = run(spec, places, tmp_path / str(at), resume=at)
        assert again == {step: loss for step, loss in losses.items() if step >= at}
        assert kept == {step: content for step, content in saved.items() if step > at}


def test_a_job_leaves_what_it_froze_as_it_was_and_thaws_in_its_epoch(
    tiny_spec: Callable[..., JobSpec], places: Places, tmp_path: Path
) -> None:
    from core.training.checkpoints import load

    spec = tiny_spec(epochs=2, optimizer=THAWS, loader={"batch_size": 512}, checkpoint={"every": {"steps": 1}, "keep_last": 99})
    losses, _ = run(spec, places, tmp_path / "job")
    boundary = len(losses) // 2
    at = {step: load(tmp_path / "job" / str(step))[:2] for step in (1, boundary, boundary + 1)}
    trunk = [name for name in at[1][0] if name[0] in "01"]
    assert "1.running_var" in trunk
    for name in trunk:
        assert torch.equal(at[1][0][name], at[boundary][0][name])
        assert not torch.equal(at[1][0][name], at[boundary + 1][0][name])
    assert [any("/0.weight" in key for key in at[step][1]) for step in at] == [False, False, True]


def test_a_plan_says_what_never_thaws_and_counts_the_memory_of_what_does(
    tiny_spec: Callable[..., JobSpec], places: Places
) -> None:
    thawing = plan(tiny_spec(epochs=2, optimizer=THAWS), places)
    free = plan(tiny_spec(epochs=2, optimizer={**THAWS, "groups": []}), places)
    assert thawing.memory == free.memory
    assert not any("never trains" in text for text in thawing.warnings)
    short = plan(tiny_spec(epochs=1, optimizer=THAWS), places)
    assert "group 'trunk' is frozen for 1 of 1 epochs: it never trains" in short.warnings
    rows = {row.names[0]: row.frozen for row in short.groups.parameters}
    assert (rows["0.weight"], rows["5.weight"]) == ("group", None)
    assert [(row.frozen, row.until_epoch) for row in short.groups.groups] == [(True, 1), (False, None)]
