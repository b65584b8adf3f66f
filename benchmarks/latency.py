"""How soon the service answers while it trains: the figures that its tests do not judge, because they are the machine's too.

One real job trains; from outside, over HTTP: how long `GET /jobs/{id}` takes, how old an event is when a follower has it, and
how long a cancel takes to its `end`. Run it: `python benchmarks/latency.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

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
TARGETS = {"GET /jobs/{id}, while it trains": 0.05, "an event's age at a follower": 0.15, "cancel to the end": 2.0}


def main() -> int:
    """Print the table; 1 if a median is above its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for how long a job is watched")
    parser.add_argument("--cancels", type=int, default=10)
    asked = parser.parse_args()
    console = Console(highlight=False)
    for line in machine():
        console.print(line, style="dim")
    found = measure(asked.seconds, asked.cancels)
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


def measure(seconds: float, cancels: int) -> dict[str, Sequence[float]]:
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


if __name__ == "__main__":
    sys.exit(main())
