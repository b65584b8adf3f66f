"""On a GPU nothing in an epoch waits for the device: torch itself watches, in its sync-debug mode.

What the mode sees (c10/cuda/CUDAFunctions.h): each copy that blocks, in either direction, and each wait for a stream, so also
`.item()`, a tensor's truth, `nonzero`. What it does not see: waiting on an event, which is how the ring of losses waits, two
steps late; and `torch.cuda.synchronize()`, which nothing here calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.places import Places
from core.prepare import Prepared, prepare
from core.spec import JobSpec
from core.training.loop import train_fn

pytestmark = pytest.mark.gpu

Job = Callable[..., Prepared]


@pytest.fixture
def job(tiny_spec: Callable[..., JobSpec], places: Places) -> Job:
    """The tiny job, on a GPU; `held=False`: each batch is decoded when its turn comes, and goes to the device by itself."""

    def make(*, held: bool = True, **parts: Any) -> Prepared:
        where = places if held else places.model_copy(update={"resident_bytes": 0})
        return prepare(tiny_spec(**parts), where, torch.device("cuda"))

    return make


@contextmanager
def watched() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("optimizer", [{"name": "Adam"}, {"name": "SGD", "momentum": 0.9, "lr": 0.01}])
def test_every_loss_of_an_epoch_comes_without_a_wait(job: Job, optimizer: dict[str, Any], *, held: bool) -> None:
    one = job(held=held, optimizer=optimizer)
    epoch = train_fn(0, one.train, one.model, one.optimizer, one.loss)
    first = next(epoch)  # by then the order of the epoch is on the device, which is one copy an epoch
    with watched():
        steps = [event.step for event in (first, *epoch)]
    assert steps == list(range(one.steps_per_epoch))


@pytest.mark.parametrize("name", ["TrivialAugmentWide", "RandAugment", "RandomAdjustSharpness", "ColorJitter", "RandomErasing"])
def test_augmentation_in_batch_does_not_wait(job: Job, name: str) -> None:
    keywords = {"RandomAdjustSharpness": {"sharpness_factor": 2}, "ColorJitter": {"hue": 0.1}}.get(name, {})
    one = job(dataset={"source": "sklearn:digits", "augment": [{"name": name, **keywords}]})
    epoch = train_fn(0, one.train, one.model, one.optimizer, one.loss)
    first = next(epoch)
    with watched():
        steps = [event.step for event in (first, *epoch)]
    assert steps == list(range(one.steps_per_epoch))


def test_a_loss_that_is_looked_at_would_be_seen(job: Job) -> None:
    class Curious(nn.CrossEntropyLoss):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            loss = super().forward(logits, targets)
            loss.item()
            return loss

    one = job()
    epoch = train_fn(0, one.train, one.model, one.optimizer, Curious())
    next(epoch)
    with watched(), pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        list(epoch)
