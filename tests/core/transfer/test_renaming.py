"""Names: what wrappers add, the rules of the spec, one prefix that is found by itself, names brought together by their ends."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from core.events import TransferData
from core.transfer.heads import Head

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]
HEAD = Head(frozenset({"fc.weight", "fc.bias"}), ("fc",))


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 2)))


def state(prefix: str = "") -> dict[str, Tensor]:
    return {prefix + key: value.clone() for key, value in net().state_dict().items()}


def steps(report: TransferData) -> list[tuple[str, str, int]]:
    return [(step.kind, step.detail, step.keys) for step in report.steps]


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "module._fsdp_wrapped_module."],
)
def test_what_wrappers_put_before_names_is_taken_out_and_said(prefix: str, graft: Graft) -> None:
    report = graft(net(), state(prefix), HEAD)
    assert report.loaded_share == 1
    assert {kind for kind, _, _ in steps(report)} == {"wrapper"}
    assert {detail for _, detail, _ in steps(report)} == {part for part in prefix.split(".") if part}


def test_what_a_wrapper_put_inside_a_name_is_taken_out(graft: Graft) -> None:
    report = graft(net(), {key.replace("body.", "body._orig_mod."): value for key, value in state().items()}, HEAD)
    assert report.loaded_share == 1
    assert report.sources[0].renamed == "body.weight"
    assert steps(report) == [("wrapper", "_orig_mod", 2)]


def test_a_model_that_calls_a_part_module_keeps_it(graft: Graft) -> None:
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    report = graft(model, dict(nn.Sequential(OrderedDict(module=nn.Linear(2, 2))).state_dict()))
    assert (report.loaded_share, report.steps) == (1, [])


def test_two_tensors_that_want_one_place_are_an_error(faults_of: Faults) -> None:
    assert faults_of(net(), state() | {"module.body.bias": torch.ones(3)}, HEAD) == {
        "/pretrained/source": "'body.bias' and 'module.body.bias' of the source both become 'body.bias'; drop one of them"
    }
    assert "/pretrained/rename" in faults_of(net(), state(), HEAD, rename=[("weight", "bias")])


def test_rename_rules_are_applied_in_order_each_a_step_of_the_report(graft: Graft) -> None:
    other = {key.replace("body", "a"): value for key, value in state().items()}
    report = graft(net(), other, HEAD, rename=[("^a", "b"), ("^b", "body")])
    assert report.loaded_share == 1
    assert steps(report) == [("rename", "^a -> b", 2), ("rename", "^b -> body", 2)]


def test_each_rule_without_effect_is_named_at_its_own_place(faults_of: Faults) -> None:
    found = faults_of(
        net(), state(), HEAD, select="teacher",
        rename=[("body", "bodies"), ("nothing", "x"), ("(", "x"), ("bod", r"\7"), ("norm", "norm")],
        drop=["fc.*", "zz*", "fc.bias"],
    )  # fmt: skip
    assert found.keys() == {
        "/pretrained/select", "/pretrained/rename/1", "/pretrained/rename/2/0", "/pretrained/rename/3/1", "/pretrained/rename/4",
        "/pretrained/drop/1", "/pretrained/drop/2",
    }  # fmt: skip
    assert "matches no source key" in found["/pretrained/rename/1"]
    assert "'norm' changes no name" in found["/pretrained/rename/4"]
    assert "left out before, by the glob 'fc.*': it has no effect" in found["/pretrained/drop/2"]
    assert found["/pretrained/select"] == "nothing in the source lies below 'teacher.'; there are body, norm, fc"


def test_a_glob_for_the_models_own_keys_must_match_too(faults_of: Faults) -> None:
    assert "'stem.*' matches no key of the model" in faults_of(net(), state(), HEAD, exclude=["stem.*"])["/pretrained/exclude/0"]


def test_a_glob_that_excludes_nothing_more_has_no_effect(faults_of: Faults) -> None:
    found = faults_of(net(), state(), HEAD, exclude=["norm.*", "body.*", "norm.bias"])
    assert found.keys() == {"/pretrained/exclude/2"}
    assert "all that 'norm.bias' matches is excluded by a glob before" in found["/pretrained/exclude/2"]


def test_dropped_tensors_are_not_loaded_and_say_by_which_glob(graft: Graft) -> None:
    report = graft(net(), state(), HEAD, drop=["norm.*"])
    assert {one.status for one in report.targets if one.key.startswith("norm")} == {"missing"}
    assert {one.reason for one in report.sources if one.status == "dropped" and one.key.startswith("norm")} == {
        "by the glob 'norm.*'"
    }
    assert steps(report) == [("drop", "norm.*", 5)]


def test_a_part_of_the_source_is_selected_and_its_name_left_off(graft: Graft) -> None:
    two = state("student.net.") | {f"teacher.net.{key}": value + 1 for key, value in state().items()}
    model = net()
    report = graft(model, two, HEAD, select="teacher.net")
    assert torch.equal(model.body.weight, two["teacher.net.body.weight"])
    assert steps(report) == [("select", "teacher.net.", 9)]
    assert {one.reason for one in report.sources if one.key.startswith("student")} == {
        "not below 'teacher.net.', which /pretrained/select takes alone"
    }


@pytest.mark.parametrize("prefix", ["backbone.", "model.encoder."])
def test_a_prefix_that_the_source_has_is_found_and_said(prefix: str, graft: Graft) -> None:
    report = graft(net(), state(prefix), HEAD)
    assert report.loaded_share == 1
    assert steps(report) == [("prefix", f"-{prefix}", 9)]


def test_a_prefix_that_the_model_has_is_found_and_said(graft: Graft) -> None:
    inner = nn.Sequential(OrderedDict(encoder=net(), new=nn.Linear(2, 2)))
    report = graft(inner, state())
    assert steps(report) == [("prefix", "+encoder.", 9)]
    assert {one.key for one in report.targets if one.status == "missing"} == {"new.weight", "new.bias"}


def test_names_that_match_are_left_alone_whatever_a_prefix_would_bring(graft: Graft) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.inner = nn.Linear(4, 3), nn.Sequential(OrderedDict(body=nn.Linear(4, 3)))

    body = {key: value for key, value in state().items() if key.startswith("body")}
    report = graft(Nested(), body, min_loaded=0)
    assert report.steps == []
    assert [one.key for one in report.targets if one.status == "loaded"] == ["body.weight", "body.bias"]


def test_two_copies_of_the_model_in_one_source_are_not_chosen_between(graft: Graft, faults_of: Faults) -> None:
    two = state("encoder_q.") | {key: value + 1 for key, value in state("encoder_k.").items()}
    message = faults_of(net(), two, HEAD)["/pretrained/source"]
    assert "-encoder_q. and -encoder_k." in message
    assert '"select": "encoder_q"' in message
    assert graft(net(), two, HEAD, select="encoder_k").loaded_share == 1


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.", "run.teacher.net.", "swa_model."])
def test_an_average_is_not_taken_because_it_would_fit(prefix: str, graft: Graft, faults_of: Faults) -> None:
    message = faults_of(net(), state(prefix), HEAD)["/pretrained/source"]
    assert f"lies below '{prefix}', by its name an average, which is taken only if asked for" in message
    assert "by its name an average" in faults_of(net(), state(prefix), HEAD, suffix_match=True)["/pretrained/suffix_match"]
    rule = json.loads(message.partition("add to 'rename' ")[2])
    assert graft(net(), state(prefix), HEAD, rename=[rule]).loaded_share == 1
    assert graft(net(), state(prefix), HEAD, select=prefix.removesuffix(".")).loaded_share == 1


@pytest.mark.parametrize(("model", "before"), [(net(), ""), (nn.DataParallel(net()), ""), (net(), "backup.")])
def test_what_torch_averaged_is_known_by_its_count_and_never_taken_silently(
    model: nn.Module, before: str, graft: Graft, faults_of: Faults
) -> None:
    averaged = {before + key: value for key, value in AveragedModel(model).state_dict().items()}
    message = faults_of(net(), averaged, HEAD)["/pretrained/source"]
    assert f"lies below '{before}module.', by the n_averaged beside it an average" in message
    assert f'"select": "{before}module"' in message
    assert "n_averaged" in faults_of(net(), averaged, HEAD, suffix_match=True)["/pretrained/suffix_match"]
    for wish in ({"select": f"{before}module"}, {"rename": [(f"^{before}module[.]", "")]}):
        report = graft(net(), averaged, HEAD, **wish)
        assert report.loaded_share == 1
        assert f"{before}n_averaged" in {one.key for one in report.sources if one.status != "used"}


def holding(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


@pytest.mark.parametrize(
    ("model", "averaged"),
    [
        (holding(module=nn.Linear(2, 2)), AveragedModel(nn.Linear(2, 2))),  # each name fits as it is
        (holding(module=nn.Linear(2, 2)), AveragedModel(holding(module=nn.Linear(2, 2)))),
        (holding(module=nn.Linear(2, 2)), nn.DataParallel(AveragedModel(nn.Linear(2, 2)))),
        (holding(net=holding(module=nn.Linear(2, 2))), AveragedModel(nn.Linear(2, 2))),
    ],
)
def test_an_average_is_not_taken_for_a_part_that_the_model_calls_module(
    model: nn.Module, averaged: nn.Module, graft: Graft, faults_of: Faults
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = faults_of(model, dict(averaged.state_dict()))["/pretrained/source"]
    assert "by the n_averaged beside it an average" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "/pretrained/suffix_match" in faults_of(model, dict(averaged.state_dict()), suffix_match=True)
    select = message.partition('"select": "')[2].partition('"')[0]
    assert graft(model, dict(averaged.state_dict()), select=select).loaded_share == 1


def test_a_model_that_holds_an_average_takes_its_own(graft: Graft) -> None:
    model, other = (holding(student=nn.Linear(2, 2), teacher=AveragedModel(nn.Linear(2, 2))) for _ in range(2))
    for prefix in ("", "net."):
        report = graft(model, {prefix + key: value for key, value in other.state_dict().items()})
        assert report.loaded_share == 1
        assert torch.equal(model.teacher.module.weight, other.teacher.module.weight)


def test_an_average_that_its_container_names_is_asked_for_once(graft: Graft) -> None:
    assert graft(net(), dict(AveragedModel(net()).state_dict()), HEAD, container="ema").loaded_share == 1


def test_the_larger_average_does_not_win_over_the_model(faults_of: Faults) -> None:
    part = {key: value for key, value in state("model.").items() if "norm" not in key}
    assert "'model_ema.'" in faults_of(net(), part | state("model_ema."), HEAD)["/pretrained/source"]


def test_two_places_for_the_source_in_one_model_are_not_chosen_between(graft: Graft, faults_of: Faults) -> None:
    towers = nn.Sequential(OrderedDict(left=net(), right=net()))
    message = faults_of(towers, state())["/pretrained/source"]
    assert "+left. and +right." in message
    assert '"rename": [["^", "left."]]' in message
    assert graft(towers, state(), rename=[("^", "left.")]).loaded_share == 0.5


def test_a_prefix_that_would_make_two_names_one_is_not_taken(faults_of: Faults) -> None:
    message = faults_of(net(), state("backbone.") | {"fc.weight": torch.zeros(9)}, HEAD)["/pretrained/source"]
    assert message.startswith("nothing would be loaded")


def test_names_are_brought_together_by_their_longest_ends(graft: Graft) -> None:
    model = nn.Sequential(OrderedDict(trunk=net(), late=nn.Sequential(OrderedDict(body=nn.Linear(5, 5, bias=False)))))
    other = {"body.weight": torch.ones(3, 4), "body.bias": torch.ones(3), "late.body.weight": torch.ones(5, 5)}
    report = graft(model, other, suffix_match=True, min_loaded=0)
    assert {one.key: one.source_key for one in report.targets if one.status == "loaded"} == {
        "trunk.body.weight": "body.weight", "trunk.body.bias": "body.bias", "late.body.weight": "late.body.weight",
    }  # fmt: skip
    assert steps(report) == [("suffix", "names that end alike", 2)]


def test_the_longer_name_may_be_the_sources(graft: Graft) -> None:
    other = {f"a.b.{key}": value for key, value in state().items()} | {"a.c.norm.weight.scale": torch.ones(1)}
    assert graft(net(), other, HEAD, suffix_match=True).loaded_share == 1


def test_an_end_that_fits_two_names_is_an_error_that_names_both(faults_of: Faults) -> None:
    towers = nn.Sequential(OrderedDict(left=net(), right=net()))
    message = faults_of(towers, {"body.weight": torch.ones(3, 4)}, suffix_match=True)["/pretrained/suffix_match"]
    assert "'body.weight' is the end of 'left.body.weight' and of 'right.body.weight' in the model" in message
    both = {"a.body.weight": torch.ones(3, 4), "b.body.weight": torch.ones(3, 4)}
    assert "in the source" in faults_of(net(), both, HEAD, suffix_match=True)["/pretrained/suffix_match"]


def test_matching_by_ends_must_bring_something(faults_of: Faults) -> None:
    assert "no name is the end of another" in faults_of(net(), state(), HEAD, suffix_match=True)["/pretrained/suffix_match"]


class Blocks(nn.Module):
    """Names as transformers have them: `blocks.0.norm.weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(4), "proj": nn.Linear(4, 4), "out": nn.Linear(4, 5)}) for _ in range(3)
        )


def advised(message: str) -> str:
    return message.partition('"rename": ')[2].partition(" would bring")[0]


@pytest.mark.parametrize(
    ("rules", "written"),
    [
        ([("blocks", "layers")], r'[["^layers\\.", "blocks."]]'),
        ([("blocks", "layers"), ("norm.weight", "norm.gamma"), ("norm.bias", "norm.beta")], r'["\\bgamma\\b", "weight"]'),
        ([("blocks", "encoder.layer"), ("proj", "dense")], r'["^encoder\\.layer\\.", "blocks."]'),
    ],
)
def test_the_rules_that_would_help_are_found_and_do_help(
    rules: list[tuple[str, str]], written: str, graft: Graft, faults_of: Faults
) -> None:
    """What is advised is taken word for word, and brings everything."""
    other = dict(Blocks().state_dict())
    for old, new in rules:
        other = {key.replace(old, new): value for key, value in other.items()}
    message = faults_of(Blocks(), other, min_loaded=0.9)
    (said,) = message.values()
    assert written in said
    assert "would bring 18 tensors together, 100.0% of the elements outside the head" in said
    assert graft(Blocks(), other, rename=json.loads(advised(said))).loaded_share == 1


def test_rules_that_would_bring_little_are_not_advised(faults_of: Faults) -> None:
    """One bias of the right size in another model's file is chance."""
    other = {"stem.bias": torch.ones(3), "stem.weight": torch.ones(40, 40)}
    assert '"rename"' not in faults_of(net(), other, HEAD, min_loaded=0)["/pretrained/source"]


def test_without_a_rule_the_nearest_names_of_both_sides_are_told(faults_of: Faults) -> None:
    other = {"bodies.weights": torch.ones(3, 4), "x": torch.ones(2)}
    message = faults_of(net(), other, HEAD, min_loaded=0)["/pretrained/source"]
    assert message.startswith("nothing would be loaded; left out here: body.weight, body.bias")
    assert "'body.weight' here and 'bodies.weights' there" in message


def test_names_that_have_nothing_in_common_are_listed(faults_of: Faults) -> None:
    message = faults_of(net(), {"0": torch.ones(2, 9)}, HEAD, min_loaded=0)["/pretrained/source"]
    assert "left out of the source: 0" in message
    assert "rename" not in message
    assert message.endswith(
        "these are most likely the weights of another architecture; name weights of this one, or the model that they are of"
    )


def test_a_name_that_is_like_one_here_but_would_not_fit_is_not_advised(faults_of: Faults) -> None:
    assert "another architecture" in faults_of(net(), {"bodies.weights": torch.ones(3, 9)}, HEAD)["/pretrained/source"]


@pytest.mark.parametrize("rule", ["exclude", "drop"])
def test_a_module_s_name_is_no_glob_and_the_one_to_write_is_said(rule: str, faults_of: Faults) -> None:
    assert faults_of(net(), state(), HEAD, **{rule: ["body"]})[f"/pretrained/{rule}/0"].endswith("Did you mean 'body.*'?")
