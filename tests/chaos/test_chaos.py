"""The short form of `make chaos`: whatever is disturbed, nobody can tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KINDS = {"sqlite": ["trainer", "checkpoint"], "postgres": ["overtaken", "broker", "db-crashes"]}
"""Those that cost no further import of torch. A killed forkserver is in tests/sandbox, a killed worker in tests/worker."""


@pytest.mark.slow  # a worker on either stack, at once: each imports torch
@pytest.mark.timeout(900)
def test_whatever_is_disturbed_whenever_a_job_ends_as_if_nothing_had_happened() -> None:
    script = Path(__file__).parent / "command.py"
    options = ["--faults", "1", "--workers", "1", "--outage", "0.5", "--unwatched"]
    running = [
        subprocess.Popen(
            [sys.executable, script, *options, "--stack", stack, "--kinds", *kinds],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stack, kinds in KINDS.items()
    ]
    try:
        for process, (stack, kinds) in zip(running, KINDS.items(), strict=True):
            said, errors = process.communicate()
            head, *lines = [line.split() for line in said.splitlines()]
            assert (process.returncode, head[0]) == (0, "seed"), said + errors
            assert [line[:3] for line in lines] == [[stack, kind, "1"] for kind in kinds], "each kind has struck once"
    finally:
        for process in running:
            process.terminate()
            process.communicate()
