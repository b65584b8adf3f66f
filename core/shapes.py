"""Models without data: what they are made of and what they return, in milliseconds and without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

_FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


def shapes_of(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, on the meta device: shapes and no data. Leaves the random state as it was.

    Some constructors need real numbers (RegNet computes its widths with tensors): for those only what parameters are made
    of stays without data, and where that fails too, the model is built for real.
    """
    with torch.random.fork_rng(devices=[]):
        for place in (torch.device("meta"), _ParametersOnMeta()):
            with contextlib.suppress(Exception), place, Cheap():
                return build().to("meta")
        return build().to("meta")


def run_shapes(model: nn.Module, size: int, batch: int) -> tuple[Any, int]:
    """(outputs, bytes kept for the backward pass) of black images, float32 [batch, 3, size, size], through `model` as it trains.

    The model may be on the meta device. Raises whatever the model raises.
    """
    own = {_storage(one) for one in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # else a storage's address may come again

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in own and key not in kept:
            kept[key] = tensor.untyped_storage().nbytes()
            alive.append(tensor.detach())
        return tensor

    model.train()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.zeros(batch, 3, size, size, device=device)
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(pack, _unchanged), Cheap():
        outputs = model(images)
    return outputs, sum(kept.values())


class _ParametersOnMeta(TorchFunctionMode):
    """Puts what `torch.empty` makes, as parameters are made, on the meta device, and leaves all other tensors real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **({**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}))


class Cheap(TorchFunctionMode):
    """Spares a meta tensor what costs milliseconds there, because torch does it in Python: filling it, and batch norm.

    A product with the weight has batch norm's shape, and keeps for the backward pass what batch norm keeps: its input.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS and args[0].is_meta:
            return args[0]
        if func is nn.functional.batch_norm and args[0].is_meta:
            images, weight = args[0], kwargs.get("weight")
            # What torch refuses (another number of channels, one value per channel) goes on to be refused.
            if weight is not None and weight.shape == images.shape[1:2] and images[:, 0].numel() > 1:
                return images * weight.view(-1, *(1,) * (images.ndim - 2))
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    key: int = StorageWeakRef(tensor.untyped_storage()).cdata  # type: ignore[no-untyped-call]
    return key


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
