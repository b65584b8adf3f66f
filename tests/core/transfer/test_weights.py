"""Grafting: what is planned, what is refused, what is loaded. Most of these are pitfalls that other libraries fell into."""

from __future__ import annotations

import copy
import string
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core import hashes
from core.errors import SpecError, TransferError
from core.events import TransferData
from core.places import PinnedWeights, Places
from core.spec import PretrainedSpec
from core.transfer import weights
from core.transfer.entries import Entry, Source
from core.transfer.heads import Head
from core.transfer.sources import read
from core.transfer.weights import TransferPlan, apply_transfer, from_scratch, plan_transfer

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]


def two_layers() -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 2)))


NO_HEAD = Head(frozenset(), ())
HEAD = Head(frozenset({"fc.weight", "fc.bias"}), ("fc",))


def statuses(report: TransferData) -> dict[str, str]:
    return {one.key: one.status for one in report.targets}


def source_of(state: Mapping[str, Tensor]) -> Source:
    return Source(
        "file:x.pt", "torch", {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}, lambda: state
    )


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_matches_by_name_and_shape_is_loaded_and_the_rest_is_reported(graft: Graft) -> None:
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


def test_a_shape_that_differs_outside_the_head_is_an_error_with_both_shapes_and_the_way_out(
    graft: Graft, faults_of: Faults
) -> None:
    model, state = two_layers(), copied(two_layers()) | {"body.weight": torch.ones(3, 9)}
    before = copied(model)
    message = faults_of(model, state, HEAD)["/pretrained/source"]
    assert "'body.weight' (shape [3, 9] in the source, [3, 4] here)" in message
    assert '"exclude": ["body.weight"]' in message
    assert same(model, before)
    report = graft(model, state, HEAD, exclude=["body.weight"])
    row = next(one for one in report.targets if one.key == "body.weight")
    assert (row.status, row.reason) == ("excluded", "excluded by the glob 'body.weight'")
    assert torch.equal(model.body.weight, before["body.weight"])
    assert {one.key: one.reason for one in report.sources}["body.weight"] == (
        "the model's entry: excluded by the glob 'body.weight'"
    )


def test_broadcastable_shapes_are_not_taken_for_equal(faults_of: Faults) -> None:
    assert "[1] in the source" in str(faults_of(two_layers(), copied(two_layers()) | {"body.bias": torch.ones(1)}, HEAD))


def test_what_is_excluded_does_not_count_among_what_must_be_loaded(graft: Graft) -> None:
    state = {key: value for key, value in copied(two_layers()).items() if key.startswith("norm")}
    report = graft(two_layers(), state, HEAD, exclude=["body.*"], min_loaded=1)
    assert report.totals["excluded"].tensors == 2


def test_counters_alone_do_not_count_as_loaded(faults_of: Faults) -> None:
    assert "/pretrained/source" in faults_of(two_layers(), {"norm.num_batches_tracked": torch.tensor(3)}, HEAD, min_loaded=0)


def test_too_little_loaded_names_the_share_and_what_was_left_out_on_both_sides(faults_of: Faults) -> None:
    state = {"body.bias": torch.ones(3), "trunk.weight": torch.ones(3, 4)}
    message = faults_of(two_layers(), state, HEAD)["/pretrained/min_loaded"]
    assert "only 0.107 of the elements" in message
    assert "body.weight" in message
    assert "trunk.weight" in message


def test_a_refused_transfer_leaves_every_tensor_as_it_was(faults_of: Faults) -> None:
    model = two_layers()
    before = copied(model)
    faults_of(model, {"body.weight": torch.ones(3, 4)}, HEAD, min_loaded=1)
    assert same(model, before)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_source_with_a_number_that_is_none_is_refused_by_name_and_nothing_is_touched(poison: float, graft: Graft) -> None:
    model = two_layers()
    before = copied(model)
    state = copied(two_layers())
    state["norm.running_var"][1] = poison
    with pytest.raises(TransferError, match=r"file:x\.pt holds NaN or infinity in 'norm\.running_var'"):
        graft(model, state, HEAD)
    assert same(model, before)


