"""Graft pretrained weights on to a model: plan on shapes, report, then apply in one go.

Each entry of the model and each tensor of the source gets exactly one status. Nothing is touched before the plan is accepted,
and a transfer that fails leaves every tensor as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from core.errors import SpecError, TransferError
from core.events import Count, ModuleCount, SourceEntry, SourceStatus, TargetEntry, TargetStatus, TransferData
from core.renaming import Names, advice, listed, rename
from core.sources import Entry, Source, preprocessing_of, read
from core.spec import PretrainedSpec

if TYPE_CHECKING:
    from core.models import Head

__all__ = ["TransferPlan", "apply_transfer", "from_scratch", "listed", "plan_transfer", "preprocessing_of", "read"]

_COUNTER = "num_batches_tracked"


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
    names = rename(source.entries, spec, targets)
    if spec.head == "keep":
        _check_kept(head, targets, source, names)
    match = _Match(targets, source, names, head, _why_head_anew(spec, source, classes))
    entries = _with_ties(model, [match.target(key) for key in targets])
    pairs = {one.key: one.source_key for one in entries if one.status == "loaded" and one.source_key is not None}
    used = set(pairs.values())
    report = _report(source, entries, [match.source_entry(key, used) for key in source.entries], head)
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
        state[key] = tensors[source_key].to(state[key].dtype)
        if state[key].is_floating_point() and not bool(torch.isfinite(state[key]).all()):
            raise TransferError(f"'{source_key}' of {source.name} holds NaN or infinity as {_name(state[key].dtype)}")
    for first, *others in _tied(model):
        for other in others:
            if not torch.equal(state[first], state[other]):
                raise TransferError(
                    f"'{first}' and '{other}' are one tensor here, but {source.name} has two that differ for them"
                )
    before = {key: model.state_dict()[key].clone() for key in plan.pairs}
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:  # a model's own hooks may raise anything
        now = model.state_dict()
        with torch.no_grad():
            for key, value in before.items():
                now[key].copy_(value)
        raise TransferError(f"the model refused the weights while loading them: {error}") from error


def from_scratch(model: nn.Module, head: Head) -> TransferData:
    """The report of a job without pretrained weights: every entry is missing."""
    reason = "no pretrained weights are named"
    entries = [
        TargetEntry(key=key, status="missing", shape=list(one.shape), reason=reason) for key, one in _entries(model).items()
    ]
    return _report(None, entries, [], head)


@dataclass(frozen=True)
class _Match:
    """Two sides, and what was decided about names and the head."""

    targets: Mapping[str, Entry]
    source: Source
    names: Names
    head: Head
    head_anew: str | None
    """Why the head starts anew even where it fits; None: it is loaded."""

    def target(self, key: str) -> TargetEntry:
        """What becomes of an entry of the model."""
        here = self.targets[key]
        source_key = self.names.source_of.get(key)
        if source_key is None:
            reason = "not in the source" + ("; the head starts anew" if key in self.head.keys else "")
            if key.endswith(_COUNTER):
                reason = "not in the source; it counts batches, and only norms without momentum use it"
            return TargetEntry(key=key, status="missing", shape=list(here.shape), reason=reason)
        there = self.source.entries[source_key]
        unfit = self._unfit(key, here, there)
        return TargetEntry(
            key=key,
            status="reinit" if unfit else "loaded",
            shape=list(here.shape),
            source_key=source_key,
            source_shape=list(there.shape),
            reason=unfit,
            cast=f"{_name(there.dtype)} -> {_name(here.dtype)}" if not unfit and there.dtype != here.dtype else None,
        )

    def _unfit(self, key: str, here: Entry, there: Entry) -> str | None:
        """Why the source's tensor is not loaded, where it is not."""
        if there.shape != here.shape:
            differ = f"shape {list(there.shape)} in the source, {list(here.shape)} here"
            return f"the head: {differ}, for another number of classes" if key in self.head.keys else differ
        if key in self.head.keys and self.head_anew is not None:
            return self.head_anew
        if there.dtype is None or here.dtype is None or there.dtype.is_floating_point != here.dtype.is_floating_point:
            return f"{_name(there.dtype)} in the source, {_name(here.dtype)} here"
        return None

    def source_entry(self, key: str, used: set[str]) -> SourceEntry:
        """What becomes of a tensor of the source."""
        name = self.names.renamed[key]
        in_head = name in self.head.keys or any(name.startswith(f"{module}.") for module in self.head.modules)
        status: SourceStatus = "used"
        reason = None
        if key in self.names.dropped:
            status, reason = "dropped", f"by the glob '{self.names.dropped[key]}'"
        elif key not in used and name in self.targets:
            status, reason = "dropped", "the head, which starts anew" if in_head else "it does not fit the model's entry"
        elif key not in used:
            status, reason = "unexpected", ("the head: " if in_head else "") + "the model has no entry of that name"
        shape = list(self.source.entries[key].shape)
        return SourceEntry(key=key, status=status, shape=shape, renamed=name if name != key else None, reason=reason)


