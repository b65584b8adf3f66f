"""The names of a source's tensors, brought to the model's by the rules of the spec."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from core.errors import Fault, SpecError, pointer_of
from core.spec import PretrainedSpec

_WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names."""
_SHOWN = 5


@dataclass(frozen=True)
class Names:
    """What the rules made of the source's keys."""

    renamed: Mapping[str, str]
    """Each source key's name after the rules."""
    dropped: Mapping[str, str]
    """The source keys that are not loaded, and the glob that says so."""
    source_of: Mapping[str, str]
    """The source key behind each name that is left."""


def rename(keys: Iterable[str], spec: PretrainedSpec, targets: Collection[str]) -> Names:
    """Strip wrappers, apply `rename` in order and then `drop`, as `spec` has them; `targets` are the model's keys.

    Raises SpecError at each rule that cannot be read or that matches nothing, and where two keys come to one name.
    """
    faults: list[Fault] = []
    names = {key: _unwrapped(key, targets) for key in keys}
    for index, (pattern, replacement) in enumerate(spec.rename):
        names = _substituted(names, pattern, replacement, index, faults)
    dropped: dict[str, str] = {}
    for index, glob in enumerate(spec.drop):
        hits = [key for key, name in names.items() if fnmatch.fnmatchcase(name, glob)]
        if not hits:
            pointer = pointer_of("pretrained", "drop", index)
            faults.append(Fault(pointer, f"'{glob}' matches no renamed key; there are {listed(names.values())}"))
        for key in hits:
            dropped.setdefault(key, glob)
    source_of: dict[str, str] = {}
    for key, name in names.items():
        if key not in dropped and source_of.setdefault(name, key) != key:
            pointer = "/pretrained/rename" if spec.rename else "/pretrained/source"
            faults.append(Fault(pointer, f"'{source_of[name]}' and '{key}' of the source both become '{name}'; drop one of them"))
            break
    if faults:
        raise SpecError(*faults)
    return Names(names, dropped, source_of)


def advice(here: Collection[str], there: Collection[str]) -> str:
    """The rename rule that would help, where a prefix is all that keeps names of the source from names of the model."""
    rules: Counter[tuple[str, str]] = Counter()
    for longer, shorter, more_there in ((there, set(here), True), (here, set(there), False)):
        for name in longer:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                if ".".join(parts[cut:]) in shorter:
                    prefix = ".".join(parts[:cut]) + "."
                    rules["^" + re.escape(prefix) if more_there else "^", "" if more_there else prefix] += 1
    if not rules:
        return "rename rules can map the second on to the first"
    (pattern, replacement), count = rules.most_common(1)[0]
    quoted = pattern.replace("\\", "\\\\")
    return f'the rename rule ["{quoted}", "{replacement}"] would bring {count} of them together'


def listed(names: Iterable[str]) -> str:
    """The first few of them."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return (", ".join(every[:_SHOWN]) or "none") + more


def _substituted(names: dict[str, str], pattern: str, replacement: str, index: int, faults: list[Fault]) -> dict[str, str]:
    pointer = pointer_of("pretrained", "rename", index)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        faults.append(Fault(f"{pointer}/0", f"'{pattern}' is no regular expression: {error}"))
        return names
    try:
        results = {key: expression.subn(replacement, name) for key, name in names.items()}
    except (re.error, IndexError) as error:
        faults.append(Fault(f"{pointer}/1", f"'{replacement}' is no replacement: {error}"))
        return names
    if not any(count for _, count in results.values()):
        faults.append(Fault(pointer, f"'{pattern}' matches no source key, which are here {listed(names.values())}"))
    return {key: name for key, (name, _) in results.items()}


def _unwrapped(key: str, targets: Collection[str]) -> str:
    """`key` without the segments that wrappers add, anywhere, unless the model itself has such a segment."""
    if not any(wrapper in key for wrapper in _WRAPPERS):
        return key
    own = {segment for target in targets for segment in target.split(".") if segment in _WRAPPERS}
    return ".".join(segment for segment in key.split(".") if segment not in _WRAPPERS or segment in own)
