"""Random numbers that are a function of their key alone, in batch and on any device, to the bit.

A sample's draws depend on (seed, epoch, stream, sample), and on nothing that came before: not on its batch, the rank or process
that reads it, nor on where a job went on. The generator is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014) with the constants of Vigna's splitmix64.c, which are Stafford's variant 13 of MurmurHash3's finaliser.
The key of a stream begins one sequence, of which sample i has the i-th number; that begins the sequence of its own draws.

Tensors know no uint64: int64 has the same bits, sums and products wrap, and a mask makes its right shift a logical one.
"""

from __future__ import annotations

import torch
from torch import Tensor

AUGMENT, ONE_BY_ONE, MIX = range(3)
"""Streams: what is drawn for one of them tells nothing of the others."""

_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def bits(seed: int, epoch: int, stream: int, samples: Tensor, count: int) -> Tensor:
    """`count` words of 64 random bits for each of `samples` (int64 [B]): int64 [B, count], on their device."""
    gamma = _signed(_GAMMA)
    key = 0
    for word in (seed, epoch, stream):
        key = _mixed((key ^ word) + _GAMMA)
    begins = _mix(samples * gamma + _signed(key + _GAMMA))
    steps = torch.arange(1, count + 1, device=samples.device) * gamma
    return _mix(begins[:, None] + steps)


def uniform(seed: int, epoch: int, stream: int, samples: Tensor, count: int) -> Tensor:
    """`count` numbers from 0 up to 1, which is not among them, for each of `samples` (int64 [B]): float64 [B, count]."""
    return _shifted(bits(seed, epoch, stream, samples, count), 11).to(torch.float64) * 2.0**-53


def between(draws: Tensor, low: float, high: float) -> Tensor:
    """Numbers from `low` to `high`, of uniform ones."""
    return low + (high - low) * draws


def below(draws: Tensor, ends: Tensor | int) -> Tensor:
    """Whole numbers from 0 up to `ends`, which is not among them, of uniform ones: int64."""
    return (draws * ends).long()


def _mix(words: Tensor) -> Tensor:
    """In place."""
    words ^= _shifted(words, 30)
    words *= _signed(_FIRST)
    words ^= _shifted(words, 27)
    words *= _signed(_SECOND)
    words ^= _shifted(words, 31)
    return words


def _mixed(word: int) -> int:
    """The same of one number."""
    word &= _WORD
    word = (word ^ word >> 30) * _FIRST & _WORD
    word = (word ^ word >> 27) * _SECOND & _WORD
    return word ^ word >> 31


def _shifted(words: Tensor, places: int) -> Tensor:
    return (words >> places) & ((1 << 64 - places) - 1)


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word
