"""Training that is right: a seed says all, and what can learn a batch by heart does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.events import CheckpointData, Iteration
from core.places import Places
from core.prepare import prepare
from core.spec import JobSpec
from core.training.evaluation import evaluate
from core.training.job import fit
from core.training.loop import train_fn

CPU = torch.device("cpu")
Spec = Callable[..., JobSpec]


class Again(NamedTuple):
    """A loader of one batch."""

    images: Tensor
    labels: Tensor

    def batches(self, _epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The same each epoch."""
        yield from [(self.images, self.labels)][start:]


def trained(spec: JobSpec, places: Places, directory: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a job, and its last weights."""
    losses: list[float] = []
    path = Path()
    for event in fit(spec, places, directory):
        if isinstance(event, Iteration):
            losses.append(event.loss)
        elif isinstance(event[1], CheckpointData):
            path = Path(event[1].path)
    return losses, load_file(directory / path.name / "model.safetensors")


def test_a_seed_gives_the_same_losses_and_weights_each_time_and_another_one_others(
    tiny_spec: Spec, places: Places, tmp_path: Path
) -> None:
    once, again, other = (
        trained(tiny_spec(seed=seed, loader={"batch_size": 256}), places, tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert once[0] == again[0]
    assert all(torch.equal(value, again[1][name]) for name, value in once[1].items())
    assert once[0][0] != other[0][0]
    assert not any(torch.equal(value, other[1][name]) for name, value in once[1].items() if name.endswith("weight"))


@pytest.mark.parametrize("optimizer", [{"name": "Adam", "lr": 0.02}, {"name": "SGD", "lr": 0.2, "momentum": 0.9}])
def test_a_batch_whose_labels_mean_nothing_is_learnt_by_heart(tiny_spec: Spec, places: Places, optimizer: dict[str, Any]) -> None:
    job = prepare(tiny_spec(optimizer=optimizer), places, CPU)
    for module in job.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it would keep the loss from zero
    images, _ = next(iter(job.train.batches(0)))
    batch = Again(images, torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(0)))
    losses = [
        event.loss
        for epoch in range(300)
        for event in train_fn(epoch, batch, job.model, job.optimizer, job.loss)
        if isinstance(event, Iteration)
    ]
    assert losses[0] > 2
    assert losses[-1] < 0.001
    figures = evaluate(job.model, batch, job.loss).figures
    assert figures["top1"] == 1.0
    assert figures["loss"] < 0.001
