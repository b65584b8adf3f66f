from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from client.overviews import jobs_view, workers_view

NOW = datetime(2026, 1, 31, 12, 0, 10, tzinfo=UTC)


def lines(view, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(view)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def long(job):
    """A job of which everything is long."""
    return {
        **job, "id": 12345, "name": "a name of [many] words\nand two lines, longer than any terminal is wide, to be cut off",
        "state": "succeeded", "progress": {"step": 123456, "steps": 123456, "epoch": 9, "epochs": 9, "share": 1.0},
        "best": {"step": 1, "epoch": 1, "top1": 0.975}, "spec": {"model": {"name": "timm:vit_base_patch16_224.augreg_in21k"}},
    }  # fmt: skip


@pytest.mark.parametrize("width", [120, 100, 80, 70, 60, 50, 40])
def test_each_job_is_one_line_that_fits_and_says_what_steers_it(long, job, width):
    table = lines(jobs_view([long, job]), width)
    assert len(table) == 3
    assert all(cell_len(line) <= width for line in table)
    assert table[1].split()[0] == "12345"
    for whole in ("succeeded", "123456 of 123456"):
        assert whole in table[1]


def test_where_it_is_narrow_names_are_shortened_and_then_columns_left_out(long):
    header, row = lines(jobs_view([long]), 80)
    assert header.split() == ["id", "name", "state", "progress", "best", "model", "submitted"]
    assert row.count("…") == 2
    assert row.split()[1:2] == ["a"]
    heads = [lines(jobs_view([long]), width)[0].split() for width in (70, 60, 50)]
    assert heads == [
        ["id", "name", "state", "progress", "best", "submitted"],
        ["id", "name", "state", "progress", "submitted"],
        ["id", "name", "state", "progress"],
    ]


def test_what_fits_is_not_cut(job):
    _, row = lines(jobs_view([job]), 80)
    assert "…" not in row
    assert row.split()[:6] == ["7", "digits", "queued", "0", "of", "10"]
    assert "torchvision:resnet18" in row


def test_a_running_job_tells_what_is_left_and_a_waiting_one_why_nobody_takes_it(job):
    running = {**job, "id": 8, "state": "running", "eta_seconds": 4000.0}
    waiting = {**job, "waits_for": ["no living worker serves the queue 'night'"]}
    header, row, other, why = lines(jobs_view([running, waiting]), 110)
    assert header.split()[4:7] == ["to", "go", "best"]
    assert "1 h 6 min" in row
    assert "min" not in other
    assert why == "! job 7: no living worker serves the queue 'night'"


def worker(name, *, gpus=(), free=0, slots=1, cpu=1, ready=True, **told):
    devices = {"gpus": list(gpus), "gpus_free": free, "cpu_slots": slots, "cpu_free": cpu, "ready": ready}
    return {
        "name": name, "host": "h", "alive": True, "queues": ["default"], "devices": devices, "running": [], "draining": False,
        "seen_at": "2026-01-31T12:00:08.000Z", **told,
    }  # fmt: skip


def test_workers_tell_what_they_have_free_and_run_and_queues_what_they_hold():
    answer = {
        "data": [
            worker("host-1-gpu", gpus="0123", free=1, running=[7, 9], queues=["default", "big"]),
            worker("host-2-cpu", draining=True, cpu=0, running=[8]),
            worker("host-3-cpu", ready=False),
            worker("old", alive=False, devices={}, seen_at="2026-01-31T11:00:00Z", queues=["night"]),
        ],
        "queues": {"night": {"queued": 2}, "default": {"queued": 1, "running": 3}},
    }
    for width in (80, 100):
        table = lines(workers_view(answer, NOW), width)
        assert all(len(line) <= width for line in table)
        rows = [" ".join(line.split()) for line in table[1:]]
        assert len(rows) == 6
        assert rows[0].startswith("host-1-gpu ready default,")
        assert "1 of 4 free" in rows[0]
        assert rows[1].startswith("host-2-cpu draining default none 0 of 1 free 8")
        assert "warming up" in rows[2]
        assert "silent" in rows[3]
        assert rows[4:] == ["Queue default: 1 queued, 3 running", "Queue night: 2 queued; no worker serves it"]
    assert "7, 9" in lines(workers_view(answer, NOW), 100)[1]
    assert "2 s ago" in lines(workers_view(answer, NOW), 100)[1]


def test_that_nobody_works_is_said_with_what_waits():
    assert lines(workers_view({"data": [], "queues": {"default": {"queued": 1}}}), 80) == [
        "No workers: jobs wait until one comes.",
        "Queue default: 1 queued; no worker serves it",
    ]
