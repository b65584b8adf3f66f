"""Graft pretrained weights on to a model: plan on shapes, report, then apply in one go.

Each entry of the model and each tensor of the source gets exactly one status. Nothing is touched before the plan is accepted,
and a transfer that fails leaves every tensor as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from core.errors import SpecError, TransferError, listed
from core.events import Count, ModuleCount, SourceEntry, SourceStatus, TargetEntry, TargetStatus, TransferData
from core.hashes import is_finite
from core.spec import PretrainedSpec, Task
from core.transfer.adapters import Adaptation
from core.transfer.advice import advice
from core.transfer.entries import COUNTER, Source, dtype_name, elements, entries_of, parameters_of, tied
from core.transfer.globs import exclude_of
from core.transfer.heads import Head
from core.transfer.loading import load_all_or_nothing
from core.transfer.matching import TAKEN, UNCOUNTED, Match, check_effects, with_ties
from core.transfer.names import Names
from core.transfer.sources import preprocessing_of, read

__all__ = [
    "TransferPlan",
    "apply_transfer",
    "from_scratch",
    "look_through",
    "plan_transfer",
    "preprocessing_of",
    "read",
]
_Row = TypeVar("_Row", TargetEntry, SourceEntry)


@dataclass(frozen=True)
class TransferPlan:
    """What will be loaded: `pairs` maps the model's keys to the source's, `adaptations` those that need one to how."""

    report: TransferData
    pairs: dict[str, str]
    adaptations: dict[str, Adaptation]


def plan_transfer(
    model: nn.Module,
    source: Source,
    spec: PretrainedSpec,
    head: Head,
    classes: tuple[str, ...] = (),
    *,
    task: Task = "multiclass",
) -> TransferPlan:
    """Decide for each entry of both sides what becomes of it; needs shapes alone, so the model may be on the meta device.

    `classes` are the dataset's. Raises SpecError below /pretrained where a rule has no effect, where two tensors want one
    place, where the head cannot be had as asked, where a tensor outside it does not fit, or where too little would be loaded.
    """
    match = Match.of(model, source, spec, head, classes, task=task)
    match.check_fits()
    entries = with_ties(match.ties, [match.target(key) for key in match.targets])
    check_effects(spec, entries)
    pairs = {one.key: one.source_key for one in entries if one.status in TAKEN and one.source_key is not None}
    used = set(pairs.values())
    report = _report(source, match.names, entries, [match.source_entry(key, used) for key in source.entries], head)
    _check_enough(report, match)
    adaptations = {key: found for key in pairs if (found := match.adaptation(key, pairs[key])) is not None}
    return TransferPlan(report, pairs, adaptations)


def apply_transfer(model: nn.Module, source: Source, plan: TransferPlan) -> None:
    """Load what was planned. All or nothing: where it fails, every tensor of the model is bit for bit what it was.

    Raises TransferError where tensors hold NaN or infinity, where tied entries were given different tensors, or where the
    model's own loading fails.
    """
    tensors = source.tensors()
    known = is_finite(source.sha256)
    own = model.state_dict(keep_vars=True)
    found = {key: tensors[source_key] for key, source_key in plan.pairs.items()}
    found |= {key: one.apply(found[key], own[key].detach().cpu()) for key, one in plan.adaptations.items()}
    unknown = {key: one for key, one in found.items() if not (known and tensors[plan.pairs[key]].dtype == own[key].dtype)}
    if fault := _not_finite(source, plan, unknown, own):
        raise TransferError(*fault)
    for first, *others in tied(own):
        for other in (key for key in others if plan.pairs.get(key) != plan.pairs.get(first)):
            if not torch.equal(found[first].to(own[first].dtype), found[other].to(own[first].dtype)):
                raise TransferError(
                    f"'{first}' and '{other}' are one tensor here, but {source.name} has two that differ for them",
                    "Drop one of them by 'drop' in /pretrained.",
                )
    load_all_or_nothing(model, own, found, _versions(source, plan.pairs))


def look_through(source: Source, plan: TransferPlan, model: nn.Module) -> bool:
    """Read all that the source holds: whether every number in it is finite, so that nobody need look again.

    Raises SpecError at /pretrained/source where one is not that would be loaded.
    """
    tensors = source.tensors()
    if all(_finite(tensor, tensor.dtype) for tensor in tensors.values()):
        return True
    own = model.state_dict()
    taken = {key: tensors[source_key] for key, source_key in plan.pairs.items() if key not in plan.adaptations}
    if fault := _not_finite(source, plan, taken, own):
        raise SpecError.at("/pretrained/source", ". ".join(fault))
    return False


def from_scratch(model: nn.Module, head: Head) -> TransferData:
    """The report of a job without pretrained weights: every entry is missing."""
    reason = "no pretrained weights are named"
    state = model.state_dict(keep_vars=True)
    parameters = parameters_of(state)
    entries = [
        TargetEntry(key=key, buffer=key not in parameters, status="missing", shape=list(one.shape), reason=reason)
        for key, one in entries_of(state).items()
    ]
    return _report(None, None, entries, [], head)


def _check_enough(report: TransferData, match: Match) -> None:
    """Zero loaded is an error whatever `min_loaded` says: that is how names that do not meet show."""
    loaded = [one for one in report.targets if one.status in TAKEN and not one.key.endswith(COUNTER)]
    if loaded and report.loaded_share >= match.spec.min_loaded:
        return
    body = [key for key in match.targets if key not in match.head.keys and key not in match.excluded]
    here = [one.key for one in report.targets if one.status == "missing" and one.key not in match.head.keys]
    there = [one.renamed or one.key for one in report.sources if one.status == "unexpected"]
    help_ = advice(match.source.entries, match.spec, match.targets, match.names, body)
    left = f"{match.source.name} is a {match.source.model}; " if match.source.model else ""
    left += f"left out here: {listed(here)}; left out of the source: {listed(there)}; {help_}"
    if not loaded:
        raise SpecError.at("/pretrained/source", f"nothing would be loaded; {left}")
    raise SpecError.at(
        "/pretrained/min_loaded",
        f"only {report.loaded_share:.3g} of the elements outside the head would be loaded, less than "
        f"{match.spec.min_loaded:g}; {left}",
    )


def _not_finite(
    source: Source, plan: TransferPlan, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, str] | None:
    """Which of the tensors, by the model's keys, are not finite in the types of its `own`, and the way out; None: all are."""
    bad = [key for key, tensor in tensors.items() if not _finite(tensor, own[key].dtype)]
    if not bad:
        return None
    named = listed(f"'{plan.pairs[key]}' (as {dtype_name(own[key].dtype)})" for key in bad)
    return (
        f"{source.name} holds NaN or infinity in {named}",
        f"Take another file; or let these entries start anew by {exclude_of(bad, own)} in /pretrained.",
    )


