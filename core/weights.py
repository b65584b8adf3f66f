"""Graft pretrained weights on to a model: plan on shapes, report, then apply in one go.

Each entry of the model and each tensor of the source gets exactly one status. Nothing is touched before the plan is accepted,
and a transfer that fails leaves every tensor as it was.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from core.errors import Fault, SpecError, TransferError, pointer_of
from core.events import Count, ModuleCount, SourceEntry, SourceStatus, TargetEntry, TargetStatus, TransferData
from core.sources import Entry, Source, preprocessing_of, read
from core.spec import PretrainedSpec

if TYPE_CHECKING:
    from core.models import Head

__all__ = ["TransferPlan", "apply_transfer", "from_scratch", "plan_transfer", "preprocessing_of", "read"]

_WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names."""
_COUNTER = "num_batches_tracked"
_SHOWN = 5


@dataclass(frozen=True)
class TransferPlan:
    """What will be loaded: `pairs` maps the model's keys to the source's."""

    report: TransferData
    pairs: dict[str, str]


def plan_transfer(
    model: nn.Module, source: Source, spec: PretrainedSpec, head: Head, classes: tuple[str, ...] = ()
) -> TransferPlan:
    """Decide for each entry of both sides what becomes of it; needs shapes alone, so the model may be on the meta device.

    `classes` are the dataset's. Raises SpecError below /pretrained where a rule has no effect, where two tensors want one
    place, where the head cannot be kept as asked, or where too little would be loaded.
    """
    targets = _entries(model)
    names, dropped, moved = _renamed(source.entries, spec, targets)
    keep_head = _head_rule(spec, source, classes, head, targets, moved)
    entries = [_target(key, one, source, moved.get(key), head, keep_head) for key, one in targets.items()]
    entries = _with_ties(model, entries)
    pairs = {one.key: one.source_key for one in entries if one.status == "loaded" and one.source_key is not None}
    used = set(pairs.values())
    sources = [_source(key, one, names[key], dropped, used, targets, head, moved) for key, one in source.entries.items()]
    report = _report(source.name, entries, sources, head, source)
    _check_enough(report, head, spec)
    return TransferPlan(report, pairs)


def apply_transfer(model: nn.Module, source: Source, plan: TransferPlan) -> None:
    """Load what was planned. All or nothing: where it fails, every tensor of the model is bit for bit what it was.

    Raises TransferError where a tensor holds NaN or infinity, where tied entries were given different tensors, or where the
    model's own loading fails.
    """
    tensors = source.tensors()
    state = model.state_dict()
    for key, source_key in plan.pairs.items():
        value = tensors[source_key].to(state[key].dtype)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TransferError(f"'{source_key}' of {source.name} holds NaN or infinity")
        state[key] = value
    for first, *others in _tied(model):
        for other in others:
            if not torch.equal(state[first], state[other]):
                raise TransferError(
                    f"'{first}' and '{other}' are one tensor in the model, but {source.name} has two different ones for them"
                )
    before = {key: value.clone() for key, value in model.state_dict().items() if key in plan.pairs}
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:  # a model's own hooks may raise anything
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if key in before:
                    value.copy_(before[key])
        raise TransferError(f"the model refused the weights while loading them: {error}") from error


def from_scratch(model: nn.Module, head: Head) -> TransferData:
    """The report of a job without pretrained weights: every entry is missing."""
    reason = "no pretrained weights were named"
    entries = [
        TargetEntry(key=key, status="missing", shape=list(one.shape), reason=reason) for key, one in _entries(model).items()
    ]
    return _report(None, entries, [], head, None)


def _entries(model: nn.Module) -> dict[str, Entry]:
    """The state dict's tensors, by shape and dtype (a module's extra state need not be a tensor, and is never transferred)."""
    state = model.state_dict()
    return {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items() if isinstance(value, Tensor)}


