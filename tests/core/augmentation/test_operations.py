"""Operations in batch: what torchvision does to each image by itself when it draws the same numbers.

torchvision's own transform runs on one image after the other, and what it draws is taken from the row of that image: so its
parameters, their ranges and what it does with them are all compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from core.augmentation import draws
from core.augmentation.colours import shift_hue
from core.augmentation.operations import OneByOne, kernel_of

BATCH = 12
TRIES = [column for attempt in range(10) for column in (attempt, 10 + attempt)]
RECTANGLE = {"uniform_": TRIES, "randint": [20, 21]}

Replay = Callable[..., Tensor]


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A transform image by image: `rand`, `randint` and `uniform_` take the columns that are theirs, one after the other."""

    def run(transform: Any, images: Tensor, drawn: Tensor, columns: dict[str, list[int]]) -> Tensor:
        done = []
        for image, row in zip(images, drawn, strict=True):
            left = {name: iter(row[columns.get(name, [])]) for name in ("rand", "randint", "uniform_")}

            def integer(low: int, high: int | tuple[int, ...], left: Any = left, **_: Any) -> Tensor:
                if isinstance(high, tuple):  # one number is the upper end, and then comes the shape
                    low, high = 0, low
                return (low + next(left["randint"]) * (high - low)).long()

            def between(one: Tensor, low: float, high: float, left: Any = left) -> Tensor:
                return one.fill_(float(low + next(left["uniform_"]) * (high - low)))

            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda *_, left=left: next(left["rand"]))
                patch.setattr(torch, "randint", integer)
                patch.setattr(torch, "randperm", lambda _, row=row: row[4:8].argsort())
                patch.setattr(torch.Tensor, "uniform_", between)
                done.append(transform(image))
        return torch.stack(done)

    return run


