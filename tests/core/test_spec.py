"""The spec: defaults, strictness, and faults that point at the place and name what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.spec import GroupSpec, JobSpec, OptimizerSpec, faults_of, meant
from core.spec.homes import homes

SMALLEST = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}}


def faults(**parts: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate({**SMALLEST, **parts})
    return {fault.pointer: fault.message for fault in faults_of(refused.value)}


def test_dataset_and_model_are_enough() -> None:
    spec = JobSpec.model_validate(SMALLEST)
    assert (spec.loader.batch_size, spec.optimizer.name, spec.training.epochs) == (32, "Adam", 1)
    assert spec.loss.name is None, "it goes by the dataset's targets"
    assert spec.pretrained is None


def test_a_named_thing_keeps_its_keywords_apart_from_ours() -> None:
    spec = JobSpec.model_validate({**SMALLEST, "optimizer": {"name": "SGD", "lr": 0.1, "groups": [{"params": "*", "lr": 1}]}})
    assert spec.optimizer.keywords == {"lr": 0.1}
    assert spec.optimizer.groups[0].keywords == {"lr": 1}


def test_a_spec_survives_json() -> None:
    spec = JobSpec.model_validate(
        {**SMALLEST, "loss": {"weight": [1, 2.5]}, "pretrained": {"source": "file:x", "rename": [["a", "b"]]}}
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("every", ["epoch", {"steps": 500}, {"minutes": 0.5}])
def test_a_checkpoint_is_written_every_epoch_or_so_many_steps_or_minutes(every: Any) -> None:
    spec = JobSpec.model_validate({**SMALLEST, "checkpoint": {"every": every}})
    assert spec.model_dump(mode="json")["checkpoint"]["every"] == every
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(SMALLEST).checkpoint.every == "epoch"


def test_groups_have_names_of_their_own() -> None:
    assert OptimizerSpec(groups=[{"params": "a"}, {"params": "b", "name": "head"}, {"params": "c"}]).group_names == [
        "group-0", "head", "group-2",
    ]  # fmt: skip
    assert (
        "'head'" in faults(optimizer={"groups": [{"params": "a", "name": "head"}, {"params": "b", "name": "head"}]})["/optimizer"]
    )
    assert "'default'" in faults(optimizer={"groups": [{"params": "a", "name": "default"}]})["/optimizer"]
    assert "'group-1'" in faults(optimizer={"groups": [{"params": "a", "name": "group-1"}, {"params": "b"}]})["/optimizer"]


def test_a_group_says_its_parameters_by_one_key_or_several_of_one_value_or_several() -> None:
    group = GroupSpec(params="a", role=["norm", "bias"], depth=-1, type="Linear", freeze={"until_epoch": 3}, lr=1)
    assert group.selectors == {"params": ["a"], "role": ["norm", "bias"], "depth": ["-1"], "type": ["Linear"]}
    assert (group.until_epoch, group.keywords) == (3, {"lr": 1})
    assert (GroupSpec(role="head", freeze=True).until_epoch, GroupSpec(depth="..3").selectors) == (None, {"depth": ["..3"]})


def test_a_glob_is_a_selector_where_weight_decay_is_left_out() -> None:
    spec = OptimizerSpec(no_decay=["*.bias", {"role": "norm"}])
    assert [one.selectors for one in spec.no_decay] == [{"params": ["*.bias"]}, {"role": ["norm"]}]
    assert OptimizerSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("parts", "pointer", "message"),
    [
        ({"modle": {}}, "/modle", "unknown key. Did you mean 'model'?"),
        ({"loader": {"batchsize": 3}}, "/loader/batchsize", "unknown key. Did you mean 'batch_size'?"),
        ({"loader": {"batch_size": "many"}}, "/loader/batch_size", 'send a whole number, not the text "many"'),
        ({"training": {"compile": "maybe"}}, "/training/compile", 'send true or false, not the text "maybe"'),
        ({"dataset": {}}, "/dataset/source", "this key is required"),
        ({"pretrained": {"source": "x", "head": "kept"}}, "/pretrained/head", "'auto', 'keep', 'reset' or 'rows'"),
        ({"pretrained": {"source": "x", "rename": [["a"]]}}, "/pretrained/rename/0/1", "required"),
        ({"pretrained": {"source": "x", "min_loaded": 2}}, "/pretrained/min_loaded", "less than or equal to 1"),
        ({"optimizer": {"groups": [{}]}}, "/optimizer/groups/0", "Give one or more of params, role, depth, type"),
        ({"optimizer": {"groups": [{"parms": "fc.*"}]}}, "/optimizer/groups/0", "Did you mean 'params' for 'parms'?"),
        ({"optimizer": {"groups": [{"role": "nrm"}]}}, "/optimizer/groups/0/role", "'head', 'backbone', 'norm' or 'bias'"),
        ({"optimizer": {"groups": [{"role": ["norm", "nrm"]}]}}, "/optimizer/groups/0/role/1", "'norm' or 'bias'"),
        ({"optimizer": {"groups": [{"depth": "3-4"}]}}, "/optimizer/groups/0/depth", 'a range such as "2..4"'),
        ({"optimizer": {"groups": [{"depth": True}]}}, "/optimizer/groups/0/depth", "a depth such as 3"),
        ({"optimizer": {"groups": [{"params": "*", "freeze": 1}]}}, "/optimizer/groups/0/freeze", '{"until_epoch": 2}'),
        ({"optimizer": {"groups": [{"params": "*", "freeze": {"until_epoch": 0}}]}}, "/optimizer/groups/0/freeze", "above 0"),
        ({"optimizer": {"layer_decay": 1}}, "/optimizer/layer_decay", "less than 1"),
        ({"optimizer": {"no_decay": "norm"}}, "/optimizer/no_decay", "send true, or a list"),
        ({"optimizer": {"no_decay": []}}, "/optimizer/no_decay", "at least 1"),
        ({"optimizer": {"no_decay": [{}]}}, "/optimizer/no_decay/0", "which parameters?"),
        ({"optimizer": {"no_decay": ["*", {"rol": "norm"}]}}, "/optimizer/no_decay/1/rol", "Did you mean 'role'?"),
        ({"optimizer": {"no_decay": [{"role": "nrm"}]}}, "/optimizer/no_decay/0/role", "'norm' or 'bias'"),
        ({"optimizer": {"groups": [{"params": ["fc.*", 3]}]}}, "/optimizer/groups/0/params/1", "valid string"),
        ({"optimizer": {"groups": [{"params": 3}]}}, "/optimizer/groups/0/params", "valid string"),
        ({"optimizer": {"groups": [{"params": []}]}}, "/optimizer/groups/0/params", "at least 1"),
        (
            {"optimizer": {"groups": [{"params": "*", "frooze": [[1]]}]}},
            "/optimizer/groups/0/frooze",
            "a list or object of these",
        ),
        ({"optimizer": {"lr": float("nan")}}, "/optimizer/lr", "NaN and infinity"),
        ({"optimizer": {"lr": 2**63}}, "/optimizer/lr", "64 bits"),
        ({"name": "a\0b"}, "/name", "U+0000"),
        ({"labels": {"team": "\ud800"}}, "/labels/team", "unicode"),
        ({"model": {"name": "x", "note": "\0"}}, "/model/note", "U+0000"),
        ({"resources": {"queue": "Big Queue"}}, "/resources/queue", "What fits: At most 63 of a-z, 0-9"),
        ({"pretrained": {"source": "x", "sha256": "abc"}}, "/pretrained/sha256", "What fits: Of the file, 64 digits in hex"),
        ({"labels": ["web"]}, "/labels", "send an object"),
        ({"optimizer": {"groups": {"params": "fc.*"}}}, "/optimizer/groups", "send a list"),
        ({"checkpoint": {"every": "step"}}, "/checkpoint/every", 'send "epoch", {"steps": 500} or {"minutes": 10}'),
        ({"checkpoint": {"every": 5}}, "/checkpoint/every", "with a number above 0"),
        ({"checkpoint": {"every": {"steps": 0}}}, "/checkpoint/every", "with a number above 0"),
        ({"checkpoint": {"every": {"steps": 5, "minutes": 5}}}, "/checkpoint/every", '{"steps": 500} or {"minutes": 10}'),
        ({"checkpoint": {"evry": "epoch"}}, "/checkpoint/evry", "unknown key. Did you mean 'every'?"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(parts: dict[str, Any], pointer: str, message: str) -> None:
    found = faults(**parts)
    assert message in found[pointer]
    assert len(found) == 1, "one fault is told once"


@pytest.mark.parametrize(
    ("parts", "pointer", "message"),
    [
        ({"loss": "CrossEntropyLoss"}, "/loss", 'send an object: {"name": "CrossEntropyLoss"}'),
        ({"model": "torchvision:resnet18"}, "/model", 'send an object: {"name": "torchvision:resnet18"}'),
        ({"dataset": "sklearn:digits"}, "/dataset", 'send an object: {"source": "sklearn:digits"}'),
        ({"pretrained": "job:1"}, "/pretrained", 'send an object: {"source": "job:1"}, or null'),
        ({"pretrained": True}, "/pretrained", 'such as {"source": "torchvision:resnet50/IMAGENET1K_V2"}, or null'),
        ({"loss": 3}, "/loss", 'send an object such as {"name": "CrossEntropyLoss"}'),
        ({"schedule": "cosine"}, "/schedule", 'send an object: {"name": "cosine"}, or null'),
        ({"optimizer": {"groups": ["fc.*"]}}, "/optimizer/groups/0", 'send an object: {"params": "fc.*"}'),
        ({"training": {"divergence": {"spike": True}}}, "/training/divergence/spike", '{"action": "stop"}, or null'),
        ({"checkpoint": "best"}, "/checkpoint", 'send an object such as {"every": "epoch"}'),
    ],
)
def test_where_an_object_is_meant_the_one_to_write_is_shown(parts: dict[str, Any], pointer: str, message: str) -> None:
    found = faults(**parts)
    assert found.keys() == {pointer}
    assert message in found[pointer]


@pytest.mark.parametrize(
    ("parts", "pointer", "message"),
    [
        ({"training": {"batch_size": 3}}, "/training/batch_size", "It belongs to /loader/batch_size."),
        ({"loader": {"epochs": 3}}, "/loader/epochs", "It belongs to /training/epochs."),
        ({"loader": {"image_size": 32}}, "/loader/image_size", "It belongs to /dataset/image_size."),
        ({"seed": 1}, "/seed", "It belongs to /training/seed."),
        ({"training": {"lr": 0.1}}, "/training/lr", "It belongs to /optimizer/lr."),
        ({"weight_decay": 0.1}, "/weight_decay", "It belongs to /optimizer/weight_decay."),
        ({"freeze": True}, "/freeze", "It belongs to /optimizer/groups/0/freeze."),
        ({"training": {"warmup_steps": 3}}, "/training/warmup_steps", "It belongs to /schedule/warmup_steps."),
        ({"training": {"source": "x"}}, "/training/source", "It belongs to /dataset/source or /pretrained/source."),
        ({"training": {"batchsize": 3}}, "/training/batchsize", "Did you mean /loader/batch_size?"),
        ({"loader": {"name": "x"}}, "/loader/name", "Known: batch_size, shuffle, drop_last, workers."),
    ],
)
def test_a_key_in_the_wrong_part_is_told_where_it_belongs(parts: dict[str, Any], pointer: str, message: str) -> None:
    assert faults(**parts) == {pointer: f"unknown key. {message}"}


def test_a_keyword_that_an_optimizer_lacks_is_not_sent_back_to_it() -> None:
    assert meant("momentum", ["lr"], "/optimizer") == meant("momentum", ["lr"], "/optimizer/groups/0") == " Known: lr."
    assert meant("momentum", ["width"], "/model") == " It belongs to /optimizer/momentum."


def test_every_place_that_a_key_is_sent_to_takes_it() -> None:
    """The pointers are read off the models: each leads to a key that is known there."""
    spec = JobSpec.model_json_schema()
    for key, pointers in homes().items():
        for pointer in pointers:
            *parts, last = pointer.split("/")[1:]
            assert last == key
            assert key in OptimizerSpec.USUAL or key in keys_at(spec, parts), pointer


def keys_at(schema: dict[str, Any], parts: list[str]) -> set[str]:
    """The keys of the object that `parts` lead to, in any of the types that a value may have."""
    found = [schema]
    for part in ["", *parts]:
        inner = [one["items"] if part == "0" else one.get("properties", {}).get(part, {}) if part else one for one in found]
        found = [deeper for one in inner for deeper in unions(schema, one)]
        found = [one for one in found if "properties" in one or "items" in one]
    return {key for one in found for key in one.get("properties", ())}


def unions(schema: dict[str, Any], one: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in one:
        return unions(schema, schema["$defs"][one["$ref"].rpartition("/")[2]])
    several = one.get("anyOf", one.get("oneOf"))
    return [one] if several is None else [deeper for each in several for deeper in unions(schema, each)]


def test_keys_with_slashes_and_tildes_are_escaped_in_pointers() -> None:
    assert faults(labels={"a/b~c": 3}).keys() == {"/labels/a~1b~0c"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["dataset", "model", "loader", "loss", "optimizer", "pretrained", "labels", "name", "zzz"])


@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_whatever_json_comes_it_is_a_spec_or_has_faults_with_pointers(raw: dict[str, Any]) -> None:
    try:
        JobSpec.model_validate({**SMALLEST, **raw})
    except ValidationError as error:
        found = faults_of(error)
        assert found
        assert all(fault.pointer.startswith("/") and fault.message for fault in found)
