"""Globs over dotted names: what may have been meant by one that matches nothing."""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import did_you_mean


def near_glob(pattern: str, names: Iterable[str]) -> str:
    """` Did you mean 'fc.*'?`: a module's glob for a pattern or a module's name, a name for a name; else what there is."""
    names = list(names)
    if not any(sign in pattern for sign in "*?[:"):
        below = any(name.startswith(f"{pattern}.") for name in names)
        return f" Did you mean '{pattern}.*'?" if below else did_you_mean(pattern, names)
    parts = [name.split(".") for name in names]
    depth = max((len(each) for each in parts), default=0)
    globs = dict.fromkeys(".".join(each[:level]) + ".*" for level in range(1, depth) for each in parts if len(each) > level)
    return did_you_mean(pattern, globs)