def picture(channels: int = 3, height: int = 14, width: int = 14, count: int = BATCH) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("transform", "columns"),
    [
        *[
            (make, {"rand": [0]})
            for make in (
                v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(0.2), v2.RandomGrayscale(0.4), v2.RandomInvert(),
                v2.RandomSolarize(0.4), v2.RandomPosterize(3), v2.RandomAutocontrast(0.7), v2.RandomEqualize(),
                v2.RandomAdjustSharpness(2.5), v2.RandomAdjustSharpness(0.2),
            )
        ],
        (v2.Grayscale(1), {}),
        (v2.CenterCrop(9), {}),
        (v2.Resize((9, 17)), {}),
        (v2.RandomCrop(14, padding=3), {"randint": [0, 1]}),
        (v2.RandomCrop((10, 7), fill=0.7), {"randint": [0, 1]}),
        (v2.RandomCrop((10, 14)), {"randint": [0, 1]}),
        (v2.RandomCrop(16, padding=[1, 2, 3, 4], fill=[0.1, 0.5, 0.9]), {"randint": [0, 1]}),
        (v2.RandomCrop(20, padding=[2, 1], pad_if_needed=True, padding_mode="reflect"), {"randint": [0, 1]}),
        (v2.RandomResizedCrop(10), RECTANGLE),
        (v2.RandomResizedCrop((20, 9), scale=(0.3, 1.0), ratio=(0.4, 3.0), antialias=False), RECTANGLE),
        (v2.RandomResizedCrop(14, scale=(0.9, 1.0), ratio=(2.0, 3.0)), RECTANGLE),  # nearly all fail: the central crop
        (v2.RandomAffine(30, translate=(0.2, 0.1), scale=(0.7, 1.4), shear=10), {"uniform_": [0, 1, 2, 3, 4]}),
        (v2.RandomAffine((10, 40), shear=(-5, 5, -20, 9), interpolation="bilinear"), {"uniform_": [0, 4, 5]}),
        (v2.RandomAffine(20, scale=(0.5, 0.8), interpolation="bilinear", fill=[0.2, 0.4, 1]), {"uniform_": [0, 3]}),
        (v2.RandomAffine(20, scale=(0.5, 0.8), fill=0.6, center=[0, 3]), {"uniform_": [0, 3]}),
        (v2.RandomRotation(200, fill=0.3), {"uniform_": [0]}),
        (v2.RandomRotation((-20, 5), interpolation="bilinear", center=[4, 5], fill=None), {"uniform_": [0]}),
        (v2.ColorJitter(0.4, 0.9, 1.5, 0.3), {"uniform_": [0, 1, 2, 3]}),
        (v2.ColorJitter(contrast=(0.2, 1.7), saturation=0.5), {"uniform_": [1, 2]}),
        (v2.ColorJitter(hue=0.5, brightness=0.7), {"uniform_": [0, 3]}),
        (v2.ColorJitter(hue=(0.1, 0.2)), {"uniform_": [3]}),
        (v2.ColorJitter(), {}),
        (v2.RandomErasing(0.6), {"rand": [22], **RECTANGLE}),
        (v2.RandomErasing(1, scale=(0.5, 1), ratio=(0.1, 9), value=[0.1, 0.2, 0.3]), {"rand": [22], **RECTANGLE}),
        (v2.GaussianBlur(3), {"uniform_": [0]}),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, dict) else "",
)  # fmt: skip
def test_an_operation_does_to_each_image_what_torchvision_would(replay: Replay, transform: Any, columns: Any) -> None:
    kernel = kernel_of(transform)
    for images in (picture(), picture(height=11, width=15)):
        drawn = draws.uniform(3, 1, draws.AUGMENT, torch.arange(BATCH), kernel.columns)
        torch.testing.assert_close(kernel(images, drawn), replay(transform, images, drawn, columns), rtol=0, atol=3e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("transform", "integers"),
    [
        (v2.TrivialAugmentWide(), [0, 1]),
        (v2.TrivialAugmentWide(7, interpolation="bilinear", fill=[0.4]), [0, 1]),
        (v2.RandAugment(1), [0]),
        (v2.RandAugment(1, magnitude=29, fill=0.4), [0]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_each_operation_of_a_policy_at_each_strength_is_torchvision_s(
    replay: Replay, transform: Any, integers: list[int], channels: int
) -> None:
    levels = torch.tensor([0.01, 0.25, 0.67, 0.99])  # of 31 the first, 7, 20 (a quarter turn), and the last
    drawn = torch.cartesian_prod((torch.arange(14) + 0.5) / 14, levels, torch.tensor([0.3, 0.7])).double()
    images = picture(channels, 13, 15, len(drawn))
    done = kernel_of(transform)(images, drawn)
    expected = replay(transform, images, drawn, {"randint": integers, "rand": [2]})
    torch.testing.assert_close(done, expected, rtol=0, atol=3e-6)


def test_a_policy_takes_its_turns_one_after_the_other() -> None:
    images, drawn = picture(), draws.uniform(0, 0, draws.AUGMENT, torch.arange(BATCH), 6)
    one, two = kernel_of(v2.RandAugment(1)), kernel_of(v2.RandAugment(2))
    assert (one.columns, two.columns) == (3, 6)
    assert torch.equal(two(images, drawn), one(one(images, drawn[:, :3]), drawn[:, 3:]))


def test_of_grey_images_jitter_changes_brightness_and_contrast(replay: Replay) -> None:
    images, transform = picture(channels=1), v2.ColorJitter(0.4, 0.9, 1.5, 0.3)
    drawn = draws.uniform(3, 1, draws.AUGMENT, torch.arange(BATCH), 8)
    done = kernel_of(transform)(images, drawn)
    torch.testing.assert_close(done, replay(transform, images, drawn, {"uniform_": [0, 1, 2, 3]}), rtol=0, atol=1e-6)


def test_a_hue_goes_round_and_leaves_grey_alone() -> None:
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    for turn, colour in ((1 / 3, [0.2, 0.8, 0.2]), (2 / 3, [0.2, 0.2, 0.8]), (0.5, [0.2, 0.8, 0.8]), (1.0, [0.8, 0.2, 0.2])):
        torch.testing.assert_close(shift_hue(red, torch.tensor([turn])).flatten(), torch.tensor(colour), rtol=0, atol=1e-6)
    grey = torch.full((1, 3, 2, 2), 0.4)
    assert torch.equal(shift_hue(grey, torch.tensor([0.3])), grey)


def test_what_has_no_kernel_runs_as_torchvision_has_it_on_each_image_with_its_own_seed() -> None:
    images, transform = picture(count=3), v2.AugMix()
    assert kernel_of(transform) is None
    state = torch.get_rng_state()
    done = OneByOne(transform)(images, [11, -(2**63), 13])
    assert torch.equal(torch.get_rng_state(), state)
    for image, seed, its in zip(images, (11, -(2**63), 13), done, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert torch.equal(its, transform(image))


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomResizedCrop(8, interpolation="bicubic"), v2.RandomRotation((90, 90)), v2.RandomErasing(value="random"),
        v2.RandomAffine(5, interpolation="bicubic"),
    ],
)  # fmt: skip
def test_keywords_for_which_a_kernel_would_not_be_exact_have_none(transform: Any) -> None:
    assert kernel_of(transform) is None
