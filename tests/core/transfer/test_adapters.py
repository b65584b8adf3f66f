"""Tensors that are made to fit: channels, positions, patches. Each is planned on shapes, and right in numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torchvision.models import VisionTransformer

from core.events import TargetEntry, TransferData
from core.spec import PretrainedSpec
from core.transfer.adapters import repeat_channels, resize_patches, resize_positions
from core.transfer.entries import Entry, Source
from core.transfer.heads import Head
from core.transfer.weights import plan_transfer

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]


def stem(channels: int, kernel: int = 3, stride: int = 1, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, kernel, stride), nn.Conv2d(width, width, 3))


def row(report: TransferData, key: str) -> TargetEntry:
    return next(one for one in report.targets if one.key == key)


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (3, 4), (3, 6), (4, 3), (13, 3), (3, 13)])
def test_a_stem_takes_images_of_another_number_of_channels(theirs: int, ours: int, graft: Graft) -> None:
    model, other = stem(ours), stem(theirs)
    report = graft(model, dict(other.state_dict()), min_loaded=1)
    found = row(report, "0.weight")
    assert (found.status, found.adapter) == ("adapted", "in_channels")
    assert (found.source_shape, found.shape) == ([4, theirs, 3, 3], [4, ours, 3, 3])
    assert report.totals["adapted"].tensors == report.modules[0].adapted.tensors == 1
    assert report.loaded_share == 1


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (3, 6), (2, 8)])
def test_of_grey_images_the_stem_makes_just_what_it_made(theirs: int, ours: int, graft: Graft) -> None:
    """Channels that are all alike: nothing behind the stem may see a difference, not even in scale."""
    model, other = stem(ours), stem(theirs)
    graft(model, dict(other.state_dict()))
    grey = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(grey.expand(-1, ours, -1, -1)), other(grey.expand(-1, theirs, -1, -1)), atol=1e-5)


def test_channels_are_repeated_in_turn_and_scaled() -> None:
    kernels = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    assert repeat_channels(kernels, 4).flatten().tolist() == [0.75, 1.5, 2.25, 0.75]


def test_only_the_stem_meets_images(faults_of: Faults) -> None:
    """A later layer of another width, or a first one that takes features, is another layer, not another image."""
    found = faults_of(stem(3), dict(stem(3).state_dict()) | {"1.weight": torch.ones(4, 3, 3, 3)})
    assert "'1.weight' (shape [4, 3, 3, 3] in the source, [4, 4, 3, 3] here)" in found["/pretrained/source"]
    assert "/pretrained/source" in faults_of(stem(64), dict(stem(3).state_dict()))


def test_a_stem_in_groups_sees_a_part_of_the_channels_and_no_grey_image(faults_of: Faults) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3))
    state = dict(nn.Sequential(nn.Conv2d(3, 6, 3)).state_dict())
    assert "shape [6, 3, 3, 3] in the source, [6, 1, 3, 3] here" in faults_of(model, state)["/pretrained/source"]


def vit(image: int, patch: int = 8) -> VisionTransformer:
    torch.manual_seed(image)
    model = VisionTransformer(image, patch, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)
    nn.init.normal_(model.conv_proj.weight)
    return model


POSITIONS = "encoder.pos_embedding"


@pytest.mark.parametrize(("theirs", "ours"), [(32, 64), (64, 32), (112, 32)])
def test_torchvisions_positions_are_resized_by_the_models_own_grid(theirs: int, ours: int, graft: Graft) -> None:
    model, other = vit(ours), vit(theirs)
    report = graft(model, dict(other.state_dict()), min_loaded=1)
    found = row(report, POSITIONS)
    assert (found.status, found.adapter) == ("adapted", "position_embedding")
    assert found.reason == f"resized from {theirs // 8} x {theirs // 8} to {ours // 8} x {ours // 8} patches"
    assert torch.equal(model.encoder.pos_embedding[:, 0], other.encoder.pos_embedding[:, 0]), "the class token's is kept"
    side = theirs // 8
    image = other.encoder.pos_embedding[:, 1:].detach().reshape(1, side, side, 8).permute(0, 3, 1, 2)
    expected = interpolate(image, size=ours // 8, mode="bicubic", antialias=True)
    assert torch.allclose(model.encoder.pos_embedding[0, 1:], expected.permute(0, 2, 3, 1).reshape(-1, 8), atol=1e-6)


class Timm(nn.Module):
    """Positions as timm's models have them, with what they say of their grid."""

    def __init__(self, grid: tuple[int, int], before: int = 1) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.grid_size = grid  # type: ignore[assignment]  # a module may have any attribute
        self.pos_embed = nn.Parameter(torch.randn(1, before + grid[0] * grid[1], 4))


def test_grids_are_compared_not_counts_of_tokens(graft: Graft) -> None:
    """(2, 8) and (4, 4) are sixteen patches each (timm, issue 2737)."""
    model, other = Timm((4, 4)), Timm((2, 8))
    found = row(graft(model, dict(other.state_dict()), grid=(2, 8)), "pos_embed")
    assert (found.status, found.reason) == ("adapted", "resized from 2 x 8 to 4 x 4 patches")
    assert found.shape == found.source_shape
    assert not torch.equal(model.pos_embed, other.pos_embed)


