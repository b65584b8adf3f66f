"""Mixup and CutMix: their closed form, the same on any number of ranks, and losses that take what they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data import mixing
from core.data.batches import Loader
from core.data.datasets import open_dataset
from core.data.mixing import Mixing, beta, rectangle
from core.data.preprocessing import Preprocessing
from core.data.tiers import Resident
from core.errors import SpecError
from core.events import CheckpointData, Iteration
from core.loss.means import counted
from core.places import Places
from core.plan import plan
from core.prepare import prepare
from core.spec import JobSpec, TrainingSpec
from core.training.job import fit

NUMBERED = torch.arange(13, dtype=torch.uint8).view(13, 1, 1, 1).expand(13, 1, 8, 8).contiguous()
AS_IS = Preprocessing(8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # a pixel is its sample's number
UNIFORMS = torch.rand(40_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

Spec = Callable[..., JobSpec]


def loader(labels: Tensor, **how: float | None) -> Loader:
    mixed = Mixing(how.get("mixup"), how.get("cutmix"), 13, 5)
    return Loader(Resident(NUMBERED), labels, AS_IS, bounds=[(0, 8), (8, 13)], shuffle_seed=1, mixing=mixed)


# --- what is mixed -----------------------------------------------------------------------------------------------------------


def test_mixup_blends_each_sample_with_the_mirrored_one_and_the_targets_alike() -> None:
    blend = loader(torch.arange(13), mixup=0.5)
    order = blend.order(2).tolist()
    for (images, targets), (first, last) in zip(blend.batches(2), [(0, 8), (8, 13)], strict=True):
        mine, theirs = order[first:last], order[first:last][::-1]
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(last - first))
        for image, target, one, other in zip(images, targets, mine, theirs, strict=True):
            share = float(target[one])
            torch.testing.assert_close(image, torch.full((3, 8, 8), share * one + (1 - share) * other))
            assert set(target.nonzero().flatten().tolist()) <= {one, other}


def test_cutmix_puts_a_rectangle_of_the_mirrored_one_in_and_counts_it_by_area() -> None:
    cut = loader(torch.arange(13), cutmix=1.0)
    order = cut.order(0).tolist()
    partial = 0
    for (images, targets), (first, last) in zip(cut.batches(0), [(0, 8), (8, 13)], strict=True):
        for image, target, one, other in zip(images, targets, order[first:last], order[first:last][::-1], strict=True):
            theirs = image[0] == other
            assert torch.equal(theirs, image[0] != one) or one == other
            rows, columns = theirs.any(dim=1), theirs.any(dim=0)
            assert torch.equal(theirs, rows[:, None] & columns), "a rectangle"
            if one != other:
                assert float(target[other]) == pytest.approx(float(theirs.double().mean()))
                partial += 0 < float(target[other]) < 1
    assert partial >= 3


def test_with_both_each_sample_draws_one_of_them() -> None:
    kept, share = Mixing(1.0, 1.0, 13, 5)._shares(UNIFORMS.repeat(1, 3)[:2000, :5].roll(1, 0), 8, 8)
    cut = ((kept == 0) | (kept == 1)).flatten(1).all(dim=1)
    assert 0.45 < float(cut.double().mean()) < 0.55
    torch.testing.assert_close(share, kept.mean(dim=(1, 2, 3)))
    only = Mixing(1.0, None, 13, 5)._shares(UNIFORMS.repeat(1, 3)[:2000, :5], 8, 8)[0]
    assert not ((only == 0) | (only == 1)).any()


def test_targets_that_are_floats_are_blended_as_they_are() -> None:
    several = torch.eye(13)[:, :4] + torch.eye(13).roll(1, 1)[:, :4]
    numbers = torch.arange(13, dtype=torch.float32)
    shares = [targets.max(dim=1).values for _, targets in loader(torch.arange(13), mixup=0.5).batches(0)]
    for labels in (several, numbers):
        (_, targets), *_ = loader(labels, mixup=0.5).batches(0)
        order = loader(labels, mixup=0.5).order(0)[:8]
        assert targets.shape == labels[order].shape
        assert targets.dtype == torch.float32
        low, high = torch.minimum(labels[order], labels[order.flip(0)]), torch.maximum(labels[order], labels[order.flip(0)])
        assert ((targets >= low - 1e-5) & (targets <= high + 1e-5)).all()
        assert not torch.equal(targets, labels[order])
    assert all(float(one.min()) >= 0.5 for one in shares)


@pytest.mark.parametrize("count", [2, 3, 7, 13])
@pytest.mark.parametrize("how", [{"mixup": 0.4}, {"mixup": 0.4, "cutmix": 1.0}])
def test_several_ranks_mix_as_one_bit_for_bit(count: int, how: dict[str, float]) -> None:
    mixed = loader(torch.arange(13), **how)
    whole = list(mixed.batches(4))
    shares = [list(mixed.batches(4, rank=rank, ranks=count)) for rank in range(count)]
    for batch, (images, targets) in enumerate(whole):
        assert torch.equal(torch.cat([share[batch][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[batch][1] for share in shares]), targets)
    ((images, _),) = mixed.batches(4, 1)
    assert torch.equal(images, whole[1][0]), "a resume is a slice"
    assert not torch.equal(next(mixed.batches(5))[1], whole[0][1])


# --- by how much -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (0.5, lambda x: 2 / math.pi * torch.asin(x.sqrt())),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_shares_have_the_beta_distribution(alpha: float, distribution: Callable[[Tensor], Tensor]) -> None:
    found = beta(alpha, UNIFORMS).sort().values
    steps = torch.arange(1, len(found) + 1, dtype=torch.float64) / len(found)
    assert (distribution(found) - steps).abs().max() < 1.95 / len(found) ** 0.5, "Kolmogorov and Smirnov, at one in a thousand"


@pytest.mark.parametrize("alpha", [0.01, 0.2, 8.0, 1000.0])
def test_shares_of_any_alpha_are_numbers_with_the_variance_of_beta(alpha: float) -> None:
    found = beta(alpha, UNIFORMS)
    ends = beta(alpha, torch.tensor([[0.0, 0.0], [0.0, 0.25], [1 - 2**-53, 0.25], [1 - 2**-53, 0.0]], dtype=torch.float64))
    assert all(((one >= 0) & (one <= 1)).all() for one in (found, ends))
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("how", [Mixing(0.5, None, 13, 5), Mixing(None, 1.0, 13, 5), Mixing(0.5, 1.0, 13, 5)])
def test_a_sample_is_mixed_anew_in_each_epoch(how: Mixing) -> None:
    batch = torch.rand(13, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(13)
    mirrored = batch[0].flip(0), batch[1].flip(0)
    (one, shares), (again, same), (other, others) = (how(batch, mirrored, epoch, torch.arange(13)) for epoch in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(shares, same)
    changed = (shares != others).any(dim=1)
    assert int(changed.sum()) > 9
    assert ((one != other).flatten(1).any(dim=1) | ~changed).all()


def test_a_rectangle_has_its_area_unless_the_edge_cuts_it() -> None:
    middle = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]], dtype=torch.float64)
    outside = rectangle(torch.full((3,), 0.75, dtype=torch.float64), middle, 16, 32)
    assert [int((~one).sum()) for one in outside] == [8 * 16, 4 * 8, 5 * 16]
    assert not outside[0, 4:12, 8:24].any()


# --- losses ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "training", "pointers"),
    [
        ({"name": "NLLLoss"}, {"mixup": 0.2}, ["/training/mixup"]),
        ({"name": "MultiMarginLoss"}, {"mixup": 0.2, "cutmix": 1}, ["/training/mixup", "/training/cutmix"]),
        ({"name": "CrossEntropyLoss", "ignore_index": 3}, {"cutmix": 1}, ["/training/cutmix"]),
        ({"name": "MultiLabelMarginLoss"}, {"cutmix": 1}, ["/training/cutmix"]),  # it is given lists
    ],
)
def test_a_loss_that_takes_classes_alone_is_refused(
    tiny_spec: Spec, places: Places, loss: Any, training: Any, pointers: list[str]
) -> None:
    spec = tiny_spec(loss=loss, training=training)
    with pytest.raises(SpecError, match=f": {loss['name']} takes no mixed targets") as refusal:
        plan(spec, places)
    assert [fault.pointer for fault in refusal.value.faults] == pointers
    with pytest.raises(SpecError, match="takes no mixed targets"):
        prepare(spec, places, torch.device("cpu"))


def test_numbers_are_blended_but_not_cut(tiny_spec: Spec, places: Places) -> None:
    dataset = replace(open_dataset(tiny_spec().dataset, places, 0), task="regression")
    assert mixing.of_training(TrainingSpec(mixup=0.2), dataset) is not None
    assert mixing.of_training(TrainingSpec(), dataset) is None
    with pytest.raises(SpecError, match=r"/training/cutmix: .* numbers"):
        mixing.of_training(TrainingSpec(mixup=0.2, cutmix=1), dataset)


def test_the_parts_of_a_mean_over_mixed_targets_add_up_to_it() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 4), torch.softmax(torch.randn(6, 4), dim=1)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0]), label_smoothing=0.1)
    assert counted(loss, targets) is None
    parts = [len(part) / 6 * loss(outputs[part], targets[part]) for part in (torch.arange(4), torch.arange(4, 6))]
    torch.testing.assert_close(sum(parts), loss(outputs, targets))


# --- a job -------------------------------------------------------------------------------------------------------------------


def test_a_job_with_all_of_it_goes_on_in_the_middle_of_an_epoch_as_if_it_had_never_stopped(
    tiny_spec: Spec, places: Places, tmp_path: Path
) -> None:
    spec = tiny_spec(
        dataset={"source": "sklearn:digits", "augment": "strong"},
        loader={"batch_size": 256},
        training={"epochs": 2, "mixup": 0.4, "cutmix": 1.0},
        loss={"name": "CrossEntropyLoss", "label_smoothing": 0.1},
        checkpoint={"every": {"steps": 5}},
    )  # fmt: skip

    def run(directory: str, resume: list[Path] | None = None) -> tuple[dict[int, float], bytes]:
        losses, last = {}, 0
        with closing(fit(spec, places, tmp_path / directory, resume=resume)) as job:
            for event in job:
                if isinstance(event, Iteration):
                    losses[event.step] = event.loss
                elif isinstance(event[1], CheckpointData):
                    last = event[0]
        return losses, (tmp_path / directory / str(last) / "model.safetensors").read_bytes()

    whole, weights = run("whole")
    rest, its_weights = run("rest", [tmp_path / "whole/10"])
    assert (min(rest), len(whole)) == (10, 14)
    assert rest == {step: loss for step, loss in whole.items() if step >= 10}
    assert its_weights == weights
    assert all(math.isfinite(loss) for loss in whole.values())
