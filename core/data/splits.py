"""Which samples validate, where a dataset does not say: a share, drawn by seed, with targets like those of the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from core.data.images import POINTER, Images, Part
from core.errors import SpecError
from core.randomness import generator
from core.spec import Task

_HOLD_OUT = 1  # keys the draw of the held-out samples apart from those of the epochs' orders


def hold_out(images: Images, task: Task, classes: int, share: float, seed: int) -> tuple[Images, Images, list[str]]:
    """(train, validation, notes): about `share` of the samples validate, one at least, and one at least is left.

    Of classes each gives its share, and none its last sample where another can spare one. Of labels, which come together, each
    gives its share as far as the rarer ones let it. Of one number the samples validate that are evenly spread over its values;
    of several they are drawn alike.
    """
    total = len(images)
    if total < 2:
        raise SpecError.at(POINTER, "it has one image; training needs at least one, and validation another")
    notes: list[str] = []
    wanted = min(max(1, round(total * share)), total - 1)
    order = torch.randperm(total, generator=generator(seed, _HOLD_OUT))
    if task == "multiclass":
        held = _by_class(images.labels, classes, share, order, notes)
    elif task == "multilabel":
        held = _by_label(images.labels, share, wanted, order)
    else:
        held = _by_number(images.labels, wanted, order)
    return Part(images, (~held).nonzero().flatten()), Part(images, held.nonzero().flatten()), notes


def _by_class(labels: Tensor, classes: int, share: float, order: Tensor, notes: list[str]) -> Tensor:
    """Which samples validate, bool [N]."""
    total = len(labels)
    counts = torch.bincount(labels, minlength=classes)
    chosen = _per_class(counts, share, max(1, round(total * share)))
    if not int(chosen.sum()):
        chosen[int(counts.argmax())] = 1
    if int(chosen.sum()) != round(total * share):
        notes.append(
            f"of {total} images {int(chosen.sum())} validate{'s' if int(chosen.sum()) == 1 else ''}, not {share:g} of them: "
            "each class keeps one to train on, and one at least must validate"
        )
    held = torch.zeros(total, dtype=torch.bool)
    for label in chosen.nonzero().flatten().tolist():
        held[order[labels[order] == label][: int(chosen[label])]] = True
    return held


def _per_class(counts: Tensor, share: float, wanted: int) -> Tensor:
    """How many of each class to hold out: its share, what is left over by largest remainder, always leaving one."""
    spare = (counts - 1).clamp(min=0)
    exact = counts.double() * share
    chosen = torch.minimum(exact.floor().to(torch.int64), spare)
    by_remainder = torch.argsort(exact - exact.floor(), descending=True, stable=True).tolist()
    for label in by_remainder * 2:  # twice: where some classes can spare none, others give once more
        if int(chosen.sum()) >= wanted:
            break
        if chosen[label] < spare[label]:
            chosen[label] += 1
    return chosen


def _by_label(labels: Tensor, share: float, wanted: int, order: Tensor) -> Tensor:
    """Greedy, as iterative stratification is (Sechidis et al. 2011, "On the stratification of multi-label data").

    The label with the fewest samples that are not yet placed is served first, for it has the least choice; its samples are
    placed, and so count for the other labels that they have.
    """
    has = labels[order].bool()
    open_ = torch.ones(len(has), dtype=torch.bool)
    held = torch.zeros(len(has), dtype=torch.bool)
    left, given = has.sum(dim=0), torch.zeros(has.shape[1], dtype=torch.int64)
    quota = torch.minimum((left * share).round().to(torch.int64), (left - 1).clamp(min=0))
    for _ in range(has.shape[1]):
        label = int(torch.where(left > 0, left, len(has) + 1).argmin())
        rows = (has[:, label] & open_).nonzero().flatten()
        taken = rows[: max(0, int(quota[label] - given[label]))]
        held[taken] = True
        given += has[taken].sum(dim=0)
        open_[rows] = False
        left -= has[rows].sum(dim=0)
    # What has no label fills up, and then, for shares of rare labels that all were rounded down, what its labels can spare.
    counts = has.sum(dim=0)
    most = torch.minimum((counts * share).ceil().to(torch.int64), (counts - 1).clamp(min=0))
    missing = wanted - int(held.sum())
    for row in torch.cat([open_.nonzero().flatten(), (~open_ & ~held).nonzero().flatten()]).tolist():
        if missing <= 0:
            break
        if not (has[row] & (given >= most)).any():
            held[row] = True
            given += has[row]
            missing -= 1
    if not held.any():
        held[0] = True
    return torch.zeros_like(held).index_copy(0, order, held)


def _by_number(targets: Tensor, wanted: int, order: Tensor) -> Tensor:
    """One of each run of values; of several columns, any."""
    held = torch.zeros(len(targets), dtype=torch.bool)
    if targets.shape[1] > 1:
        held[order[:wanted]] = True
        return held
    by_value = order[torch.argsort(targets[order, 0], stable=True)]
    # One of each of `wanted` consecutive runs of values: that which the draw put first.
    run = torch.arange(len(by_value)) * wanted // len(by_value)
    place = torch.argsort(order)[by_value]
    first = torch.full((wanted,), len(order)).scatter_reduce(0, run, place, "amin")
    held[order[first]] = True
    return held
