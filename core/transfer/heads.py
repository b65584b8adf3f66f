"""The head, which tells classes apart: when it is loaded, when it starts anew, and which rows of it belong to which class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from core.errors import Fault, SpecError, did_you_mean, pointer_of
from core.spec import PretrainedSpec, Task
from core.transfer.adapters import Adaptation
from core.transfer.entries import Entry, misfit

NO_HEAD = "the model does not take num_classes, so its head is not known"
_POINTER = "/pretrained/head"
Pairs = Mapping[str, tuple[Entry, Entry | None]]
"""The head's keys: the model's entry, and the source's of that name if there is one."""


@dataclass(frozen=True)
class Head:
    """The part of a model whose shape depends on the number of classes: its state dict keys, and the modules they lie in."""

    keys: frozenset[str]
    modules: tuple[str, ...]


def why_anew(spec: PretrainedSpec, theirs: Iterable[str] | None, classes: tuple[str, ...], task: Task) -> str | None:
    """Why a head starts anew that would fit; None: it is loaded. `theirs` are the source's classes, `classes` the dataset's."""
    if spec.head == "reset":
        return "the head, which /pretrained/head says to start anew"
    if spec.head == "auto" and task == "regression":
        return "the head: its outputs are numbers, no classes to be known by; 'keep' in /pretrained/head would load it"
    if spec.head in ("keep", "rows") or (theirs is not None and tuple(theirs) == classes):
        return None
    if theirs is None:
        return "the head: its shape fits, but its classes need not be these; 'keep' in /pretrained/head would load it"
    return "the head: the source tells other classes apart"


def check_kept(pairs: Pairs) -> None:
    """A head that is to be kept must be there, and fit. Raises SpecError."""
    if not pairs:
        raise SpecError.at(_POINTER, f"'keep' has no effect: {NO_HEAD}")
    for key, (here, there) in pairs.items():
        if there is None or misfit(here, there):
            has = f"{list(there.shape)} in the source" if there is not None else "not in the source"
            raise SpecError.at(
                _POINTER, f"the head cannot be kept: '{key}' is {list(here.shape)} here, and {has}; use 'reset' or 'rows'"
            )


def rows_of(spec: PretrainedSpec, pairs: Pairs, theirs: Sequence[str] | None, classes: tuple[str, ...]) -> Rows | None:
    """What `rows` asks for. Raises SpecError where it cannot be had, and at keys that have no effect without it."""
    if spec.head != "rows":
        if spec.class_map:
            raise SpecError.at("/pretrained/class_map", f"it has no effect with head '{spec.head}'; set head to 'rows'")
        if spec.classes and spec.head != "auto":
            raise SpecError.at("/pretrained/classes", f"it has no effect with head '{spec.head}'; use 'auto' or 'rows'")
        return None
    if not pairs:
        raise SpecError.at(_POINTER, f"'rows' has no effect: {NO_HEAD}")
    both = [(here, there) for here, there in pairs.values() if there is not None and there.shape]
    if not both:
        raise SpecError.at(_POINTER, f"the source has no '{next(iter(pairs))}' to take rows from; rename its head to the model's")
    rows = match_rows(classes, theirs, spec.class_map, both[0][1].shape[0])
    if not any(head_rows(here, there, rows) for here, there in both):
        here, there = both[0]
        raise SpecError.at(
            _POINTER,
            f"the heads differ in more than classes: {list(there.shape)} in the source, {list(here.shape)} here; use 'reset'",
        )
    return rows


@dataclass(frozen=True)
class Rows:
    """Which row of the source's head each class of the dataset takes: `row_of[ours]`, for those that have one."""

    classes: tuple[str, ...]
    theirs: int
    row_of: Mapping[int, int]

    @property
    def reason(self) -> str:
        """How many rows come from where."""
        new = [name for number, name in enumerate(self.classes) if number not in self.row_of]
        rest = f"; anew: {', '.join(new[:5])}{' …' if len(new) > 5 else ''}" if new else ""
        return f"{len(self.row_of)} of {len(self.classes)} rows by the names of their classes{rest}"


