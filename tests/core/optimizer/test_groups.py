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

from core.catalog import REFUSED_OPTIMIZERS, optimizer_names
from core.errors import SpecError
from core.events import GroupsData
from core.optimizer.assignment import resolve
from core.optimizer.groups import (
    adjusted,
    build_optimizer,
    fused,
    learning_rates,
    load_optimizer_state,
    optimizer_state,
    regroup,
    report,
)
from core.optimizer.hyperparameters import check_optimizer, defaults
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
        ({"lr": "0.1"}, "/optimizer/lr", 'expects float, got the text "0.1"'),
        ({"lr": True}, "/optimizer/lr", "expects float, got true"),
        ({"betas": [0.9]}, "/optimizer/betas", "expects tuple[float, float], got [0.9]"),
        ({"betas": [0.9, 1.5]}, "/optimizer/betas", "Invalid beta parameter"),
        ({"capturable": True}, "/optimizer/capturable", "CUDA graphs"),
        ({"params": [1]}, "/optimizer/params", "address them by groups"),
        ({"name": "SGD", "nesterov": True}, "/optimizer/nesterov", "requires a momentum"),
        ({"name": "SGD", "momentum": 0.9, "dampening": 0.1, "fused": True}, "/optimizer/fused", "leave fused out"),
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


def test_what_nadam_reads_on_the_host_stays_there_when_a_state_is_put_back() -> None:
    model = net()
    optimizer, _ = build(model, name="NAdam")
    train(model, optimizer, steps=1)
    elsewhere, _ = build(net().to("meta"), name="NAdam")
    load_optimizer_state(elsewhere, optimizer_state(optimizer))
    state = next(iter(elsewhere.state.values()))
    assert (state["exp_avg"].device.type, state["mu_product"].device.type) == ("meta", "cpu")


def test_a_state_of_another_model_is_refused() -> None:
    optimizer, _ = build(net())
    with pytest.raises(ValueError, match=r"not here: trunk\.weight"):
        load_optimizer_state(optimizer, {"trunk.weight": {}})


# --- lr by depth, weight decay by kind -----------------------------------------------------------------------------------------


def rows(model: nn.Module, **keywords: Any) -> dict[str, tuple[float, float, list[str]]]:
    """Each group's lr, weight decay and parameters."""
    spec = OptimizerSpec(**{"lr": 1.0, **keywords})
    found = {}
    for group in resolve(model, spec, ["fc"]):
        names = [one.name for one in group.members]
        found[group.name] = (group.hyperparameters["lr"], group.hyperparameters["weight_decay"], names)
    return found


def test_layer_decay_gives_the_head_the_lr_and_each_depth_before_it_a_share() -> None:
    assert rows(net(), layer_decay=0.5) == {
        "depth-0": (0.25, 0, ["stem.weight", "stem.bias", "norm.weight", "norm.bias"]),
        "depth-1": (0.5, 0, ["body.0.weight", "body.0.bias"]),
        "depth-2": (1.0, 0, ["fc.weight", "fc.bias"]),
    }


def test_no_decay_takes_norms_and_biases_out_of_weight_decay() -> None:
    weights = ["stem.weight", "body.0.weight", "fc.weight"]
    found = rows(net(), weight_decay=0.1, no_decay=True)
    assert list(found) == ["default", "default/no_decay"]
    assert found["default"] == (1.0, 0.1, weights)
    assert found["default/no_decay"][:2] == (1.0, 0.0)
    chosen = rows(net(), weight_decay=0.1, no_decay=["fc.*", {"role": "norm"}])
    assert chosen["default/no_decay"][2] == ["norm.weight", "norm.bias", "fc.weight", "fc.bias"]


def test_both_make_finer_groups_and_what_a_group_says_itself_wins() -> None:
    found = rows(
        net(), weight_decay=0.1, layer_decay=0.5, no_decay=True,
        groups=[
            {"name": "head", "role": "head"},
            {"name": "norms", "role": "norm", "lr": 7},
            {"name": "stem", "params": "stem.*", "weight_decay": 0.3},
        ],
    )  # fmt: skip
    assert found == {
        "head": (1.0, 0.1, ["fc.weight"]),
        "head/no_decay": (1.0, 0.0, ["fc.bias"]),
        "norms": (7, 0.0, ["norm.weight", "norm.bias"]),
        "stem": (0.25, 0.3, ["stem.weight", "stem.bias"]),
        "default": (0.5, 0.1, ["body.0.weight"]),
        "default/no_decay": (0.5, 0.0, ["body.0.bias"]),
    }


