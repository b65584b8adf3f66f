"""A model with chance in it, that takes its time."""

from __future__ import annotations

import time

from torch import Tensor, nn


class Unsteady(nn.Sequential):
    """A norm's running statistics, dropout; ten milliseconds a step at the least, so that a fault can fall anywhere."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(72, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.training and images.device.type != "meta":
            time.sleep(0.01)
        return super().forward(images)
