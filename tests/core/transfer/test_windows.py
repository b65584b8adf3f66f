"""Attention in windows of another size: learned biases are resized, what follows from the window stays the model's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import RelPosBiasTf
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from core.errors import SpecError
from core.events import SourceEntry, TargetEntry, TransferData
from core.models.build import build_model
from core.places import Places
from core.shapes import shapes_of
from core.spec import ModelSpec, PretrainedSpec
from core.transfer import windows
from core.transfer.heads import Head
from core.transfer.sources import read
from core.transfer.weights import plan_transfer

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]
ATTENTION = "features.1.0.attn"
BIASES = f"{ATTENTION}.relative_position_bias_table"
INDEX = f"{ATTENTION}.relative_position_index"
_OWN = "the model's own: it follows from its windows, and nothing in it is learned"


def swin(*window: int) -> SwinTransformer:
    """torchvision's Swin with one small stage of two blocks, and biases that differ."""
    torch.manual_seed(sum(window))
    model = SwinTransformer([4, 4], 6, [2], [2], list(window), num_classes=3)
    nn.init.normal_(model.get_parameter(BIASES))
    return model


def swin_v2(window: int) -> SwinTransformer:
    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], 6, [2], [2], [window] * 2, num_classes=3, **parts)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def row(report: TransferData, key: str) -> TargetEntry:
    return next(one for one in report.targets if one.key == key)


def of_source(report: TransferData, key: str) -> SourceEntry:
    return next(one for one in report.sources if one.key == key)


@pytest.mark.parametrize(("theirs", "ours"), [((3, 3), (4, 4)), ((4, 4), (2, 2)), ((3, 3), (2, 4)), ((7, 7), (1, 1))])
def test_the_biases_of_another_window_are_resized_as_swins_own_loader_does(
    theirs: tuple[int, int], ours: tuple[int, int], graft: Graft
) -> None:
    model, other = swin(*ours), swin(*theirs)
    report = graft(model, state_of(other), min_loaded=1)
    found = row(report, BIASES)
    assert (found.status, found.adapter) == ("adapted", "relative_bias")
    assert found.reason == f"resized from windows of {theirs[0]} x {theirs[1]} to {ours[0]} x {ours[1]} patches"
    image = other.get_parameter(BIASES).detach().T.reshape(1, 2, 2 * theirs[0] - 1, 2 * theirs[1] - 1)
    expected = interpolate(image, size=(2 * ours[0] - 1, 2 * ours[1] - 1), mode="bicubic").reshape(2, -1).T
    assert torch.allclose(model.get_parameter(BIASES), expected)
    assert model(torch.rand(1, 3, 16, 16)).isfinite().all()


def test_what_follows_from_the_window_stays_the_models_own_and_is_not_reckoned(graft: Graft) -> None:
    model = swin(4, 4)
    index = model.get_buffer(INDEX).clone()
    report = graft(model, state_of(swin(3, 3)), min_loaded=1)
    assert (row(report, INDEX).status, row(report, INDEX).reason) == ("own", _OWN)
    assert (of_source(report, INDEX).status, of_source(report, INDEX).reason) == ("dropped", _OWN)
    assert torch.equal(model.get_buffer(INDEX), index)
    assert (report.loaded_share, report.totals["own"].tensors, report.totals["missing"].tensors) == (1, 2, 0)


def test_an_index_that_the_source_does_not_hold_is_not_missing(graft: Graft) -> None:
    """timm's files hold none; that their windows are square is then all that is known."""
    state = state_of(swin(3, 3))
    del state[INDEX]
    for model, status in ((swin(3, 3), "loaded"), (swin(5, 5), "adapted")):
        report = graft(model, state, min_loaded=1)
        assert (row(report, BIASES).status, row(report, INDEX).status) == (status, "own")
        assert report.totals["missing"].tensors == 0


def test_an_index_in_another_form_is_the_same_index(graft: Graft) -> None:
    """Swin's own files hold a square one, torchvision a flat one."""
    state = state_of(swin(3, 3))
    report = graft(swin(3, 3), state | {INDEX: state[INDEX].reshape(9, 9)}, min_loaded=1)
    assert (row(report, BIASES).status, row(report, INDEX).status) == ("loaded", "own")


def test_windows_are_compared_not_counts_of_biases(faults_of: Faults) -> None:
    """(2, 8) and (3, 5) have forty-five biases each; and which side of the source's is the longer one, no shape tells."""
    assert swin(2, 8).get_parameter(BIASES).shape == swin(3, 5).get_parameter(BIASES).shape
    found = faults_of(swin(3, 5), state_of(swin(2, 8)))["/pretrained/source"]
    assert f"'{INDEX}' (shape [256] in the source, [225] here)" in found
    assert f"'{BIASES}'" in faults_of(swin(3, 3), state_of(swin(2, 8)))["/pretrained/source"]


def test_biases_that_start_anew_need_no_index_either(graft: Graft) -> None:
    report = graft(swin(3, 5), state_of(swin(2, 8)), exclude=["*.relative_position_bias_table"])
    assert (row(report, BIASES).status, row(report, INDEX).status) == ("excluded", "own")


def test_biases_of_another_number_of_heads_are_another_layers(faults_of: Faults) -> None:
    other = state_of(swin(3, 3)) | {BIASES: torch.ones(25, 3)}
    assert f"'{BIASES}' (shape [25, 3] in the source, [49, 2] here)" in faults_of(swin(4, 4), other)["/pretrained/source"]


