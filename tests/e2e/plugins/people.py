"""Modules as people write them: small ones, chatty ones, and ones that break."""

import os
import sys
import time
import warnings

import torch
from torch import nn


class Tiny(nn.Module):
    """One hidden layer over pixels averaged to 8 by 8: a step takes less than a millisecond."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(8)
        self.hidden = nn.Linear(3 * 64, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.pool(images).flatten(1))))


class Slow(Tiny):
    """Sleeps in each step, as a job does that takes its time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.01)
        return super().forward(images)


class Chatty(Tiny):
    """Prints and warns."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and not hasattr(self, "told"):
            self.told = True
            print("a word to standard output")
            print("a word to standard error", file=sys.stderr)
            warnings.warn("a warning of the model", stacklevel=1)
        return super().forward(images)


class Breaking(Tiny):
    """Breaks in its tenth step: raises, or ends the whole process."""

    def __init__(self, num_classes: int, how: str) -> None:
        super().__init__(num_classes)
        self.how = how
        self.steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps == 10:
            print("the last line before the end", flush=True)
            if self.how == "exit":
                os._exit(3)
            if self.how == "abort":
                os.abort()
            raise RuntimeError("the flux capacitor is empty")
        return super().forward(images)
