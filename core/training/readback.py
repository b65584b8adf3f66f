"""The ring that brings losses off the device without a synchronisation per step.

`loss.item()` makes the host wait until the device has caught up, each step. Here a step's loss is copied to pinned memory
behind its backward pass, and read two steps later, when the copy is long done: the device always has work queued, and the host
is never further ahead than the ring is long.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import torch
from torch import Tensor

Tag = TypeVar("Tag")


_LAGS = {"cuda": 2}


def lag_of(device: torch.device) -> int:
    """How many steps later a loss is read there."""
    return _LAGS.get(device.type, 0)


class Readback(Generic[Tag]):
    """Scalars on their way to the host, in order. On the CPU each comes back at once; the interface is the same."""

    def __init__(self, device: torch.device, lag: int | None = None) -> None:
        """`lag`: how many later scalars are pushed before one is read; by default 2 on a GPU and 0 on the CPU."""
        on_gpu = device.type == "cuda"
        self._lag = lag_of(device) if lag is None else lag
        slots = self._lag + 1
        self._host = torch.empty(slots, dtype=torch.float32, pin_memory=on_gpu)
        # Blocking events: the waiting thread sleeps, and leaves its core to the processes that decode.
        self._events = [_event() for _ in range(slots)] if on_gpu else None
        self._waiting: deque[tuple[int, Tag]] = deque()
        self._next = 0

    def push(self, scalar: Tensor, tag: Tag) -> list[tuple[Tag, float]]:
        """Send a scalar on its way; returns those (none or one) that are due."""
        slot = self._next
        self._next = (slot + 1) % len(self._host)
        self._host[slot].copy_(scalar.detach(), non_blocking=True)
        if self._events:
            self._events[slot].record(torch.cuda.current_stream(scalar.device))
        self._waiting.append((slot, tag))
        return [self._read()] if len(self._waiting) > self._lag else []

    def drain(self) -> list[tuple[Tag, float]]:
        """All that are still on their way, in order."""
        return [self._read() for _ in range(len(self._waiting))]

    def _read(self) -> tuple[Tag, float]:
        slot, tag = self._waiting.popleft()
        if self._events:  # a pinned slot holds garbage until its event has passed
            self._events[slot].synchronize()
        return tag, float(self._host[slot])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
