"""Selectors: parameters by name, role, depth and type, alone and together, and what is said where they pick nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import SpecError
from core.optimizer.assignment import resolve
from core.optimizer.parameters import Parameter, exempt_of, parameters_of, spared_decay
from core.spec import OptimizerSpec


class MyNorm(nn.Module):
    """A norm that no library knows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))


class Attention(nn.MultiheadAttention):
    pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 2), bn=nn.BatchNorm2d(4)))
        self.attention = Attention(4, 1)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.table = nn.Embedding(3, 4)
        self.norm = MyNorm(4)
        self.fc = nn.Linear(4, 2)


def picked(**selector: Any) -> list[str]:
    groups = resolve(Net(), OptimizerSpec(groups=[selector]), ["fc"])
    return [one.name for one in groups[0].members]


def faults(*groups: dict[str, Any], head: tuple[str, ...] = ("fc",), model: nn.Module | None = None) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        resolve(model or Net(), OptimizerSpec(groups=list(groups)), head)
    return {fault.pointer: fault.message for fault in refused.value.faults}


BIASES = ["stem.conv.bias", "stem.bn.bias", "attention.in_proj_bias", "attention.out_proj.bias", "fc.bias"]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ({"role": "head"}, ["fc.weight", "fc.bias"]),
        ({"role": "norm"}, ["stem.bn.weight", "stem.bn.bias", "norm.scale"]),
        ({"role": "bias"}, BIASES),
        ({"role": "bias", "params": "fc.*"}, ["fc.bias"]),
        ({"role": ["head", "norm"], "params": "*.bias"}, ["stem.bn.bias", "fc.bias"]),
        ({"type": "BatchNorm2d"}, ["stem.bn.weight", "stem.bn.bias"]),
        ({"type": "torch.nn.Conv2d"}, ["stem.conv.weight", "stem.conv.bias"]),
        ({"type": "torch.nn.modules.conv.Conv2d", "role": "bias"}, ["stem.conv.bias"]),
        ({"type": "MultiheadAttention", "role": "bias"}, ["attention.in_proj_bias", "attention.out_proj.bias"]),
        ({"type": ["Embedding", "MyNorm"]}, ["table.weight", "norm.scale"]),
        ({"depth": 0, "type": "Conv2d"}, ["stem.conv.weight", "stem.conv.bias"]),
        ({"depth": -1}, ["fc.weight", "fc.bias"]),
        ({"depth": "-2..-2"}, ["table.weight", "norm.scale"]),
        ({"depth": "2..", "params": "*.weight"}, ["table.weight", "fc.weight"]),
        ({"depth": "..1", "role": "backbone", "params": "a*weight"}, ["attention.in_proj_weight", "attention.out_proj.weight"]),
    ],
)  # fmt: skip
def test_several_keys_must_hold_together_and_one_of_several_values(selector: dict[str, Any], names: list[str]) -> None:
    assert picked(**selector) == names


def test_everything_that_can_be_selected_by_is_in_the_table() -> None:
    rows = {one.name: (one.depth, one.roles, one.type) for one in parameters_of(Net(), ["fc"])}
    assert rows["token"] == (0, ("backbone",), "Net")
    assert rows["stem.bn.bias"] == (0, ("backbone", "norm", "bias"), "BatchNorm2d")
    assert rows["attention.out_proj.bias"] == (1, ("backbone", "bias"), "NonDynamicallyQuantizableLinear")
    assert rows["fc.bias"] == (3, ("head", "bias"), "Linear")
    assert len(rows) == len(list(Net().parameters()))


@pytest.mark.parametrize(
    ("selector", "pointer", "message"),
    [
        ({"role": "norm", "params": "fc.*"}, "", "no parameter is all of this: params 'fc.*' (2) and role 'norm' (3)"),
        ({"type": "BatchNorm"}, "/type", "type BatchNorm matches no parameter. Did you mean 'BatchNorm2d'?"),
        ({"type": "timm.Linear"}, "/type", "Did you mean 'Linear'?"),
        ({"type": ["Linear", "Conv3d"]}, "/type/1", "Did you mean 'Conv2d'?"),
        ({"depth": 7}, "/depth", "The model's depths are 0 ('token') to 3 ('fc.weight')."),
        ({"depth": "3..1"}, "/depth", "depth 3..1 matches no parameter"),
        ({"params": ["stem.*", "fc.*"], "role": "head"}, "/params/0", "none of the 4 that 'stem.*' matches is left"),
        ({"params": "stem.cnov.weight"}, "/params", "Did you mean 'stem.conv.weight'?"),
    ],
)
def test_a_selector_that_picks_nothing_is_an_error_with_what_there_is(selector: Any, pointer: str, message: str) -> None:
    assert message in faults({"params": "token"}, selector)[f"/optimizer/groups/1{pointer}"]


def test_a_head_that_is_not_known_and_a_norm_that_is_not_there_are_said_to_be_so() -> None:
    assert "takes num_classes" in faults({"role": "head"}, head=())["/optimizer/groups/0/role"]
    assert "no norm with parameters" in faults({"role": "norm"}, model=nn.Linear(2, 2))["/optimizer/groups/0/role"]


def test_what_is_all_taken_before_is_an_error_once() -> None:
    found = faults({"name": "fast", "role": "head"}, {"params": "fc.*", "role": "bias"}, {"type": "Linear", "depth": -1})
    taken = "is in 'fast' before: this rule has no effect"
    assert list(found) == ["/optimizer/groups/1/params", "/optimizer/groups/2/depth"]
    assert all(taken in message for message in found.values())


def test_no_decay_spares_norms_vectors_tokens_and_what_the_model_names() -> None:
    model = Net()
    spared = [one.name for one in parameters_of(model) if spared_decay(one)]
    assert spared == ["token", "pos_embed", "gamma", *sorted(
        {*BIASES, "stem.bn.weight", "norm.scale"}, key=list(dict(model.named_parameters())).index)]  # fmt: skip
    model.no_weight_decay = lambda: {"table.weight"}  # type: ignore[assignment]
    assert {one.name for one in parameters_of(model) if spared_decay(one, exempt_of(model))} == {*spared, "table.weight"}


def test_a_matrix_with_one_row_is_no_vector_and_a_tied_weight_has_all_its_names() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 1))
    model[1].weight = model[0].weight
    rows: list[Parameter] = parameters_of(model)
    assert [one.names for one in rows] == [("0.weight", "1.weight"), ("0.bias",), ("1.bias",)]
    assert not spared_decay(rows[0])


def test_a_weight_that_is_computed_from_others_has_its_place_too() -> None:
    layer: Any = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    rows = {one.name: one.roles for one in parameters_of(nn.Sequential(layer, nn.Linear(4, 2)), ["1"])}
    assert rows["0.parametrizations.weight.original0"] == ("backbone",)
    value: Tensor = layer.weight
    assert value.shape == (4, 4)
