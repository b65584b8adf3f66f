"""Batch norms over several ranks: their mean and variance are those of the whole batch, not of a rank's share of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class CpuSyncBatchNorm(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, which runs on GPUs alone, for the CPU. Differentiable through the sums over the ranks."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name)
        """[B, C, …]; B may be 0 on some rank. Raises ValueError where all ranks together have one value per channel."""
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        count = torch.tensor(float(input.numel() // input.shape[1]))
        dist.all_reduce(count)
        if count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got {list(input.shape)} over all ranks")
        mean = _total(input.sum(over)) / count
        centred = input - mean.view(shape)
        variance = _total(centred.square().sum(over)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normal if self.weight is None else torch.addcmul(self.bias.view(shape), normal, self.weight.view(shape))

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def across_ranks(model: nn.Module, device: torch.device) -> None:
    """Put a norm that sees all ranks in the place of each BatchNorm of torch, with the very same parameters and buffers."""
    kind = nn.SyncBatchNorm if device.type == "cuda" else CpuSyncBatchNorm
    made: dict[nn.Module, nn.Module] = {}  # a norm that is used in two places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and isinstance(module, _PLAIN) and type(module) in _PLAIN:
            model.set_submodule(name, made.setdefault(module, _twin(module, kind)))


def of_another_kind(model: nn.Module) -> list[str]:
    """The names of batch norms that `across_ranks` leaves as they are, since they are more than torch's."""
    return [name for name, one in model.named_modules() if isinstance(one, _BatchNorm) and type(one) not in _PLAIN]


def sees_all_ranks(model: nn.Module) -> bool:
    """Whether a forward pass, as `model` is now, waits for the other ranks."""
    return any(isinstance(module, nn.SyncBatchNorm) and module.training for module in model.modules())


def _twin(norm: _BatchNorm, kind: type[nn.SyncBatchNorm]) -> nn.SyncBatchNorm:
    twin = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var, twin.num_batches_tracked = norm.running_mean, norm.running_var, norm.num_batches_tracked
    twin.training = norm.training
    return twin


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank's loss depends on it, so its gradient is their sum too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004  (torch's own signature)
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _total(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)
    return total
