"""The depth of a parameter: stem 0, each block one more, the head the deepest; in torchvision's models, timm's, and one's own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import timm
import torchvision
from timm.models import group_parameters
from torch import nn

from core.optimizer.depths import depths
from core.shapes import shapes_of


def of(build: Callable[[], nn.Module], head: str) -> dict[str, int]:
    """Each module's depth, where all its parameters agree."""
    return {name.rpartition(".")[0]: depth for name, depth in depths(shapes_of(build), [head]).items()}


def linear(number: int) -> nn.Linear:
    return nn.Linear(number, number)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), linear(4), linear(4)


class Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(nn.LayerNorm(4), linear(4))
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))


def named(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


@pytest.mark.parametrize(
    ("name", "head", "some", "last"),
    [
        ("resnet18", "fc", {"conv1": 0, "bn1": 0, "layer1.0.conv1": 1, "layer2.0.downsample.1": 3, "layer4.1.bn2": 8}, 9),
        ("efficientnet_b0", "classifier.1", {"features.0.1": 0, "features.1.0.block.0.0": 1, "features.8.0": 17}, 18),
        ("vit_b_16", "heads.head", {"conv_proj": 0, "encoder.layers.encoder_layer_0.mlp.0": 1, "encoder.ln": 12}, 13),
        ("convnext_tiny", "classifier.2", {"features.0.1": 0, "features.1.0.block.0": 1, "features.2.1": 4}, 22),
        ("swin_t", "head", {"features.0.2": 0, "features.1.1.attn.qkv": 2, "features.2.reduction": 3}, 16),
        ("densenet121", "classifier", {"features.denseblock1.denselayer2.conv1": 2, "features.norm5": 61}, 62),
        ("vgg11_bn", "classifier.6", {"features.0": 0, "features.1": 0, "features.4": 1, "classifier.3": 9}, 10),
        ("mobilenet_v3_small", "classifier.3", {"features.0.1": 0, "features.1.block.1.fc1": 1, "classifier.0": 13}, 14),
        ("regnet_y_400mf", "fc", {"stem.1": 0, "trunk_output.block1.block1-0.f.a.0": 1}, 17),
    ],
)  # fmt: skip
def test_torchvisions_models_are_counted_by_their_blocks(name: str, head: str, some: dict[str, int], last: int) -> None:
    found = of(lambda: torchvision.models.get_model(name), head)
    assert {module: found[module] for module in some} == some
    assert (found[head], max(found.values())) == (last, last)
    assert set(found.values()) == set(range(last + 1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_timms_own_grouping_of_its_models_has_the_same_blocks(name: str) -> None:
    model: Any = shapes_of(lambda: timm.create_model(name))
    head = next(path for path, module in model.named_modules() if module is model.get_classifier())
    ours = depths(model, [head])
    theirs = group_parameters(model, model.group_matcher(coarse=False))
    blocks = [set(names) for _, names in sorted(theirs.items()) if len(names) > 3]
    depth_of = [{ours[key] for key in names if ".downsample." not in key} for names in blocks[1:]]
    assert len(blocks) > 5
    assert all(len(found) == 1 for found in depth_of)
    assert all(min(one) < min(next_one) for one, next_one in pairwise(depth_of))


def test_a_model_without_blocks_counts_its_layers_and_a_norm_is_with_the_layer_before_it() -> None:
    model = named(conv1=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), conv2=nn.Conv2d(2, 2, 3), fc1=linear(2), fc2=linear(2))
    assert of(lambda: model, "fc2") == {"conv1": 0, "norm": 0, "conv2": 1, "fc1": 2, "fc2": 3}


def test_blocks_without_a_stem_begin_at_0() -> None:
    assert set(of(lambda: named(a=Block(), b=Block(), fc=linear(4)), "fc").items()) >= {("a.one", 0), ("b.two", 1), ("fc", 2)}


def test_stages_are_walked_into_and_so_is_what_wraps_a_backbone() -> None:
    backbone = named(stem=linear(4), stages=nn.Sequential(Stage(2), Stage(1)), norm=nn.LayerNorm(4))
    found = of(lambda: named(model=named(net=backbone), fc=linear(4)), "fc")
    path = "model.net.stages."
    assert (found["model.net.stem"], found[f"{path}0.shrink.1"]) == (0, 0)
    assert [found[f"{path}{at}"] for at in ("0.blocks.0.one", "0.blocks.1.one")] == [1, 2]
    assert (found["fc"], found["model.net.norm"]) == (max(found.values()), max(found.values()) - 1)


def test_a_wrapper_of_a_model_without_stacks_is_looked_through() -> None:
    inner = named(a=linear(4), b=linear(4))
    assert of(lambda: named(backbone=inner, fc=linear(4)), "fc") == {"backbone.a": 0, "backbone.b": 1, "fc": 2}


def test_where_no_head_is_known_the_last_layer_is_the_deepest() -> None:
    assert depths(nn.Sequential(linear(2), linear(2))) == {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": 1}
    assert depths(nn.ReLU()) == {}


def test_a_head_in_the_middle_is_as_deep_as_the_one_at_the_end() -> None:
    model = named(a=linear(4), aux=linear(4), b=linear(4), fc=linear(4))
    assert depths(model, ["aux", "fc"])["aux.weight"] == depths(model, ["aux", "fc"])["fc.weight"] == 2
