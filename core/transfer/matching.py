"""Decide what becomes of each entry of a model, and of each tensor of a source whose names are already the model's."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from core.errors import Fault, SpecError, listed, pointer_of
from core.events import SourceEntry, SourceStatus, TargetEntry
from core.globs import near_glob
from core.spec import PretrainedSpec, Task
from core.transfer.adapters import Adaptation, Known, Place, adapt, adapters_of, stem_of
from core.transfer.entries import COUNTER, Entry, Source, alike, dtype_name, elements, entries_of, misfit, parameters_of, tied
from core.transfer.globs import exclude_of
from core.transfer.heads import NO_HEAD, Head, Rows, check_kept, head_rows, rows_of, why_anew
from core.transfer.names import Names
from core.transfer.renaming import rename
from core.transfer.windows import BIASES, beside, is_computed, pairs_beside

TAKEN = ("loaded", "adapted")
"""The statuses of entries that come from the source."""
UNCOUNTED = ("excluded", "own")
"""The statuses of entries that nobody expects from it."""
_OWN = "the model's own: it follows from its windows, and nothing in it is learned"


@dataclass(frozen=True)
class Match:
    """Two sides, and what was decided about names and the head."""

    targets: Mapping[str, Entry]
    parameters: frozenset[str]
    ties: Sequence[Sequence[str]]
    modules: Mapping[str, nn.Module]
    stem: str | None
    """The weight of the model's first convolution, by its key."""
    source: Source
    names: Names
    spec: PretrainedSpec
    head: Head
    excluded: Mapping[str, str]
    """The model's keys that start anew because the spec says so, and what it says."""
    head_anew: str | None
    """Why the head starts anew even where it fits; None: it is loaded."""
    rows: Rows | None
    """Which rows of the source's head are taken, where the spec asks for rows."""
    _found: dict[tuple[str, str], Adaptation | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, source: Source, spec: PretrainedSpec, head: Head, classes: tuple[str, ...], *, task: Task
    ) -> Match:
        """Everything that the single decisions need. Raises SpecError below /pretrained."""
        state = model.state_dict(keep_vars=True)
        targets = entries_of(state)
        ties = tied(state)
        modules = dict(model.named_modules(remove_duplicate=False))
        names = rename(source.entries, spec, targets)
        pairs = {
            key: (here, source.entries[names.source_of[key]] if key in names.source_of else None)
            for key, here in targets.items()
            if key in head.keys
        }
        excluded = _excluded(targets, spec, ties)
        theirs = _classes_of(source, spec)
        if spec.head == "reset" and not head.keys:
            raise SpecError.at("/pretrained/head", f"'reset' has no effect: {NO_HEAD}")
        if spec.head == "keep":
            check_kept({key: pair for key, pair in pairs.items() if key not in excluded})
        return cls(
            targets=targets,
            parameters=parameters_of(state),
            ties=ties,
            modules=modules,
            stem=stem_of(modules),
            source=source,
            names=names,
            spec=spec,
            head=head,
            excluded=excluded,
            head_anew=why_anew(spec, theirs, classes, task),
            rows=rows_of(spec, pairs, theirs, classes),
        )

    def target(self, key: str) -> TargetEntry:
        """What becomes of an entry of the model."""
        here = self.targets[key]
        source_key = self.names.source_of.get(key)
        there = None if source_key is None else self.source.entries[source_key]
        return TargetEntry(
            key=key,
            buffer=key not in self.parameters,
            shape=list(here.shape),
            source_key=source_key,
            source_shape=None if there is None else list(there.shape),
            **self._verdict(key, source_key, here, there),
        )

    def _verdict(self, key: str, source_key: str | None, here: Entry, there: Entry | None) -> dict[str, Any]:
        """The status of an entry, and what belongs to it."""
        if key in self.excluded:
            return {"status": "excluded", "reason": self.excluded[key]}
        if self._is_own(key):
            return {"status": "own", "reason": _OWN}
        if source_key is None or there is None:
            return {"status": "missing", "reason": self._why_missing(key)}
        cast = f"{dtype_name(there.dtype)} -> {dtype_name(here.dtype)}" if there.dtype != here.dtype else None
        if adapted := self.adaptation(key, source_key):
            return {"status": "adapted", "reason": adapted.reason, "adapter": adapted.adapter, "cast": cast}
        if reason := self._why_anew(key, here, there):
            return {"status": "reinit", "reason": reason}
        return {"status": "loaded", "cast": cast}

    def adaptation(self, key: str, source_key: str) -> Adaptation | None:
        """How the source's tensor is made to fit, if it needs that and an adapter knows how; found out once."""
        pair = key, source_key
        if pair not in self._found:
            self._found[pair] = self._adaptation(key, source_key)
        return self._found[pair]

    def _adaptation(self, key: str, source_key: str) -> Adaptation | None:
        here, there = self.targets[key], self.source.entries[source_key]
        if not alike(here, there):
            return None
        if key in self.head.keys:
            return head_rows(here, there, self.rows) if self.rows else None
        if not (adapters := adapters_of(key, self.stem)):
            return None
        known = Known(self.spec.grid, pairs_beside(source_key, self.source.entries))
        return adapt(adapters, Place(key, here, self.modules), there, known)

    def _is_own(self, key: str) -> bool:
        """Whether an entry that follows from the model's windows stays: the source has none, or that of another window.

        Where the index differs, the biases beside it must have been resized; else they are another window's.
        """
        if not is_computed(key) or key in self.parameters:
            return False
        source_key = self.names.source_of.get(key)
        if source_key is None:
            return True
        here, there = self.targets[key], self.source.entries[source_key]
        if misfit(here, there) is None:
            return False
        biases = beside(key, BIASES)
        if biases not in self.targets or biases in self.excluded or biases not in self.names.source_of:
            return True
        same = elements(here.shape) == elements(there.shape)
        return same or self.adaptation(biases, self.names.source_of[biases]) is not None

    def _why_missing(self, key: str) -> str:
        if key.endswith(COUNTER):
            return "not in the source; it counts batches, and only norms without momentum use it"
        return "not in the source" + ("; the head starts anew" if key in self.head.keys else "")

    def _why_anew(self, key: str, here: Entry, there: Entry) -> str | None:
        """Why the source's tensor is not loaded, where it is not."""
        unfit = misfit(here, there)
        if key in self.head.keys:
            if unfit is not None and here.shape != there.shape:
                return f"the head: {unfit}, for another number of classes"
            return unfit or self.head_anew
        return unfit

    def check_fits(self) -> None:
        """Outside the head a tensor of the right name that does not fit is a mistake. Raises SpecError."""
        misfits = {
            key: f"'{key}' ({reason})"
            for key, source_key in self.names.source_of.items()
            if key in self.targets
            and (reason := misfit(self.targets[key], self.source.entries[source_key]))
            and not (key in self.head.keys or key in self.excluded or key.endswith(COUNTER) or self._is_own(key))
            and not self.adaptation(key, source_key)
        }
        if misfits:
            advised = exclude_of(misfits, self.targets.keys() - self.excluded.keys())
            them = "them" if len(misfits) > 1 else "it"
            unknown = "" if self.head.keys else f"; {NO_HEAD}"
            raise SpecError.at(
                "/pretrained/source",
                f"outside the head {len(misfits)} of its tensors {'have names' if len(misfits) > 1 else 'has a name'} of the "
                f"model, but not the shape or type: {listed(misfits.values())}; let {them} start anew by {advised}{unknown}",
            )

    def source_entry(self, key: str, used: set[str]) -> SourceEntry:
        """What becomes of a tensor of the source."""
        name = self.names.renamed[key]
        in_head = name in self.head.keys or any(name.startswith(f"{module}.") for module in self.head.modules)
        status: SourceStatus = "used"
        reason = None
        if key in self.names.dropped:
            status, reason = "dropped", self.names.dropped[key]
        elif key not in used and name in self.excluded:
            status, reason = "dropped", f"the model's entry: {self.excluded[name]}"
        elif key not in used and name in self.targets and self._is_own(name):
            status, reason = "dropped", _OWN
        elif key not in used and name in self.targets:
            status, reason = "dropped", "the head, which starts anew" if in_head else "it does not fit the model's entry"
        elif key not in used:
            status, reason = "unexpected", ("the head: " if in_head else "") + "the model has no entry of that name"
        shape = list(self.source.entries[key].shape)
        return SourceEntry(key=key, status=status, shape=shape, renamed=name if name != key else None, reason=reason)


