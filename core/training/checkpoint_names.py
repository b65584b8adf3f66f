"""What a checkpoint's directory is called: the name says when it was written, among those of one process.

A process that goes back passes steps again, and what it writes there is another checkpoint: `300`, and once it has gone back
`300.1`. So no name is used twice, and whoever deletes knows which came first. Knows nothing of torch: those who delete have none.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"(0|[1-9][0-9]*)(?:\.([1-9][0-9]*))?")


def name_of(step: int, returns: int = 0) -> str:
    """The name at `step`, by a process that has gone back `returns` times."""
    return f"{step}.{returns}" if returns else str(step)


def order_of(name: str) -> tuple[int, int] | None:
    """A key by which names compare as their directories were written; None where it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[2] or 0), int(match[1]))
