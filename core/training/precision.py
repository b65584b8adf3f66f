"""Precision: in which float type a model runs forward and backward. Its weights, and the optimizer, stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Type = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose(wish: Type | Literal["auto"], device: torch.device) -> Type:
    """What `auto` is on that device: bf16 on a GPU that has it (compute capability 8.0), fp16 on an older one, else fp32."""
    if wish != "auto":
        return wish
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


class Precision:
    """A float type, and with fp16 the scale of the loss that keeps small gradients above zero (Micikevicius et al. 2018).

    bf16 has float32's range and needs no scale. A step whose fp16 gradients overflow is left out, and the scale is halved: the
    loss of that step is told like any other.
    """

    def __init__(self, type: Type = "fp32", device: torch.device | None = None) -> None:  # noqa: A002 - the field's word
        self.type = type
        self._device = device or torch.device("cpu")
        self._scaler = torch.amp.GradScaler(self._device.type) if type == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """For the forward pass, not for the loss: that is float32's business."""
        if self.type == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, _DTYPES[self.type])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, scaled, to what the parameters have."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer, clip: float | None = None) -> None:
        """The optimizer's step, from gradients without the scale. With `clip` their norm, over all of them, is no larger.

        Nothing is read off the device, but by optimizers that are not fused, with fp16.
        """
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], clip)
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint needs: the scale, and how long it has held; None where there is none."""
        return None if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back what `state` gave. Without one the scale begins anew."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(state)
