"""Grafting: what is planned, what is refused, what is loaded. Most of these are pitfalls that other libraries fell into."""

from __future__ import annotations

import copy
import string
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from core.errors import SpecError, TransferError
from core.events import TransferData
from core.models import Head
from core.sources import Entry, Source
from core.spec import PretrainedSpec
from core.weights import apply_transfer, from_scratch, plan_transfer

NO_HEAD = Head(frozenset(), ())


def source_of(state: Mapping[str, Tensor], classes: tuple[str, ...] | None = None) -> Source:
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
    return Source("file:x.pt", "torch", entries, lambda: state, classes=classes)


def graft(
    model: nn.Module, state: Mapping[str, Tensor], found: Head = NO_HEAD, classes: tuple[str, ...] = (),
    source_classes: tuple[str, ...] | None = None, **wish: Any,
) -> TransferData:  # fmt: skip
    """Plan and apply, as `get_model` does."""
    source = source_of(state, source_classes)
    plan = plan_transfer(model, source, PretrainedSpec(source="file:x.pt", **wish), found, classes)
    apply_transfer(model, source, plan)
    return plan.report


def faults(*args: Any, **wish: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        graft(*args, **wish)
    return {fault.pointer: fault.message for fault in refused.value.faults}


def two_layers() -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 2)))


HEAD = Head(frozenset({"fc.weight", "fc.bias"}), ("fc",))


def statuses(report: TransferData) -> dict[str, str]:
    return {one.key: one.status for one in report.targets}


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_matches_by_name_and_shape_is_loaded_and_the_rest_is_reported() -> None:
    model, other = two_layers(), two_layers()
    state = copied(other)
    del state["norm.num_batches_tracked"]
    state["extra.weight"] = torch.ones(2)
    report = graft(model, state, HEAD)
    assert torch.equal(model.body.weight, other.body.weight)
    assert not torch.equal(model.fc.weight, other.fc.weight)
    assert statuses(report)["norm.num_batches_tracked"] == "missing"
    assert {one.key: one.status for one in report.sources}["extra.weight"] == "unexpected"
    assert report.loaded_share == pytest.approx(27 / 28)  # the counter alone is left out
    assert report.modules[0].loaded.elements == 15


def test_a_shape_that_differs_outside_the_head_is_reported_with_both_shapes_and_not_loaded() -> None:
    model = two_layers()
    state = copied(two_layers()) | {"body.weight": torch.ones(3, 9)}
    before = model.body.weight.clone()
    row = next(one for one in graft(model, state, HEAD, min_loaded=0).targets if one.key == "body.weight")
    assert (row.status, row.reason) == ("reinit", "shape [3, 9] in the source, [3, 4] here")
    assert torch.equal(model.body.weight, before)


def test_broadcastable_shapes_are_not_taken_for_equal() -> None:
    model = two_layers()
    report = graft(model, copied(two_layers()) | {"body.bias": torch.ones(1)}, HEAD)
    assert statuses(report)["body.bias"] == "reinit"


def test_nothing_loaded_is_an_error_even_where_nothing_is_demanded_and_names_the_rule_that_helps() -> None:
    state = {f"backbone.{key}": value for key, value in two_layers().state_dict().items()}
    found = faults(two_layers(), state, HEAD, min_loaded=0)
    assert 'the rename rule ["^backbone\\\\.", ""] would bring 7 of them together' in found["/pretrained/source"]


def test_the_rule_that_is_advised_is_one_that_works() -> None:
    inner = nn.Sequential(OrderedDict(net=two_layers()))
    found = faults(inner, copied(two_layers()), min_loaded=0)
    assert '["^", "net."]' in found["/pretrained/source"]
    assert graft(inner, copied(two_layers()), rename=[("^", "net.")]).loaded_share == 1


def test_counters_alone_do_not_count_as_loaded() -> None:
    assert "/pretrained/source" in faults(two_layers(), {"norm.num_batches_tracked": torch.tensor(3)}, HEAD, min_loaded=0)


def test_too_little_loaded_names_the_share_and_what_was_left_out_on_both_sides() -> None:
    state = {"body.bias": torch.ones(3), "trunk.weight": torch.ones(3, 4)}
    message = faults(two_layers(), state, HEAD)["/pretrained/min_loaded"]
    assert "only 0.107 of the elements" in message
    assert "body.weight" in message
    assert "trunk.weight" in message


