"""Globs that match some keys of a model and none of the others: what an error advises for `exclude`, tried before it is said."""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from glob import escape
from itertools import combinations_with_replacement, takewhile

_MOST = 4
"""Globs, or names, that a person would still copy."""


def exclude_of(keys: Collection[str], others: Iterable[str]) -> str:
    """`"exclude": ["layer4.*"]`: what takes out all of `keys`, and of `others` none; where that would be long, how it begins."""
    rest = set(others).difference(keys)
    globs = _globs(list(keys), rest)
    if len(globs) > _MOST:
        return f'"exclude": {json.dumps(globs[:1])[:-1]}, …]'
    return f'"exclude": {json.dumps(globs)}'


def _globs(keys: list[str], rest: Collection[str]) -> list[str]:
    """One glob; else one for the keys that end alike, or that begin alike; else the keys themselves."""
    if found := _glob(keys, rest):
        return [found]
    for end in (-1, 0):
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            groups[key.split(".")[end]].append(key)
        globs = [found for group in groups.values() if (found := _glob(group, rest))]
        if len(globs) == len(groups) <= _MOST:
            return globs
    return [escape(key) for key in keys]


def _glob(keys: list[str], rest: Collection[str]) -> str | None:
    """The shortest of the globs that match just these keys."""
    if len(keys) == 1:
        return escape(keys[0])
    for glob in sorted(set(_candidates(keys)), key=lambda one: (len(one), one)):
        if len(fnmatch.filter(keys, glob)) == len(keys) and not fnmatch.filter(rest, glob):
            return glob
    return None


def _candidates(keys: list[str]) -> Iterator[str]:
    """Segments of the first key with a star for what is before, between or behind them; then what all keys share by letters."""
    parts = [escape(part) for part in keys[0].split(".")]
    for start, stop in combinations_with_replacement(range(len(parts) + 1), 2):
        yield ".".join([*parts[:start], "*", *parts[stop:]])
        if start < stop:
            inner = ".".join(parts[start:stop])
            yield from (f"*.{inner}.*", f"{inner}.*", f"*.{inner}")
    rows = [key.split(".") for key in keys]
    if len({len(row) for row in rows}) == 1:
        yield ".".join(_shared(column) for column in zip(*rows, strict=True))
    yield _shared(keys)


def _shared(names: Iterable[str]) -> str:
    """What the names begin and end with, and a star for the rest of them."""
    first, *others = every = list(dict.fromkeys(names))
    if not others:
        return escape(first)
    start = _begin(every)
    end = _begin([name[len(start) :][::-1] for name in every])[::-1]
    return f"{escape(start)}*{escape(end)}"


def _begin(names: Iterable[str]) -> str:
    """The letters that all of them begin with."""
    columns = zip(*names, strict=False)
    return "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, columns))
