from __future__ import annotations

import pytest
from rich.console import Console

from client.follow import Follower, sparkline
from client.reports import groups_view
from client.tables import ago, size


def shown(view) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(view)
    console.file.close()
    return "\n".join(" ".join(line.split()) for line in console.export_text().splitlines())


def test_groups_show_the_values_that_they_train_with_and_which_are_frozen():
    rows = [
        {"name": "head", "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.999]}, "frozen": False, "tensors": 2,
         "elements": 5130, "parameters": ["fc.weight", "fc.bias"]},
        {"name": "stem", "hyperparameters": {"lr": 1e-4, "betas": [0.9, 0.999]}, "frozen": True, "tensors": 1,
         "elements": 9408, "parameters": ["conv1.weight"]},
    ]  # fmt: skip
    text = shown(groups_view({"optimizer": "Adam", "groups": rows, "executed_groups": 1, "fused": True}))
    assert "head 2 5,130 0.001 0.9, 0.999 fc.*" in text
    assert "stem 1 9,408 frozen 0.9, 0.999 conv1.weight" in text


def test_a_follower_keeps_each_step_once_over_a_rewind(job, log):
    console = Console(width=100, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with Follower(console, job) as follower:
        for event in log[:-2]:
            follower.feed(event)
        follower.feed({"kind": "rewound", "step": 5, "data": {"to_step": 5}})
        assert (len(follower.losses), [epoch["epoch"] for epoch in follower.epochs]) == (5, [0])
        for event in log[8:]:
            follower.feed(event)
    console.file.close()
    assert follower.losses == [2.0 / (step + 1) for step in range(10)]
    assert [epoch["epoch"] for epoch in follower.epochs] == [0, 1]
    assert follower.end["state"] == "succeeded"


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([0, 1, 2, 7], "▁▂▃█"), ([1, 1], "▁▁"), ([], ""), ([float("nan")], ""), ([0, float("inf"), 1], "▁!█")],
)
def test_a_sparkline_scales_what_is_finite(values, drawn):
    assert sparkline([float(value) for value in values]) == drawn


def test_sizes_and_times_are_for_people():
    assert [size(value) for value in (10, 2048, 5 << 20, 3 << 30)] == ["10 bytes", "2 KiB", "5 MiB", "3.0 GiB"]
    from datetime import UTC, datetime

    now = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
    moments = ["2026-01-31T11:59:58.5Z", "2026-01-31T11:50:00Z", "2026-01-31T02:00:00Z", "2026-01-01T00:00:00Z"]
    assert [ago(moment, now) for moment in moments] == ["1 s ago", "10 min ago", "10 h ago", "30 d ago"]
