"""What is trained: five workloads, each as a job spec, and as the model and the tensors that every other loop is given."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.data.batches import make_loader
from core.data.datasets import open_dataset
from core.data.preprocessing import Preprocessing
from core.models.build import build_model
from core.places import Places
from core.resolve import IMAGENET
from core.spec import JobSpec

BATCH, RATE, SEED, CLASSES = 64, 1e-3, 0, 10
INPUTS = Path(os.environ.get("GRAFT_INPUTS_DIR", "/usr/share/datasets"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
IDX = {"images-idx3": (16, 28 * 28), "labels-idx1": (8, 1)}
"""Of Fashion-MNIST's files the bytes of the header, and of each item."""


class Split(NamedTuple):
    """Decoded, resized and normalised images, float32 [N, 3, S, S], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Workload:
    """One kind of training, the same for all who take part."""

    number: int
    title: str
    source: str
    size: int
    model: str
    block: int | None = None
    """Iterations that each does in its turn; None where it is run to its end."""
    frozen: str | None = None
    """A glob over the names of the parameters that do not train. Such a workload is run for `epochs`, to its end."""
    epochs: int | None = None
    first: tuple[int, int] | None = None
    """Of Fashion-MNIST only so many training and test images."""

    def inputs(self, folder: Path) -> Path:
        """Where its images are: the whole set, or the first of them, in a new folder in `folder`."""
        if self.first is None:
            return INPUTS
        (folder / "inputs" / "fashion-mnist").mkdir(parents=True)
        for prefix, count in zip(("train", "t10k"), self.first, strict=True):
            for kind, (header, item) in IDX.items():
                name = f"fashion-mnist/{prefix}-{kind}-ubyte"
                with gzip.open(INPUTS / f"{name}.gz") as whole:
                    begin = whole.read(header)
                    few = begin[:4] + count.to_bytes(4, "big") + begin[8:] + whole.read(count * item)
                (folder / "inputs" / name).write_bytes(few)
        return folder / "inputs"

    def job(self, epochs: int) -> dict[str, Any]:
        """As one sends it to the service."""
        groups = [{"name": "backbone", "params": self.frozen, "freeze": True}] if self.frozen else []
        return {
            "dataset": {"source": self.source, "image_size": self.size},
            "loader": {"batch_size": BATCH},
            "model": {"name": self.model},
            "optimizer": {"name": "Adam", "lr": RATE, "groups": groups},
            "training": {"epochs": epochs, "seed": SEED},
        }

    def spec(self, epochs: int) -> JobSpec:
        """The job, checked."""
        return JobSpec.model_validate(self.job(epochs))

    def build(self) -> nn.Module:
        """The model that the job trains, at random values; what is frozen takes no gradient."""
        torch.manual_seed(SEED)
        model = build_model(self.spec(1).model, CLASSES, places(INPUTS))
        for name, parameter in model.named_parameters():
            if self.frozen and fnmatch(name, self.frozen):
                parameter.requires_grad_(False)
        return model

    def decode(self, inputs: Path) -> dict[str, Split]:
        """The two splits, `train` and `validation`, as the job has them."""
        spec = self.spec(1)
        dataset = open_dataset(spec.dataset, places(inputs), SEED)
        splits = {}
        for name, images in (("train", dataset.train), ("validation", dataset.validation)):
            loader = make_loader(
                images, spec.loader, Preprocessing(self.size, *IMAGENET), channels=dataset.channels, seed=SEED, train=False,
                device=torch.device("cpu"), places=places(inputs),
            )  # fmt: skip
            batches, labels = zip(*loader.batches(0), strict=True)
            splits[name] = Split(torch.cat(batches), torch.cat(labels))
        return splits


def places(inputs: Path) -> Places:
    """Where a job finds its images, and the net of workload 4."""
    return Places(inputs=inputs, plugins=("two_convolutions",), plugins_dir=EXAMPLE)


WORKLOADS = (
    Workload(1, "ResNet-18, all of it, 32 px", "sklearn:digits", 32, "torchvision:resnet18", block=10),
    Workload(2, "MobileNetV3-Small, all of it, 96 px", "sklearn:digits", 96, "torchvision:mobilenet_v3_small", block=8),
    Workload(
        3, "MobileNetV3-Small, its features frozen, 96 px, 10 epochs", "sklearn:digits", 96, "torchvision:mobilenet_v3_small",
        frozen="features.*", epochs=10,
    ),
    Workload(
        4, "two convolutions on Fashion-MNIST, 28 px", "torchvision:FashionMNIST", 28, "python:two_convolutions:TwoConvolutions",
        block=24,
    ),
    Workload(
        5, "the same as 3 on 6,000 images of Fashion-MNIST, 96 px, 10 epochs", "torchvision:FashionMNIST", 96,
        "torchvision:mobilenet_v3_small", frozen="features.*", epochs=10, first=(6000, 1000),
    ),
)  # fmt: skip
