"""The short form of `make chaos`: kill -9 at random moments, and nobody can tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ["trainer", "checkpoint", "forkserver"]  # a killed worker is in tests/worker


@pytest.mark.slow  # a worker of its own, which imports torch twice: its forkserver is killed
def test_whatever_is_killed_whenever_a_job_ends_as_if_nothing_had_happened() -> None:
    script = Path(__file__).parent / "faults.py"
    answer = subprocess.run(
        [sys.executable, script, "--faults", "1", "--kinds", *KINDS], capture_output=True, text=True, check=False
    )
    head, *lines = [line.split() for line in answer.stdout.splitlines()]
    assert (answer.returncode, head[0]) == (0, "seed"), answer.stdout + answer.stderr
    assert [line[0] for line in lines] == KINDS
    assert all(int(line[1]) == 1 for line in lines), "each kind has struck"
