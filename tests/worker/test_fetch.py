"""Fetching for a job, under its supervisor: the lease, commands, the log, and how it ends."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torchvision.models import squeezenet1_1

from store import commands, jobs
from store.settings import Settings
from worker.fetch import Fetch

CONTENT = os.urandom(2_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = "https://elsewhere/w.pth"


@pytest.fixture(params=["postgres", pytest.param("sqlite", marks=pytest.mark.other_stack)])
def stack(request: pytest.FixtureRequest, make_stack: Callable[..., Any], tmp_path: Path) -> Any:
    """By default one: whoever fetches knows no database. How a lease is renewed on either is in test_supervisor."""
    return make_stack(request.param, tmp_path)


@pytest.fixture
def submit(bench: Any, elsewhere: Any) -> Any:
    """A job that begins with a file from elsewhere."""
    bench.replace(download=True, download_hosts=[elsewhere.host], download_private=True)

    def make(path: str = "/w.pth", sha256: str = SHA256, **parts: Any) -> int:
        pinned = {SOURCE: {"file": "w.pth", "sha256": sha256, "url": elsewhere.url(path)}}
        with bench.database.write() as session:
            plan = {"steps": {"total": 1}, "pinned": pinned}
            return int(jobs.create(session, spec=bench.make_spec(**parts), plan=plan)[0].id)

    return make


def test_the_trainer_finds_the_file_here_and_the_log_tells_of_it(bench: Any, submit: Any, elsewhere: Any, tmp_path: Path) -> None:
    elsewhere.file("/w.pth", CONTENT)
    job = submit()
    bench.run("trainers:given")

    lines = [message for _, message in bench.lines(job)]
    assert lines[0].startswith("fetching w.pth: ")
    assert "2.0 MB of 2.0 MB (100%), " in " ".join(lines)
    assert lines[-1] == f"{SOURCE} {tmp_path / 'cache' / 'weights' / SHA256}.pth"
    assert bench.job(job).state == "succeeded"
    again = submit()
    bench.run("trainers:given")
    assert bench.job(again).state == "succeeded"
    assert len(elsewhere.asked) == 1


def test_a_cache_that_was_deleted_is_filled_again(bench: Any, submit: Any, elsewhere: Any, tmp_path: Path) -> None:
    elsewhere.file("/w.pth", CONTENT)
    for _ in range(2):
        job = submit()
        bench.run("trainers:given")
        assert bench.job(job).state == "succeeded"
        (tmp_path / "cache" / "weights" / f"{SHA256}.pth").unlink()
    assert len(elsewhere.asked) == 2


def test_a_file_that_cannot_be_had_is_a_typed_failure_with_the_next_thing_to_try(bench: Any, submit: Any, elsewhere: Any) -> None:
    elsewhere.file("/w.pth", b"another file")
    job = submit()
    bench.run("trainers:given")

    failure = bench.job(job).failure
    assert bench.job(job).state == "failed"
    assert failure["type"] == "transfer"
    assert f"and not {SHA256}" in failure["message"]
    assert "compare the hashes" in failure["hint"]


def test_a_worker_that_may_not_fetch_says_which_setting_would_let_it(bench: Any, submit: Any) -> None:
    job = submit()
    bench.replace(download_hosts=[])
    bench.run("trainers:given")

    assert bench.job(job).failure["type"] == "transfer"
    assert "GRAFT_DOWNLOAD_HOSTS" in bench.job(job).failure["message"]


def test_a_fetch_is_cancelled_at_once(bench: Any, submit: Any, elsewhere: Any) -> None:
    begun = threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun)
    job = submit()
    running = bench.run_aside("trainers:given")
    assert begun.wait(30)
    with bench.database.write() as session:
        commands.cancel(session, job, "test")
    running.join(30)

    assert bench.job(job).state == "cancelled"


def test_a_fetch_that_is_paused_goes_on_where_it_was(bench: Any, submit: Any, elsewhere: Any, tmp_path: Path) -> None:
    begun = threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun)
    job = submit()
    running = bench.run_aside("trainers:given")
    part = tmp_path / "cache" / "weights" / f".{SHA256}.pth.part"
    assert begun.wait(30)
    _until(lambda: part.stat().st_size > 500_000)
    with bench.database.write() as session:
        commands.pause(session, job, "test")
    running.join(30)
    assert (bench.job(job).state, bench.job(job).failures) == ("paused", 0)

    elsewhere.file("/w.pth", CONTENT)
    with bench.database.write() as session:
        commands.resume(session, job, "test")
    bench.run("trainers:given")
    assert bench.job(job).state == "succeeded"
    assert elsewhere.asked[-1][1]["Range"].startswith("bytes=")


def test_a_worker_that_stops_gives_the_job_back_uncounted(bench: Any, submit: Any, elsewhere: Any) -> None:
    begun = threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun)
    job = submit()
    running = bench.run_aside("trainers:given")
    assert begun.wait(30)
    bench.stop.set()
    running.join(30)

    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 0)


def test_the_lease_is_renewed_while_a_slow_server_sends(bench: Any, submit: Any, elsewhere: Any) -> None:
    bench.replace(renew_seconds=0.1)
    begun, go_on = threading.Event(), threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun, go_on)
    job = submit()
    running = bench.run_aside("trainers:given")
    assert begun.wait(30)
    first = bench.job(job).lease_until
    _until(lambda: (bench.job(job).lease_until or 0) > first + 0.2)
    go_on.set()
    running.join(60)

    assert bench.job(job).state == "succeeded"


def test_a_copy_below_the_inputs_is_not_fetched(bench: Any, elsewhere: Any, tmp_path: Path) -> None:
    (tmp_path / "inputs" / "weights").mkdir(parents=True)
    (tmp_path / "inputs" / "weights" / "resnet.pth").write_bytes(CONTENT)
    official = {"file": "resnet.pth", "url": elsewhere.url("/resnet.pth"), "local_name": "resnet.pth"}
    with Fetch(Settings(data_dir=tmp_path), {"torchvision:resnet": official}) as fetch:
        assert fetch.wait(30)

    assert fetch.failure is None
    assert fetch.pinned["torchvision:resnet"].path == tmp_path / "inputs" / "weights" / "resnet.pth"


def _until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # it trains
def test_a_real_job_trains_on_weights_from_elsewhere(bench: Any, submit: Any, elsewhere: Any) -> None:
    weights = save(squeezenet1_1().state_dict())
    sha256 = elsewhere.file("/squeeze.safetensors", weights)
    source = elsewhere.url("/squeeze.safetensors")
    spec = bench.make_spec(
        dataset={"source": "sklearn:digits", "image_size": 32, "validation": 0.9},
        model={"name": "torchvision:squeezenet1_1"},
        pretrained={"source": source, "sha256": sha256},
        loader={"batch_size": 64},
    )
    pinned = {source: {"file": "squeeze.safetensors", "sha256": sha256, "url": source}}
    with bench.database.write() as session:
        job, _ = jobs.create(session, spec=spec, plan={"steps": {"total": 3}, "pinned": pinned})
    bench.run()

    (report,) = bench.data(job.id, "transfer")
    assert (report["sha256"], report["loaded_share"], report["source"]) == (sha256, 1, source)
    assert bench.job(job.id).state == "succeeded"


@pytest.mark.slow  # it trains, as far as the weights
def test_a_file_that_turns_out_to_hold_two_state_dicts_fails_the_job_and_both_are_named(bench: Any, elsewhere: Any) -> None:
    two, buffer = {"state_dict": {"w": torch.ones(1)}, "state_dict_ema": {"w": torch.ones(1)}}, io.BytesIO()
    torch.save(two, buffer)
    sha256 = elsewhere.file("/two.pth", buffer.getvalue())
    bench.replace(download=True, download_hosts=[elsewhere.host], download_private=True)
    source = elsewhere.url("/two.pth")
    spec = bench.make_spec(pretrained={"source": source, "sha256": sha256})
    with bench.database.write() as session:
        plan = {"steps": {"total": 1}, "pinned": {source: {"file": "two.pth", "sha256": sha256, "url": source}}}
        job, _ = jobs.create(session, spec=spec, plan=plan)
    bench.run()

    failure = bench.job(job.id).failure
    assert failure["type"] == "transfer"
    assert "more than one state dict (state_dict, state_dict_ema); say which by 'container'" in failure["message"]
