"""Building models, finding their heads, and `get_model`: the article's function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import efficientnet_b0, resnet50

from core import timm_models
from core.catalog import model_names
from core.errors import SpecError
from core.models.build import _class_of, build_model, find_head, get_model, size_keyword
from core.places import Places
from core.shapes import shapes_of
from core.spec import JobSpec, ModelSpec

OWN = '''
from torch import nn
from torchvision.models import resnet50


class Pair(nn.Module):
    """Shares ResNet-50's stem and first two stages, by other names; the rest is its own."""

    def __init__(self, num_classes, width: int = 8):
        super().__init__()
        trunk = resnet50()
        self.stem = nn.ModuleDict({"conv": trunk.conv1, "norm": trunk.bn1})
        self.layer1, self.layer2 = trunk.layer1, trunk.layer2
        self.neck = nn.Conv2d(512, width, 1)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, images):
        features = self.layer2(self.layer1(self.stem["norm"](self.stem["conv"](images)).relu()))
        return self.classify(self.neck(features).mean((2, 3)))


class Fixed(nn.Module):
    """Knows its classes by itself."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)


class Broken(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        raise RuntimeError(f"no depth {depth}")


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(10)


class Picky(nn.Module):
    """Can only be built with real numbers."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(4, num_classes)
        if self.fc.weight.abs().max().item() > 100:
            raise ValueError("cannot be")


def seven():
    return 7
