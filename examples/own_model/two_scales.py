"""A person's own model that shares part of ResNet-50's layers: what docs/own-model.md is about.

The layers that it shares have ResNet-50's names, so that its pretrained weights find them; the others are its own. It loads
nothing itself: the job says where the weights come from, and Graft copies what matches and reports the rest.
"""

import torch
from torch import Tensor, nn
from torchvision.models import resnet50


class TwoScales(nn.Module):
    """Judges an image by the features of two scales, those of ResNet-50's second and third stage, side by side."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        whole = resnet50()
        self.conv1, self.bn1, self.maxpool = whole.conv1, whole.bn1, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.fine, self.coarse = nn.Linear(512, width), nn.Linear(1024, width)
        self.classify = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 [B, 3, H, W] to logits [B, num_classes]."""
        stem = self.maxpool(self.bn1(self.conv1(images)).relu())
        fine = self.layer2(self.layer1(stem))
        coarse = self.layer3(fine)
        scales = self.fine(fine.mean((2, 3))), self.coarse(coarse.mean((2, 3)))
        return self.classify(torch.cat(scales, dim=1).relu())