def test_positions_of_the_models_own_grid_are_copied(graft: Graft) -> None:
    model, other = Timm((2, 8)), Timm((2, 8))
    assert row(graft(model, dict(other.state_dict())), "pos_embed").status == "loaded"
    assert torch.equal(model.pos_embed, other.pos_embed)


def test_a_grid_that_is_for_nothing_is_an_error(faults_of: Faults) -> None:
    assert "it has no effect" in faults_of(Timm((4, 4)), dict(Timm((4, 4)).state_dict()), grid=(4, 4))["/pretrained/grid"]
    assert "it has no effect" in faults_of(stem(3), dict(stem(3).state_dict()), grid=(4, 4))["/pretrained/grid"]


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [(0, 1, "1 class token(s) as the model begins"), (1, 0, "1 class token(s) left out"), (2, 1, "1 class token(s) left out")],
)
def test_a_class_token_on_one_side_alone_is_left_out_or_begins_anew(theirs: int, ours: int, said: str, graft: Graft) -> None:
    """196 tokens are a square and no class token, however they divide."""
    model, other = Timm((14, 14), ours), Timm((14, 14), theirs)
    begun = model.pos_embed[:, :ours].clone()
    assert row(graft(model, dict(other.state_dict())), "pos_embed").reason == said
    assert torch.equal(model.pos_embed[:, ours:], other.pos_embed[:, theirs:])
    first = other.pos_embed[:, :ours] if theirs else begun
    assert torch.equal(model.pos_embed[:, :ours], first)


def test_positions_whose_grid_nothing_tells_are_not_made_to_fit(graft: Graft, faults_of: Faults) -> None:
    state = dict(Timm((3, 5), 0).state_dict())
    assert "'pos_embed'" in faults_of(Timm((4, 4), 0), state)["/pretrained/source"]
    assert row(graft(Timm((4, 4), 0), state, grid=(3, 5)), "pos_embed").status == "adapted"


@pytest.mark.parametrize("new", [(7, 7), (15, 13), (37, 37)])
def test_positions_are_resized_to_a_size_and_not_by_a_factor(new: tuple[int, int]) -> None:
    """A factor rounds to a wrong number of patches (dinov2, issue 378)."""
    assert resize_positions(torch.randn(1, 196, 4).half(), (14, 14), new).shape == (1, new[0] * new[1], 4)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (7, 9)), ((4, 6), (8, 8))])
def test_positions_are_resized_as_timm_resamples_them(old: tuple[int, int], new: tuple[int, int]) -> None:
    """torchvision aligns corners and does not antialias: the same file would make another network."""
    positions = torch.randn(1, old[0] * old[1], 4)
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=0)
    assert torch.allclose(resize_positions(positions, old, new), expected, atol=1e-6)


def test_positions_are_resized_in_single_precision() -> None:
    positions = torch.randn(1, 16, 4)
    half = resize_positions(positions.half(), (4, 4), (8, 8))
    assert half.dtype == torch.float32
    assert torch.allclose(half, resize_positions(positions, (4, 4), (8, 8)), atol=1e-2)


@pytest.mark.parametrize(("theirs", "ours"), [(4, 8), (8, 4), (7, 16)])
def test_a_patch_embedding_is_resampled_for_patches_of_another_size(theirs: int, ours: int, graft: Graft) -> None:
    model, other = stem(3, ours, ours), stem(3, theirs, theirs)
    found = row(graft(model, dict(other.state_dict())), "0.weight")
    assert (found.status, found.adapter) == ("adapted", "patch_embedding")
    assert found.reason == f"patches of {theirs} x {theirs} resampled to {ours} x {ours} by the pseudo-inverse"


def test_a_larger_patch_embeds_as_the_patch_that_it_was_made_of() -> None:
    kernels, patch = torch.randn(5, 3, 4, 4), torch.randn(1, 3, 4, 4)
    larger = interpolate(patch, size=(8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(conv2d(larger, resize_patches(kernels, (8, 8))), conv2d(patch, kernels), atol=1e-4)


def test_a_kernel_that_cuts_no_patches_is_not_resampled(faults_of: Faults) -> None:
    assert "'0.weight'" in faults_of(stem(3, 7, 2), dict(stem(3, 3, 2).state_dict()))["/pretrained/source"]


def test_a_vision_transformer_takes_other_images_and_patches_at_once(graft: Graft) -> None:
    model = vit(64, 16)
    report = graft(model, dict(vit(64, 8).state_dict()), min_loaded=1)
    assert {one.adapter for one in report.targets if one.status == "adapted"} == {"patch_embedding", "position_embedding"}
    assert model(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_adapted_tensors_of_half_precision_are_cast_and_that_is_said(graft: Graft) -> None:
    model = stem(1)
    report = graft(model, {key: value.half() for key, value in stem(3).state_dict().items()})
    assert row(report, "0.weight").cast == "float16 -> float32"
    assert report.casts["float16 -> float32"].tensors == 4


def test_a_plan_needs_no_data() -> None:
    def tensors() -> dict[str, Tensor]:
        raise AssertionError("a plan reads no tensor")

    with torch.device("meta"):
        model = vit(64)
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in vit(32).state_dict().items()}
    source = Source("file:x", "torch", entries, tensors)
    plan = plan_transfer(model, source, PretrainedSpec(source="file:x"), Head(frozenset(), ()))
    assert plan.adaptations.keys() == {POSITIONS}
