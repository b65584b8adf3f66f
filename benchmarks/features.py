"""How fast a frozen model makes features on a CPU, by how many images go through it together: 64 for any size, and as we do it.

The model is as a job runs it: its norms folded into its convolutions, in the memory format that `core.models.layout` chooses,
with the heap kept. The sides take turns in one process. Run it: `python benchmarks/features.py`, in about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from loop import machine
from torch import Tensor, fx
from torchvision.models import get_model

from core.heap import kept
from core.models.features import together
from core.models.folding import folded
from core.models.layout import helps

CPU = torch.device("cpu")
MODELS = {"resnet18": (32, 1536), "mobilenet_v3_small": (96, 768), "mobilenet_v3_large": (224, 192), "resnet50": (224, 64)}
"""The side of the images, and how many."""


def main() -> None:
    """Print a row per model: milliseconds for an image on each side, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side; the first is not kept")
    given = parser.parse_args()
    print("\n".join(machine()), flush=True)
    print(f"\n{'':28}{'64 together, ms':>18}{'as we do':>12}{'together':>10}{'ratio':>8}")
    for name, (size, images) in MODELS.items():
        ours = together(size, CPU)
        plain, chosen = race(name, size, images, [64, ours], given.rounds)
        ratio = statistics.median(before / after for before, after in zip(plain, chosen, strict=True))
        row = [1000 * statistics.median(side) / images for side in (plain, chosen)]
        print(f"{f'{name}, {size} px':28}{row[0]:18.2f}{row[1]:12.2f}{ours:10}{ratio:8.2f}", flush=True)


@torch.no_grad()
def race(name: str, size: int, images: int, sides: list[int], rounds: int) -> list[list[float]]:
    """The seconds that all images took in each round but the first, for each side."""
    torch.manual_seed(0)
    model = get_model(name).eval()
    layout = torch.channels_last if helps(model, size, CPU, half=False) else torch.contiguous_format
    quick = folded(fx.symbolic_trace(model.to(memory_format=layout)))
    pixels = torch.randn(images, 3, size, size)
    seconds: list[list[float]] = [[] for _ in sides]
    with kept():
        for _ in range(rounds):
            for number, side in zip(sides, seconds, strict=True):
                side.append(_run(quick, pixels, number, layout))
    return [side[1:] for side in seconds]


def _run(model: fx.GraphModule, pixels: Tensor, number: int, layout: torch.memory_format) -> float:
    start = time.perf_counter()
    for part in pixels.split(number):
        model(part.contiguous(memory_format=layout))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
