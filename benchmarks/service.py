"""Iterations per second through the service, every loss streamed over HTTP, beside the article's loop and a bare one.

python benchmarks/service.py            about three minutes on two idle cores

The loops are those of `benchmarks/loop.py`; `service` is the same job sent to `graft serve` on this machine and followed as
NDJSON in this process: the api, the worker, the database and this client take their time from the same cores. Its rate counts
the losses as they arrive here, from an epoch's first chunk to its last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from loop import BATCH, SIZE, Run, article, bare, decoded, in_turns, job_spec, machine, table

from client.http import Client
from client.serve import running_service

TARGET = 0.93
"""Of the bare loop's rate, that the service must reach."""


def through(client: Client, epochs: int) -> Run:
    """Send the job and follow it. Raises RuntimeError where it did not succeed, or a loss is missing."""
    job = client.submit({**job_spec(epochs), "checkpoint": {"keep_last": 1, "keep_best": 0}})
    moments: list[list[float]] = [[] for _ in range(epochs)]
    step = 0
    for event in client.events(job["id"], follow=True):
        if event["kind"] == "iterations":
            now, data = time.perf_counter(), event["data"]
            if data["first"] != step:
                raise RuntimeError(f"step {data['first']} came after step {step - 1}")
            step += len(data["losses"])
            arrived = moments[data["epoch"]]
            arrived += [now] * (
                len(data["losses"]) if arrived else 1
            )  # when the first chunk's earlier steps were done, none knows
        elif event["kind"] == "end" and event["data"]["state"] != "succeeded":
            raise RuntimeError(f"the job ended as {event['data']}")
    if step != client.job(job["id"])["progress"]["steps"]:
        raise RuntimeError(f"{step} losses came")
    return Run(moments)


def main() -> int:
    """Exit status 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="per run; an epoch is 26 iterations")
    given = parser.parse_args()
    images, labels = decoded()
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "service.log").open("wb") as log,
        running_service({"GRAFT_DATA_DIR": directory}, log) as service,
        Client(service.url) as client,
    ):
        loops = {
            "article": lambda: article(images, labels, given.epochs),
            "service": lambda: through(client, given.epochs),
            "bare": lambda: bare(images, labels, given.epochs),
        }
        runs = in_turns(loops, given.repeats)
    print(*machine(), f"ResNet-18, {SIZE} px, batch {BATCH}, {given.repeats} runs of {given.epochs} epochs each\n", sep="\n")
    share = table(runs)["service"]
    print(f"\nthe service is {share:.3f} of bare; the target is {TARGET}: {'met' if share >= TARGET else 'missed'}")
    return 0 if share >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
