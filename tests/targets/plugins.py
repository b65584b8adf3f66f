"""Modules that a person might bring: small, and some of them bad."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Two layers; what it does at which forward pass is for those below."""

    def __init__(self, num_classes: int = 10, note: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)
        self.note = note
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta" and self.training:
            self.passes += 1
            self.act(self.passes)
        return self.fc(torch.relu(self.conv(images)).mean((2, 3)))

    def act(self, passes: int) -> None:
        """Nothing, here."""


class Slow(Tiny):
    def act(self, passes: int) -> None:  # noqa: ARG002
        time.sleep(0.02)


class Loud(Tiny):
    def act(self, passes: int) -> None:
        print(f"pass {passes}")
        warnings.warn(f"at pass {passes}", stacklevel=1)
        if passes == 2:
            os.write(2, b"native code complains\n")


class Segfault(Tiny):
    def act(self, passes: int) -> None:
        print(f"pass {passes}")
        if passes == 5:
            ctypes.string_at(0)


class Raises(Tiny):
    def act(self, passes: int) -> None:
        if passes == 3:
            raise ZeroDivisionError("by the plug-in")


class Hungry(Tiny):
    def act(self, passes: int) -> None:
        if passes == 3:
            torch.empty(1 << 50)


class Diverges(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * float("nan") if self.passes >= 4 else logits


class KilledOnce(Tiny):
    """Kills its own process in the middle of the second epoch, the first time."""

    def act(self, passes: int) -> None:
        marker = Path(self.note)
        if passes == 75 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Spill(Tiny):
    """Large enough that a checkpoint of it does not fit into what the test allows."""

    def __init__(self, num_classes: int = 10, note: str = "") -> None:
        super().__init__(num_classes, note)
        self.ballast = nn.Parameter(torch.zeros(1 << 20))