def test_a_number_that_only_the_model_cannot_hold_is_refused_too(graft: Graft) -> None:
    state = {key: value.double() for key, value in copied(two_layers()).items()}
    state["body.weight"][0, 0] = 1e300
    with pytest.raises(TransferError, match="as float32"):
        graft(two_layers(), state, HEAD)


def test_a_model_whose_own_loading_fails_half_way_is_put_back(graft: Graft) -> None:
    class Fussy(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            super()._load_from_state_dict(*args, **kwargs)
            raise RuntimeError("I am fussy")

    model = nn.Sequential(nn.Linear(2, 2), Fussy(2, 2))
    before = copied(model)
    with pytest.raises(TransferError, match="I am fussy"):
        graft(model, {key: value + 1 for key, value in before.items()})
    assert same(model, before)


def test_loading_keeps_the_very_tensors_that_an_optimizer_may_hold(graft: Graft) -> None:
    model = two_layers()
    held = dict(model.named_parameters())
    graft(model, copied(two_layers()), HEAD)
    assert all(held[name] is parameter for name, parameter in model.named_parameters())


def test_loading_keeps_how_tensors_lie_in_memory(graft: Graft) -> None:
    model, other = (nn.Sequential(nn.Conv2d(channels, 4, 3)) for channels in (3, 1))
    model.to(memory_format=torch.channels_last)
    for state in (dict(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()), dict(other.state_dict())):
        graft(model, state)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_another_dtype_is_cast_and_said(graft: Graft) -> None:
    model = two_layers()
    report = graft(
        model, {key: value.half() if value.is_floating_point() else value for key, value in copied(model).items()}, HEAD
    )
    assert next(one.cast for one in report.targets if one.key == "body.weight") == "float16 -> float32"
    assert model.body.weight.dtype == torch.float32


def test_casts_are_counted(graft: Graft) -> None:
    report = graft(two_layers(), {key: value.double() for key, value in copied(two_layers()).items() if "num" not in key}, HEAD)
    assert {cast: (count.tensors, count.elements) for cast, count in report.casts.items()} == {"float64 -> float32": (6, 27)}


def test_integers_are_not_taken_for_weights(faults_of: Faults) -> None:
    found = faults_of(two_layers(), copied(two_layers()) | {"body.bias": torch.ones(3, dtype=torch.int8)}, HEAD)
    assert "'body.bias' (int8 in the source, float32 here)" in found["/pretrained/source"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_what_is_another_kind_of_number_is_never_cast(dtype: torch.dtype, faults_of: Faults) -> None:
    name = str(dtype).removeprefix("torch.")
    state = copied(two_layers()) | {"body.bias": torch.ones(3).to(dtype)}
    assert f"'body.bias' ({name} in the source, float32 here)" in faults_of(two_layers(), state, HEAD)["/pretrained/source"]


def test_a_counter_of_another_type_is_no_error(graft: Graft) -> None:
    report = graft(two_layers(), copied(two_layers()) | {"norm.num_batches_tracked": torch.ones(1)}, HEAD)
    assert statuses(report)["norm.num_batches_tracked"] == "reinit"


def test_all_tensors_that_are_not_finite_are_named(graft: Graft) -> None:
    state = copied(two_layers()) | {"body.weight": torch.full((3, 4), torch.nan), "body.bias": torch.full((3,), torch.inf)}
    with pytest.raises(TransferError, match=r"'body\.weight' \(as float32\), 'body\.bias' \(as float32\)"):
        graft(two_layers(), state, HEAD)


def test_a_file_whose_numbers_are_known_to_be_finite_is_looked_at_again_only_where_a_cast_may_change_that(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"weight": torch.full((2, 2), 1e5), "bias": torch.zeros(2)}, path)
    pinned = PinnedWeights(file="x.pt", sha256=hashes.sha256_of(path), stamp=hashes.stamp_of(path), finite=True)
    source = read("file:x.pt", Places(inputs=tmp_path, pinned={"file:x.pt": pinned}))
    spec = PretrainedSpec(source="file:x.pt")
    looked_at: list[torch.dtype] = []
    with pytest.MonkeyPatch.context() as patch:
        finite = weights._finite
        patch.setattr(weights, "_finite", lambda tensor, dtype: looked_at.append(dtype) or finite(tensor, dtype))
        model = nn.Linear(2, 2)
        apply_transfer(model, source, plan_transfer(model, source, spec, NO_HEAD))
        assert (model.weight == 1e5).all()
        assert looked_at == []

        half = nn.Linear(2, 2).half()
        with pytest.raises(TransferError, match=r"NaN or infinity in 'weight' \(as float16\)"):
            apply_transfer(half, source, plan_transfer(half, source, spec, NO_HEAD))
        assert looked_at == [torch.float16, torch.float16]


def test_large_numbers_whose_sum_overflows_are_finite(graft: Graft) -> None:
    model = two_layers()
    graft(model, copied(two_layers()) | {"body.weight": torch.full((3, 4), 3e38)}, HEAD)
    assert model.body.weight.isfinite().all()


def test_parameters_are_told_from_buffers(graft: Graft) -> None:
    report = graft(two_layers(), copied(two_layers()), HEAD)
    assert {one.key for one in report.targets if one.buffer} == {name for name, _ in two_layers().named_buffers()}


def test_a_module_mends_tensors_of_an_older_version_as_it_loads_them(graft: Graft) -> None:
    class Halved(nn.Linear):
        """Kept twice the weight until version 2."""

        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
            if metadata.get("version", 2) < 2:
                state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    state = {"model.0.weight": torch.ones(2, 2), "model.0.bias": torch.ones(2)}
    for versions, weight in (({"model.0": {"version": 1}}, 0.5), ({"model.0": {"version": 2}}, 1), (None, 1)):
        model = nn.Sequential(Halved(2, 2))
        graft(model, state, versions=versions)
        assert torch.equal(model[0].weight, torch.full((2, 2), float(weight)))


def test_a_buffer_that_cannot_be_written_to_leaves_everything_as_it_was(graft: Graft) -> None:
    class Spread(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("scale", torch.zeros(1).expand(4))

    model = nn.Sequential(nn.Linear(2, 2), Spread())
    before = copied(model)
    with pytest.raises(TransferError, match=r"'1\.scale' of the model cannot be written to"):
        graft(model, {key: value + 1 for key, value in before.items()})
    assert same(model, before)


def test_what_a_failing_model_put_in_another_place_is_put_back(graft: Graft) -> None:
    class Replacing(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            super()._load_from_state_dict(*args, **kwargs)
            self.bias = nn.Parameter(torch.full((2,), 9.0))
            raise RuntimeError("no more")

    model = Replacing(2, 2)
    held, before = model.bias, copied(model)
    with pytest.raises(TransferError, match="no more"):
        graft(model, {key: value + 1 for key, value in before.items()})
    assert model.bias is held
    assert same(model, before)


def test_a_head_with_as_many_classes_by_coincidence_starts_anew_and_says_why(graft: Graft) -> None:
    row = next(one for one in graft(two_layers(), copied(two_layers()), HEAD).targets if one.key == "fc.weight")
    assert row.status == "reinit"
    assert "its classes need not be these" in str(row.reason)


def test_a_head_is_kept_where_it_is_asked_for(graft: Graft) -> None:
    model, other = two_layers(), two_layers()
    assert statuses(graft(model, copied(other), HEAD, head="keep"))["fc.weight"] == "loaded"
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_a_head_of_the_same_classes_is_kept_by_itself_unless_it_is_to_start_anew(graft: Graft) -> None:
    state, ours = copied(two_layers()), ("cat", "dog")
    assert statuses(graft(two_layers(), state, HEAD, ours, theirs=ours))["fc.bias"] == "loaded"
    assert statuses(graft(two_layers(), state, HEAD, ours, theirs=ours, head="reset"))["fc.bias"] == "reinit"
    assert statuses(graft(two_layers(), state, HEAD, ours, theirs=("dog", "cat")))["fc.bias"] == "reinit"


def test_a_head_that_does_not_fit_cannot_be_kept(faults_of: Faults) -> None:
    state = copied(two_layers()) | {"fc.weight": torch.ones(5, 3)}
    assert (
        "'fc.weight' is [2, 3] here, and [5, 3] in the source"
        in faults_of(two_layers(), state, HEAD, head="keep")["/pretrained/head"]
    )
    del state["fc.weight"]
    assert "not in the source" in faults_of(two_layers(), state, HEAD, head="keep")["/pretrained/head"]
    assert "its head is not known" in faults_of(two_layers(), copied(two_layers()), head="keep")["/pretrained/head"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.Linear(3, 3, bias=False)
        self.writer = nn.Linear(3, 3, bias=False)
        self.writer.weight = self.reader.weight


def test_two_different_tensors_for_one_tied_parameter_are_an_error(graft: Graft) -> None:
    model = Tied()
    before = copied(model)
    with pytest.raises(TransferError, match=r"'reader\.weight' and 'writer\.weight' are one tensor here"):
        graft(model, {"reader.weight": torch.ones(3, 3), "writer.weight": torch.zeros(3, 3)})
    assert same(model, before)


def test_two_names_of_a_tied_parameter_are_two_entries_of_one_tensor(graft: Graft) -> None:
    """A state dict lists both, `named_parameters` the first alone; files hold it twice, each time alike."""
    model, other = Tied(), Tied()
    report = graft(model, copied(other))
    assert [(one.key, one.status, one.buffer) for one in report.targets] == [
        ("reader.weight", "loaded", False), ("writer.weight", "loaded", False),
    ]  # fmt: skip
    assert {one.status for one in report.sources} == {"used"}
    assert model.reader.weight is model.writer.weight
    assert torch.equal(model.writer.weight, other.reader.weight)


def test_one_name_of_a_tied_parameter_is_enough(graft: Graft) -> None:
    model = Tied()
    report = graft(model, {"writer.weight": torch.ones(3, 3)})
    assert statuses(report) == {"reader.weight": "loaded", "writer.weight": "loaded"}
    assert torch.equal(model.reader.weight, torch.ones(3, 3))


def test_what_is_excluded_is_excluded_under_all_its_names(graft: Graft, faults_of: Faults) -> None:
    state = {"reader.weight": torch.ones(3, 3), "writer.weight": torch.zeros(3, 3)}
    assert "nothing would be loaded" in faults_of(Tied(), state, exclude=["reader.*"])["/pretrained/source"]
    both = nn.Sequential(OrderedDict(tied=Tied(), free=nn.Linear(1, 1)))
    more = {f"tied.{key}": value for key, value in state.items()} | {"free.weight": torch.ones(1, 1)}
    reasons = {one.key: one.reason for one in graft(both, more, exclude=["tied.reader.*"]).targets if one.status == "excluded"}
    assert reasons["tied.writer.weight"] == "tied to 'tied.reader.weight', which is excluded"


def test_extra_state_that_is_no_tensor_stays(graft: Graft) -> None:
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


NAMES = st.lists(st.text(string.ascii_lowercase[:3], min_size=1, max_size=2), min_size=1, max_size=2).map("_".join)
SHAPES = st.sampled_from([(1,), (2,), (2, 2)])
CLASSES = ("cat", "dog", "eel")


class Flat(nn.Module):
    """A model with these entries, some of them in its head; `breaks` raises once the first `breaks` of them are loaded.

    `twin` is another name of the first of them. With `channels` a convolution comes first, for images of so many.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, twin: bool = False, channels: int = 0, breaks: int | None = None
    ) -> None:
        super().__init__()
        self.breaks = breaks
        for key, shape in shapes.items():
            self.register_buffer(key, torch.rand(shape))
        if twin:
            self.register_buffer("twin", getattr(self, next(iter(shapes))))
        if channels:
            self.stem = nn.Conv2d(channels, 2, 1, bias=False)

    def _load_from_state_dict(self, state: Any, *rest: Any) -> None:
        own = self.state_dict()
        for key in list(state)[: self.breaks]:
            own[key].copy_(state[key])
        if self.breaks is not None:
            raise RuntimeError("broken off")
        super()._load_from_state_dict(state, *rest)


@dataclass(frozen=True)
class Case:
    """What is transferred: on to which model, what the source holds, which keys are the head's, what the spec says."""

    shapes: dict[str, tuple[int, ...]]
    extras: dict[str, Any]
    source: dict[str, tuple[int, ...]]
    head: Head
    wish: dict[str, Any]
    classes: tuple[str, ...]

    def model(self, breaks: int | None = None) -> Flat:
        return Flat(self.shapes, breaks=breaks, **self.extras)

    def plan(self, model: Flat, source: Source) -> TransferPlan:
        spec = PretrainedSpec(source="file:x", min_loaded=0, **self.wish)
        try:
            return plan_transfer(model, source, spec, self.head, self.classes)
        except SpecError:
            reject()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A model and a source that share names, and mostly shapes; and any of the rules, of the ways for names, of what adapts."""
    here = draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=5))
    shared = draw(st.sets(st.sampled_from(sorted(here)), min_size=1))
    there = {key: here[key] for key in shared} | draw(st.dictionaries(NAMES, SHAPES, max_size=2))
    head = draw(st.sets(st.sampled_from(sorted(here)), max_size=2))
    extras: dict[str, Any] = {"twin": draw(st.booleans())}
    wish: dict[str, Any] = {
        "head": draw(st.sampled_from(["auto", "reset"] if head else ["auto"])),
        "exclude": [key for key in here if key not in there or there[key] != here[key]] if draw(st.booleans()) else [],
    }
    classes: tuple[str, ...] = ()
    if draw(st.booleans()):  # images of other channels
        extras["channels"], there["stem.weight"] = 1, (2, 3, 1, 1)
    if draw(st.booleans()):  # a head of which some rows fit
        head, here["fc"], there["fc"] = {"fc"}, (2, 2), (3, 2)
        wish |= {"head": "rows", "classes": list(CLASSES)}
        classes = (draw(st.sampled_from(CLASSES)), "newt")
    if draw(st.booleans()):
        wish["drop"] = ["*" + draw(st.sampled_from(sorted(there)))]
    before, way = draw(
        st.sampled_from(
            [
                ("", {}), ("module.", {}), ("net.", {}), ("net.", {"select": "net"}), ("far.net.", {"suffix_match": True}),
                ("net.", {"rename": [("^net[.]", "")]}), ("", {"rename": [("a", "b")]}),
            ]
        )
    )  # fmt: skip
    source = {before + key: shape for key, shape in there.items()} | ({"rest": (1,)} if "select" in way else {})
    return Case(here, extras, source, Head(frozenset(head), ()), wish | way, classes)


@settings(max_examples=60)
@given(cases())
def test_the_plan_covers_each_entry_of_both_sides_exactly_once(case: Case) -> None:
    model = case.model()
    report = case.plan(model, source_of({key: torch.ones(shape) for key, shape in case.source.items()})).report
    assert [one.key for one in report.targets] == list(model.state_dict())
    assert [one.key for one in report.sources] == list(case.source)
    used = {one.key: str(one.source_key) for one in report.targets if one.status in {"loaded", "adapted"}}
    assert sorted(set(used.values())) == sorted(one.key for one in report.sources if one.status == "used")
    twins = {next(iter(case.shapes)), "twin"} if case.extras["twin"] else set()
    assert len(used) - len(set(used.values())) == (twins <= used.keys() and len({used[key] for key in twins}) < len(twins))
    assert sum(count.tensors for count in report.totals.values()) == len(report.targets)
    assert sum(count.tensors for count in report.source_totals.values()) == len(case.source)
    assert sum(row.total.elements for row in report.modules) == sum(count.elements for count in report.totals.values())
    assert all(one.shape == one.source_shape for one in report.targets if one.status == "loaded")
    assert all(one.adapter and one.reason for one in report.targets if one.status == "adapted")
    assert all(one.reason for one in report.targets if one.status != "loaded")
    assert all(one.reason for one in report.sources if one.status != "used")


@settings(max_examples=60)
@given(cases(), st.integers(0, 6))
def test_a_load_that_fails_anywhere_changes_nothing(case: Case, after: int) -> None:
    model = case.model(breaks=after)
    before = copied(model)
    source = source_of({key: torch.full(shape, 7.0) for key, shape in case.source.items()})
    plan = case.plan(model, source)
    with pytest.raises(TransferError, match="broken off"):
        apply_transfer(model, source, plan)
    assert same(model, before)


def test_planning_leaves_the_model_alone() -> None:
    model = two_layers()
    before = copied(model)
    plan_transfer(model, source_of(copied(two_layers())), PretrainedSpec(source="file:x"), HEAD)
    assert same(model, before)
    assert copy.deepcopy(model).state_dict().keys() == before.keys()