def _why_head_anew(spec: PretrainedSpec, source: Source, classes: tuple[str, ...]) -> str | None:
    if spec.head == "reset":
        return "the head, which /pretrained/head says to start anew"
    if spec.head == "keep" or source.classes == classes:
        return None
    if source.classes is None:
        return "the head: its shape fits, but its classes need not be these; 'keep' in /pretrained/head would load it"
    return "the head: the source tells other classes apart"


def _check_kept(head: Head, targets: Mapping[str, Entry], source: Source, names: Names) -> None:
    if not head.keys:
        raise SpecError.at(
            "/pretrained/head", "'keep' has no effect: the model does not take num_classes, so it has no known head"
        )
    for key in targets:
        if key not in head.keys:
            continue
        there = source.entries[names.source_of[key]].shape if key in names.source_of else None
        if there != targets[key].shape:
            has = f"{list(there)} in the source" if there is not None else "not in the source"
            raise SpecError.at(
                "/pretrained/head", f"the head cannot be kept: '{key}' is {list(targets[key].shape)} here, and {has}; use 'reset'"
            )


def _check_enough(report: TransferData, head: Head, spec: PretrainedSpec) -> None:
    """Zero loaded is an error whatever `min_loaded` says: that is how a wrong prefix shows."""
    loaded = [one for one in report.targets if one.status == "loaded" and not one.key.endswith(_COUNTER)]
    if loaded and report.loaded_share >= spec.min_loaded:
        return
    here = [one.key for one in report.targets if one.status != "loaded" and one.key not in head.keys]
    there = [one.renamed or one.key for one in report.sources if one.status != "used"]
    left = f"left out here: {listed(here)}; left out of the source: {listed(there)}; {advice(here, there)}"
    if not loaded:
        raise SpecError.at("/pretrained/source", f"nothing would be loaded; {left}")
    raise SpecError.at(
        "/pretrained/min_loaded",
        f"only {report.loaded_share:.3g} of the elements outside the head would be loaded, less than {spec.min_loaded:g}; {left}",
    )


def _entries(model: nn.Module) -> dict[str, Entry]:
    """The state dict's tensors (a module's extra state need not be one, and is never transferred)."""
    state = model.state_dict()
    return {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items() if isinstance(value, Tensor)}


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
    names: defaultdict[int, list[str]] = defaultdict(list)
    for key, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            names[id(value)].append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _report(source: Source | None, targets: list[TargetEntry], sources: list[SourceEntry], head: Head) -> TransferData:
    body = [one for one in targets if one.key not in head.keys]
    total = _count(body).elements
    loaded = _count(one for one in body if one.status == "loaded").elements
    modules: dict[str, list[TargetEntry]] = {}
    for one in targets:
        modules.setdefault(one.key.partition(".")[0], []).append(one)
    return TransferData(
        source=source.name if source else None,
        format=source.format if source else None,
        sha256=source.sha256 if source else None,
        head=list(head.modules),
        loaded_share=loaded / total if total else 1.0,
        totals={status: _count(one for one in targets if one.status == status) for status in get_args(TargetStatus)},
        source_totals={status: _count(one for one in sources if one.status == status) for status in get_args(SourceStatus)},
        modules=[
            ModuleCount(module=module, loaded=_count(one for one in every if one.status == "loaded"), total=_count(every))
            for module, every in modules.items()
        ],
        targets=targets,
        sources=sources,
    )


def _count(entries: Iterable[TargetEntry | SourceEntry]) -> Count:
    sizes = [torch.Size(one.shape).numel() for one in entries]
    return Count(tensors=len(sizes), elements=sum(sizes))


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype is not None else "an unknown type"
