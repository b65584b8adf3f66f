"""Ours through the service: the job goes to `graft serve` on this machine, its losses are followed as NDJSON.

The api, the worker, the database and this client take their time from the same cores. A turn is a job, cancelled once enough
losses came; the first ones, while its process warms up, do not count, and neither does the time between two epochs.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from contenders.turns import Block, Turns, contend
from contenders.workloads import EXAMPLE, INPUTS, WORKLOADS

from client.http import Client
from client.serve import running_service

TIMES = 2
"""Losses come in chunks, ten a second: a turn is so many blocks, to time enough of them."""


def follow(client: Client, turns: Turns) -> Block:
    """Send the job and take its losses. Raises RuntimeError where one is missing, or the job fails."""
    begun = time.perf_counter()
    whole = turns.workload.epochs is not None
    job = client.submit({**turns.workload.job(turns.task.epochs), "checkpoint": {"keep_last": 1, "keep_best": 0}})
    block = turns.task.block or 0
    step, enough = 0, block * (TIMES + 1)
    arrived: list[_Chunk] = []
    for event in client.events(job["id"], follow=True, kinds=("iterations", "end")):
        if event["kind"] == "iterations":
            if event["data"]["first"] != step:
                raise RuntimeError(f"step {event['data']['first']} came after step {step - 1}")
            step += len(event["data"]["losses"])
            arrived.append(_Chunk(event["data"]["epoch"], step, time.perf_counter()))
            if step >= enough and not whole:
                client.cancel(job["id"])
                enough = sys.maxsize
        elif event["data"]["state"] != ("succeeded" if whole else "cancelled"):
            raise RuntimeError(f"the job ended as {event['data']}")
    if whole:
        return Block(finished=True)
    counted = [one for one in arrived if block <= one.steps <= block * (TIMES + 2)]
    within = [(one, next_) for one, next_ in pairwise(counted) if one.epoch == next_.epoch]
    iterations = sum(next_.steps - one.steps for one, next_ in within)
    seconds = sum(next_.at - one.at for one, next_ in within)
    return Block(time.perf_counter() - begun, [seconds / iterations] * iterations)


class _Chunk(NamedTuple):
    """Losses that came together."""

    epoch: int
    steps: int
    """Of the job, these included."""
    at: float


@contextmanager
def serving(inputs: Path) -> Iterator[Client]:
    """A service that finds its images there, warm."""
    settings = {
        "GRAFT_INPUTS_DIR": str(inputs), "GRAFT_PLUGINS": "two_convolutions", "GRAFT_PLUGINS_DIR": str(EXAMPLE),
        "GRAFT_THREADS": sys.argv[2],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "service.log").open("wb") as log,
        running_service({**settings, "GRAFT_DATA_DIR": directory}, log) as service,
        Client(service.url) as client,
    ):
        first = client.submit(WORKLOADS[0].job(1))
        for _ in client.events(first["id"], follow=True, kinds=("iterations",)):  # its libraries are imported then
            client.cancel(first["id"])
            break
        yield client


def main() -> None:
    """One service for all the workloads but those whose images are elsewhere."""
    with serving(INPUTS) as usual:

        def train(turns: Turns) -> None:
            with nullcontext(usual) if turns.task.inputs == INPUTS else serving(turns.task.inputs) as client:
                turns.begin(1)
                while not (block := follow(client, turns)).finished:
                    turns.tell(block)

        contend(train)


if __name__ == "__main__":
    main()
