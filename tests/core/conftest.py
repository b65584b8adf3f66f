"""What the tests of core share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from core.errors import SpecError
from core.events import TransferData
from core.places import Places
from core.spec import JobSpec, PretrainedSpec
from core.transfer.entries import Entry, Source
from core.transfer.heads import Head
from core.transfer.weights import apply_transfer, plan_transfer

torch.set_num_threads(1)  # small tensors: threads cost more than they give, and other tests want the cores

TINY = '''
from torch import nn


class Tiny(nn.Sequential):
    """Everything that has state or chance: a convolution, a norm's running statistics, dropout."""

    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(72, num_classes),
        )
'''


@pytest.fixture(scope="session")
def plugins_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a person's own module, `graft_tiny`."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "graft_tiny.py").write_text(TINY)
    return folder


@pytest.fixture
def places(tmp_path: Path, plugins_dir: Path) -> Places:
    """An inputs directory and a cache of the test's own, and the module `graft_tiny`."""
    (tmp_path / "inputs").mkdir()
    return Places(inputs=tmp_path / "inputs", cache=tmp_path / "cache", plugins=("graft_tiny",), plugins_dir=plugins_dir)


@pytest.fixture
def tiny_spec() -> Callable[..., JobSpec]:
    """A job on the digits that takes a blink an epoch: `tiny_spec(epochs=2)`; other keywords replace parts of the spec."""

    def make(epochs: int = 1, seed: int = 0, **parts: Any) -> JobSpec:
        smallest = {
            "dataset": {"source": "sklearn:digits"},
            "loader": {"batch_size": 64},
            "model": {"name": "python:graft_tiny:Tiny"},
            "training": {"epochs": epochs, "seed": seed},
        }
        return JobSpec.model_validate({**smallest, **parts})

    return make


@pytest.fixture
def draw(places: Places) -> Callable[[Mapping[str, int]], Path]:
    """Write images below the inputs: `{"train/cats": 3}` gives three small pictures in that folder."""

    def write(folders: Mapping[str, int]) -> Path:
        for number, (folder, count) in enumerate(folders.items()):
            (places.inputs / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image = Image.new("RGB", (12, 8), (number * 40 % 256, index * 30 % 256, 128))
                image.save(places.inputs / folder / f"{index}.png")
        return places.inputs

    return write


@pytest.fixture
def graft() -> Callable[..., TransferData]:
    """Plan a transfer of tensors on to a model, and apply it, as `get_model` does; keywords are those of `pretrained`.

    `ours` are the dataset's classes, `theirs` the source's own, `versions` those of its modules.
    """

    def plan_and_apply(
        model: nn.Module,
        state: Mapping[str, Tensor],
        found: Head | None = None,
        ours: tuple[str, ...] = (),
        *,
        theirs: tuple[str, ...] | None = None,
        versions: Mapping[str, Mapping[str, Any]] | None = None,
        **wish: Any,
    ) -> TransferData:
        entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
        source = Source("file:x.pt", "torch", entries, lambda: state, classes=theirs, versions=versions)
        plan = plan_transfer(model, source, PretrainedSpec(source="file:x.pt", **wish), found or Head(frozenset(), ()), ours)
        apply_transfer(model, source, plan)
        return plan.report

    return plan_and_apply


@pytest.fixture
def faults_of(graft: Callable[..., TransferData]) -> Callable[..., dict[str, str]]:
    """The faults of a transfer that is refused, by their places."""

    def refused(*args: Any, **wish: Any) -> dict[str, str]:
        with pytest.raises(SpecError) as refusal:
            graft(*args, **wish)
        return {fault.pointer: fault.message for fault in refusal.value.faults}

    return refused