'''


@pytest.fixture(scope="session")
def own(plugins_dir: Path) -> str:
    (plugins_dir / "graft_own.py").write_text(OWN)
    (plugins_dir / "graft_broken.py").write_text("import torch\n\n1 / 0\n")
    return "graft_own"


@pytest.fixture
def lab(places: Places, own: str) -> Places:
    """The places, with a person's own modules."""
    return places.model_copy(update={"plugins": ("graft_tiny", own, "graft_broken", "graft_absent")})


@pytest.fixture
def fault(lab: Places) -> Callable[..., tuple[str, str]]:
    """(pointer, message) of the fault of building a model."""

    def build(name: str, **keywords: Any) -> tuple[str, str]:
        with pytest.raises(SpecError) as refused:
            build_model(ModelSpec(name=name, **keywords), 10, lab)
        (only,) = refused.value.faults
        return only.pointer, only.message

    return build


def job(model: str, **pretrained: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"dataset": {"source": "sklearn:digits"}, "model": {"name": model}, "pretrained": pretrained or None}
    )


@pytest.fixture(scope="session")
def resnet50_state() -> dict[str, torch.Tensor]:
    """ImageNet's weights cannot be fetched here; those of another resnet50 with 1000 classes are as good for copying."""
    torch.manual_seed(1)
    return dict(resnet50().state_dict())


def test_resnet50_weights_into_a_resnet50_with_another_head(lab: Places, resnet50_state: dict[str, torch.Tensor]) -> None:
    torch.save(resnet50_state, lab.inputs / "resnet50.pth")
    model, report = get_model(job("torchvision:resnet50", source="file:resnet50.pth"), 7, lab)
    assert report.head == ["fc"]
    assert report.loaded_share == 1
    assert {one.key: one.status for one in report.targets if one.status != "loaded"} == {
        "fc.weight": "reinit",
        "fc.bias": "reinit",
    }
    assert model.fc.weight.shape == (7, 2048)
    body = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(value, resnet50_state[key]) for key, value in body.items())


def test_resnet50_weights_into_a_persons_own_module_that_shares_some_of_its_layers(
    lab: Places, resnet50_state: dict[str, torch.Tensor]
) -> None:
    save_file(resnet50_state, lab.inputs / "resnet50.safetensors")
    rules = [["^conv1", "stem.conv"], ["^bn1", "stem.norm"]]
    model, report = get_model(
        job("python:graft_own:Pair", source="file:resnet50.safetensors", rename=rules, drop=["layer[34].*"]), 7, lab
    )
    assert (report.format, report.head) == ("safetensors", ["classify"])
    assert torch.equal(model.stem["conv"].weight, resnet50_state["conv1.weight"])
    assert torch.equal(model.layer2[3].bn3.running_var, resnet50_state["layer2.3.bn3.running_var"])
    by_module = {row.module: (row.loaded.tensors, row.total.tensors) for row in report.modules}
    assert by_module["layer1"] == (60, 60)
    assert by_module["neck"] == by_module["classify"] == (0, 2)
    assert {one.status for one in report.sources if one.key.startswith("layer4")} == {"dropped"}
    assert {one.key for one in report.sources if one.status == "unexpected"} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("name", "head"), [("torchvision:squeezenet1_1", "classifier.1."), ("timm:test_vit", "head.")])
def test_a_head_that_starts_anew_is_finite_and_as_the_models_own_constructor_draws_it(name: str, head: str, lab: Places) -> None:
    """Neither the search for the head nor the loading of what lies before it takes from the chance that it is drawn by."""
    spec = ModelSpec(name=name)
    save_file(build_model(spec, 5, lab).state_dict(), lab.inputs / "five.safetensors")
    torch.manual_seed(3)
    drawn = {key: value for key, value in build_model(spec, 7, lab).state_dict().items() if key.startswith(head)}
    torch.manual_seed(3)
    model, report = get_model(job(name, source="file:five.safetensors"), 7, lab)
    assert {one.key for one in report.targets if one.status == "reinit"} == set(drawn)
    assert all(torch.equal(model.state_dict()[key], value) and value.isfinite().all() for key, value in drawn.items())


def test_the_same_seed_gives_the_same_head(lab: Places) -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(5)
        heads.append(get_model(job("torchvision:resnet18"), 3, lab)[0].fc.weight)
    assert torch.equal(*heads)


HEADS = {
    "alexnet": ["classifier.6"],
    "convnext_tiny": ["classifier.2"],
    "densenet121": ["classifier"],
    "efficientnet_b0": ["classifier.1"],
    "googlenet": ["fc"],
    "inception_v3": ["fc"],
    "maxvit_t": ["classifier.5"],
    "mnasnet0_5": ["classifier.1"],
    "mobilenet_v2": ["classifier.1"],
    "mobilenet_v3_small": ["classifier.3"],
    "regnet_y_400mf": ["fc"],
    "resnet18": ["fc"],
    "shufflenet_v2_x0_5": ["fc"],
    "squeezenet1_0": ["classifier.1"],
    "swin_t": ["head"],
    "vgg11": ["classifier.6"],
    "vit_b_16": ["heads.head"],
}
"""One of each family that torchvision has, and where its head lies."""


def test_no_family_is_left_out() -> None:
    assert {_class_of(name) for name in HEADS} == {_class_of(name) for name in model_names()}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_found_without_a_table_and_without_data(name: str, places: Places) -> None:
    spec = ModelSpec(name=f"torchvision:{name}")
    model = shapes_of(lambda: build_model(spec, 10, places))
    assert find_head(model, spec, 10, places).modules == tuple(HEADS[name])
    assert all(parameter.is_meta for parameter in model.parameters())


def test_auxiliary_heads_are_found_too(places: Places) -> None:
    spec = ModelSpec(name="torchvision:inception_v3", aux_logits=True)
    model = shapes_of(lambda: build_model(spec, 10, places))
    assert find_head(model, spec, 10, places).modules == ("AuxLogits.fc", "fc")


def test_shapes_cost_no_randomness_and_no_data(lab: Places) -> None:
    state = torch.get_rng_state()
    for name in ("torchvision:resnet18", "torchvision:regnet_x_400mf", "python:graft_own:Picky"):
        model = shapes_of(lambda name=name: build_model(ModelSpec(name=name), 10, lab))  # type: ignore[misc]
        assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_are_those_of_the_real_model(places: Places) -> None:
    model = shapes_of(lambda: build_model(ModelSpec(name="torchvision:efficientnet_b0"), 10, places))
    real = efficientnet_b0(num_classes=10).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {key: value.shape for key, value in real.items()}


def test_a_constructors_keywords_are_used(places: Places, lab: Places) -> None:
    assert build_model(ModelSpec(name="torchvision:mobilenet_v3_small", dropout=0.5), 10, places).classifier[2].p == 0.5
    assert build_model(ModelSpec(name="python:graft_own:Pair", width=3), 10, lab).neck.out_channels == 3


def test_a_model_that_does_not_take_the_number_of_classes_has_no_known_head(lab: Places) -> None:
    spec = ModelSpec(name="python:graft_own:Fixed")
    assert find_head(build_model(spec, 10, lab), spec, 10, lab).keys == frozenset()


TIMM_HEADS = {
    "resnet18": ["fc"],
    "convnext_atto": ["head.fc"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "efficientnet_lite0": ["classifier"],
    "regnetx_002": ["head.fc"],
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": ["head"],
}


@pytest.mark.parametrize("name", TIMM_HEADS)
def test_timms_models_are_built_without_data_and_their_heads_found(name: str, places: Places) -> None:
    spec = ModelSpec(name=f"timm:{name}")
    model = shapes_of(lambda: build_model(spec, 10, places))
    assert find_head(model, spec, 10, places).modules == tuple(TIMM_HEADS[name])
    assert all(parameter.is_meta for parameter in model.parameters())


def test_timms_keywords_are_used_those_of_its_builders_too(places: Places) -> None:
    model = build_model(ModelSpec(name="timm:efficientnet_lite0", drop_rate=0.3, bn_eps=0.5), 10, places)
    assert (model.drop_rate, model.bn1.eps) == (0.3, 0.5)


def test_what_a_model_that_is_built_for_one_size_calls_it() -> None:
    sized = {
        "torchvision:vit_b_16": "image_size", "torchvision:resnet18": None, "torchvision:no": None, "timm:no": None,
        "timm:vit_tiny_patch16_224": "img_size", "timm:deit_tiny_distilled_patch16_224": "img_size", "timm:resnet18": None,
    }  # fmt: skip
    assert {name: size_keyword(ModelSpec(name=name)) for name in sized} == sized


def test_without_timm_its_models_are_refused_with_what_to_install(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    pointer, message = fault("timm:resnet18")
    assert pointer == "/model/name"
    assert "pip install 'graft[timm]'" in message
    assert fault("resnet50d")[1].endswith("python:MODULE:CLASS.")
    assert (timm_models.names(), size_keyword(ModelSpec(name="timm:vit_tiny_patch16_224"))) == ([], None)


@pytest.mark.parametrize(
    ("name", "keywords", "pointer", "message"),
    [
        ("resnet18", {}, "/model/name", "Did you mean 'torchvision:resnet18'?"),
        ("resnet50d", {}, "/model/name", "Did you mean 'timm:resnet50d'?"),
        ("timm:resnet19", {}, "/model/name", "Did you mean 'resnet18'?"),
        ("timm:hf-hub:timm/resnet18", {}, "/model/name", "timm has no model"),
        ("timm:resnet50.a1_in2k", {}, "/model/name", "Did you mean 'a1_in1k'?"),
        ("timm:tf_efficientnet_l2_ns", {}, "/model/name", "'tf_efficientnet_l2.ns_jft_in1k' now"),
        ("timm:gemma4_vit_167m_enc", {}, "/model/name", "not a score per class"),
        ("timm:resnet18", {"drop_rat": 0.1}, "/model/drop_rat", "Did you mean 'drop_rate'?"),
        ("timm:resnet18", {"drop_rate": "much"}, "/model/drop_rate", 'expects float, got "much"'),
        ("timm:resnet18", {"pretrained": True}, "/model/pretrained", "named by /pretrained"),
        ("timm:fastvit_t8", {"in_chans": 1}, "/model/in_chans", "images come as RGB"),
        ("timm:resnet18", {"num_classes": 3}, "/model/num_classes", "comes from the dataset"),
        ("timm:resnet18", {"global_pool": "most"}, "/model/global_pool", "Invalid pool type: most"),
        ("torchvision:resnet19", {}, "/model/name", "Did you mean 'resnet18'?"),
        ("torchvision:fcn_resnet50", {}, "/model/name", "does not classify images"),
        ("torchvision:resnet18", {"zero_init": True}, "/model/zero_init", "Did you mean 'zero_init_residual'?"),
        ("torchvision:resnet18", {"zero_init_residual": "yes"}, "/model/zero_init_residual", 'expects bool, got "yes"'),
        ("torchvision:resnet18", {"num_classes": 3}, "/model/num_classes", "comes from the dataset"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "/model/weights", "named by /pretrained"),
        ("torchvision:resnet18", {"groups": 3}, "/model/groups", "BasicBlock only supports groups=1"),
        ("torchvision:mnasnet1_0", {"alpha": 2.0}, "/model/alpha", "multiple values for argument 'alpha'"),
        ("torchvision:mobilenet_v3_small", {"droput": 0.1}, "/model/droput", "Did you mean 'dropout'?"),
        ("python:os:Net", {}, "/model/name", "not on the operator's list"),
        ("python:graft_absent:Net", {}, "/model/name", "No module named 'graft_absent'"),
        ("python:graft_broken:Net", {}, "/model/name", "ZeroDivisionError: division by zero (graft_broken.py, line 3)"),
        ("python:graft_own:Pear", {}, "/model/name", "Did you mean 'Pair'?"),
        ("python:graft_own:Pair", {"wdth": 3}, "/model/wdth", "Did you mean 'width'?"),
        ("python:graft_own:Pair", {"width": 2.5}, "/model/width", "expects int, got 2.5"),
        ("python:graft_own:Broken", {}, "/model", "RuntimeError: no depth 1 (graft_own.py, line 33)"),
        ("python:graft_own:Broken", {"depth": 2}, "/model/depth", "RuntimeError: no depth 2"),
        ("python:graft_own:Lazy", {}, "/model/name", "'fc.weight' is lazy"),
        ("python:graft_own:seven", {}, "/model/name", "made a int, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_built_is_refused_at_its_place(
    name: str, keywords: dict[str, Any], pointer: str, message: str, fault: Callable[..., tuple[str, str]]
) -> None:
    at, said = fault(name, **keywords)
    assert at == pointer
    assert message in said


def test_a_model_is_an_ordinary_module(lab: Places) -> None:
    model, report = get_model(job("python:graft_own:Pair"), 4, lab)
    assert isinstance(model, nn.Module)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert report.source is None
