"""The names of a source's tensors, brought to the model's: what wrappers add, the rules of the spec, and one common prefix.

In this order: wrappers' segments are taken out; `select`, `rename` and `drop` work on what the file then says; where a prefix
keeps most of the names apart, it is found and added or removed; or, where the spec asks for it, names are brought together by
their ends. Each thing that was done is a step of the report.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from core.errors import Fault, SpecError, listed, pointer_of
from core.globs import near_glob
from core.spec import PretrainedSpec
from core.transfer.averages import check_averages, is_average
from core.transfer.entries import POINTER, Entry
from core.transfer.meeting import match_prefix, match_suffixes
from core.transfer.names import Names, Work

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into names."""


def rename(entries: Mapping[str, Entry], spec: PretrainedSpec, targets: Mapping[str, Entry]) -> Names:
    """What the names of `entries`, the source's, become; `targets` are the model's.

    Raises SpecError at each rule that cannot be read or that has no effect, where two keys come to one name, and where
    two prefixes, or two ends, fit equally well.
    """
    asked_for = any(name is not None and is_average(name) for name in (spec.container, spec.select))
    work = Work({key: key for key in entries}, asked_for)
    _unwrap(work, targets)
    if spec.select is not None:
        _select(work, spec.select)
    for index, (pattern, replacement) in enumerate(spec.rename):
        _substitute(work, pattern, replacement, index)
    for index, glob in enumerate(spec.drop):
        _drop(work, glob, index)
    if work.faults:
        raise SpecError(*work.faults)
    _check_distinct(work, spec)
    by_rules = work.left
    averages = work.averages
    if spec.suffix_match:
        match_suffixes(work, targets)
    else:
        match_prefix(work, entries, targets)
    check_averages(by_rules, averages, work.left, targets, "/pretrained/suffix_match" if spec.suffix_match else POINTER)
    return Names(work.names, work.dropped, {name: key for key, name in work.left.items()}, tuple(work.steps))


def _unwrap(work: Work, targets: Iterable[str]) -> None:
    """Take out the segments that wrappers add, anywhere, unless the model itself has such a segment or it leads to an average."""
    own = {segment for target in targets for segment in target.split(".") if segment in _WRAPPERS}
    for wrapper in _WRAPPERS:
        wrapped = {key: name for key, name in work.names.items() if wrapper in name}
        if wrapped and wrapper not in own:
            averages = work.averages
            work.step("wrapper", wrapper, {key: _without(name, wrapper, averages) for key, name in wrapped.items()})


def _without(name: str, wrapper: str, averages: Iterable[str]) -> str:
    segments = name.split(".")
    kept = {average.count(".") - 1 for average in averages if name.startswith(average)}
    return ".".join(segment for place, segment in enumerate(segments) if segment != wrapper or place in kept) or name


def _select(work: Work, select: str) -> None:
    prefix = select.removesuffix(".") + "."
    below = {key: name.removeprefix(prefix) for key, name in work.names.items() if name.startswith(prefix)}
    if not below:
        tops = dict.fromkeys(name.partition(".")[0] for name in work.names.values())
        work.faults.append(Fault("/pretrained/select", f"nothing in the source lies below '{prefix}'; there are {listed(tops)}"))
        return
    rest = [key for key in work.names if key not in below]
    work.drop("select", prefix, rest, f"not below '{prefix}', which /pretrained/select takes alone")
    work.names.update(below)


def _substitute(work: Work, pattern: str, replacement: str, index: int) -> None:
    pointer = pointer_of("pretrained", "rename", index)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        work.faults.append(Fault(f"{pointer}/0", f"'{pattern}' is no regular expression: {error}"))
        return
    try:
        results = {key: expression.subn(replacement, name) for key, name in work.left.items()}
    except (re.error, IndexError) as error:
        work.faults.append(Fault(f"{pointer}/1", f"'{replacement}' is no replacement: {error}"))
        return
    if not any(count for _, count in results.values()):
        work.faults.append(Fault(pointer, f"'{pattern}' matches no source key, which are here {listed(work.left.values())}"))
    elif all(name == work.names[key] for key, (name, _) in results.items()):
        work.faults.append(Fault(pointer, f"'{pattern}' changes no name that it matches: it has no effect; leave it out"))
    work.step("rename", f"{pattern} -> {replacement}", {key: name for key, (name, _) in results.items()})


def _drop(work: Work, glob: str, index: int) -> None:
    hits = [key for key, name in work.names.items() if fnmatch.fnmatchcase(name, glob)]
    if not hits:
        pointer = pointer_of("pretrained", "drop", index)
        work.faults.append(Fault(pointer, f"'{glob}' matches no renamed key.{near_glob(glob, work.left.values())}"))
        return
    if all(key in work.dropped for key in hits):
        reasons = dict.fromkeys(work.dropped[key] for key in hits)
        pointer = pointer_of("pretrained", "drop", index)
        work.faults.append(Fault(pointer, f"all that '{glob}' matches is left out before, {listed(reasons)}: it has no effect"))
        return
    work.drop("drop", glob, hits, f"by the glob '{glob}'")


def _check_distinct(work: Work, spec: PretrainedSpec) -> None:
    """No two keys may have come to one name."""
    source_of: dict[str, str] = {}
    for key, name in work.left.items():
        if source_of.setdefault(name, key) != key:
            pointer = "/pretrained/rename" if spec.rename else POINTER
            raise SpecError.at(pointer, f"'{source_of[name]}' and '{key}' of the source both become '{name}'; drop one of them")
