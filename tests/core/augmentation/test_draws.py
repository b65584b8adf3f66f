"""Draws: functions of their key, uniform, and as far from each other as random numbers are."""

import pytest
import torch

from core.augmentation import draws

SAMPLES = torch.arange(4096)


def published(seed: int, count: int) -> list[int]:
    """SplitMix64 as splitmix64.c has it (https://prng.di.unimi.it/splitmix64.c), in whole numbers."""
    word, numbers = (1 << 64) - 1, []
    for _ in range(count):
        seed = seed + 0x9E3779B97F4A7C15 & word
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ z >> 27) * 0x94D049BB133111EB & word
        numbers.append(z ^ z >> 31)
    return numbers


def test_the_generator_is_the_published_one():
    """Values for the seed 1234567: https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert published(1234567, 5) == known
    key = 0
    for word in (3, 5, draws.MIX):
        (key,) = published(key ^ word, 1)
    begins = published(key, 8)
    words = draws.bits(3, 5, draws.MIX, torch.tensor([0, 7]), 6)
    assert [[one % 2**64 for one in row] for row in words.tolist()] == [published(begins[0], 6), published(begins[7], 6)]


def test_a_draw_depends_on_its_key_alone():
    whole = draws.uniform(1, 2, draws.AUGMENT, SAMPLES, 5)
    assert torch.equal(draws.uniform(1, 2, draws.AUGMENT, SAMPLES.flip(0)[:3], 5), whole.flip(0)[:3])
    assert torch.equal(draws.uniform(1, 2, draws.AUGMENT, SAMPLES, 2), whole[:, :2]), "however many there are"


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_draws_are_uniform(seed: int) -> None:
    values = draws.uniform(seed, 0, draws.AUGMENT, SAMPLES, 16)
    assert 0 <= float(values.min()) < 1e-3
    assert 1 - 1e-3 < float(values.max()) < 1
    expected = values.numel() / 256
    chi = ((torch.histc(values, 256, 0, 1) - expected) ** 2 / expected).sum()
    assert 145 < chi < 384, "255 degrees of freedom: within five times their deviation of 22.6, and a little"


def test_neighbouring_keys_have_nothing_in_common():
    near = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 0, 2), (1, 1, 0), (1, 1, 1)]
    columns = torch.cat([draws.uniform(*key, SAMPLES, 4) for key in near], dim=1)
    columns = torch.cat([columns, columns.roll(1, 0)], dim=1)  # and neighbouring samples
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() < 5 / len(SAMPLES) ** 0.5, "five times the deviation of one"
    assert len(set(draws.bits(0, 0, 0, torch.arange(1 << 14), 4).flatten().tolist())) == 4 << 14


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits():
    ours = draws.uniform(7, 3, draws.MIX, SAMPLES, 23)
    assert torch.equal(draws.uniform(7, 3, draws.MIX, SAMPLES.cuda(), 23).cpu(), ours)
