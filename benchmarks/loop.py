"""Iterations per second of one training loop, written three ways: the article's, ours, and a bare one.

python benchmarks/loop.py            about a minute on two idle cores

All three train a ResNet-18 on scikit-learn's digits at 32 px, in batches of 64, from the same seed, with the same threads:

  article   a DataLoader over decoded images, an Adam group for each parameter, `loss.item()` and a print per iteration
  ours      `core.training.job.fit`: the job as the service runs it, each loss yielded, validated and kept after the epoch
  bare      tensors in memory, one fused Adam group, no loss ever looked at

They take turns, an iteration each, so that a slow moment of the machine falls on all; the figures are medians. An epoch's first
iteration is not counted, nor is what precedes it: validation and the checkpoint. The first epoch warms up.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from core.data.batches import make_loader
from core.data.datasets import open_dataset
from core.data.preprocessing import Preprocessing
from core.events import Iteration
from core.places import Places
from core.resolve import IMAGENET
from core.spec import JobSpec
from core.training.job import fit

TARGET = 0.97
"""Of the bare loop's rate, that ours must reach."""
BATCH, SIZE, SEED, RATE = 64, 32, 0, 1e-3
CPU = torch.device("cpu")


def job_spec(epochs: int) -> dict[str, object]:
    """The job, as one sends it to the service."""
    return {
        "dataset": {"source": "sklearn:digits", "image_size": SIZE},
        "loader": {"batch_size": BATCH},
        "model": {"name": "torchvision:resnet18"},
        "optimizer": {"name": "Adam", "lr": RATE},
        "training": {"epochs": epochs, "seed": SEED},
    }


@dataclass(frozen=True)
class Run:
    """One run: the moments at which its iterations were done, for each epoch."""

    epochs: list[list[float]]

    @property
    def per_second(self) -> float:
        """Iterations a second, from the end of an epoch's first iteration to that of its last."""
        count = sum(len(moments) - 1 for moments in self.epochs)
        return count / sum(moments[-1] - moments[0] for moments in self.epochs)


