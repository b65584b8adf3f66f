"""Hundreds of dotted names as the few patterns that a person reads: `layer1.0-2.conv1-3.*`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

_NUMBER = re.compile(r"\d+")
Numbers = tuple[int, ...]


class Kind(NamedTuple):
    """Names that are alike: a pattern for them, what is said of each, and how many names they are."""

    pattern: str
    said: str
    names: int


def collapse(said: Mapping[str, str], every: Collection[str]) -> list[Kind]:
    """`said` of some names, as kinds in the order of their first names; `every` are all names, these among them.

    Only names of which the same is said become one: a module all of whose names are in it becomes `module.*`, and patterns
    that differ in nothing but numbers one, with the numbers that there are (`0-2`, `0,3-5`); then those that differ in nothing
    but the last word (`bn1.{weight,bias}`). A pattern stands for exactly its names: where not every combination of numbers is
    there, there are more patterns.
    """
    alike: dict[tuple[str, str], dict[tuple[int, ...], tuple[str, int]]] = {}
    for (pattern, what), names in _whole_modules(said, every).items():
        numbers = tuple(map(int, _NUMBER.findall(pattern)))
        alike.setdefault((_NUMBER.sub("#", pattern), what), {})[numbers] = pattern, names
    kinds = [
        Kind(_filled(found[rows[0]][0], columns), what, sum(found[row][1] for row in rows))
        for (_, what), found in alike.items()
        for columns, rows in _grids(list(found))
    ]
    return _joined(kinds)


def _whole_modules(said: Mapping[str, str], every: Collection[str]) -> dict[tuple[str, str], int]:
    """Each name by the outermost module of which the same is said throughout (`module.*`), else by itself; and how many."""
    inside: dict[str, list[str | None]] = {}
    for name in every:
        for module in _modules_of(name):
            inside.setdefault(module, []).append(said.get(name))
    whole = {module for module, words in inside.items() if len(words) > 1 and len(set(words)) == 1}
    return Counter(
        (next((f"{module}.*" for module in _modules_of(name) if module in whole), name), what) for name, what in said.items()
    )


def _modules_of(name: str) -> Iterator[str]:
    """`a` and `a.b` of `a.b.c`: the outermost first."""
    return (name[: dot.start()] for dot in re.finditer(r"\.", name))


def _grids(rows: Sequence[Numbers]) -> Iterator[tuple[tuple[Numbers, ...], list[Numbers]]]:
    """Rows of numbers, all of one length, as grids: per column its numbers, and the rows that are all their combinations."""
    if not rows[0]:
        yield (), list(rows)
        return
    by_first: dict[int, list[Numbers]] = {}
    for row in rows:
        by_first.setdefault(row[0], []).append(row[1:])
    by_rest: dict[tuple[Numbers, ...], list[int]] = {}
    for first, rests in by_first.items():
        by_rest.setdefault(tuple(sorted(rests)), []).append(first)
    for others, firsts in by_rest.items():
        for columns, inner in _grids(others):
            yield (tuple(firsts), *columns), [(first, *row) for first in firsts for row in inner]


def _filled(pattern: str, columns: Iterable[Numbers]) -> str:
    """`pattern` with each column's numbers in place of its own."""
    shown = iter(columns)
    return _NUMBER.sub(lambda _: _runs(next(shown)), pattern)


def _joined(kinds: Iterable[Kind]) -> list[Kind]:
    """Kinds that differ in their last word alone as one."""
    alike: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        alike.setdefault((kind.pattern.rpartition(".")[0], kind.said), []).append(kind)
    joined = []
    for (module, what), found in alike.items():
        words = [kind.pattern.rpartition(".")[2] for kind in found]
        if module and len(words) > 1:
            joined.append(Kind(f"{module}.{{{','.join(words)}}}", what, sum(kind.names for kind in found)))
        else:
            joined += found
    return joined


def _runs(numbers: Iterable[int]) -> str:
    """`7`, `0-2`, `0,3-5`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
