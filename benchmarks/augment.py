"""What augmentation costs: images per second of each preset in batch, and of the same operations by torchvision, image by image.

python benchmarks/augment.py            about half a minute on two idle cores

Batches of 64 noisy RGB images of 32 px, as the loader has them in memory (uint8). Ours is `core.augmentation.augment.Pipeline`;
torchvision's is a `Compose` of its own transforms with the same keywords, on each image as a float tensor, then `torch.stack`.
They take turns, a batch each, so that a slow moment of the machine falls on both; the figures are medians. Beside them stands
what a preset takes of a training step of a ResNet-18 on such a batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from core.augmentation import augment, presets, transforms
from core.resolve import IMAGENET
from core.spec import Augmentation

SIZE, SEED = 32, 0
SETS: dict[str, str | list[Augmentation]] = {
    "light": "light",
    "strong": "strong",
    "TrivialAugmentWide": [Augmentation(name="TrivialAugmentWide")],
}


def sides(given: str | list[Augmentation]) -> tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor]]:
    """(ours, torchvision's): from a batch, uint8, and its number to a batch of floats from 0 to 1."""
    listed = presets.listed(given, SIZE, 3, IMAGENET[0])
    pipeline = augment.build(listed, size=SIZE, channels=3, own=(SIZE, SIZE), seed=SEED)
    assert pipeline is not None and not isinstance(listed, str)  # noqa: S101, PT018 - both are told by the sets above
    each = v2.Compose([transforms.transform_of(one, "") for one in listed])

    def ours(pixels: Tensor, number: int) -> Tensor:
        return pipeline(pixels, number, torch.arange(len(pixels)))

    def theirs(pixels: Tensor, _number: int) -> Tensor:
        return torch.stack([each(image) for image in pixels.to(torch.float32) / 255])

    return ours, theirs


def medians(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Seconds that each takes, in turns, after one turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(number)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def training_step(images: Tensor) -> Callable[[int], object]:
    """One of a ResNet-18, with Adam."""
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    labels = torch.arange(len(images)) % 10

    def step(_number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    pixels = torch.randint(0, 256, (args.batch, 3, SIZE, SIZE), dtype=torch.uint8)
    (step,) = medians({"step": training_step(pixels / 255)}, args.repeats).values()
    print(f"{args.batch} images of {SIZE} px, {torch.get_num_threads()} threads; a step of ResNet-18 takes {step * 1e3:.1f} ms")
    print(f"{'':20}{'ours, images/s':>16}{'torchvision':>16}{'ratio':>8}{'of a step':>11}")
    for name, given in SETS.items():
        ours, theirs = sides(given)
        calls = {"ours": lambda number, do=ours: do(pixels, number), "theirs": lambda number, do=theirs: do(pixels, number)}
        taken = medians(calls, args.repeats)
        rates = [args.batch / taken[side] for side in ("ours", "theirs")]
        print(f"{name:20}{rates[0]:16,.0f}{rates[1]:16,.0f}{rates[0] / rates[1]:8.1f}{taken['ours'] / step:11.1%}")


if __name__ == "__main__":
    main()
