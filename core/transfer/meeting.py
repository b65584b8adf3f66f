"""Bring the source's names to the model's where no rule does: by one prefix, or by the ends of names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.errors import SpecError, listed
from core.transfer.averages import check_named
from core.transfer.entries import COUNTER, POINTER, Entry, elements
from core.transfer.names import Work

_REMOVE = 'say which part of the source is meant: "select": "{}"'
_ADD = 'say which part of the model is meant: "rename": [["^", "{}."]]'


@dataclass(frozen=True)
class _Prefix:
    """A prefix to add to all names, or to remove from those that have it, and the elements that would then fit."""

    text: str
    add: bool
    fits: int

    def __str__(self) -> str:
        return f"{'+' if self.add else '-'}{self.text}"

    def of(self, name: str) -> str:
        return self.text + name if self.add else name.removeprefix(self.text)


def match_prefix(work: Work, entries: Mapping[str, Entry], targets: Mapping[str, Entry]) -> None:
    """Add or remove the one prefix by which the most elements fit: more than fit without it, and half of what could at all.

    Two that bring as much are two copies of the model, or two places for it: an error, and so is one that names an average.
    """
    shapes = {name: entries[key].shape for key, name in work.left.items() if not name.endswith(COUNTER)}
    fits = sum(elements(shape) for name, shape in shapes.items() if name in targets and targets[name].shape == shape)
    could = min(sum(map(elements, shapes.values())), sum(elements(entry.shape) for entry in targets.values()))
    if 2 * fits >= could:  # no prefix can bring twice as much
        return
    found = sorted(_prefixes(shapes, targets), key=lambda one: -one.fits)
    if not found or found[0].fits <= 2 * fits or 2 * found[0].fits < could:
        return
    best = found[0]
    equal = [one for one in found if one.fits == best.fits]
    if len(equal) > 1:
        raise SpecError.at(
            POINTER,
            f"two prefixes would bring the source's names to the model's, and as much fits by each: {equal[0]} and {equal[1]}; "
            + (_ADD if best.add else _REMOVE).format(best.text.removesuffix(".")),
        )
    if not best.add:
        check_named(best.text, POINTER)
    names = {key: best.of(name) for key, name in work.left.items()}
    if len(set(names.values())) == len(names):
        work.step("prefix", str(best), names)


def _prefixes(shapes: Mapping[str, tuple[int, ...]], targets: Mapping[str, Entry]) -> list[_Prefix]:
    """Each prefix that would make something fit, either way."""
    added: defaultdict[str, int] = defaultdict(int)
    removed: defaultdict[str, int] = defaultdict(int)
    for target, entry in targets.items():
        for prefix, rest in _cuts(target):
            if shapes.get(rest) == entry.shape:
                added[prefix] += elements(entry.shape)
    for name, shape in shapes.items():
        for prefix, rest in _cuts(name):
            if rest in targets and targets[rest].shape == shape:
                removed[prefix] += elements(shape)
    return [_Prefix(text, add, fits) for add, every in ((False, removed), (True, added)) for text, fits in every.items()]


def match_suffixes(work: Work, targets: Iterable[str]) -> None:
    """Bring together names of which one is the whole end of the other, the longest end first.

    As detectron2 does (`checkpoint/c2_model_loading.py`, `align_and_update_state_dicts`), but either side may be the longer
    one, and two that fit equally well are an error.
    """
    of_source = {name: key for key, name in work.left.items()}
    here = [target for target in targets if target not in of_source]
    there = [name for name in of_source if name not in set(targets)]
    found: dict[str, str] = {}
    ends: dict[str, tuple[list[str], list[str]]] = {}
    for shorter, longer, side in ((there, here, 0), (here, there, 1)):
        whole = set(shorter)
        for name in longer:
            for _, end in _cuts(name):
                if end in whole:
                    ends.setdefault(end, ([], []))[side].append(name)
    for end in sorted(ends, key=lambda end: -end.count(".")):
        for side, candidates in enumerate(ends[end]):
            taken = found.keys() if side else found.values()
            mine = end in (found.values() if side else found.keys())
            free = [name for name in candidates if name not in taken]
            if mine or not free:
                continue
            if len(free) > 1:
                where = "the source" if side else "the model"
                raise SpecError.at(
                    "/pretrained/suffix_match",
                    f"'{end}' is the end of '{free[0]}' and of '{free[1]}' in {where}; "
                    "rename or drop one, or leave suffix_match out",
                )
            source, target = (free[0], end) if side else (end, free[0])
            check_named(source.removesuffix(target), "/pretrained/suffix_match")
            found[source] = target
    if not found:
        raise SpecError.at(
            "/pretrained/suffix_match", f"no name is the end of another: {listed(there)} in the source, {listed(here)} here"
        )
    work.step("suffix", "names that end alike", {of_source[source]: target for source, target in found.items()})


def _cuts(name: str) -> list[tuple[str, str]]:
    """Each way to take leading segments off a name: (prefix with its dot, rest)."""
    return [(name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name)]
