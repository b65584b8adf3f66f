"""The recipe: how batches become a step, beside the model, the loss and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.optim import Optimizer

from core.errors import CompileError
from core.models import layout
from core.models.features import Backbone, Features
from core.spec import TrainingSpec
from core.training import precision
from core.training.averaging import Average
from core.training.precision import Precision


class Recipe:
    """How a model runs, and how its gradients become a step. The plain one does what three lines of torch do."""

    def __init__(
        self, model: nn.Module, *, precision: Precision | None = None, accumulate: int = 1, clip: float | None = None,
        average: Average | None = None, channels_last: bool = False, compiled: bool = False,
    ) -> None:  # fmt: skip
        """`accumulate`: so many batches are one step. `clip`: the norm that gradients have at the most."""
        self.model = model
        self.precision = precision or Precision()
        self.accumulate = accumulate
        self.clip = clip
        self.average = average
        self.channels_last = channels_last
        self.compiled = compiled
        self.backbone: Backbone | None = None
        """What is frozen and run once, where there is that."""
        # Static shapes: an epoch has one or two of them, and kernels made for any are slower.
        self._forward: Any = torch.compile(model, dynamic=False) if compiled else model

    def __call__(self, images: Tensor | Features) -> Any:
        """The model's outputs for a batch. Raises CompileError."""
        if isinstance(images, Features):
            if self.backbone is not None and self.backbone.holds:
                with self.precision.autocast():
                    return self.backbone(images)
            images = images.images()
        run = self._forward if self.model.training else self.model  # validation is not worth a second compilation
        try:
            return self.run(images, run)
        except TorchDynamoException as error:
            raise CompileError(f"torch.compile cannot compile this model: {_first_line(error)}") from error

    def run(self, images: Tensor, part: Callable[[Tensor], Any]) -> Any:
        """What a part of the model makes of images, in the recipe's precision and layout."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            return part(images)

    def backward(self, loss: Tensor) -> None:
        """Add its gradient to what the parameters have."""
        self.precision.backward(loss)

    def step(self, optimizer: Optimizer) -> None:
        """A step from these gradients."""
        self.precision.step(optimizer, self.clip)
        if self.average is not None:
            self.average.update()

    @contextmanager
    def final(self) -> Iterator[None]:
        """Within it the model has the weights that are validated and kept: the running average, where there is one."""
        with self.average.swapped() if self.average else nullcontext():
            yield

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint needs beside `final`'s weights: the tensors that train, and what JSON can hold. Within `final`."""
        tensors = dict(self.average.tensors) if self.average else {}
        return tensors, {"scaler": self.precision.state(), "averaged": self.average.updates if self.average else None}

    def restore(self, trained: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `state` gave, once the model has `final`'s weights."""
        self.precision.restore(values.get("scaler"))
        if self.average is not None and values.get("averaged") is not None:
            self.average.restore(trained, values["averaged"])

    def __str__(self) -> str:
        """What was decided, for people."""
        said = [self.precision.type, "channels_last" if self.channels_last else "", "compiled" if self.compiled else ""]
        said += ["frozen part run once"] if self.backbone else []
        return ", ".join(one for one in said if one)


def make_recipe(model: nn.Module, spec: TrainingSpec, size: int, device: torch.device) -> Recipe:
    """The recipe of a spec, for a model on its device and images of `size` px; brings the weights into their order in memory."""
    chosen = Precision(precision.choose(spec.precision, device), device)
    channels_last = spec.channels_last
    if channels_last is None:
        channels_last = layout.helps(model, size, device, half=chosen.type != "fp32")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return Recipe(
        model, precision=chosen, accumulate=spec.accumulate, clip=spec.clip_grad_norm,
        average=Average(model, spec.ema) if spec.ema is not None else None,
        channels_last=channels_last, compiled=spec.compile,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
