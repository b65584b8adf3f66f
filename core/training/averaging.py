"""The running average of a model's weights over its steps (EMA), which often generalises better than the last weights do.

average = decay · average + (1 - decay) · weights after each step, with the decay min(decay, (1 + n) / (10 + n)) at the nth, so
that a short job's average is not mostly its first weights (tf.train.ExponentialMovingAverage, `num_updates`). Running statistics
of norms and counters are no weights: the average has those of now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A model's running average. Within `swapped` the model has it, and `tensors` what the model trains."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        weights, others = dict(model.named_parameters()), dict(model.named_buffers())
        self._weights: dict[str, Tensor] = {name: one for name, one in weights.items() if one.is_floating_point()}
        self._others: dict[str, Tensor] = {**{name: one for name, one in weights.items() if name not in self._weights}, **others}
        self.tensors = {name: one.detach().clone() for name, one in {**self._weights, **self._others}.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step. One kernel for all weights, and nothing read off the device."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._weights:
            torch._foreach_lerp_([self.tensors[name] for name in self._weights], list(self._weights.values()), share)
        if self._others:
            torch._foreach_copy_([self.tensors[name] for name in self._others], list(self._others.values()))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the average for a while. Storage changes hands, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def restore(self, trained: Mapping[str, Tensor], updates: int) -> None:
        """The model has just been given the average; give it `trained`, its own weights, and keep the average here."""
        for name, mine in {**self._weights, **self._others}.items():
            self.tensors[name].copy_(mine)
            if name in trained:
                mine.copy_(trained[name])
        self.updates = updates

    def _swap(self) -> None:
        for name, mine in {**self._weights, **self._others}.items():
            mine.data, self.tensors[name] = self.tensors[name], mine.data
