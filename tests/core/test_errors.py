"""Errors name the place and the way out."""

from __future__ import annotations

import errno

import pytest

from core.errors import DataError, Fault, SpecError, did_you_mean, is_no_room, pointer_of


def test_a_close_name_is_suggested_whatever_its_case() -> None:
    assert did_you_mean("resnet5", ["vgg11", "resnet50"]) == " Did you mean 'resnet50'?"
    assert did_you_mean("crossentropyloss", ["CrossEntropyLoss"]) == " Did you mean 'CrossEntropyLoss'?"


def test_the_few_names_that_it_is_a_part_of_are_suggested() -> None:
    known = ["StepLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "OneCycleLR"]
    assert did_you_mean("cosine", known) == " Did you mean 'CosineAnnealingLR' or 'CosineAnnealingWarmRestarts'?"


def test_what_all_names_end_in_makes_none_of_them_close() -> None:
    losses = ["L1Loss", "MSELoss", "NLLLoss", "CrossEntropyLoss"]
    assert did_you_mean("FocalLoss", losses) == " Known: L1Loss, MSELoss, NLLLoss, CrossEntropyLoss."
    assert did_you_mean("cross_entropy", losses) == " Did you mean 'CrossEntropyLoss'?"
    assert did_you_mean("L1Los", losses) == " Did you mean 'L1Loss'?"


def test_where_none_is_close_the_known_ones_are_told() -> None:
    assert did_you_mean("zzz", ["one", "two"]) == " Known: one, two."
    assert did_you_mean("zzz", [f"name{i}" for i in range(20)], shown=2) == " Known: name0, name1 and 18 more."
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(("parts", "pointer"), [((), ""), (("a", 0, "b"), "/a/0/b"), (("a/b", "c~d"), "/a~1b/c~0d")])
def test_pointers_are_rfc_6901(parts: tuple[str | int, ...], pointer: str) -> None:
    assert pointer_of(*parts) == pointer


def test_a_spec_error_carries_all_its_faults() -> None:
    error = SpecError(Fault("/a", "one"), Fault("/b", "two"))
    assert str(error) == "/a: one; /b: two"
    assert [fault.pointer for fault in error.faults] == ["/a", "/b"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_a_quota_and_a_file_that_are_full_are_all_no_room(number: int) -> None:
    assert is_no_room(OSError(number, "full"))
    assert not is_no_room(OSError(errno.EACCES, "not yours"))
    assert not is_no_room(ValueError(number))


def test_a_training_error_has_a_kind_and_the_next_thing_to_try() -> None:
    assert (DataError("x").kind, DataError("x", "do this").hint) == ("data", "do this")
    assert DataError("x").hint
