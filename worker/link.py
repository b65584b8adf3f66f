"""The trainer's end of its conversation with the supervisor."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from core.adjustments import RULES, Adjustment, Adjustments
from core.events import AdjustedData, Data, Iteration, LogData, RuleData, chunk
from sandbox.channel import Channel

Level = Literal["info", "warning", "error"]

SEVERAL = "several"
"""A message of several events, which are committed together."""
LOST = "lost"
"""The last word of a rank that only knows that another one is gone."""
NO_DEVICE = "no_device"
"""The last word of a rank whose GPU cannot be used at all: that is no fault of its job."""

_WINDOW = 0.1
"""Seconds that losses are gathered before they are sent."""
_MOST = 4096
"""Losses gathered at most: beyond, the training loop waits for the supervisor."""


class CancelledError(Exception):
    """The supervisor said to stop."""


class PausedError(Exception):
    """The supervisor said to stop here, for a later attempt to go on."""


class Link:
    """What a trainer says and hears, in order, from any thread.

    A thread of its own sends the gathered losses and hears permits, `cancel`, `pause` and `adjust`, so a step costs an append
    and a few comparisons. When nobody listens any more it calls `orphaned`, which ends the process.
    """

    def __init__(
        self,
        channel: Channel,
        permit: float,
        *,
        adjustments: Adjustments | None = None,
        orphaned: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self._channel = channel
        self.adjustments = adjustments or Adjustments()
        """What the supervisor has said to change in the parameter groups."""
        self._lock = threading.RLock()
        self._gathered: list[Iteration] = []
        self._held: list[dict[str, Any]] = []
        self._step = 0
        self._sent_any = False
        self._permit = permit
        self._cancelled = False
        self.paused = False
        """The supervisor has said to stop here, for a later attempt to go on."""
        self._heard = threading.Event()
        self._orphaned = orphaned
        self.thread = threading.Thread(target=self._attend, name="link", daemon=True)
        self.thread.start()

    def iteration(self, iteration: Iteration) -> None:
        """A step was done. The first loss is sent at once."""
        with self._lock:
            self._gathered.append(iteration)
            self._step = iteration.step + 1
            if not self._sent_any or len(self._gathered) >= _MOST:
                self._flush()

    def event(self, step: int, data: Data) -> None:
        """Send an event, after every loss before it.

        The cuts of a rule go with the rule's own event, or not at all; so does early stopping with the last checkpoint: who has
        to write that once more tells it then.
        """
        with self._lock:
            self._flush()
            self._step = step
            self._held.append(_message(step, data))
            if _waits_for_the_next(data):
                return
            held, self._held = self._held, []
            self._channel.send(held[0] if len(held) == 1 else {"kind": SEVERAL, "events": held})

    def line(self, level: Level, message: str) -> None:
        """Send what was printed, at once: the process may be about to die of it."""
        with self._lock:
            self._flush()
            self._send(self._step, LogData.model_construct(level=level, message=sendable(message)))

    def end(self, **message: Any) -> None:
        """Send the last word."""
        with self._lock:
            self._flush()
            self._channel.send(message)

    def wait(self) -> None:
        """Return when training may go on: at once, as long as the lease holds.

        Raises CancelledError when the job was cancelled, PausedError when it was paused.
        """
        self.finish()
        if self.paused:
            raise PausedError

    def finish(self) -> None:
        """As `wait`, for what is to be finished before a pause, such as a checkpoint that is about to appear."""
        while True:
            if self._cancelled:
                raise CancelledError
            if time.monotonic() < self._permit:
                return
            self._heard.wait(1)
            self._heard.clear()

    def _send(self, step: int, data: Data) -> None:
        self._channel.send(_message(step, data))

    def _flush(self) -> None:
        """Send the gathered losses, an event for each run of one epoch."""
        gathered, self._gathered = self._gathered, []
        start = 0
        for index in range(1, len(gathered) + 1):
            if index == len(gathered) or gathered[index].epoch != gathered[start].epoch:
                self._send(gathered[index - 1].step + 1, chunk(gathered[start:index]))
                start = index
        self._sent_any = self._sent_any or bool(gathered)

    def _attend(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        try:
            while not self._channel.ended:
                for message in self._channel.drain():  # no poll tells of what was read together with the start message
                    self._hear(message)
                with self._lock:
                    self._flush()
                poll.poll(_WINDOW * 1000)
        except OSError:
            pass
        self._orphaned()

    def _hear(self, message: dict[str, Any]) -> None:
        if message["kind"] == "permit":
            self._permit = message["until"]
        elif message["kind"] == "cancel":
            self._cancelled = True
        elif message["kind"] == "pause":
            self.paused = True
        elif message["kind"] == "adjust":
            self.adjustments.ask(Adjustment(**message["adjustment"]))
        self._heard.set()


def _waits_for_the_next(data: Data) -> bool:
    return data.by == RULES if isinstance(data, AdjustedData) else isinstance(data, RuleData) and data.rule == "early_stopping"


def _message(step: int, data: Data) -> dict[str, Any]:
    return {"step": step, "kind": data.kind, "data": data.model_dump(mode="json")}


def sendable(text: str) -> str:
    """As JSON can carry it: file names in Python may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
