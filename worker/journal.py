"""The events of a running job between the trainer and the database: in order, bounded, with floods of printed lines cut."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from core.events import KINDS, EndData, IterationsData, LogData, StateData
from store.events import NewEvent

_FULL = 4 << 20
_RATE, _BURST = 100.0, 1000.0
"""Lines a second that the log takes in the long run, and at once."""
_LINE = 200
"""Characters that count as one line: a longer line counts as several."""
_LONGEST = 4000
_KEPT = 20
_DYING = "Fatal Python error"
"""How the interpreter's last words begin; the call that crashed comes first in them."""
_OURS = {StateData.kind, EndData.kind}


class MalformedEventError(ValueError):
    """The trainer sent what is no event of a trainer."""


class Journal:
    """Events that wait for their commit.

    Nothing is dropped but printed lines beyond 100 a second (after 1,000 at once), and the log says how many. `clock` is
    monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = 0
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._dying: list[str] = []
        self._clock = clock
        self._events: list[NewEvent] = []
        self._size = 0
        self._dropped = 0
        self._allowance, self._counted_at = _BURST, clock()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def full(self) -> bool:
        """Whether to commit before anything more is read."""
        return self._size >= _FULL

    def add(self, message: dict[str, Any], size: int = 200) -> None:
        """An event as the trainer sent it. Raises MalformedEventError."""
        kind, step, data = message.get("kind"), message.get("step"), message.get("data")
        if kind not in KINDS or kind in _OURS or not isinstance(step, int):
            raise MalformedEventError(f"the trainer sent a '{kind}' event at step {step}")
        try:
            data = KINDS[kind].model_validate(data).model_dump(mode="json")
        except ValueError as error:
            raise MalformedEventError(f"the trainer sent a malformed '{kind}' event: {error}") from None
        self.step = step
        if kind == LogData.kind:
            self._line(data["message"], data["level"], self._last.append)
        else:
            self._append(NewEvent(step, kind, data), size + 20 * len(data.get("losses", ())))

    def lines(self, lines: Iterable[str], level: str) -> None:
        """Lines that came from the process's own streams, as `log` events at the present step."""
        for line in lines:
            dying = self._dying or line.startswith(_DYING)
            self._line(line, level, self._dying.append if dying else self._last.append)

    def last_lines(self) -> list[str]:
        """The last 20 lines that were printed, dropped ones too, and then the first 20 of what a crash printed of itself."""
        return [*self._last, *self._dying[:_KEPT]]

    def take(self) -> list[NewEvent]:
        """Everything that waits, oldest first. The caller commits it, and keeps it until it has."""
        if self._dropped and self._refill() >= 1:
            self._tell_dropped()
        events, self._events, self._size = self._events, [], 0
        return events

    def take_last(self) -> list[NewEvent]:
        """The same, at the end."""
        if self._dropped:
            self._tell_dropped()
        return self.take()

    def _append(self, event: NewEvent, size: int) -> None:
        self._size += size
        if self._events and (merged := _merged(self._events[-1], event)) is not None:
            self._events[-1] = merged
        else:
            self._events.append(event)

    def _line(self, line: str, level: str, remember: Callable[[str], None]) -> None:
        text = _storable(line)
        remember(text)
        if self._may_log(text):
            self._append(_log(self.step, level, text), len(text))
        else:
            self._dropped += 1

    def _may_log(self, text: str) -> bool:
        cost = 1 + len(text) // _LINE
        if self._refill() < cost:
            return False
        self._allowance -= cost
        if self._dropped:
            self._tell_dropped()
        return True

    def _refill(self) -> float:
        now = self._clock()
        self._allowance = min(_BURST, self._allowance + (now - self._counted_at) * _RATE)
        self._counted_at = now
        return self._allowance

    def _tell_dropped(self) -> None:
        count, self._dropped = self._dropped, 0
        message = f"{count} printed lines were left out here: the log takes {_RATE:g} a second"
        self._append(_log(self.step, "warning", message), len(message))


def _log(step: int, level: str, message: str) -> NewEvent:
    return NewEvent(step, LogData.kind, {"level": level, "message": message})


def _merged(old: NewEvent, new: NewEvent) -> NewEvent | None:
    """Two `iterations` events as one, where the second goes on where the first ends."""
    if old.kind != new.kind or new.kind != IterationsData.kind or old.data["epoch"] != new.data["epoch"]:
        return None
    losses = old.data["losses"]
    if old.data["first"] + len(losses) != new.data["first"]:
        return None
    return NewEvent(new.step, new.kind, {**old.data, "losses": [*losses, *new.data["losses"]], "lr": new.data["lr"]})


def _storable(line: str) -> str:
    """As the database can hold it: no NUL, no lone surrogate, no novel."""
    text = line.replace("\x00", "\ufffd").encode(errors="replace").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST} more characters)"