def test_a_group_over_several_depths_has_a_part_for_each() -> None:
    found = rows(net(), layer_decay=0.5, groups=[{"name": "weights", "params": "*.weight"}, {"name": "rest", "params": "*"}])
    assert list(found) == [*(f"weights/depth-{depth}" for depth in range(3)), *(f"rest/depth-{depth}" for depth in range(3))]


def test_one_group_for_all_of_a_resnet_by_depth_is_a_dozen_at_most() -> None:
    spec = OptimizerSpec(name="AdamW", layer_decay=0.75, no_decay=True)
    optimizer, groups = build_optimizer(resnet18(), spec, CPU, ["fc"])
    table = report(groups, spec, CPU)
    assert (len(groups), table.executed_groups) == (20, 20)
    assert {row.of for row in table.groups} == {"default"}
    assert optimizer.param_groups[0]["lr"] == 1e-3 * 0.75**9
    assert {(row.names[0], row.depth, row.group) for row in table.parameters} >= {
        ("conv1.weight", 0, "depth-0"), ("bn1.weight", 0, "depth-0/no_decay"), ("fc.weight", 9, "depth-9"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "pointer", "message"),
    [
        ({"layer_decay": 0.5, "groups": [{"params": "*", "lr": 1}]}, "/optimizer/layer_decay", "every group says its own lr"),
        ({"no_decay": True}, "/optimizer/no_decay", "weight_decay is 0"),
        ({"name": "Rprop", "no_decay": True}, "/optimizer/no_decay", "Rprop has no weight_decay"),
        (
            {"weight_decay": 0.1, "no_decay": True, "groups": [{"params": "*", "weight_decay": 0.1}]},
            "/optimizer/no_decay",
            "every group says its own weight_decay",
        ),
        (
            {"weight_decay": 0.1, "no_decay": ["fc.*"], "groups": [{"params": "fc.*", "weight_decay": 0.2}]},
            "/optimizer/no_decay",
            "in a group with its own",
        ),
        ({"weight_decay": 0.1, "no_decay": ["fc.*", "head.*"]}, "/optimizer/no_decay/1/params", "Known: stem.*"),
        (
            {"layer_decay": 0.5, "groups": [{"name": "depth-1", "params": "fc.*"}]},
            "/optimizer/groups/0/name",
            "a part of 'default' is called that",
        ),
    ],
)
def test_what_would_have_no_effect_is_an_error(keywords: dict[str, Any], pointer: str, message: str) -> None:
    assert message in faults(net(), **keywords)[pointer]


def test_a_model_of_one_depth_has_no_layers_to_decay() -> None:
    with pytest.raises(SpecError, match="one depth alone"):
        resolve(nn.Linear(2, 2), OptimizerSpec(layer_decay=0.5))


# --- the table -----------------------------------------------------------------------------------------------------------------


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Stages of blocks, norms, layers in a row, tied weights: whatever a person's own module may be."""
    layers = st.sampled_from(["linear", "norm", "block", "stage", "tied", "plain", "bare"])
    model = nn.Module()
    tied = nn.Linear(2, 2)
    for index, kind in enumerate(draw(st.lists(layers, min_size=1, max_size=6))):
        made: dict[str, Any] = {
            "linear": lambda: nn.Linear(2, 2),
            "norm": lambda: nn.LayerNorm(2),
            "block": lambda: nn.TransformerEncoderLayer(2, 1, 2, batch_first=True),
            "stage": lambda: nn.Sequential(*(nn.TransformerEncoderLayer(2, 1, 2, batch_first=True) for _ in range(2))),
            "tied": lambda: tied,
            "plain": lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)),
            "bare": lambda: nn.ParameterList([nn.Parameter(torch.zeros(1, 2))]),
        }
        model.add_module(f"part{index}", made[kind]())
    return model


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "params": st.sampled_from(["*", "*.bias", "part0.*", "part[1-3].*", "re:.*weight", "*.0.*"]),
        "role": st.sampled_from(["head", "backbone", "norm", "bias", ["norm", "bias"]]),
        "depth": st.sampled_from([0, -1, "1..", "..2", "-2.."]),
        "type": st.sampled_from(["Linear", "LayerNorm", "TransformerEncoderLayer"]),
        "lr": st.sampled_from([0.1, 0.2]),
        "freeze": st.sampled_from([True, {"until_epoch": 1}]),
    },
).filter(lambda group: group.keys() & {"params", "role", "depth", "type"})


