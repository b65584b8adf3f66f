"""Images per second of the three tiers, and of a plain torchvision ImageFolder with a DataLoader, on the same JPEGs in one run.

    python benchmarks/data.py [--images 1000] [--side 500] [--size 96] [--batch 64] [--workers 2] [--rounds 3] [--device cpu]

The JPEGs are made here: smooth colours with noise, which compress about as photographs do. Each contender gives batches of
normalised float32 on the device, and nothing is trained. One epoch of each in turn, so that what disturbs the machine disturbs
all; the best of the rounds counts. `start` is what a job waits for its first batch: decoding for the first one, mapping or
reading what is on disk for the next.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from core.data.batches import Loader, make_loader
from core.data.datasets import Images, open_dataset
from core.data.placing import Tier
from core.data.preprocessing import Preprocessing
from core.data.tiers import TierName
from core.places import Places
from core.resolve import IMAGENET
from core.spec import DatasetSpec, LoaderSpec


def draw(folder: Path, images: int, side: int) -> None:
    """JPEGs of side x 3/4 side in two classes."""
    random = np.random.default_rng(0)
    for index in range(images):
        smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((side, side * 3 // 4))
        noisy = np.asarray(smooth, dtype=np.int16) + random.integers(-12, 13, (side * 3 // 4, side, 3))
        path = folder / "train" / f"class{index % 2}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def tier(name: TierName, images: Images, options: argparse.Namespace, places: Places) -> Loader:
    """The split in one tier, whatever its bytes."""
    return make_loader(
        images, LoaderSpec(batch_size=options.batch, workers=options.workers), Preprocessing(options.size, *IMAGENET),
        channels=3, seed=0, train=True, device=torch.device(options.device), places=places, tier=Tier(name, 0, ""),
    )  # fmt: skip


def plain(folder: Path, options: argparse.Namespace) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """What a training script has, with the same square of each image."""
    transform = v2.Compose(
        [
            v2.Resize(options.size), v2.CenterCrop(options.size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*IMAGENET),
        ]
    )  # fmt: skip
    return DataLoader(
        ImageFolder(folder / "train", transform), batch_size=options.batch, shuffle=True, num_workers=options.workers,
        persistent_workers=options.workers > 0, pin_memory=options.device != "cpu",
    )  # fmt: skip


def spent(epoch: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> float:
    """Seconds of an epoch whose batches are brought to the device."""
    start = time.perf_counter()
    for images, labels in epoch:
        images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def timed(make: Callable[[], Loader]) -> tuple[Loader, float]:
    """A loader, and the seconds until its first batch is there."""
    start = time.perf_counter()
    loader = make()
    next(iter(loader.batches(0)))
    return loader, time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 1000), ("side", 500), ("size", 96), ("batch", 64), ("workers", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        draw(folder, options.images, options.side)
        places = Places(inputs=folder.parent, cache=folder / "cache")
        images = open_dataset(DatasetSpec(source=f"folder:{folder.name}", validation=0.01), places, 0).train
        peer = plain(folder, options)
        first, decoding = timed(lambda: tier("resident", images, options, places))
        first.close()
        loaders, starts = {}, {}
        for name in ("resident", "cached", "streaming"):
            loaders[name], starts[name] = timed(lambda name=name: tier(name, images, options, places))  # type: ignore[misc]
        rates: dict[str, float] = dict.fromkeys([*loaders, "ImageFolder"], 0.0)
        for epoch in range(options.rounds + 1):  # the first one warms up
            for name, loader in loaders.items():
                rate = loader.samples / spent(loader.batches(epoch), device)
                rates[name] = max(rates[name], rate if epoch else 0)
            rate = options.images / spent(peer, device)
            rates["ImageFolder"] = max(rates["ImageFolder"], rate if epoch else 0)
        for loader in loaders.values():
            loader.close()
    print(
        f"{options.images} JPEGs of {options.side} px at {options.size} px, batch {options.batch}, {options.workers} workers, ",
        end="",
    )
    print(f"{options.device}, {torch.get_num_threads()} threads; the first job decodes for {decoding:.2f} s\n")
    print(f"{'':12} {'images/s':>10} {'ratio':>8} {'start, s':>9}")
    for name, rate in rates.items():
        print(f"{name:12} {rate:10,.0f} {rate / rates['ImageFolder']:8.1f} {starts.get(name, 0):9.2f}")


if __name__ == "__main__":
    main()
