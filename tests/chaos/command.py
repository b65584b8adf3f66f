"""`make chaos`: jobs on real processes, faults at random moments, and what is left of the jobs against one that nobody disturbed.

A line for each stack and kind of fault: how many fell, on how many jobs with how many steps; how many of the steps are not in the
log, more than once, or with another loss (an event out of its order counts as wrong too); and how many jobs ended otherwise: in
another state, or with other figures, weights or optimizer state, to the bit. Where somebody follows the job, what they
received counts as well.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from comparison import Left, compare, left_of
from faults import KINDS
from scene import Scene
from stacks import STACKS, STEPS, Stack

COLUMNS = ("faults", "jobs", "steps", "lost", "doubled", "wrong", "other end")
BAD = COLUMNS[3:]


def main() -> int:
    """0 where nothing was lost, doubled or wrong."""
    logging.getLogger("store.hints").setLevel(logging.ERROR)  # that a hint fails while its broker is away is what we want
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and what was started stops with it
    asked = _parser().parse_args()
    print(f"{'seed ' + str(asked.seed):<24}", *(f"{column:>9}" for column in COLUMNS), flush=True)
    bad = 0
    for name in asked.stack or STACKS:
        stack = Stack(name, asked.workers)
        try:
            bad += _torment(stack, asked)
        finally:
            stack.close()
    return int(bad > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Disturb what trains jobs at random, and see that nobody can tell.")
    parser.add_argument("--stack", nargs="+", choices=STACKS, help="one after the other (default: all)")
    parser.add_argument("--faults", type=int, default=10, help="of each kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(default: all that the stack knows)")
    parser.add_argument("--workers", type=int, default=2, help="that share the jobs (default: %(default)s)")
    parser.add_argument("--unwatched", action="store_true", help="nobody follows a job, unless it is the api that is killed")
    parser.add_argument("--outage", type=float, default=2.0, help="seconds that the broker stays away (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _torment(stack: Stack, asked: argparse.Namespace) -> int:
    rng = random.Random(asked.seed)
    calm = stack.submit()
    stack.until(calm, lambda: False)
    truth = left_of(stack, calm)
    assert [step for step, _ in truth.losses] == list(range(STEPS)), truth.end[:2]
    bad = 0
    for name in asked.kinds:
        if stack.name in KINDS[name].stacks:
            row = _row(stack, name, rng, asked, truth)
            bad += sum(row[column] for column in BAD)
            print(f"{stack.name:<9}{name:<15}", *(f"{row[column]:>9}" for column in COLUMNS), flush=True)
    return bad


def _row(stack: Stack, name: str, rng: random.Random, asked: argparse.Namespace, truth: Left) -> Counter[str]:
    """So many faults of one kind, one to three a job."""
    kind, row = KINDS[name], Counter[str]()
    while row["faults"] < asked.faults:
        job = stack.submit()
        followed = kind.followed and (name == "api" or not asked.unwatched)
        received = _follow(stack, job) if followed else None
        for _ in range(min(rng.randint(1, 3), asked.faults - row["faults"])):
            row["faults"] += kind.strike(Scene(stack, job, rng, asked.outage))
        stack.until(job, lambda: False)
        row.update(compare(left_of(stack, job), truth))
        if received is not None:
            row.update(received())
    return row


def _follow(stack: Stack, job: int) -> Callable[[], Counter[str]]:
    """Follow the job from its first event on; the answer waits for the end and counts what was lost or doubled."""

    def read() -> list[int]:
        with client:
            return [event["seq"] for event in client.events(job, follow=True)]

    def received() -> Counter[str]:
        stack.wait(reading.done)
        seqs = Counter(reading.result())
        last = stack.job(job).last_seq
        doubled = sum(count > 1 for count in seqs.values())
        in_order = list(seqs) == sorted(seqs)
        return Counter({"lost": len(set(range(1, last + 1)) - seqs.keys()), "doubled": doubled, "wrong": int(not in_order)})

    client = stack.client()
    pool = ThreadPoolExecutor(1)
    reading = pool.submit(read)
    pool.shutdown(wait=False)
    return received


if __name__ == "__main__":
    sys.exit(main())
