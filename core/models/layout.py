"""The order of an image's numbers in memory: by channel, as torch has it (NCHW), or by pixel (channels_last, NHWC)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.shapes import Cheap


def helps(model: nn.Module, size: int, device: torch.device, *, half: bool) -> bool:
    """Whether channels_last is likely the faster one, for square images of `size` px.

    On a GPU in 16 bits its tensor cores want it, wherever there is a convolution. On a CPU (oneDNN, measured with torch 2.15,
    a training step of each of 20 models) it is 1.0 to 1.7 times as fast, most with depthwise and 1x1 kernels, except where most
    of the weights belong to wide kernels over maps of one pixel (0.86 for a ResNet-18 at 32 px): those are the odd ones out.
    Nothing is timed: the same job gives the same answer, and so the same numbers, each time.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        return False
    if device.type == "cuda":
        return half
    if any(module.groups > 1 for module in convolutions):
        return True
    maps = _maps(model, size)
    if maps is None:
        return False
    wide = sum(elements for elements, kernel, pixels in maps if kernel > 1 and pixels == 1)
    return 2 * wide < sum(elements for elements, _, _ in maps)


def _maps(model: nn.Module, size: int) -> list[tuple[int, int, int]] | None:
    """Of each convolution that runs: elements of its weight, its kernel's side, pixels of its output. None where that fails."""
    found: list[tuple[int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
        if isinstance(module, nn.Conv2d):
            found.append((module.weight.numel(), max(module.kernel_size), output.shape[-1] * output.shape[-2]))

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), Cheap():
            shapes = copy.deepcopy(model).to("meta").eval()
            for module in shapes.modules():
                module.register_forward_hook(note)
            shapes(torch.zeros(1, 3, size, size, device="meta"))
    except Exception:  # a model that looks at values while it runs
        return None
    return found