def test_a_refused_transfer_leaves_every_tensor_as_it_was() -> None:
    model = two_layers()
    before = copied(model)
    faults(model, {"body.weight": torch.ones(3, 4)}, HEAD, min_loaded=1)
    assert same(model, before)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_source_with_a_number_that_is_none_is_refused_by_name_and_nothing_is_touched(poison: float) -> None:
    model = two_layers()
    before = copied(model)
    state = copied(two_layers())
    state["norm.running_var"][1] = poison
    with pytest.raises(TransferError, match=r"'norm\.running_var' of file:x\.pt holds NaN or infinity"):
        graft(model, state, HEAD)
    assert same(model, before)


def test_a_number_that_only_the_model_cannot_hold_is_refused_too() -> None:
    state = {key: value.double() for key, value in copied(two_layers()).items()}
    state["body.weight"][0, 0] = 1e300
    with pytest.raises(TransferError, match="as float32"):
        graft(two_layers(), state, HEAD)


def test_a_model_whose_own_loading_fails_half_way_is_put_back() -> None:
    class Fussy(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            super()._load_from_state_dict(*args, **kwargs)
            raise RuntimeError("I am fussy")

    model = nn.Sequential(nn.Linear(2, 2), Fussy(2, 2))
    before = copied(model)
    with pytest.raises(TransferError, match="I am fussy"):
        graft(model, {key: value + 1 for key, value in before.items()})
    assert same(model, before)


def test_loading_keeps_the_very_tensors_that_an_optimizer_may_hold() -> None:
    model = two_layers()
    held = dict(model.named_parameters())
    graft(model, copied(two_layers()), HEAD)
    assert all(held[name] is parameter for name, parameter in model.named_parameters())


def test_another_dtype_is_cast_and_said() -> None:
    model = two_layers()
    report = graft(
        model, {key: value.half() if value.is_floating_point() else value for key, value in copied(model).items()}, HEAD
    )
    assert next(one.cast for one in report.targets if one.key == "body.weight") == "float16 -> float32"
    assert model.body.weight.dtype == torch.float32


def test_integers_are_not_taken_for_weights() -> None:
    report = graft(two_layers(), copied(two_layers()) | {"body.bias": torch.ones(3, dtype=torch.int8)}, HEAD)
    row = next(one for one in report.targets if one.key == "body.bias")
    assert (row.status, row.reason) == ("reinit", "int8 in the source, float32 here")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module.module."])
def test_what_wrappers_put_before_names_is_stripped(prefix: str) -> None:
    state = {prefix + key: value for key, value in copied(two_layers()).items()}
    assert graft(two_layers(), state, HEAD).loaded_share == 1


def test_what_a_wrapper_put_inside_a_name_is_stripped() -> None:
    state = {key.replace("body.", "body._orig_mod."): value for key, value in copied(two_layers()).items()}
    report = graft(two_layers(), state, HEAD)
    assert report.loaded_share == 1
    assert report.sources[0].renamed == "body.weight"


def test_a_model_that_calls_a_part_module_keeps_it() -> None:
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    assert graft(model, copied(model)).loaded_share == 1


def test_two_tensors_that_want_one_place_are_an_error() -> None:
    state = copied(two_layers())
    found = faults(two_layers(), state | {"module.body.bias": torch.ones(3)}, HEAD)
    assert found == {
        "/pretrained/source": "'body.bias' and 'module.body.bias' of the source both become 'body.bias'; drop one of them"
    }
    assert "/pretrained/rename" in faults(two_layers(), state, HEAD, rename=[("weight", "bias")])


def test_rename_rules_are_applied_in_order() -> None:
    state = {key.replace("body", "a"): value for key, value in copied(two_layers()).items()}
    assert graft(two_layers(), state, HEAD, rename=[("^a", "b"), ("^b", "body")]).loaded_share == 1


def test_each_rule_without_effect_is_named_at_its_own_place() -> None:
    found = faults(
        two_layers(), copied(two_layers()), HEAD,
        rename=[("body", "body"), ("nothing", "x"), ("(", "x"), ("body", r"\7")], drop=["fc.*", "zz*"],
    )  # fmt: skip
    assert found.keys() == {"/pretrained/rename/1", "/pretrained/rename/2/0", "/pretrained/rename/3/1", "/pretrained/drop/1"}
    assert "matches no source key" in found["/pretrained/rename/1"]


def test_dropped_tensors_are_not_loaded_and_say_by_which_glob() -> None:
    report = graft(two_layers(), copied(two_layers()), HEAD, drop=["norm.*"])
    assert statuses(report)["norm.weight"] == "missing"
    assert {one.reason for one in report.sources if one.status == "dropped" and one.key.startswith("norm")} == {
        "by the glob 'norm.*'"
    }


def test_a_head_with_as_many_classes_by_coincidence_starts_anew_and_says_why() -> None:
    row = next(one for one in graft(two_layers(), copied(two_layers()), HEAD).targets if one.key == "fc.weight")
    assert row.status == "reinit"
    assert "its classes need not be these" in str(row.reason)


def test_a_head_is_kept_where_it_is_asked_for() -> None:
    model, other = two_layers(), two_layers()
    assert statuses(graft(model, copied(other), HEAD, head="keep"))["fc.weight"] == "loaded"
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_a_head_of_the_same_classes_is_kept_by_itself_unless_it_is_to_start_anew() -> None:
    state, ours = copied(two_layers()), ("cat", "dog")
    assert statuses(graft(two_layers(), state, HEAD, ours, ours))["fc.bias"] == "loaded"
    assert statuses(graft(two_layers(), state, HEAD, ours, ours, head="reset"))["fc.bias"] == "reinit"
    assert statuses(graft(two_layers(), state, HEAD, ours, ("dog", "cat")))["fc.bias"] == "reinit"


def test_a_head_that_does_not_fit_cannot_be_kept() -> None:
    state = copied(two_layers()) | {"fc.weight": torch.ones(5, 3)}
    assert (
        "'fc.weight' is [2, 3] here, and [5, 3] in the source"
        in faults(two_layers(), state, HEAD, head="keep")["/pretrained/head"]
    )
    del state["fc.weight"]
    assert "not in the source" in faults(two_layers(), state, HEAD, head="keep")["/pretrained/head"]
    assert "no known head" in faults(two_layers(), copied(two_layers()), NO_HEAD, head="keep")["/pretrained/head"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.Linear(3, 3, bias=False)
        self.writer = nn.Linear(3, 3, bias=False)
        self.writer.weight = self.reader.weight


def test_two_different_tensors_for_one_tied_parameter_are_an_error() -> None:
    model = Tied()
    before = copied(model)
    with pytest.raises(TransferError, match=r"'reader\.weight' and 'writer\.weight' are one tensor here"):
        graft(model, {"reader.weight": torch.ones(3, 3), "writer.weight": torch.zeros(3, 3)})
    assert same(model, before)


def test_one_name_of_a_tied_parameter_is_enough() -> None:
    model = Tied()
    report = graft(model, {"writer.weight": torch.ones(3, 3)})
    assert statuses(report) == {"reader.weight": "loaded", "writer.weight": "loaded"}
    assert torch.equal(model.reader.weight, torch.ones(3, 3))


def test_extra_state_that_is_no_tensor_stays() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"calls": 3}

    model = Counting(2, 2)
    assert graft(model, copied(nn.Linear(2, 2))).loaded_share == 1


def test_from_scratch_says_that_every_entry_is_missing() -> None:
    report = from_scratch(two_layers(), HEAD)
    assert (report.source, report.loaded_share, report.head) == (None, 0, ["fc"])
    assert set(statuses(report).values()) == {"missing"}


NAMES = st.lists(st.text(string.ascii_lowercase[:3], min_size=1, max_size=2), min_size=1, max_size=2).map(".".join)
SHAPES = st.sampled_from([(1,), (2,), (2, 2)])


@given(
    here=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=6), there=st.dictionaries(NAMES, SHAPES, max_size=6), data=st.data()
)
def test_the_plan_covers_each_entry_of_both_sides_exactly_once(
    here: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    class Flat(nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG002
            return {key: torch.zeros(shape) for key, shape in here.items()}

    head = Head(frozenset(data.draw(st.sets(st.sampled_from(sorted(here))))), ())
    wish = PretrainedSpec(
        source="file:x", min_loaded=0, head=data.draw(st.sampled_from(["auto", "reset"])),
        rename=data.draw(st.lists(st.sampled_from([("a", "b"), ("^", "c."), (r"\.", "")]), max_size=2)),
    )  # fmt: skip
    state = {key: torch.ones(shape) for key, shape in there.items()}
    try:
        report = plan_transfer(Flat(), source_of(state), wish, head).report
    except SpecError:
        return
    assert [one.key for one in report.targets] == list(here)
    assert [one.key for one in report.sources] == list(there)
    used = [one.source_key for one in report.targets if one.status == "loaded"]
    assert sorted(map(str, used)) == sorted(one.key for one in report.sources if one.status == "used")
    assert len(set(used)) == len(used)
    assert sum(count.tensors for count in report.totals.values()) == len(here)
    assert all(one.shape == one.source_shape for one in report.targets if one.status == "loaded")
    assert all(one.reason for one in report.targets if one.status != "loaded")
    assert all(one.reason for one in report.sources if one.status != "used")


def test_planning_leaves_the_model_alone() -> None:
    model = two_layers()
    before = copied(model)
    plan_transfer(model, source_of(copied(two_layers())), PretrainedSpec(source="file:x"), HEAD)
    assert same(model, before)
    assert copy.deepcopy(model).state_dict().keys() == before.keys()
