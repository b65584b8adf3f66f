"""The short form of `make chaos`: whatever is disturbed, nobody can tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STACK, KINDS = "postgres", ["trainer", "checkpoint", "overtaken", "broker", "db-crashes"]
"""Those that cost no further import of torch. A killed forkserver is in tests/sandbox, a killed worker in tests/worker; killed
trainers and workers on SQLite are in tests/worker too."""


@pytest.mark.slow  # a worker, which imports torch, and a job for each kind
@pytest.mark.timeout(900)
def test_whatever_is_disturbed_whenever_a_job_ends_as_if_nothing_had_happened() -> None:
    script = Path(__file__).parent / "command.py"
    options = ["--faults", "1", "--workers", "1", "--outage", "0.5", "--unwatched", "--stack", STACK, "--kinds", *KINDS]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)
    head, *lines = [line.split() for line in done.stdout.splitlines()]
    assert (done.returncode, head[0]) == (0, "seed"), done.stdout + done.stderr
    assert [line[:3] for line in lines] == [[STACK, kind, "1"] for kind in KINDS], "each kind has struck once"
