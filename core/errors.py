"""Errors that name the place and the way out."""

from __future__ import annotations

import difflib
import errno
import re
import traceback
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

_FEW = 3
"""Names that a person is asked to choose from."""
_PASSED = re.compile(rf"/torch/|/importlib/|^<frozen|^{re.escape(str(Path(__file__).parent))}/")
"""The files that a person's own code is called by and calls."""


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
    if close := closest(name, names):
        return " Did you mean {}?".format(" or ".join(f"'{one}'" for one in close))
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f" Known: {', '.join(names[:shown])}{more}."


def listed(names: Iterable[str], shown: int = 5) -> str:
    """The first few of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return (", ".join(every[:shown]) or "none") + more


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The known name that is most like `name`; else the few that it is a part of (`cosine`, `CosineAnnealingLR`), in any case.

    What all of them end in (`Loss`) makes none of them more alike.
    """
    folded = {candidate.lower(): candidate for candidate in known}
    name = name.lower()
    end = _common_end(folded)
    end = end if end.isalpha() and name.endswith(end) else ""
    stems = {candidate.removesuffix(end): candidate for candidate in folded}
    stem = name.removesuffix(end)
    if close := difflib.get_close_matches(stem, stems, n=1, cutoff=cutoff):
        return [folded[stems[close[0]]]]
    holding = [folded[candidate] for candidate in folded if stem in candidate] if len(stem) > 1 else []
    return holding if len(holding) <= _FEW else []


def _common_end(names: Collection[str]) -> str:
    """What all names end in; nothing where there is one alone."""
    columns = zip(*(name[::-1] for name in names), strict=False) if len(names) > 1 else ()
    return "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, columns))[::-1]


def place_of(error: BaseException) -> str:
    """` (nets.py, line 12)`: the innermost line of what raised `error` that is neither torch's nor ours; empty where all is."""
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not _PASSED.search(frame.filename)]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""


def pointer_of(*parts: str | int) -> str:
    """A JSON pointer from its parts, escaped as RFC 6901 has it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