def decoded(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The training images, decoded, resized and normalised, float32 [N, 3, size, size]; and their labels."""
    spec = JobSpec.model_validate(job_spec(1))
    dataset = open_dataset(spec.dataset, Places(), SEED)
    loader = make_loader(
        dataset.train, spec.loader, Preprocessing(size, *IMAGENET), channels=dataset.channels, seed=SEED, train=False,
        device=CPU, places=Places(),
    )  # fmt: skip
    images, labels = zip(*loader.batches(0), strict=True)
    return torch.cat(images), torch.cat(labels)


def resnet() -> nn.Module:
    """The model of all three, at the same random values."""
    torch.manual_seed(SEED)
    return torchvision.models.resnet18(num_classes=10)


def article_loop(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> Iterator[int]:
    """The article's own loop, line by line; yields the epoch after each iteration."""
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam([{"params": parameter, "lr": RATE} for _, parameter in model.named_parameters()])

    def train_fn(epoch: int) -> Iterator[int]:
        losses = []
        model.train()
        for iteration, (batch, targets) in enumerate(loader, start=1):
            optimizer.zero_grad()
            loss = loss_fn(model(batch), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            print(f"Epoch {epoch + 1}, iteration : {iteration}, loss = {losses[-1]:.4f}", file=sink)
            yield epoch
        print(f"Epoch {epoch + 1} : Mean Loss was {statistics.fmean(losses):.4f}", file=sink)

    with Path(os.devnull).open("w") as sink:
        for epoch in range(epochs):
            yield from train_fn(epoch)


def bare_loop(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> Iterator[int]:
    """As little as training can be: the rate that the others are measured by; yields the epoch after each iteration."""
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=RATE, fused=True)
    for epoch in range(epochs):
        model.train()
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss_fn(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            yield epoch


def our_loop(epochs: int) -> Iterator[int]:
    """The whole job through `core.training.job.fit`, in this process; yields the epoch after each iteration."""
    spec = JobSpec.model_validate(job_spec(epochs))
    with tempfile.TemporaryDirectory() as directory:
        for event in fit(spec, Places(), Path(directory)):
            if isinstance(event, Iteration):
                yield event.epoch


def article(images: Tensor, labels: Tensor, epochs: int) -> Run:
    """A run of the article's loop."""
    return timed(article_loop(resnet(), images, labels, epochs))


def bare(images: Tensor, labels: Tensor, epochs: int) -> Run:
    """A run of the bare loop."""
    return timed(bare_loop(resnet(), images, labels, epochs))


def timed(loop: Iterator[int]) -> Run:
    """Run a loop to its end."""
    moments: dict[int, list[float]] = {}
    for epoch in loop:
        moments.setdefault(epoch, []).append(time.perf_counter())
    return Run(list(moments.values()))


def side_by_side(loops: dict[str, Iterator[int]]) -> dict[str, list[float]]:
    """Run loops of equal length an iteration each in turn; the seconds of those that count."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    before = dict.fromkeys(loops, 0)
    while True:
        for name, loop in loops.items():
            start = time.perf_counter()
            epoch = next(loop, None)
            if epoch is None:
                return seconds
            if epoch == before[name] and epoch > 0:
                seconds[name].append(time.perf_counter() - start)
            before[name] = epoch


def in_turns(loops: dict[str, Callable[[], Run]], repeats: int) -> dict[str, list[Run]]:
    """Each loop `repeats` times, one after the other in turns; a first turn, which warms everything up, is not kept."""
    runs: dict[str, list[Run]] = {name: [] for name in loops}
    for turn in range(repeats + 1):
        for name, loop in loops.items():
            run = loop()
            if turn:
                runs[name].append(run)
    return runs


def machine() -> Iterator[str]:
    """Lines that say when, with what and on which machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    yield f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d %H:%M} UTC"
    yield f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    yield f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def table(runs: dict[str, list[Run]], against: str = "bare") -> dict[str, float]:
    """Print the rates; returns each loop's median rate as a share of the one it is measured `against`."""
    rates = {name: [run.per_second for run in of_name] for name, of_name in runs.items()}
    medians = {name: statistics.median(of_name) for name, of_name in rates.items()}
    print(f"{'':12}{'it/s (median)':>15}{'lowest':>9}{'highest':>9}{f'of {against}':>10}")
    for name, of_name in rates.items():
        share = medians[name] / medians[against]
        print(f"{name:12}{medians[name]:15.2f}{min(of_name):9.2f}{max(of_name):9.2f}{share:10.3f}")
    return {name: median / medians[against] for name, median in medians.items()}


def main() -> int:
    """Exit status 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="of 26 iterations, after the one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images, labels = decoded()
    seconds = side_by_side(
        {
            "article": article_loop(resnet(), images, labels, given.epochs + 1),
            "ours": our_loop(given.epochs + 1),
            "bare": bare_loop(resnet(), images, labels, given.epochs + 1),
        }
    )
    print(*machine(), f"ResNet-18, {SIZE} px, batch {BATCH}, {len(seconds['bare'])} iterations each\n", sep="\n")
    medians = {name: statistics.median(of_name) for name, of_name in seconds.items()}
    print(f"{'':12}{'median ms':>11}{'quartiles':>18}{'it/s':>9}{'of bare':>10}")
    for name, of_name in seconds.items():
        low, _, high = (1000 * quantile for quantile in statistics.quantiles(of_name, n=4))
        share = medians["bare"] / medians[name]
        print(f"{name:12}{1000 * medians[name]:11.1f}{f'{low:.1f} … {high:.1f}':>18}{1 / medians[name]:9.2f}{share:10.3f}")
    share = medians["bare"] / medians["ours"]
    print(f"\nours is {share:.3f} of bare; the target is {TARGET}: {'met' if share >= TARGET else 'missed'}")
    return 0 if share >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
