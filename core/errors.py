"""Errors that name the place and the way out."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a spec: a JSON pointer (RFC 6901) into it, and what to write instead."""

    pointer: str
    message: str


class SpecError(ValueError):
    """A spec that cannot work. Carries every fault that was found, never only the first."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.pointer}: {fault.message}" for fault in faults))
        self.faults = faults

    @classmethod
    def at(cls, pointer: str, message: str) -> SpecError:
        """The common case: one fault."""
        return cls(Fault(pointer, message))


class TrainingError(RuntimeError):
    """A job that failed while it ran, by a cause that has a name.

    `kind` is one of the failure types of `core.events.Failure`; `hint` is the next thing to try.
    """

    kind = "crashed"
    hint = "Read the last lines of the log."

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class DataError(TrainingError):
    """A dataset that cannot be read, or a sample in it."""

    kind = "data"
    hint = "Mend or remove the file that is named, then submit the job again."


class TransferError(TrainingError):
    """Pretrained weights that cannot be read, or that do not fit."""

    kind = "transfer"
    hint = "Ask POST /plans for the transfer report of this spec."


class DivergedError(TrainingError):
    """A loss that ran away."""

    kind = "diverged"
    hint = "Lower the lr (ten times is a good first step), or warm it up for longer; training.divergence can go back and cut it."


class NonFiniteLossError(DivergedError):
    """A loss that is NaN or infinite."""

    kind = "non_finite_loss"
    hint = "Lower the lr (ten times is a good first step), or freeze more of the model."


class CompileError(TrainingError):
    """A model that torch.compile cannot compile, or not on this machine."""

    hint = "Set training.compile to false; or see the log for what the compiler lacks: it needs g++, and on a GPU gcc."


class DiskFullError(TrainingError):
    """No room for a checkpoint."""

    kind = "disk_full"
    hint = "Free space below the data directory, or keep fewer checkpoints, then submit the job again."


def is_no_room(error: BaseException) -> bool:
    """Whether the system says that a file has no room: the disk is full, or a quota, or the file is as large as it may be."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def did_you_mean(name: str, known: Iterable[str], shown: int = 8) -> str:
    """` Did you mean 'x'?` where a known name is close, else the known names (all of a few, else the first ones)."""
    names = list(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{folded[close[0]]}'?"
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f" Known: {', '.join(names[:shown])}{more}."


def pointer_of(*parts: str | int) -> str:
    """A JSON pointer from its parts, escaped as RFC 6901 has it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
