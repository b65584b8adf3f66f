from __future__ import annotations

import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.losses import Losses, buckets


def curve(values):
    return Losses(np.arange(len(values)), np.zeros(len(values), np.int64), np.array(values, np.float64))


floats32 = st.floats(width=32)


@given(st.lists(floats32, max_size=300), st.integers(1, 400))
def test_buckets_cover_the_curve_once_and_keep_its_ends_and_extremes(values, points):
    found = buckets(curve(values), points)
    assert len(found) == min(points, len(values))
    assert [step for bucket in found for step in range(bucket["first"], bucket["last"] + 1)] == list(range(len(values)))
    for bucket in found:
        inside = values[bucket["first"] : bucket["last"] + 1]
        finite = [value for value in inside if math.isfinite(value)]
        assert bucket["count"] == len(inside)
        assert bucket["non_finite"] == len(inside) - len(finite)
        assert bucket["min"] == (min(finite) if finite else None)
        assert bucket["max"] == (max(finite) if finite else None)
        if finite:
            assert bucket["mean"] == pytest.approx(sum(finite) / len(finite), rel=1e-9, abs=1e-30 + 1e-9 * max(map(abs, finite)))
    if found:
        sizes = {bucket["count"] for bucket in found}
        assert max(sizes) - min(sizes) <= 1


@given(st.lists(floats32, min_size=1, max_size=50))
def test_as_many_buckets_as_steps_are_the_curve_itself(values):
    found = buckets(curve(values), 5000)
    assert [bucket["mean"] for bucket in found] == [value if math.isfinite(value) else None for value in values]


@pytest.mark.parametrize("points", [0, -1, 5001])
def test_a_number_of_points_that_no_curve_has_is_refused(points):
    with pytest.raises(ValueError, match=f"from 1 to 5000, not {points}"):
        buckets(curve([1.0]), points)


def test_buckets_can_be_sent_as_json():
    found = buckets(curve([1.0, math.nan, math.inf, 2.0]), 2)
    assert orjson.loads(orjson.dumps(found)) == [
        {"first": 0, "last": 1, "min": 1.0, "max": 1.0, "mean": 1.0, "count": 2, "non_finite": 1},
        {"first": 2, "last": 3, "min": 2.0, "max": 2.0, "mean": 2.0, "count": 2, "non_finite": 1},
    ]


def test_what_is_not_finite_goes_as_text():
    assert curve([0.5, math.nan, math.inf, -math.inf]).figures() == [0.5, "nan", "inf", "-inf"]


def test_no_losses_make_no_buckets():
    assert buckets(Losses.of([]), 10) == []
    assert Losses.of([]).figures() == []


def test_a_rewind_cuts_the_chunk_that_it_falls_into():
    log = [
        ("iterations", '{"epoch":0,"first":0,"losses":[1.0,2.0,3.0],"lr":{}}'),
        ("rewound", '{"to_step":2}'),
        ("iterations", '{"epoch":1,"first":2,"losses":[30.0],"lr":{}}'),
    ]
    losses = Losses.of(log)
    assert (losses.steps.tolist(), losses.values.tolist(), losses.epochs.tolist()) == ([0, 1, 2], [1.0, 2.0, 30.0], [0, 0, 1])


def test_a_loss_is_found_by_its_step_whatever_was_rewound():
    log = [
        ("iterations", '{"epoch":0,"first":0,"losses":[1.0,2.0,3.0],"lr":{}}'),
        ("rewound", '{"to_step":1}'),
        ("iterations", '{"epoch":0,"first":1,"losses":["nan"],"lr":{}}'),
    ]
    losses = Losses.of(log)
    assert [losses.at(step) for step in range(3)] == [1.0, "nan", None]
