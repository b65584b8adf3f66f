"""The names of a source's tensors, brought to the model's: what wrappers add, the rules of the spec, and one common prefix.

In this order: wrappers' segments are taken out; `select`, `rename` and `drop` work on what the file then says; where a prefix
keeps most of the names apart, it is found and added or removed; or, where the spec asks for it, names are brought together by
their ends. Each thing that was done is a step of the report.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from core.errors import Fault, SpecError, pointer_of
from core.events import TransferStep
from core.globs import near_glob
from core.spec import PretrainedSpec
from core.transfer.statefiles import POINTER, Entry, is_average

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into names."""
_SHOWN = 5
_REMOVE = 'say which part of the source is meant: "select": "{}"'
_ADD = 'say which part of the model is meant: "rename": [["^", "{}."]]'
_AVERAGED = "n_averaged"
"""Of how many models it is the mean: what `torch.optim.swa_utils.AveragedModel` counts beside its `module`."""
COUNTER = "num_batches_tracked"
"""The one buffer of a norm that says nothing of what it learned."""


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
class _Work:
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
        ends = () if self.asked_for else (name for name in self.left.values() if name.rpartition(".")[2] == _AVERAGED)
        return tuple(f"{name.removesuffix(_AVERAGED)}module." for name in ends)

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


def rename(entries: Mapping[str, Entry], spec: PretrainedSpec, targets: Mapping[str, Entry]) -> Names:
    """What the names of `entries`, the source's, become; `targets` are the model's.

    Raises SpecError at each rule that cannot be read or that has no effect, where two keys come to one name, and where
    two prefixes, or two ends, fit equally well.
    """
    asked_for = any(name is not None and is_average(name) for name in (spec.container, spec.select))
    work = _Work({key: key for key in entries}, asked_for)
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
        _match_suffixes(work, targets)
    else:
        _match_prefix(work, entries, targets)
    _check_averages(by_rules, averages, work.left, targets, "/pretrained/suffix_match" if spec.suffix_match else POINTER)
    return Names(work.names, work.dropped, {name: key for key, name in work.left.items()}, tuple(work.steps))


def listed(names: Iterable[str]) -> str:
    """The first few of them."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return (", ".join(every[:_SHOWN]) or "none") + more


def elements(shape: Iterable[int]) -> int:
    """How many numbers a tensor of this shape holds."""
    return math.prod(shape)


def _unwrap(work: _Work, targets: Iterable[str]) -> None:
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


def _select(work: _Work, select: str) -> None:
    prefix = select.removesuffix(".") + "."
    below = {key: name.removeprefix(prefix) for key, name in work.names.items() if name.startswith(prefix)}
    if not below:
        tops = dict.fromkeys(name.partition(".")[0] for name in work.names.values())
        work.faults.append(Fault("/pretrained/select", f"nothing in the source lies below '{prefix}'; there are {listed(tops)}"))
        return
    rest = [key for key in work.names if key not in below]
    work.drop("select", prefix, rest, f"not below '{prefix}', which /pretrained/select takes alone")
    work.names.update(below)


def _substitute(work: _Work, pattern: str, replacement: str, index: int) -> None:
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


def _drop(work: _Work, glob: str, index: int) -> None:
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


def _check_distinct(work: _Work, spec: PretrainedSpec) -> None:
    """No two keys may have come to one name."""
    source_of: dict[str, str] = {}
    for key, name in work.left.items():
        if source_of.setdefault(name, key) != key:
            pointer = "/pretrained/rename" if spec.rename else POINTER
            raise SpecError.at(pointer, f"'{source_of[name]}' and '{key}' of the source both become '{name}'; drop one of them")


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


def _match_prefix(work: _Work, entries: Mapping[str, Entry], targets: Mapping[str, Entry]) -> None:
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
        _check_named(best.text, POINTER)
    names = {key: best.of(name) for key, name in work.left.items()}
    if len(set(names.values())) == len(names):
        work.step("prefix", str(best), names)


def _check_averages(
    by_rules: Mapping[str, str], averages: Iterable[str], left: Mapping[str, str], targets: Mapping[str, Entry], pointer: str
) -> None:
    """No tensor of an AveragedModel may fit unless the rules took it out of there. Raises SpecError at `pointer`.

    Its `module` may be what the model calls a part of itself, too. A model that has the count itself holds an average.
    """
    key_of = {name: key for key, name in by_rules.items()}
    for average in averages:
        counter = left[key_of[average.removesuffix("module.") + _AVERAGED]]
        if counter not in targets and any(name.startswith(average) and left[key] in targets for key, name in by_rules.items()):
            raise _refused_average(average, pointer, f"the {_AVERAGED} beside it")


def _check_named(prefix: str, pointer: str) -> None:
    """A prefix that comes off by itself may not name an average. Raises SpecError at `pointer`."""
    if is_average(prefix):
        raise _refused_average(prefix, pointer, "its name")


def _refused_average(prefix: str, pointer: str, sign: str) -> SpecError:
    """Nobody's average is taken because it fits: what leads to it has to be said."""
    rule = json.dumps([f"^{re.escape(prefix)}", ""])
    return SpecError.at(
        pointer,
        f"what would fit lies below '{prefix}', by {sign} an average, which is taken only if asked for: "
        f'by "select": "{prefix.removesuffix(".")}", or add to \'rename\' {rule}',
    )


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


def _match_suffixes(work: _Work, targets: Iterable[str]) -> None:
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
            _check_named(source.removesuffix(target), "/pretrained/suffix_match")
            found[source] = target
    if not found:
        raise SpecError.at(
            "/pretrained/suffix_match", f"no name is the end of another: {listed(there)} in the source, {listed(here)} here"
        )
    work.step("suffix", "names that end alike", {of_source[source]: target for source, target in found.items()})


def _cuts(name: str) -> list[tuple[str, str]]:
    """Each way to take leading segments off a name: (prefix with its dot, rest)."""
    return [(name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name)]
