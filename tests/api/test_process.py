"""`python -m api` as a process: where it listens, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store import jobs
from store.database import Database

pytestmark = pytest.mark.slow  # a process of its own, since signals are its subject


def start(arguments: list[str], data: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "GRAFT_DATA_DIR": str(data)}
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, stdout=subprocess.PIPE, **options)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with start(["-m", "api", "--port", "0", "--port-file", str(tmp_path / "port")], tmp_path) as process:
        yield process
        process.kill()


def test_it_answers_without_delay_and_sigterm_ends_open_streams_cleanly_and_at_once(process, tmp_path, bench):
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    url = f"http://127.0.0.1:{(tmp_path / 'port').read_text().strip()}"
    assert said == f"Graft listens on {url}"
    database = Database(f"sqlite:///{tmp_path / 'graft.db'}")
    with bench.database.read() as session:
        spec = jobs.get(session, bench.job()).spec
    with database.write() as session:
        job_id = jobs.create(session, spec=spec, plan={})[0].id
    database.dispose()
    with httpx.Client(base_url=url) as client:
        times = [client.get("/health/live").elapsed.total_seconds() for _ in range(15)]
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert min(times) < 0.035  # 0.04 is what Nagle and a delayed ACK cost together, each time
    with (
        httpx.stream("GET", f"{url}/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as sse,
        httpx.stream("GET", f"{url}/jobs/{job_id}/logs?follow=true") as text,
    ):
        assert "server" not in sse.headers
        lines = sse.iter_lines()
        while next(lines) != "event: state":
            pass
        log = text.iter_lines()
        assert next(log) == "The job waits in its queue (by api)"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert not [line for line in lines if line.startswith("event")]  # whole to the last chunk, else httpx would raise
        assert list(log) == []
        assert time.monotonic() - began < 4  # not the grace of requests; benchmarks/latency.py has the figure
    process.wait(60)
    assert time.monotonic() - began < 20
    assert process.returncode in (0, -signal.SIGTERM)


def test_with_parent_it_ends_when_its_parent_does(tmp_path):
    command = [sys.executable, "-m", "api", "--port", "0", "--with-parent"]
    code = f"import subprocess, sys; p = subprocess.Popen({command!r}); print(p.pid, flush=True); p.wait()"
    with start(["-c", code], tmp_path) as parent:
        assert parent.stdout is not None
        child = parent.stdout.readline()
        assert child
        assert parent.stdout.readline().startswith("Graft listens")
        parent.kill()
        assert parent.stdout.read() == ""  # the child had it too: it is gone


def test_a_port_that_is_taken_is_told_in_one_line(url, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "api", "--port", url.rpartition(":")[2]],
        env={**os.environ, "GRAFT_DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("cannot listen on 127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1
