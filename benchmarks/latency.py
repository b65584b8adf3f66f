"""How soon the service answers while it trains: the figures that its tests do not judge, because they are the machine's too.

One real job trains; from outside, over HTTP: how long `GET /jobs/{id}` takes, how old an event is when a follower has it, how
long a cancel takes to its `end`, and how soon an open stream ends when its api is told to stop. Run it:
`python benchmarks/latency.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
from loop import machine
from rich.console import Console
from rich.table import Table

from client.http import Client, Json
from client.serve import running_service

SPEC: Json = {
    "dataset": {"source": "sklearn:digits", "image_size": 32},
    "loader": {"batch_size": 32},
    "model": {"name": "torchvision:squeezenet1_1"},
    "training": {"epochs": 1000},
}
TARGETS = {
    "GET /jobs/{id}, while it trains": 0.05,
    "an event's age at a follower": 0.15,
    "cancel to the end": 2.0,
    "SIGTERM to the end of an open stream": 1.0,
}


def main() -> int:
    """Print the table; 1 if a median is above its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for how long a job is watched")
    parser.add_argument("--cancels", type=int, default=10)
    parser.add_argument("--stops", type=int, default=5)
    asked = parser.parse_args()
    console = Console(highlight=False)
    for line in machine():
        console.print(line, style="dim")
    found = measure(asked.seconds, asked.cancels, asked.stops)
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "median", "95 %", "worst", "target"):
        table.add_column(name, justify="right" if name else "left")
    for name, seconds in found.items():
        shown = (statistics.median(seconds), statistics.quantiles(seconds, n=20, method="inclusive")[-1], max(seconds))
        target = f"{TARGETS[name] * 1000:,.0f} ms" if name in TARGETS else ""
        table.add_row(f"{name}, {len(seconds)} times", *(f"{value * 1000:,.1f} ms" for value in shown), target)
    console.print(table)
    missed = [name for name, target in TARGETS.items() if statistics.median(found[name]) >= target]
    console.print(f"Missed: {', '.join(missed)}." if missed else "Met.", style="red" if missed else "green")
    return 1 if missed else 0


def measure(seconds: float, cancels: int, stops: int) -> dict[str, Sequence[float]]:
    """Seconds, by what they are of."""
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "service.log").open("wb") as log,
        running_service({"GRAFT_DATA_DIR": directory}, log) as service,
        Client(service.url) as client,
    ):
        cancel(client)  # the worker's own sandbox may still be warming up
        answers, ages = watch(client, service.url, seconds)
        return {
            "GET /jobs/{id}, while it trains": answers,
            "an event's age at a follower": ages,
            "cancel to the end": [cancel(client) for _ in range(cancels)],
            "SIGTERM to the end of an open stream": stop(client, directory, stops),
        }


def watch(client: Client, url: str, seconds: float) -> tuple[list[float], list[float]]:
    """Of one job: what `GET` takes, and how old each event is when it comes."""
    job_id = client.submit(SPEC)["id"]
    ages: list[float] = []

    def follow() -> None:
        with Client(url) as mine:
            events = mine.events(job_id, follow=True)
            ages.extend(age(event) for event in events if event["kind"] == "iterations")

    follower = threading.Thread(target=follow)
    follower.start()
    while not ages:
        time.sleep(0.01)
    answers = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        client.job(job_id)
        answers.append(time.perf_counter() - begun)
        time.sleep(0.05)
    client.cancel(job_id)
    follower.join()
    return answers, ages[1:]


def age(event: Json) -> float:
    """Seconds since the event was appended, by the clock that both share."""
    return (datetime.now(UTC) - datetime.fromisoformat(event["at"])).total_seconds()


def cancel(client: Client) -> float:
    """Seconds from the request to the `end` of a job that was training."""
    job = client.submit(SPEC)
    events = client.events(job["id"], follow=True)
    next(event for event in events if event["kind"] == "iterations")
    begun = time.perf_counter()
    client.cancel(job["id"])
    for _ in events:  # to its end
        pass
    return time.perf_counter() - begun


def stop(client: Client, directory: str, times: int) -> list[float]:
    """Seconds from SIGTERM to the end of a stream that follows a job that trains: each time of one more api on its directory."""
    job_id = client.submit(SPEC)["id"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    found = []
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "api", "--with-parent", "--port", "0"],
            env={**inherited, "GRAFT_DATA_DIR": directory},
            stdout=subprocess.PIPE,
            text=True,
        ) as api:
            try:
                assert api.stdout is not None  # noqa: S101 (for the type checker)
                url = api.stdout.readline().split()[-1]
                headers = {"Accept": "application/x-ndjson"}
                with httpx.stream("GET", f"{url}/jobs/{job_id}/events?follow=true", headers=headers, timeout=60) as answer:
                    lines = answer.iter_lines()
                    next(line for line in lines if '"iterations"' in line)
                    begun = time.perf_counter()
                    api.terminate()
                    for _line in lines:  # to its end; one that is cut off raises
                        pass
                    found.append(time.perf_counter() - begun)
            finally:
                api.terminate()
    client.cancel(job_id)
    return found


if __name__ == "__main__":
    sys.exit(main())