@given(models(), st.lists(CHOICES, max_size=3), st.sampled_from([None, 0.5]), st.sampled_from([False, True, ["*.bias"]]))
def test_each_parameter_is_in_exactly_one_group_and_in_one_row(
    model: nn.Module, groups: list[dict[str, Any]], layer_decay: float | None, no_decay: Any
) -> None:
    last = list(dict(model.named_children()))[-1]
    spec = OptimizerSpec(name="AdamW", layer_decay=layer_decay, no_decay=no_decay, groups=groups)
    try:
        optimizer, resolved = build_optimizer(model, spec, CPU, [last])
    except SpecError:
        return
    every = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(held) == sorted(set(every.values()))
    table = report(resolved, spec, CPU)
    names = [name for row in table.parameters for name in row.names]
    assert sorted(names) == sorted(every)
    assert all(len({every[name] for name in row.names}) == 1 for row in table.parameters)
    group_of = {name: row.name for row in table.groups for name in row.parameters}
    assert group_of == {row.names[0]: row.group for row in table.parameters}
    assert len({row.name for row in table.groups}) == len(table.groups)
    assert all(row.frozen == (not one.requires_grad) for row in table.groups for one in _tensors(model, row.parameters))
    assert {row.of for row in table.groups} <= {*spec.group_names, "default"}


def _tensors(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    known = dict(model.named_parameters())
    return [known[name] for name in names]


# --- states, and groups that change ------------------------------------------------------------------------------------------


VARIANTS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}), ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}), ("AdamW", {"amsgrad": True, "betas": [0.8, 0.99]}), ("Adam", {"foreach": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True}), ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}), ("Adadelta", {"foreach": True}),
    ("SGD", {"maximize": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keywords"), VARIANTS)
def test_whatever_the_optimizer_is_told_groups_run_together_give_the_same_bits(name: str, keywords: dict[str, Any]) -> None:
    together, apart = net(), net()
    names = [key for key, _ in together.named_parameters()]
    optimizer, table = build(together, name=name, lr=0.01, **keywords, groups=[{"name": key, "params": key} for key in names])
    options = {"fused": True} if table.fused else {}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}
    by_hand = getattr(torch.optim, name)([{"params": [one]} for one in apart.parameters()], lr=0.01, **values, **options)
    assert (len(optimizer.param_groups), len(by_hand.param_groups)) == (1, len(names))
    assert equal(train(together, optimizer), train(apart, by_hand))


@pytest.mark.parametrize(("name", "keywords"), [*((name, {}) for name in SERVED), *VARIANTS, ("SGD", {"momentum": 0.9})])
def test_what_thaws_among_others_begins_to_the_bit_as_it_would_alone(name: str, keywords: dict[str, Any]) -> None:
    """In a group it begins later than those that run together with it; torch's fused SGD has no such case."""
    together, apart = net(), net()
    names = [key for key, _ in together.named_parameters()]
    optimizer, table = build(together, name=name, lr=0.01, **keywords, groups=[{"name": key, "params": key} for key in names])
    options = {"fused": True} if table.fused else {}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}
    by_hand = getattr(torch.optim, name)([{"params": [one]} for one in apart.parameters()], lr=0.01, **values, **options)
    for model in (together, apart):
        model.stem.requires_grad_(False)
    assert equal(train(together, optimizer), train(apart, by_hand))
    for model in (together, apart):
        model.stem.requires_grad_(True)
    thawed = train(together, optimizer)
    assert equal(thawed, train(apart, by_hand))
    assert all(torch.isfinite(one).all() for one in thawed)


def test_a_first_step_that_fp16_skips_leaves_no_momentum_behind() -> None:
    """torch's fused SGD takes memory for it, and writes nothing: `fill_uninitialized_memory` shows it as NaN."""
    model = net()
    optimizer, table = build(model, name="SGD", lr=0.01, momentum=0.9)
    assert table.fused
    scaler = torch.amp.GradScaler("cpu")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for factor in (float("inf"), 1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(6, 5)).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.isfinite(one).all() for one in model.parameters())


