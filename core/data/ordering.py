"""Which samples are in which batch: the order as a function of (seed, epoch), where batches begin, what is a rank's."""

from __future__ import annotations

import torch
from torch import Tensor

from core.data.tiers import Bounds
from core.randomness import generator
from core.spec import JobSpec, LoaderSpec

_ORDER = 0  # keys the draw of an epoch's order apart from that of the held-out samples


def epoch_order(samples: int, seed: int | None, epoch: int) -> Tensor:
    """The indices of a split in the order of an epoch, int64 [N]: a function of (seed, epoch); None leaves them as they are."""
    if seed is None:
        return torch.arange(samples)
    return torch.randperm(samples, generator=generator(seed, _ORDER, epoch))


def steps_per_epoch(samples: int, spec: JobSpec) -> int:
    """Optimizer steps of a training epoch, the last one of fewer batches where they do not divide; 0 where there is no batch."""
    return -(-len(batch_bounds(samples, spec.loader)) // spec.training.accumulate)


def batch_bounds(samples: int, spec: LoaderSpec) -> Bounds:
    """Where each batch begins and ends in the epoch's order.

    The last, ragged one is kept unless `drop_last`; a lone last sample joins the batch before it, for BatchNorm cannot train
    on one.
    """
    size = spec.batch_size
    bounds = [(first, min(first + size, samples)) for first in range(0, samples, size)]
    ragged = samples % size
    if ragged and spec.drop_last:
        bounds.pop()
    elif ragged == 1 and len(bounds) > 1:
        bounds[-2:] = [(bounds[-2][0], samples)]
    return bounds


def share_of(first: int, last: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which part of a batch is a rank's: consecutive samples, their numbers alike to one."""
    samples = last - first
    return first + samples * rank // ranks, first + samples * (rank + 1) // ranks


def with_partners(order: Tensor, whole: Bounds, shares: Bounds) -> tuple[Tensor, Bounds]:
    """The samples of a rank's shares, in each those that mirror them in the whole batch after them, and where each begins."""
    pieces, bounds, end = [order[:0]], [], 0
    for (first, last), (begin, stop) in zip(whole, shares, strict=True):
        pieces += [order[begin:stop], order[first + last - stop : first + last - begin].flip(0)]
        bounds.append((end, end := end + 2 * (stop - begin)))
    return torch.cat(pieces), bounds