def test_of_swin_v2_everything_that_is_learned_fits_windows_of_any_size(graft: Graft) -> None:
    """A small network makes its biases of coordinates; those are computed."""
    model, other = swin_v2(4), swin_v2(3)
    before = state_of(model)
    report = graft(model, state_of(other), min_loaded=1)
    own = [one.key for one in report.targets if one.status == "own"]
    assert own[:2] == [f"{ATTENTION}.relative_coords_table", INDEX]
    assert all(torch.equal(model.get_buffer(key), before[key]) for key in own)
    assert torch.equal(model.get_parameter(f"{ATTENTION}.cpb_mlp.0.weight"), other.get_parameter(f"{ATTENTION}.cpb_mlp.0.weight"))
    assert {one.status for one in report.targets} == {"loaded", "own"}


def test_timms_windows_shrink_with_small_images(graft: Graft) -> None:
    """A stage whose map is smaller than the window has a window of its map."""
    made = partial(TimmSwin, patch_size=4, embed_dim=4, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=3)
    model, other = made(img_size=16), made(img_size=32)
    report = graft(model, state_of(other), min_loaded=1)
    adapted = {one.key: one.reason for one in report.targets if one.status == "adapted"}
    assert adapted == {"layers.1.blocks.0.attn.relative_position_bias_table": "resized from windows of 4 x 4 to 2 x 2 patches"}
    assert model(torch.rand(1, 3, 16, 16)).isfinite().all()


def test_a_plan_for_small_images_takes_the_official_weights_of_timms_swin(places: Places) -> None:
    spec = ModelSpec(name="timm:swin_tiny_patch4_window7_224", img_size=64)
    source = read(f"{spec.name}.ms_in1k", places.model_copy(update={"download": True}), shapes_only=True)
    head = Head(frozenset({"head.fc.weight", "head.fc.bias"}), ("head.fc",))
    wish = PretrainedSpec(source=source.name, min_loaded=1)
    report = plan_transfer(shapes_of(partial(build_model, spec, 10, places)), source, wish, head).report
    assert {one.reason for one in report.targets if one.adapter == "relative_bias"} == {
        "resized from windows of 7 x 7 to 4 x 4 patches", "resized from windows of 7 x 7 to 2 x 2 patches",
    }  # fmt: skip
    assert report.loaded_share == 1


def test_torchvisions_builders_have_one_window_each(places: Places) -> None:
    with pytest.raises(SpecError) as refused:
        build_model(ModelSpec(name="torchvision:swin_t", window_size=[8, 8]), 10, places)
    assert refused.value.faults[0].pointer == "/model/window_size"


def test_beits_biases_of_its_class_token_are_kept(graft: Graft) -> None:
    made = partial(
        Beit, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, use_abs_pos_emb=False, use_rel_pos_bias=True
    )
    model, other = made(img_size=16), made(img_size=12)
    key = "blocks.0.attn.relative_position_bias_table"
    nn.init.normal_(other.get_parameter(key))
    report = graft(model, state_of(other), min_loaded=1)
    assert row(report, key).reason == "resized from windows of 3 x 3 to 4 x 4 patches"
    assert torch.equal(model.get_parameter(key)[-3:], other.get_parameter(key)[-3:])
    assert model(torch.rand(1, 3, 16, 16)).isfinite().all()


def test_biases_that_lie_by_rows_and_columns_are_resized_too(graft: Graft) -> None:
    """As timm has those of MaxViT from TensorFlow; the size of its images decides its window."""
    model, other = RelPosBiasTf((2, 3), 2), RelPosBiasTf((4, 4), 2)
    nn.init.normal_(other.relative_position_bias_table)
    found = row(graft(model, state_of(other), min_loaded=1), "relative_position_bias_table")
    assert (found.adapter, found.source_shape, found.shape) == ("relative_bias", [2, 7, 7], [2, 3, 5])
    assert found.reason == "resized from windows of 4 x 4 to 2 x 3 patches"
    expected = interpolate(other.relative_position_bias_table[None], size=(3, 5), mode="bicubic")[0]
    assert torch.equal(model.relative_position_bias_table, expected)


def test_a_learned_parameter_of_that_name_is_none_of_the_windows(faults_of: Faults) -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("attn_mask", nn.Parameter(torch.ones(2)))
    assert "'attn_mask'" in faults_of(model, state_of(model) | {"attn_mask": torch.ones(3)})["/pretrained/source"]


@pytest.mark.parametrize("class_token", [False, True])
def test_a_window_is_known_by_its_offsets_and_its_pairs(class_token: bool) -> None:
    for rows in range(1, 12):
        for columns in range(rows, 12):
            pairs = (rows * columns + class_token) ** 2
            found = windows.of_pairs(windows.offsets((rows, columns)), pairs, class_token=class_token)
            assert found == (rows, columns)
    assert windows.of_pairs(45, 17 * 17, class_token=False) is None


def test_biases_are_resized_in_single_precision() -> None:
    table = torch.randn(25, 2)
    half = windows.resize_biases(table.half(), (3, 3), (4, 4))
    assert half.dtype == torch.float32
    assert torch.allclose(half, windows.resize_biases(table, (3, 3), (4, 4)), atol=1e-2)
