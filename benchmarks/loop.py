"""Iterations per second of one training loop, written three ways: the article's, ours, and a bare one.

python benchmarks/loop.py            about two minutes on two idle cores

All three train a ResNet-18 on scikit-learn's digits at 32 px, in batches of 64, from the same seed, with the same threads:

  article   a DataLoader over decoded images, an Adam group for each parameter, `loss.item()` and a print per iteration
  ours      `core.loop.fit`: the job as the service runs it, each loss yielded, validation and a checkpoint after the epoch
  bare      tensors in memory, one fused Adam group, no loss ever looked at

They take turns (a b c, a b c, …) so that a slow moment of the machine falls on all. A run's rate counts the time from its first
iteration's end to its last one's, within epochs: what precedes an epoch, validation and checkpoints are not counted.
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

from core.batches import Preprocessing, make_loader
from core.datasets import open_dataset
from core.events import Iteration
from core.loop import fit
from core.places import Places
from core.resolve import IMAGENET
from core.spec import JobSpec

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
        """Iterations a second."""
        count = sum(len(moments) - 1 for moments in self.epochs)
        return count / sum(moments[-1] - moments[0] for moments in self.epochs)


def decoded() -> tuple[Tensor, Tensor]:
    """The training images, decoded, resized and normalised, float32 [N, 3, 32, 32]; and their labels."""
    spec = JobSpec.model_validate(job_spec(1))
    dataset = open_dataset(spec.dataset, Places(), SEED)
    loader = make_loader(
        dataset.train, spec.loader, Preprocessing(SIZE, *IMAGENET), channels=dataset.channels, seed=SEED, train=False,
        device=CPU, places=Places(),
    )  # fmt: skip
    images, labels = zip(*loader.batches(0), strict=True)
    return torch.cat(images), torch.cat(labels)


def article(images: Tensor, labels: Tensor, epochs: int) -> Run:
    """The article's own loop, line by line."""
    torch.manual_seed(SEED)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    model = torchvision.models.resnet18(num_classes=10)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam([{"params": parameter, "lr": RATE} for _, parameter in model.named_parameters()])

    def train_fn(epoch: int) -> list[float]:
        moments, losses = [], []
        model.train()
        for iteration, (batch, targets) in enumerate(loader, start=1):
            optimizer.zero_grad()
            loss = loss_fn(model(batch), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            print(f"Epoch {epoch + 1}, iteration : {iteration}, loss = {loss.item():.4f}", file=sink)
            moments.append(time.perf_counter())
        print(f"Epoch {epoch + 1} : Mean Loss was {statistics.fmean(losses):.4f}", file=sink)
        return moments

    with Path(os.devnull).open("w") as sink:
        return Run([train_fn(epoch) for epoch in range(epochs)])


def bare(images: Tensor, labels: Tensor, epochs: int) -> Run:
    """As little as training can be: the rate that the others are measured by."""
    torch.manual_seed(SEED)
    model = torchvision.models.resnet18(num_classes=10)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def train_fn() -> list[float]:
        moments = []
        model.train()
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss_fn(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            moments.append(time.perf_counter())
        return moments

    return Run([train_fn() for _ in range(epochs)])


def ours(epochs: int) -> Run:
    """The whole job through `core.loop.fit`, in this process."""
    spec = JobSpec.model_validate(job_spec(epochs))
    moments: list[list[float]] = [[] for _ in range(epochs)]
    with tempfile.TemporaryDirectory() as directory:
        for event in fit(spec, Places(), Path(directory)):
            if isinstance(event, Iteration):
                moments[event.epoch].append(time.perf_counter())
    return Run(moments)


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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="per run; an epoch is 26 iterations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images, labels = decoded()
    loops: dict[str, Callable[[], Run]] = {
        "article": lambda: article(images, labels, given.epochs),
        "ours": lambda: ours(given.epochs),
        "bare": lambda: bare(images, labels, given.epochs),
    }
    runs = in_turns(loops, given.repeats)
    print(*machine(), f"ResNet-18, {SIZE} px, batch {BATCH}, {given.repeats} runs of {given.epochs} epochs each\n", sep="\n")
    share = table(runs)["ours"]
    print(f"\nours is {share:.3f} of bare; the target is {TARGET}: {'met' if share >= TARGET else 'missed'}")
    return 0 if share >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
