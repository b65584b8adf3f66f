"""Parameter groups: each parameter in exactly one, run together where equal, frozen for good, remembered by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from core.assignment import resolve
from core.catalog import REFUSED_OPTIMIZERS, optimizer_names
from core.errors import SpecError
from core.events import GroupsData
from core.groups import build_optimizer, fused, learning_rates, load_optimizer_state, optimizer_state, report
from core.spec import OptimizerSpec

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(5, 4), norm=nn.BatchNorm1d(4), body=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), fc=nn.Linear(4, 3)
        )
    )


def build(model: nn.Module, **keywords: Any) -> tuple[torch.optim.Optimizer, GroupsData]:
    spec = OptimizerSpec(**keywords)
    optimizer, groups = build_optimizer(model, spec, CPU, head=["fc"])
    return optimizer, report(groups, spec, CPU)


def faults(model: nn.Module, **keywords: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        build(model, **keywords)
    return {fault.pointer: fault.message for fault in refused.value.faults}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, first: int = 0) -> list[Tensor]:
    model.train()
    for step in range(first, first + steps):
        images = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()
    return [value.clone() for value in model.state_dict().values()]


def equal(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_first_group_that_matches_has_a_parameter_and_default_has_the_rest() -> None:
    _, report = build(
        net(), lr=0.1, groups=[{"params": "fc.bias", "lr": 1.0}, {"name": "weights", "params": ["*.weight", "fc.*"]}]
    )
    assert {row.name: row.parameters for row in report.groups} == {
        "group-0": ["fc.bias"],
        "weights": ["stem.weight", "norm.weight", "body.0.weight", "fc.weight"],
        "default": ["stem.bias", "norm.bias", "body.0.bias"],
    }
    assert [row.hyperparameters["lr"] for row in report.groups] == [1.0, 0.1, 0.1]
    assert [row.elements for row in report.groups] == [3, 20 + 4 + 16 + 12, 4 + 4 + 4]


def test_a_star_crosses_dots_and_a_regex_must_match_in_full() -> None:
    _, report = build(net(), groups=[{"params": "b*t"}, {"params": r"re:(fc|norm)\.bias"}, {"params": "re:fc.*"}])
    assert [row.parameters for row in report.groups[:3]] == [["body.0.weight"], ["norm.bias", "fc.bias"], ["fc.weight"]]


def test_each_rule_without_effect_is_an_error_at_its_own_place_with_what_was_meant() -> None:
    found = faults(
        net(), groups=[{"params": ["fc.*", "fd.*"]}, {"params": "fc.bias"}, {"params": "stem.wieght"}, {"params": "re:(["}]
    )  # fmt: skip
    assert found["/optimizer/groups/0/params/1"] == "'fd.*' matches no parameter. Did you mean 'fc.*'?"
    assert found["/optimizer/groups/1/params"] == "all that 'fc.bias' matches is in 'group-0' before: this rule has no effect"
    assert found["/optimizer/groups/2/params"] == "'stem.wieght' matches no parameter. Did you mean 'stem.weight'?"
    assert "no regular expression" in found["/optimizer/groups/3/params"]


SERVED = [name for name in optimizer_names() if name not in {*REFUSED_OPTIMIZERS, "Muon"}]


@pytest.mark.parametrize("name", SERVED)
def test_groups_run_together_give_the_same_weights_bit_for_bit_as_one_group_per_parameter(name: str) -> None:
    rates = {"stem": 0.01, "norm": 0.01, "body": 0.02, "fc": 0.01}
    coalesced, apart = net(), net()
    optimizer, report = build(coalesced, name=name, groups=[{"params": f"{part}.*", "lr": lr} for part, lr in rates.items()])
    each = [{"params": [parameter], "lr": rates[key.partition(".")[0]]} for key, parameter in apart.named_parameters()]
    options = {"fused": True} if report.fused else {}
    by_hand = getattr(torch.optim, name)(each, **options)
    assert (report.executed_groups, len(by_hand.param_groups)) == (2, 8)
    assert equal(train(coalesced, optimizer), train(apart, by_hand))


def test_the_articles_own_form_one_group_per_parameter_with_its_own_lr() -> None:
    model, by_hand_model = net(), net()
    names = [name for name, _ in model.named_parameters()]
    groups = [{"name": name, "params": name, "lr": 1e-3 * (1 + index)} for index, name in enumerate(names)]
    optimizer, report = build(model, name="Adam", groups=groups)
    by_hand = torch.optim.Adam(
        [{"params": [one], "lr": 1e-3 * (1 + index)} for index, one in enumerate(by_hand_model.parameters())], fused=True
    )
    assert [row.parameters for row in report.groups] == [[name] for name in names]
    assert learning_rates(optimizer) == {name: 1e-3 * (1 + index) for index, name in enumerate(names)}
    assert equal(train(model, optimizer), train(by_hand_model, by_hand))


def test_one_group_per_parameter_of_a_resnet_is_resolved_in_a_blink_and_run_as_one() -> None:
    model = resnet18()
    names = [name for name, _ in model.named_parameters()]
    optimizer, report = build(model, groups=[{"name": name, "params": name} for name in names])
    assert (len(report.groups), report.executed_groups, report.fused) == (len(names), 1, True)
    assert list(learning_rates(optimizer)) == names


@given(st.lists(st.sampled_from(["*", "*.bias", "fc.*", "stem.*", "body*", "re:.*weight", "norm.bias"]), max_size=4))
def test_every_parameter_is_in_exactly_one_group(patterns: list[str]) -> None:
    model = net()
    try:
        groups = resolve(model, OptimizerSpec(groups=[{"params": pattern} for pattern in patterns]))
    except SpecError:
        return
    assert sorted(one.name for group in groups for one in group.members) == sorted(name for name, _ in model.named_parameters())
    assert all(group.members for group in groups)


def test_tied_parameters_are_one_and_either_name_addresses_it() -> None:
    model = net()
    model.body[0].weight = nn.Parameter(torch.ones(4, 4))
    model.twin = nn.Linear(4, 4)
    model.twin.weight = model.body[0].weight
    _, report = build(model, groups=[{"params": "twin.weight"}])
    assert report.groups[0].parameters == ["body.0.weight"]
    assert sum(row.parameters.count("body.0.weight") for row in report.groups) == 1


def test_frozen_parameters_keep_their_bits_and_norms_their_statistics_while_the_rest_moves() -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer, report = build(model, weight_decay=0.1, groups=[{"name": "trunk", "params": ["stem.*", "norm.*"], "freeze": True}])
    train(model, optimizer)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"body.0.weight", "body.0.bias", "fc.weight", "fc.bias"}
    assert [row.frozen for row in report.groups] == [True, False]
    assert report.executed_groups == 1, "frozen ones stay in the optimizer, without a gradient"


def test_a_norm_that_is_half_frozen_still_learns_its_statistics() -> None:
    model = net()
    build(model, groups=[{"params": "norm.bias", "freeze": True}])
    model.train()
    assert model.norm.training


def test_a_norm_without_parameters_is_not_taken_for_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Linear(2, 2))
    model.train()
    assert model[0].training


def test_a_model_that_is_frozen_all_over_is_an_error() -> None:
    assert "nothing would train" in faults(net(), groups=[{"params": "*", "freeze": True}])["/optimizer/groups"]
    assert "no parameters" in faults(nn.ReLU())["/optimizer/groups"]


@pytest.mark.parametrize(
    ("keywords", "pointer", "message"),
    [
        ({"name": "Adamm"}, "/optimizer/name", "Did you mean 'Adam'?"),
        ({"name": "LBFGS"}, "/optimizer/name", "several times a step"),
        ({"name": "SparseAdam"}, "/optimizer/name", "sparse gradients"),
        ({"name": "Muon"}, "/optimizer/name", "'stem.bias' has 1 dimensions"),
        ({"momentum": 0.9}, "/optimizer/momentum", "unknown keyword of Adam"),
        ({"weight_decy": 0.9}, "/optimizer/weight_decy", "Did you mean 'weight_decay'?"),
        ({"lr": -1}, "/optimizer/lr", "Invalid learning rate: -1"),
        ({"lr": "0.1"}, "/optimizer/lr", 'expects float, got "0.1"'),
        ({"lr": True}, "/optimizer/lr", "expects float, got true"),
        ({"betas": [0.9]}, "/optimizer/betas", "expects tuple[float, float], got [0.9]"),
        ({"betas": [0.9, 1.5]}, "/optimizer/betas", "Invalid beta parameter"),
        ({"capturable": True}, "/optimizer/capturable", "CUDA graphs"),
        ({"params": [1]}, "/optimizer/params", "address them by groups"),
        ({"name": "SGD", "nesterov": True}, "/optimizer/nesterov", "requires a momentum"),
        ({"groups": [{"params": "*", "lr": -1}]}, "/optimizer/groups/0/lr", "Invalid learning rate: -1"),
        ({"groups": [{"params": "*", "betas": 1}]}, "/optimizer/groups/0/betas", "expects tuple"),
        ({"groups": [{"params": "*", "fused": True}]}, "/optimizer/groups/0/fused", "the whole optimizer"),
        (
            {"name": "Adagrad", "groups": [{"params": "*", "initial_accumulator_value": 1}]},
            "/optimizer/groups/0/initial_accumulator_value",
            "for all groups alike",
        ),
    ],
)
def test_what_an_optimizer_cannot_take_is_refused_at_its_place(keywords: dict[str, Any], pointer: str, message: str) -> None:
    assert message in faults(net(), **keywords)[pointer]


def test_muon_serves_a_model_of_matrices() -> None:
    model = nn.Sequential(nn.Linear(5, 3, bias=False))
    optimizer, _ = build(model, name="Muon")
    before = model[0].weight.clone()
    train(model, optimizer, steps=1)
    assert not torch.equal(model[0].weight, before)


def test_faults_of_keywords_and_of_patterns_come_in_one_answer() -> None:
    found = faults(net(), momentum=1, groups=[{"params": "nothing"}])
    assert found.keys() == {"/optimizer/momentum", "/optimizer/groups/0/params"}


def test_how_the_optimizer_runs_can_be_said() -> None:
    assert build(net())[1].fused
    assert not build(net(), fused=False)[1].fused
    optimizer, report = build(net(), foreach=True)
    assert (report.fused, optimizer.param_groups[0]["foreach"]) == (False, True)


@pytest.mark.parametrize("name", SERVED)
def test_a_state_saved_by_name_continues_as_if_it_had_never_stopped(name: str) -> None:
    straight, halves = net(), net()
    expected = train(straight, build(straight, name=name)[0], steps=6)
    first, _ = build(halves, name=name)
    train(halves, first, steps=3)
    saved = optimizer_state(first)
    second, _ = build(halves, name=name)
    load_optimizer_state(second, saved)
    assert equal(train(halves, second, steps=3, first=3), expected)


def test_a_state_finds_its_parameters_by_name_when_the_groups_are_others() -> None:
    model = net()
    first, _ = build(model, name="SGD", lr=0.1, momentum=0.9)
    train(model, first)
    saved = {name: state["momentum_buffer"].clone() for name, state in optimizer_state(first).items()}
    second, _ = build(model, name="SGD", lr=0.5, momentum=0.8, groups=[{"params": "fc.*", "lr": 0.2}, {"params": "*.bias"}])
    load_optimizer_state(second, optimizer_state(first))
    assert {name: state["momentum_buffer"].tolist() for name, state in optimizer_state(second).items()} == {
        name: value.tolist() for name, value in saved.items()
    }
    assert learning_rates(second) == {"group-0": 0.2, "group-1": 0.5, "default": 0.5}, "hyper-parameters come from the spec"
    assert {group["momentum"] for group in second.param_groups} == {0.8}


def test_a_state_of_another_model_is_refused() -> None:
    optimizer, _ = build(net())
    with pytest.raises(ValueError, match=r"not here: trunk\.weight"):
        load_optimizer_state(optimizer, {"trunk.weight": {}})


@pytest.mark.gpu
@pytest.mark.parametrize("name", SERVED)
def test_on_a_gpu_too_groups_run_together_give_the_same_bits(name: str) -> None:
    device = torch.device("cuda")
    coalesced, apart = net().to(device), net().to(device)
    optimizer, _ = build_optimizer(coalesced, OptimizerSpec(name=name), device)
    options = {"fused": True} if fused(OptimizerSpec(name=name), device) else {}
    by_hand = getattr(torch.optim, name)([{"params": [parameter]} for parameter in apart.parameters()], **options)
    for model, stepper in ((coalesced, optimizer), (apart, by_hand)):
        for step in range(4):
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator(device).manual_seed(100 * step + index)
                parameter.grad = torch.randn(parameter.shape, device=device, generator=generator)
            stepper.step()
    assert equal(coalesced.parameters(), apart.parameters())
