"""Where in a spec a key belongs: what to say of one that stands in the wrong part. Read off the parts' own fields."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from core.errors import closest, did_you_mean, pointer_of
from core.spec.job import JobSpec
from core.spec.optimizer import OptimizerSpec

_MOST = 3
"""Places that are named; a key that more parts have (`name`) says nothing of where it was meant."""
_ALIKE = 0.8


def meant(key: str, known: Collection[str], here: str | None = None) -> str:
    """What was meant by `key` in a part that has only `known`: ` It belongs to /loader/batch_size.`, ` Did you mean 'x'?`.

    `here` is the pointer of a part that takes the keywords of a constructor: what others of its kind take is not sent back to it.
    """
    there = [pointer for pointer in homes().get(key, ()) if here is None or not _is_of(here, key, pointer)]
    if 0 < len(there) <= _MOST:
        return f" It belongs to {' or '.join(there)}."
    if key in homes() or closest(key, known):
        return did_you_mean(key, known)
    near = [pointer for one in closest(key, homes(), _ALIKE) for pointer in homes()[one]]
    return f" Did you mean {' or '.join(near)}?" if 0 < len(near) <= _MOST else did_you_mean(key, known)


def _is_of(here: str, key: str, pointer: str) -> bool:
    """Whether `pointer` leads back to `here`, or from a parameter group to its optimizer, of which it has the keywords."""
    part = pointer.removesuffix(pointer_of(key))
    return here == part or (key in OptimizerSpec.USUAL and here.startswith(f"{part}/"))


@cache
def homes() -> Mapping[str, tuple[str, ...]]:
    """Each key of a spec, and the pointers at which it may stand: of a list's items, in the first."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    seen: set[type[BaseModel]] = set()
    parts: list[tuple[type[BaseModel], tuple[str | int, ...]]] = [(JobSpec, ())]
    for part, path in parts:  # breadth first: a part that stands in several places is told at its shallowest
        if part in seen:
            continue
        seen.add(part)
        for key, field in part.model_fields.items():
            found[key].append(pointer_of(*path, key))
            parts += [(inner, (*path, key, *below)) for inner, below in _parts(field.annotation)]
        for key in OptimizerSpec.USUAL if part is OptimizerSpec else ():
            found[key].append(pointer_of(*path, key))
    return {key: tuple(there) for key, there in found.items()}


def _parts(annotation: Any) -> Iterator[tuple[type[BaseModel], tuple[int, ...]]]:
    """The parts inside an annotation, each with an index where it is an item of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ()
    below = (0,) if getattr(annotation, "__origin__", None) is list else ()
    for argument in getattr(annotation, "__args__", ()):
        yield from ((part, (*below, *rest)) for part, rest in _parts(argument))
