"""The names of checkpoints: which was written first, and what is none."""

from __future__ import annotations

import pytest

from core.training.checkpoint_names import name_of, order_of


def test_names_compare_as_they_were_written() -> None:
    written = [(9, 0), (10, 0), (100, 0), (8, 1), (10, 1), (0, 2)]
    names = [name_of(step, returns) for step, returns in written]
    assert names == ["9", "10", "100", "8.1", "10.1", "0.2"]
    assert sorted(["0.2", "8.1", "10", "10.1", "100", "9"], key=order_of) == names


@pytest.mark.parametrize("name", ["", "-1", "010", "1.0", "1.", ".1", "1.1.1", "10/..", "10\n", "\u0661", ".10.partial", "1.01"])
def test_other_names_are_no_checkpoint(name: str) -> None:
    assert order_of(name) is None
