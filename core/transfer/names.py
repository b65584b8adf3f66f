"""The source's names on their way to the model's, and what was done to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from core.errors import Fault
from core.events import TransferStep
from core.transfer.averages import counted_averages


@dataclass(frozen=True)
class Names:
    """What the rules made of the source's keys."""

    renamed: Mapping[str, str]
    """Each source key's name after all steps."""
    dropped: Mapping[str, str]
    """The source keys that are not loaded, and why."""
    source_of: Mapping[str, str]
    """The source key behind each name that is left."""
    steps: tuple[TransferStep, ...]


@dataclass
class Work:
    """The names on their way."""

    names: dict[str, str]
    asked_for: bool
    """Whether the spec leads to an average by its name."""
    dropped: dict[str, str] = field(default_factory=dict)
    steps: list[TransferStep] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def averages(self) -> tuple[str, ...]:
        """What the names of an AveragedModel's tensors begin with, where nobody has asked for it."""
        return () if self.asked_for else tuple(counted_averages(self.left.values()))

    @property
    def left(self) -> dict[str, str]:
        """The names of the keys that are not dropped."""
        return {key: name for key, name in self.names.items() if key not in self.dropped}

    def step(self, kind: str, detail: str, names: Mapping[str, str]) -> None:
        """Take these names, and record the step if any of them is new."""
        changed = sum(name != self.names[key] for key, name in names.items())
        if changed:
            self.steps.append(TransferStep.model_validate({"kind": kind, "detail": detail, "keys": changed}))
        self.names.update(names)

    def drop(self, kind: str, detail: str, keys: Iterable[str], reason: str) -> None:
        """Take these keys out, and record the step."""
        new = [key for key in keys if key not in self.dropped]
        self.dropped.update(dict.fromkeys(new, reason))
        self.steps.append(TransferStep.model_validate({"kind": kind, "detail": detail, "keys": len(new)}))
