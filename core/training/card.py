"""What one needs to use a model without Graft: `model.json`, beside its weights. docs/weights.md shows how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from core.events import Figure
from core.models.build import constructor_keywords, module_hash
from core.training.progress import Progress

if TYPE_CHECKING:
    from core.prepare import Prepared

WEIGHTS = "weights.safetensors"
"""The file of weights, as it is called where it is downloaded."""


def model_card(job: Prepared, progress: Progress, figures: Mapping[str, Figure], sha256: str, form: int) -> dict[str, Any]:
    """The card as JSON has it; `sha256` is that of the weights, `form` the checkpoint's format.

    `architecture` is the name and whatever else the constructor is given. `epoch` counts from 1, as the log does.
    """
    spec = job.spec.model
    return {
        "format": form,
        "architecture": {"name": spec.name, **constructor_keywords(spec, len(job.dataset.classes))},
        "task": job.dataset.task,
        "classes": list(job.dataset.classes),
        "preprocessing": {  # what `core.data.tiers.fit` and `core.data.preprocessing.Normalise` do; the page's own test compares
            "mode": "L" if job.dataset.channels == 1 else "RGB",
            "crop": "central square",
            "size": job.preprocessing.size,
            "interpolation": "bilinear",
            "antialias": True,
            "rounded_to": "uint8",
            "channels": 3,
            "scale": 1 / 255,
            "mean": list(job.preprocessing.mean),
            "std": list(job.preprocessing.std),
        },
        "step": progress.step,
        "epoch": progress.last_epoch + 1,
        "figures": dict(figures),
        "sha256": {WEIGHTS: sha256, **module_hash(spec)},
        "dataset": {"source": job.dataset.source, "fingerprint": job.dataset.fingerprint},
        "ema": job.spec.training.ema,
        "spec": job.spec.model_dump(mode="json"),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
