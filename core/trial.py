"""A step that is not trained: whether a batch goes through the model, and what memory training would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from core.errors import SpecError, place_of
from core.models.outputs import logits_of
from core.optimizer import groups as grouping
from core.shapes import run_shapes
from core.spec import JobSpec, OptimizerSpec

_SIZES = (8, 16, 24, 28, 32, 48, 64, 75, 80, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512, 518)


class Memory(BaseModel):
    """Bytes, estimated; of each GPU, where there are several.

    `activations` are those that a batch, or a GPU's share of it, keeps for its backward pass, in half the bytes where the spec
    asks for 16 bits; `gradients` are there twice while they are summed over several GPUs; `average` is that of `training.ema`.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    data: int
    total: int


def check_forward(
    model: nn.Module, build: Callable[[], nn.Module], spec: JobSpec, *, size: int, classes: int, samples: int
) -> int:
    """Send a batch of shapes through `model` (on the meta device) as it trains; returns the bytes a batch keeps for backward.

    `build` makes the model with data: one that looks at values while it runs cannot go without. Raises SpecError at what is to
    blame: the image size, the batch size, or the model.
    """
    batch = min(spec.loader.batch_size, samples, 2)
    try:
        outputs, kept = run_shapes(model, size, batch)
    except Exception as error:
        _blame(model, spec, size, batch, error)
        real = build()
        try:
            outputs, kept = run_shapes(real, size, batch)
        except Exception as again:
            _blame(real, spec, size, batch, again)
            raise SpecError.at("/model", f"'{spec.model.name}' fails on images of {size} px: {_reason(again)}") from again
    try:
        shape = list(logits_of(outputs).shape)
    except TypeError as error:
        raise SpecError.at("/model/name", str(error)) from None
    if shape != [batch, classes]:
        raise SpecError.at(
            "/model/name",
            f"'{spec.model.name}' makes {shape} of {batch} images, but the dataset needs [{batch}, {classes}]; "
            "a constructor that takes num_classes is given that number",
        )
    return kept * spec.loader.batch_size // batch


def memory(model: nn.Module, spec: JobSpec, *, activations: int, data: int) -> Memory:
    """What training takes, from shapes; `activations` in float32, `data` those of the splits that each rank holds decoded."""
    ranks = spec.resources.gpus or 1
    held = _bytes([*model.parameters(), *model.buffers()])
    trained = _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    state = int(trained * _state_share(spec.optimizer))
    gradients = trained if ranks == 1 else 2 * trained
    average = 0 if spec.training.ema is None else held
    half = spec.training.precision in {"bf16", "fp16"}
    activations = -(-activations // (2 * ranks if half else ranks))
    return Memory(
        parameters=held, gradients=gradients, optimizer=state, average=average, activations=activations, data=data,
        total=held + gradients + state + average + activations + data,
    )  # fmt: skip


def _blame(model: nn.Module, spec: JobSpec, size: int, batch: int, error: Exception) -> None:
    """Raise SpecError where a larger batch or another image size would do; return where neither helps."""
    if batch == 1 and _works(model, size, 2):
        raise SpecError.at("/loader/batch_size", f"'{spec.model.name}' cannot train on one image at a time: {_reason(error)}")
    fitting = next((other for other in _SIZES if other != size and _works(model, other, batch)), None)
    if fitting is not None:
        wanted = f"{fitting} or more" if _works(model, max(_SIZES), batch) else f"{fitting}"
        raise SpecError.at(
            "/dataset/image_size",
            f"'{spec.model.name}' cannot train on images of {size} px: {_reason(error)}; set it to {wanted}",
        )


def _works(model: nn.Module, size: int, batch: int) -> bool:
    try:
        run_shapes(model, size, batch)
    except Exception:
        return False
    return True


def _reason(error: BaseException) -> str:
    """Its first line, and where it was raised: a person's own module, or that of a library."""
    return f"{(str(error).splitlines() or [''])[0] or type(error).__name__}{place_of(error)}"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _state_share(spec: OptimizerSpec) -> float:
    """What the optimizer keeps per byte of a parameter, found by one step on a small one."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    alone = OptimizerSpec(name=spec.name, **spec.keywords)
    optimizer, _ = grouping.build_optimizer(nn.ParameterList([parameter]), alone, torch.device("cpu"))
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor) and value.ndim]
    return _bytes(state) / _bytes([parameter])
