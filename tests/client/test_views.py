from __future__ import annotations

import pytest
from rich.console import Console

from client.curves import braille, curves_view
from client.follow import Follower, sparkline
from client.reports import groups_view
from client.tables import ago, job_view, lasted, size


def shown(view, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(view)
    console.file.close()
    return "\n".join(" ".join(line.split()) for line in console.export_text().splitlines())


def test_a_job_shows_how_long_it_has_run(job):
    assert "ran for 1 min 23 s" in shown(job_view(job))
    assert "ran for" not in shown(job_view({**job, "ran_seconds": 0}))
    assert [lasted(seconds) for seconds in (0.4, 59.4, 59.6, 3599, 3600, 90061)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 1 min",
    ]  # fmt: skip


def table(rows, depths):
    parameters = [{"names": [name], "depth": depth} for name, depth in depths.items()]
    return {"optimizer": "Adam", "groups": rows, "executed_groups": 1, "fused": True, "parameters": parameters}


def test_groups_show_the_values_that_they_train_with_and_which_are_frozen():
    rows = [
        {"name": "head", "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.999]}, "frozen": False, "until_epoch": None,
         "of": "head", "tensors": 2, "elements": 5130, "parameters": ["fc.weight", "fc.bias"]},
        {"name": "stem", "hyperparameters": {"lr": 1e-4, "betas": [0.9, 0.999]}, "frozen": True, "until_epoch": None,
         "of": "stem", "tensors": 1, "elements": 9408, "parameters": ["conv1.weight"]},
    ]  # fmt: skip
    text = shown(groups_view(table(rows, {"fc.weight": 9, "fc.bias": 9, "conv1.weight": 0})))
    assert "Adam, parameter groups; in all: betas 0.9, 0.999" in text
    assert "head 9 2 5,130 0.001 fc.*" in text
    assert "stem 0 1 9,408 frozen conv1.weight" in text
    for_a_time = [{**row, "until_epoch": 2, "present": {"lr": 5e-4}} for row in rows]
    text = shown(groups_view(table(for_a_time, {"fc.weight": 9, "fc.bias": 9, "conv1.weight": 0})))
    assert "head 9 2 5,130 0.0005" in text
    assert "stem 0 1 9,408 frozen before epoch 3" in text


def test_many_parts_of_a_group_are_one_row_for_people():
    rows = [
        {"name": f"depth-{depth}", "of": "default", "hyperparameters": {"lr": 0.5 ** (20 - depth)}, "frozen": False,
         "until_epoch": None, "tensors": 1, "elements": 10, "parameters": [f"blocks.{depth}.weight"]}
        for depth in range(20)
    ]  # fmt: skip
    head = {**rows[0], "name": "head", "of": "head", "hyperparameters": {"lr": 1.0}, "parameters": ["fc.weight"]}
    depths = {**{row["parameters"][0]: depth for depth, row in enumerate(rows)}, "fc.weight": 20}
    text = shown(groups_view(table([head, *rows], depths)))
    assert "head 20 1 10 1 fc.weight" in text
    assert "default, 20 parts 0..19 20 200 9.53674e-07 … 0.5 blocks.*" in text


def many_groups():
    """What the layer decay of a deep model makes of three groups."""
    rows, depths = [], {}
    modules = {"head": ["fc"], "stem": ["conv1"], "default": [f"layer{number}" for number in range(1, 25)]}
    for depth, (name, module) in enumerate((name, module) for name, every in modules.items() for module in every):
        for word, decay in (("weight", 1e-4), ("bias", 0.0)):
            held = {"lr": 1e-4 * 0.75**depth, "weight_decay": decay}
            rows.append(
                {"name": f"{name}/{depth}/{word}", "of": name, "hyperparameters": held, "frozen": name == "stem",
                 "until_epoch": 2, "tensors": 1, "elements": 1_000_000, "parameters": [f"{module}.{word}"]}
            )  # fmt: skip
            depths[f"{module}.{word}"] = depth
    return table(rows, depths)


def test_a_wide_terminal_shows_each_kind_of_parameter_and_a_narrow_one_says_what_it_leaves_out():
    lines = {width: shown(groups_view(many_groups()), width).splitlines() for width in (80, 100, 140)}
    header, *rows = lines[140][1:]
    assert header.split() == ["group", "depth", "tensors", "elements", "lr", "weight_decay", "parameters"]
    assert rows[0].endswith(" 2 2,000,000 0.0001 0 … 0.0001 fc.*")
    assert rows[1].endswith(" conv1.*")
    assert rows[2].endswith(" layer1-24.*")
    assert not any("no room" in line for line in lines[140])
    assert lines[80][1].split()[-2:] == ["weight_decay", "parameters"]
    assert "default, 48 parts" in lines[80][4]
    assert any(line.startswith("no room for: depth, tensors") for line in lines[80])


def test_what_is_not_one_kind_of_name_is_told_whole_where_there_is_room():
    names = ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.weight", "layer2.weight", "fc.weight", "other.weight"]
    row = {"name": "default", "of": "default", "hyperparameters": {"lr": 0.1}, "frozen": False, "until_epoch": None,
           "tensors": 6, "elements": 10, "parameters": names[:-1]}  # fmt: skip
    view = groups_view(table([row, {**row, "name": "b", "of": "b", "parameters": names[-1:]}], dict.fromkeys(names, 0)))
    assert "0.1 conv1.weight, bn1.*, layer1-2.weight, fc.weight" in shown(view, 140)


def curves(lr, momentum=None, frozen=(), name="CosineAnnealingLR"):
    rows = [{"name": group, "of": group, "frozen": group in frozen, "schedule": {"name": name}} for group in lr]
    return curves_view({"groups": {"groups": rows}, "lr": lr, "momentum": momentum or {}})


def test_curves_are_drawn_once_for_groups_that_differ_in_height_alone():
    head, rest = [(0, 0.0), (10, 0.1), (99, 0.0)], [(0, 0.0), (10, 0.01), (99, 0.0)]
    [lr, momentum] = curves({"head": head, "rest": rest, "flat": [(0, 1.0), (99, 1.0)]}, {"head": [(0, 0.9), (99, 0.8)]})
    top, *_, bottom, steps = lr.plain.split("\n")[1:]
    assert lr.plain.startswith("lr of head 0.1, rest 0.01   CosineAnnealingLR\n")
    assert (top.split()[0], bottom.split()[0], steps.split()) == ("0.1", "0", ["step", "0", "step", "99"])
    assert momentum.plain.startswith("momentum of head 0.9")
    assert {len(line) for line in lr.plain.split("\n")[1:]} == {66}


def test_the_parts_of_a_group_are_one_range_above_its_curve():
    lr = {f"default/{depth}": [(0, 0.0), (9, 0.1 / 2**depth)] for depth in range(12)} | {"head": [(0, 0.0), (9, 1.0)]}
    rows = [{"name": name, "of": name.partition("/")[0], "frozen": False, "schedule": {"name": "LinearLR"}} for name in lr]
    [picture] = curves_view({"groups": {"groups": rows}, "lr": lr, "momentum": {}})
    assert picture.plain.startswith("lr of default 4.88e-05 … 0.1, head 1   LinearLR\n")


def test_no_picture_of_what_is_flat_or_frozen_and_a_few_of_many():
    falling = [(0, 1.0), (9, 0.0)]
    assert curves({"flat": [(0, 0.1), (9, 0.1)], "one": [(0, 0.1)], "stem": falling}, frozen=["stem"]) == []
    many = curves({f"g{index}": [(0, 1.0), (9, index / 10)] for index in range(7)})
    assert (len(many), many[-1].plain) == (5, "and 3 more curves: --json")


@pytest.mark.parametrize(
    ("values", "rows"),
    [([0, 1, 2, 3], ["⡠⠊"]), ([0, 7], ["⢸", "⡸"]), ([5, 5], ["⣀"]), ([0, 0, 1, 1], ["⣀⠏"])],
)
def test_a_line_of_dots_has_no_gaps(values, rows):
    assert braille([float(value) for value in values], len(rows)) == rows


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
