"""Batch norms folded into convolutions: the same numbers, and the model as it was."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torchvision.models import mobilenet_v3_small

from core.models.folding import folded


def settled(model: nn.Module) -> nn.Module:
    """In eval mode, with norms that have learnt something."""
    generator = torch.Generator().manual_seed(0)
    for norm in (one for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())


@torch.no_grad()
def same(model: nn.Module, quick: nn.Module, size: int = 32) -> bool:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return torch.allclose(model(images), quick(images), rtol=1e-4, atol=1e-4)


def test_every_norm_of_a_mobilenet_is_folded_and_the_model_is_left_as_it_was() -> None:
    model = settled(mobilenet_v3_small(num_classes=4))
    before = copy.deepcopy(model.state_dict())
    part = fx.symbolic_trace(model)

    quick = folded(part)

    assert norms(part) == 34
    assert norms(quick) == 0
    assert same(model, quick)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert part.get_submodule("features.0.0") is model.features[0][0]
    assert model.features[0][0].bias is None


def test_a_norm_that_goes_by_the_batch_stays() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model[3].train()
    quick = folded(fx.symbolic_trace(model))

    assert norms(quick) == 1
    twin = nn.BatchNorm2d(4, track_running_stats=False)
    assert norms(folded(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), twin).eval()))) == 1


class Shared(nn.Module):
    """One convolution with two norms, and what it gives is used beside its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.other, self.third = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        once = self.first(self.shared(images)) + self.second(self.shared(images))
        raw = self.other(images)
        return once + raw + self.third(raw)


def test_what_is_used_twice_is_left_alone() -> None:
    model = settled(Shared())
    quick = folded(fx.symbolic_trace(model))

    assert norms(quick) == 3
    assert same(model, quick)