def _classes_of(source: Source, spec: PretrainedSpec) -> tuple[str, ...] | None:
    """The classes that the source's head tells apart, where it is known. Raises SpecError where the source says so itself."""
    if spec.classes is None:
        return source.classes
    if source.classes is not None:
        raise SpecError.at(
            "/pretrained/classes",
            f"'{source.name}' says its own classes ({listed(source.classes)}); leave them out, "
            "and where the dataset calls one otherwise, say so by head 'rows' and 'class_map'",
        )
    return tuple(spec.classes)


def _excluded(targets: Mapping[str, Entry], spec: PretrainedSpec, ties: Iterable[Iterable[str]]) -> dict[str, str]:
    """The model's keys that `exclude` takes out, and with each the other names of its tensor."""
    excluded: dict[str, str] = {}
    faults = []
    for index, glob in enumerate(spec.exclude):
        hits = fnmatch.filter(targets, glob)
        if not hits:
            pointer = pointer_of("pretrained", "exclude", index)
            faults.append(Fault(pointer, f"'{glob}' matches no key of the model.{near_glob(glob, targets)}"))
        elif all(key in excluded for key in hits):
            pointer = pointer_of("pretrained", "exclude", index)
            faults.append(
                Fault(pointer, f"all that '{glob}' matches is excluded by a glob before: it has no effect; leave it out")
            )
        for key in hits:
            excluded.setdefault(key, f"excluded by the glob '{glob}'")
    if faults:
        raise SpecError(*faults)
    for tie in ties:
        first = next((key for key in tie if key in excluded), None)
        if first is not None:
            excluded |= {key: f"tied to '{first}', which is excluded" for key in tie if key not in excluded}
    return excluded


def check_effects(spec: PretrainedSpec, entries: Iterable[TargetEntry]) -> None:
    """What the spec says of the source must have been of use. Raises SpecError."""
    if spec.grid is not None and not any(one.adapter == "position_embedding" for one in entries):
        rows, columns = spec.grid
        raise SpecError.at(
            "/pretrained/grid", f"it has no effect: no position embedding of {rows} x {columns} patches is resized"
        )


def with_ties(ties: Iterable[Iterable[str]], entries: list[TargetEntry]) -> list[TargetEntry]:
    """Where one name of a tied tensor is loaded, its other names are too: it is one tensor."""
    by_key = {one.key: one for one in entries}
    for tie in ties:
        loaded = next((by_key[key] for key in tie if by_key[key].status in TAKEN), None)
        for key in tie:
            if loaded is not None and by_key[key].status not in TAKEN:
                by_key[key] = loaded.model_copy(update={"key": key, "reason": f"tied to '{loaded.key}'"})
    return list(by_key.values())