def _renamed(
    sources: Mapping[str, Entry], spec: PretrainedSpec, targets: Mapping[str, Entry]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(name of each source key after the rules, those that were dropped with the glob, and the source key of each new name)."""
    faults: list[Fault] = []
    names = {key: _unwrapped(key, targets) for key in sources}
    for index, (pattern, replacement) in enumerate(spec.rename):
        names = _substituted(names, pattern, replacement, index, faults)
    dropped: dict[str, str] = {}
    for index, glob in enumerate(spec.drop):
        hits = [key for key, name in names.items() if fnmatch.fnmatchcase(name, glob)]
        if not hits:
            faults.append(
                Fault(pointer_of("pretrained", "drop", index), f"'{glob}' matches no renamed key; {_some(names.values())}")
            )
        for key in hits:
            dropped.setdefault(key, glob)
    moved: dict[str, str] = {}
    for key, name in names.items():
        if key in dropped:
            continue
        if name in moved:
            pointer = "/pretrained/rename" if spec.rename else "/pretrained/source"
            faults.append(Fault(pointer, f"'{moved[name]}' and '{key}' of the source both become '{name}'; drop or rename one"))
            break
        moved[name] = key
    if faults:
        raise SpecError(*faults)
    return names, dropped, moved


def _substituted(names: dict[str, str], pattern: str, replacement: str, index: int, faults: list[Fault]) -> dict[str, str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        faults.append(Fault(pointer_of("pretrained", "rename", index, 0), f"'{pattern}' is no regular expression: {error}"))
        return names
    try:
        results = {key: expression.subn(replacement, name) for key, name in names.items()}
    except (re.error, IndexError) as error:
        faults.append(Fault(pointer_of("pretrained", "rename", index, 1), f"'{replacement}' is no replacement: {error}"))
        return names
    if not any(count for _, count in results.values()):
        pointer = pointer_of("pretrained", "rename", index)
        faults.append(Fault(pointer, f"'{pattern}' matches no source key (after the rules before it); {_some(names.values())}"))
    return {key: name for key, (name, _) in results.items()}


def _unwrapped(key: str, targets: Mapping[str, Entry]) -> str:
    """`key` without the segments that wrappers add, anywhere, unless the model itself has such a segment."""
    if not any(wrapper in key for wrapper in _WRAPPERS):
        return key
    own = {segment for target in targets for segment in target.split(".") if segment in _WRAPPERS}
    return ".".join(segment for segment in key.split(".") if segment not in _WRAPPERS or segment in own)


def _head_rule(
    spec: PretrainedSpec,
    source: Source,
    classes: tuple[str, ...],
    head: Head,
    targets: Mapping[str, Entry],
    moved: Mapping[str, str],
) -> str | None:
    """None where the head is to be loaded, else the reason why it starts anew."""
    if spec.head == "reset":
        return "the head, which /pretrained/head says to start anew"
    if spec.head == "keep":
        for key in sorted(head.keys):
            found = source.entries[moved[key]].shape if key in moved else None
            if found != targets[key].shape:
                has = f"the source has {list(found)}" if found else "the source has none"
                raise SpecError.at(
                    "/pretrained/head", f"the head cannot be kept: '{key}' is {list(targets[key].shape)} here, {has}; use 'reset'"
                )
        return None
    if source.classes is None:
        return "the head: it starts anew, because the source's classes need not be these; /pretrained/head 'keep' loads it"
    if source.classes != classes:
        return "the head: it starts anew, because the source tells other classes apart"
    return None


def _target(key: str, one: Entry, source: Source, source_key: str | None, head: Head, head_reason: str | None) -> TargetEntry:
    shape = list(one.shape)
    in_head = key in head.keys
    if source_key is None:
        reason = "not in the source" + ("; the head starts anew" if in_head else "")
        if key.rpartition(".")[2] == _COUNTER:
            reason = "not in the source; a counter that only norms without momentum use"
        return TargetEntry(key=key, status="missing", shape=shape, reason=reason)
    found = source.entries[source_key]
    reason = _unfit(one, found, in_head, head_reason)
    cast = f"{_name(found.dtype)} -> {_name(one.dtype)}" if found.dtype != one.dtype and not reason else None
    return TargetEntry(
        key=key,
        status="reinit" if reason else "loaded",
        shape=shape,
        source_key=source_key,
        source_shape=list(found.shape),
        reason=reason,
        cast=cast,
    )


def _unfit(one: Entry, found: Entry, in_head: bool, head_reason: str | None) -> str | None:
    """Why the source's tensor is not loaded, if it is not."""
    if found.shape != one.shape:
        differ = f"shape {list(found.shape)} in the source, {list(one.shape)} here"
        return f"the head: {differ}, for another number of classes" if in_head else differ
    if in_head and head_reason is not None:
        return head_reason
    if found.dtype is None or one.dtype is None or found.dtype.is_floating_point != one.dtype.is_floating_point:
        return f"{_name(found.dtype)} in the source, {_name(one.dtype)} here"
    return None


def _with_ties(model: nn.Module, entries: list[TargetEntry]) -> list[TargetEntry]:
    """Where one name of a tied tensor is loaded, its other names are too: it is one tensor."""
    by_key = {one.key: one for one in entries}
    for tie in _tied(model):
        loaded = next((by_key[key] for key in tie if by_key[key].status == "loaded"), None)
        for key in tie:
            if loaded is not None and by_key[key].status != "loaded":
                by_key[key] = loaded.model_copy(update={"key": key, "reason": f"tied to '{loaded.key}'"})
    return list(by_key.values())


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each tensor that has more than one."""
    by_tensor: defaultdict[int, list[str]] = defaultdict(list)
    for key, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            by_tensor[id(value)].append(key)
    return [keys for keys in by_tensor.values() if len(keys) > 1]


def _source(
    key: str,
    one: Entry,
    name: str,
    dropped: Mapping[str, str],
    used: set[str],
    targets: Mapping[str, Entry],
    head: Head,
    moved: Mapping[str, str],
) -> SourceEntry:
    entry = SourceEntry(key=key, status="used", shape=list(one.shape), renamed=name if name != key else None)
    if key in used:
        return entry
    if key in dropped:
        return entry.model_copy(update={"status": "dropped", "reason": f"by the glob '{dropped[key]}'"})
    if name in targets and moved.get(name) == key:
        reason = "the head, which starts anew" if name in head.keys else "it does not fit the entry of that name"
        return entry.model_copy(update={"status": "dropped", "reason": reason})
    reason = "the model has no entry of that name"
    if any(name.startswith(f"{module}.") for module in head.modules):
        reason = f"the head: {reason}"
    return entry.model_copy(update={"status": "unexpected", "reason": reason})


def _report(
    name: str | None, targets: list[TargetEntry], sources: list[SourceEntry], head: Head, source: Source | None
) -> TransferData:
    body = [one for one in targets if one.key not in head.keys]
    total = sum(map(_elements, body))
    loaded = sum(_elements(one) for one in body if one.status == "loaded")
    modules: dict[str, ModuleCount] = {}
    for one in targets:
        module = one.key.partition(".")[0]
        row = modules.setdefault(module, ModuleCount(module=module, loaded=Count(), total=Count()))
        for count in (row.total, row.loaded) if one.status == "loaded" else (row.total,):
            count.tensors += 1
            count.elements += _elements(one)
    return TransferData(
        source=name,
        format=source.format if source else None,
        sha256=source.sha256 if source else None,
        head=list(head.modules),
        loaded_share=loaded / total if total else float(any(one.status == "loaded" for one in targets)),
        totals={status: _count(one for one in targets if one.status == status) for status in get_args(TargetStatus)},
        source_totals={status: _count(one for one in sources if one.status == status) for status in get_args(SourceStatus)},
        modules=list(modules.values()),
        targets=targets,
        sources=sources,
    )


def _count(entries: Iterable[TargetEntry | SourceEntry]) -> Count:
    sizes = [_elements(one) for one in entries]
    return Count(tensors=len(sizes), elements=sum(sizes))


def _elements(entry: TargetEntry | SourceEntry) -> int:
    return torch.Size(entry.shape).numel()


def _check_enough(report: TransferData, head: Head, spec: PretrainedSpec) -> None:
    """Zero loaded is an error whatever `min_loaded` says; that is how a wrong prefix shows."""
    loaded = [one for one in report.targets if one.status == "loaded" and not one.key.endswith(_COUNTER)]
    if loaded and report.loaded_share >= spec.min_loaded:
        return
    here = [one.key for one in report.targets if one.status != "loaded" and one.key not in head.keys]
    there = [one.renamed or one.key for one in report.sources if one.status != "used"]
    left = f"left out here: {_listed(here)}; left out in the source: {_listed(there)}.{_advice(here, there)}"
    if not loaded:
        raise SpecError.at("/pretrained/source", f"nothing would be loaded; {left}")
    share = f"{report.loaded_share:.2f}"
    raise SpecError.at(
        "/pretrained/min_loaded",
        f"only {share} of the elements outside the head would be loaded, less than {spec.min_loaded:g}; {left}",
    )


def _advice(here: list[str], there: list[str]) -> str:
    """The rename rule that would help, where a prefix is all that is wrong."""
    wanted = set(here)
    prefixes: Counter[tuple[str, str]] = Counter()
    for name in there:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            head, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
            if rest in wanted:
                prefixes["^" + re.escape(head) + "\\.", ""] += 1
    suffixes = set(there)
    for name in here:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in suffixes:
                prefixes["^", ".".join(parts[:cut]) + "."] += 1
    if not prefixes:
        return " Add rename rules that map the second on to the first."
    (pattern, replacement), count = prefixes.most_common(1)[0]
    return f' The rename rule ["{pattern}", "{replacement}"] would fit {count} more.'.replace("\\", "\\\\")


def _some(names: Iterable[str]) -> str:
    return f"keys there: {_listed(list(names))}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype is not None else "an unknown type"