def test_every_keyword_that_an_optimizers_groups_take_is_taken_in_a_group() -> None:
    for name in SERVED:
        base = defaults(OptimizerSpec(name=name))
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in base.items()}
        accepted = OptimizerSpec(name=name, groups=[{"params": "fc.*", **values}])
        assert check_optimizer(accepted) == []
        assert {"lr", "maximize"} <= base.keys()
        assert not {"fused", "foreach", "capturable", "differentiable"} & base.keys()


@pytest.mark.parametrize("name", SERVED)
def test_a_state_goes_to_its_own_parameter_when_groups_come_in_another_order(name: str) -> None:
    straight, halves = net(), net()
    one = [{"params": "stem.*", "lr": 0.02}, {"params": "fc.*", "lr": 0.01}]
    expected = train(straight, build(straight, name=name, groups=one)[0], steps=6)
    first, _ = build(halves, name=name, groups=one)
    train(halves, first, steps=3)
    second, _ = build(halves, name=name, groups=[*reversed(one), {"params": "*.bias"}])
    load_optimizer_state(second, optimizer_state(first))
    assert equal(train(halves, second, steps=3, first=3), expected), "torch's own goes by position (pytorch #1489)"


@pytest.mark.parametrize("name", SERVED)
def test_a_group_that_changes_while_it_trains_is_as_one_that_was_so_by_hand(name: str) -> None:
    model, by_hand_model = net(), net()
    spec = OptimizerSpec(name=name, lr=0.01, groups=[{"name": "head", "params": "fc.*"}])
    optimizer, groups = build_optimizer(model, spec, CPU, ["fc"])
    parts = [[one for key, one in by_hand_model.named_parameters() if key.startswith("fc.") == head] for head in (True, False)]
    options = {"fused": True} if fused(spec, CPU) else {}
    by_hand = getattr(torch.optim, name)([{"params": part} for part in parts], lr=0.01, **options)
    assert len(optimizer.param_groups) == 1
    for steps, lr in ((3, 0.02), (3, 0.01)):
        train(model, optimizer, steps=steps)
        train(by_hand_model, by_hand, steps=steps)
        groups = adjusted(groups, "head", {"lr": lr})
        regroup(optimizer, groups)
        by_hand.param_groups[0]["lr"] = lr
        assert len(optimizer.param_groups) == (2 if lr == 0.02 else 1), "equal ones are one again"
        assert learning_rates(optimizer) == {"head": lr, "default": 0.01}
    assert equal(train(model, optimizer), train(by_hand_model, by_hand))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("RMSprop", {"momentum": 0.9}), ("RMSprop", {"centered": True}), ("Adam", {"amsgrad": True}), ("SGD", {"momentum": 0.9})],
)
def test_state_that_a_change_asks_for_begins_at_zero(name: str, changes: dict[str, Any]) -> None:
    model = net()
    optimizer, groups = build_optimizer(model, OptimizerSpec(name=name, lr=0.01), CPU)
    train(model, optimizer, steps=2)
    regroup(optimizer, adjusted(groups, "default", changes))
    assert all(torch.isfinite(value).all() for value in train(model, optimizer, steps=2))


def test_a_change_reaches_a_part_of_a_group_or_all_of_it_and_no_other() -> None:
    spec = OptimizerSpec(name="AdamW", no_decay=True, groups=[{"name": "head", "role": "head"}])
    groups = resolve(net(), spec, ["fc"])

    def rates(name: str) -> list[float]:
        return [group.hyperparameters["lr"] for group in adjusted(groups, name, {"lr": 9.0})]

    assert [group.name for group in groups] == ["head", "head/no_decay", "default", "default/no_decay"]
    assert rates("head/no_decay") == [1e-3, 9.0, 1e-3, 1e-3]
    assert rates("head") == [9.0, 9.0, 1e-3, 1e-3]
    assert rates("default") == [1e-3, 1e-3, 9.0, 9.0]
    with pytest.raises(KeyError, match="tail"):
        adjusted(groups, "tail", {"lr": 1})
    with pytest.raises(KeyError, match="momentum"):
        adjusted(groups, "head", {"momentum": 1})


# --- on a GPU -----------------------------------------------------------------------------------------------------------------


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
