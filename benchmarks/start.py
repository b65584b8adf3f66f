"""From `POST /jobs` to the first loss in the stream, with the service warm; beside the price of a cold start.

A job asks for nothing but a few milliseconds of training, so what is measured is the service: the plan, the queue, the claim, the
fork, the first step, the log and the stream. Run it: `python benchmarks/start.py`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loop import machine
from rich.console import Console
from rich.table import Table

from client.http import Client, Json
from client.serve import running_service

TARGET = 1.0
SPEC: Json = {
    "dataset": {"source": "sklearn:digits", "image_size": 32},
    "loader": {"batch_size": 32},
    "model": {"name": "torchvision:squeezenet1_1"},
}


def main() -> int:
    """Print the table; 1 if the median is above the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10, help="how many are timed, after one that is not")
    count = parser.parse_args().jobs
    console = Console(highlight=False)
    for line in machine():
        console.print(line, style="dim")
    cold = [cold_import() for _ in range(3)]
    starts = measure(count)
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "median", "fastest", "slowest"):
        table.add_column(name, justify="right" if name else "left")
    for name, seconds in (
        (f"POST /jobs to the first loss, {count} jobs", starts),
        ('cold: python -c "import torch, torchvision", 3 times', cold),
    ):
        shown = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(name, *(f"{value:.2f} s" for value in shown))
    console.print(table)
    met = statistics.median(starts) < TARGET
    console.print(f"Target: under {TARGET:.0f} s at the median. {'Met' if met else 'Missed'}.", style="green" if met else "red")
    return 0 if met else 1


def measure(count: int) -> list[float]:
    """Seconds to the first loss, of one job after the other."""
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "service.log").open("wb") as log,
        running_service({"GRAFT_DATA_DIR": directory}, log) as service,
        Client(service.url) as client,
    ):
        first_loss(client)  # the worker's own sandbox may still be warming up
        return [first_loss(client) for _ in range(count)]


def first_loss(client: Client) -> float:
    """Seconds from the request to the first loss; the job is cancelled and over before this returns."""
    begun = time.perf_counter()
    job = client.submit(SPEC)
    events = client.events(job["id"], follow=True)
    next(event for event in events if event["kind"] == "iterations")
    seconds = time.perf_counter() - begun
    client.cancel(job["id"])
    for _ in events:  # to its end
        pass
    return seconds


def cold_import() -> float:
    """Seconds that a new interpreter needs before it can train at all."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
