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


class SlowToValidate(Tiny):
    """Its validations take a second, and say when they begin."""

    def forward(self, images: Tensor) -> Tensor:
        if self.passes % 52 == 51 and not self.training:
            self.passes += 1
            print("validating")
            time.sleep(1)
        return super().forward(images)


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


class KilledRank(Tiny):
    """Rank 1 kills its own process in the forward pass that the note names, the first time: `75:/path/of/a/marker`."""

    def act(self, passes: int) -> None:
        when, _, marker = self.note.partition(":")
        if os.environ["RANK"] == "1" and passes == int(when) and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class HungryRank(Tiny):
    """Rank 1 wants too much memory in its third pass; the note says of which kind it is."""

    def act(self, passes: int) -> None:
        if os.environ.get("RANK", "1") == "1" and passes == 3:
            if self.note == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has …")
            torch.empty(1 << 50)


class Growing(Tiny):
    """Takes 64 MiB in each pass and keeps them."""

    def act(self, passes: int) -> None:
        self.kept = [*getattr(self, "kept", []), torch.ones(passes, 1 << 24)]


class RaisesOnRank(Tiny):
    def act(self, passes: int) -> None:
        print(f"pass {passes}")
        if os.environ["RANK"] == "1" and passes == 3:
            raise ZeroDivisionError("by rank 1")


class LosesEachOther(Tiny):
    """Each rank is told by NCCL that something is wrong, and none knows what."""

    def act(self, passes: int) -> None:
        if passes == 3:
            raise torch.distributed.DistBackendError("NCCL error: unhandled system error, no space in /dev/shm")


class Spill(Tiny):
    """Large enough that a checkpoint of it does not fit into what the test allows."""

    def __init__(self, num_classes: int = 10, note: str = "") -> None:
        super().__init__(num_classes, note)
        self.ballast = nn.Parameter(torch.zeros(1 << 20))
