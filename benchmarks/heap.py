"""What it costs on a CPU that freed memory goes back to the kernel after each step: the bare loop, with and without `core.heap`.

Each run is a process of its own, forked from this one, the two sides taking turns: seconds of a step, and the pages that the
kernel brings anew in each. Run it: `python benchmarks/heap.py`, in about a minute and a half.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import Pipe
from typing import NamedTuple

import torch
import torch._dynamo  # torch does so at an optimizer's first step
from loop import BATCH, bare_loop, machine
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from core.heap import kept

MODELS: dict[str, tuple[Callable[..., nn.Module], int, torch.memory_format]] = {
    "resnet18, 32 px": (resnet18, 32, torch.contiguous_format),
    "mobilenet_v3_small, 96 px": (mobilenet_v3_small, 96, torch.channels_last),
}
SIDES: dict[str, Callable[[], AbstractContextManager[None]]] = {"given back": nullcontext, "kept": kept}


class Run(NamedTuple):
    """Of a step: the median of its seconds, the mean of its page faults; and the most MB that the process held."""

    seconds: float
    faults: float
    peak: float


def main() -> None:
    """Print a row per model and side, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is run")
    given = parser.parse_args()
    print("\n".join(machine()), flush=True)
    print(f"\n{'':28}{'':12}{'median ms':>10}{'pages a step':>14}{'peak MB':>10}")
    for name in MODELS:
        found: dict[str, list[Run]] = {side: [] for side in SIDES}
        for _ in range(given.rounds):
            for side in SIDES:
                found[side].append(forked(name, side))
        for side, runs in found.items():
            seconds, faults, peak = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{name:28}{side:12}{1000 * seconds:10.1f}{faults:14,.0f}{peak:10,.0f}")
        ratios = [before.seconds / after.seconds for before, after in zip(*found.values(), strict=True)]
        print(f"{name:28}kept is {statistics.median(ratios):.2f} times as fast\n", flush=True)


def forked(name: str, side: str) -> Run:
    """A run in a process of its own."""
    ours, theirs = Pipe()
    child = os.fork()
    if not child:
        theirs.send(measure(name, side))
        os._exit(0)
    run: Run = ours.recv()
    os.waitpid(child, 0)
    return run


def measure(name: str, side: str, steps: int = 24, first: int = 6) -> Run:
    """Some steps of the bare loop, once the first ones have found their memory."""
    make, size, layout = MODELS[name]
    torch.manual_seed(0)
    model = make(num_classes=10).to(memory_format=layout)
    images = torch.randn((first + steps) * BATCH, 3, size, size).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (len(images),))
    seconds, faults = [], 0
    with SIDES[side]():
        last = time.perf_counter()
        for step, _ in enumerate(bare_loop(model, images, labels, epochs=1), start=1):
            seconds.append(time.perf_counter() - last)
            if step == first:
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            last = time.perf_counter()
        usage = resource.getrusage(resource.RUSAGE_SELF)
    return Run(statistics.median(seconds[first:]), (usage.ru_minflt - faults) / steps, usage.ru_maxrss / 1000)


if __name__ == "__main__":
    main()