def match_rows(classes: Sequence[str], theirs: Sequence[str] | None, class_map: Mapping[str, str | int], rows: int) -> Rows:
    """The rows of a head of `rows` classes that the dataset's `classes` take: by `class_map`, else by the same name.

    Names are compared without regard to case, and with `_` and `-` as spaces. Raises SpecError at /pretrained/class_map where
    it names what is not there, where a name means two rows, and at /pretrained/head where nothing fits.
    """
    if theirs is None and not all(isinstance(row, int) for row in class_map.values()):
        raise SpecError.at(
            "/pretrained/classes", "the source does not name its classes; list them here, or map to numbers of rows"
        )
    if theirs is None and not class_map:
        raise SpecError.at(
            "/pretrained/head",
            "'rows' needs the source's classes: list them in /pretrained/classes, or use /pretrained/class_map",
        )
    if theirs is not None and len(theirs) != rows:
        raise SpecError.at("/pretrained/classes", f"there are {len(theirs)} classes, but the source's head has {rows} rows")
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(theirs or ()):
        numbers.setdefault(_folded(name), []).append(number)
    faults = list(_map_faults(classes, theirs or (), numbers, class_map, rows))
    row_of: dict[int, int] = {}
    for ours, name in enumerate(classes):
        wish = class_map.get(name, name)
        found = [wish] if isinstance(wish, int) else numbers.get(_folded(wish), [])
        if len(found) > 1:
            faults.append(
                Fault(
                    "/pretrained/class_map",
                    f"'{wish}' names rows {found[0]} and {found[1]} of the source; map '{name}' to one by its number",
                )
            )
        elif found:
            row_of[ours] = found[0]
    if faults:
        raise SpecError(*faults)
    if not row_of:
        raise SpecError.at(
            "/pretrained/head",
            f"no class of the dataset ({', '.join(classes[:5])}) is one of the source's ({', '.join((theirs or ())[:5])}); "
            "map some in /pretrained/class_map, or use 'reset'",
        )
    return Rows(tuple(classes), rows, row_of)


def head_rows(here: Entry, there: Entry, rows: Rows) -> Adaptation | None:
    """The rows of a head's tensor that belong to classes of both sides; the others stay as the model began."""
    sides = [
        side for side, (ours, theirs) in enumerate(zip(here.shape, there.shape, strict=False))
        if (ours, theirs) == (len(rows.classes), rows.theirs)
    ]  # fmt: skip
    if len(here.shape) != len(there.shape) or not sides:
        return None
    side = sides[0]
    if here.shape[:side] + here.shape[side + 1 :] != there.shape[:side] + there.shape[side + 1 :]:
        return None
    ours, theirs = torch.tensor(list(rows.row_of)), torch.tensor(list(rows.row_of.values()))
    return Adaptation(
        "head_rows", rows.reason, lambda source, own: own.index_copy(side, ours, source.index_select(side, theirs).to(own.dtype))
    )


def _map_faults(
    classes: Sequence[str], theirs: Sequence[str], numbers: Mapping[str, list[int]], class_map: Mapping[str, str | int], rows: int
) -> Iterator[Fault]:
    for ours, wish in class_map.items():
        pointer = pointer_of("pretrained", "class_map", ours)
        if ours not in classes:
            yield Fault(pointer, f"the dataset has no class '{ours}'.{did_you_mean(ours, classes)}")
        if isinstance(wish, int):
            if wish >= rows:
                yield Fault(pointer, f"the source's head has {rows} rows, numbered from 0; there is no row {wish}")
        elif _folded(wish) not in numbers:
            yield Fault(pointer, f"the source has no class '{wish}'.{did_you_mean(wish, theirs)}")


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