def _finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether all of it is finite as `dtype`. A sum that is finite says so in one pass and without a mask."""
    cast = tensor.to(dtype)
    if not (cast.is_floating_point() or cast.is_complex()):
        return True
    total = cast.sum(dtype=torch.float32 if cast.element_size() < 4 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(cast).all())


def _versions(source: Source, pairs: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """By module of the model, the version that the source saved its tensors by, for the module's own loading to mend them."""
    modules = {key.rpartition(".")[0]: source_key.rpartition(".")[0] for key, source_key in pairs.items()}
    versions = source.versions or {}
    return {module: dict(versions[theirs]) for module, theirs in modules.items() if theirs in versions}


def _report(
    source: Source | None, names: Names | None, targets: list[TargetEntry], sources: list[SourceEntry], head: Head
) -> TransferData:
    body = [one for one in targets if one.key not in head.keys and one.status not in UNCOUNTED]
    total = _count(body).elements
    taken = _count(one for one in body if one.status in TAKEN).elements
    here, there = _grouped(targets, lambda one: one.status), _grouped(sources, lambda one: one.status)
    modules = _grouped(targets, lambda one: one.key.partition(".")[0])
    casts = _grouped((one for one in targets if one.cast is not None), lambda one: str(one.cast))
    return TransferData(
        source=source.name if source else None,
        format=source.format if source else None,
        sha256=source.sha256 if source else None,
        model=source.model if source else None,
        head=list(head.modules),
        loaded_share=taken / total if total else 1.0,
        totals={status: _count(here.get(status, ())) for status in get_args(TargetStatus)},
        source_totals={status: _count(there.get(status, ())) for status in get_args(SourceStatus)},
        casts={cast: _count(every) for cast, every in casts.items()},
        modules=[
            ModuleCount(
                module=module,
                loaded=_count(one for one in every if one.status == "loaded"),
                adapted=_count(one for one in every if one.status == "adapted"),
                total=_count(every),
            )
            for module, every in modules.items()
        ],
        steps=[*(source.steps if source else ()), *(names.steps if names else ())],
        targets=targets,
        sources=sources,
    )


def _grouped(entries: Iterable[_Row], name: Callable[[_Row], str]) -> dict[str, list[_Row]]:
    """The entries by their names, in order."""
    groups: dict[str, list[_Row]] = {}
    for one in entries:
        groups.setdefault(name(one), []).append(one)
    return groups


def _count(entries: Iterable[TargetEntry | SourceEntry]) -> Count:
    sizes = [elements(one.shape) for one in entries]
    return Count(tensors=len(sizes), elements=sum(sizes))
