"""The states of a job: one table, and nothing else changes a state."""

from __future__ import annotations

from typing import Literal, get_args

from core.events import JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "queued", "paused"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
FINAL = frozenset(state for state, ways in TRANSITIONS.items() if not ways)
"""Nothing leaves these; entering one appends the `end` event."""
FinalState = Literal["succeeded", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)


def sources(to: JobState) -> frozenset[JobState]:
    """The states from which `to` may be entered."""
    return frozenset(state for state, ways in TRANSITIONS.items() if to in ways)
