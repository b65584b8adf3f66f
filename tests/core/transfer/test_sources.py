"""Reading pretrained weights: formats, containers, refusals, hashes."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models as vision

from core import hashes
from core.errors import SpecError, TransferError
from core.models.build import get_model
from core.places import PinnedWeights, Places
from core.spec import JobSpec
from core.transfer.entries import Source
from core.transfer.sources import is_here, pin, preprocessing_of, read

STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2, dtype=torch.float16)}


@pytest.fixture
def refusal(places: Places) -> Callable[[str], str]:
    def of(source: str) -> str:
        with pytest.raises(SpecError) as refused:
            read(source, places)
        (fault,) = refused.value.faults
        assert fault.pointer == "/pretrained/source"
        return fault.message

    return of


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_names_shapes_and_dtypes_come_before_the_tensors(name: str, places: Places) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(STATE, places.inputs / name)
    source = read(f"file:{name}", places)
    assert {key: (one.shape, one.dtype) for key, one in source.entries.items()} == {
        "conv.weight": ((2, 3), torch.float32),
        "conv.bias": ((2,), torch.float16),
    }
    assert torch.equal(source.tensors()["conv.weight"], torch.ones(2, 3))
    assert source.sha256 == hashlib.sha256((places.inputs / name).read_bytes()).hexdigest()


def test_a_file_of_the_format_before_zip_is_read(places: Places) -> None:
    torch.save(STATE, places.inputs / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read("file:old.pth", places).tensors()["conv.weight"], torch.ones(2, 3))


def test_a_plan_reads_no_more_of_a_safetensors_file_than_its_header(places: Places) -> None:
    path = places.inputs / "w.safetensors"
    save_file(STATE, path)
    source = read("file:w.safetensors", places, shapes_only=True)
    path.unlink()
    assert set(source.entries) == set(STATE)
    assert source.sha256 is None


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_the_usual_containers_are_opened(container: str, places: Places) -> None:
    torch.save({"epoch": 3, container: STATE, "optimizer": {"state": {}}}, places.inputs / "c.pth")
    assert set(read("file:c.pth", places).entries) == set(STATE)


def test_more_than_one_state_dict_is_an_error_that_names_them(places: Places, refusal: Callable[[str], str]) -> None:
    torch.save({"state_dict": STATE, "model_ema": STATE}, places.inputs / "two.pth")
    assert "(state_dict, model_ema)" in refusal("file:two.pth")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_by_the_name_of_what_it_holds(
    places: Places, refusal: Callable[[str], str]
) -> None:
    mark = places.inputs / "was-here"
    torch.save({"w": torch.ones(1), "x": Evil(mark)}, places.inputs / "evil.pt")
    assert "holds more than tensors (posix.mkdir)" in refusal("file:evil.pt")
    assert not mark.exists()
    torch.save({"w": torch.ones(1), "loss": np.float64(3)}, places.inputs / "numpy.pt")
    assert "numpy" in refusal("file:numpy.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.pt", b"not a pickle", "'bad.pt' is no file of tensors that torch.save wrote"),
        ("bad.pth", b"", "'bad.pth'"),
        ("bad.safetensors", b"xx", "'bad.safetensors' cannot be read as safetensors"),
        ("weights.h5", b"xx", "those end in .safetensors, .pt, .pth"),
    ],
)
def test_what_is_no_file_of_weights_is_said_to_be_none(
    name: str, content: bytes, message: str, places: Places, refusal: Callable[[str], str]
) -> None:
    (places.inputs / name).write_bytes(content)
    assert message in refusal(f"file:{name}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "holds no tensors; its keys are epoch"),
        ({}, "holds no tensors"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(
    content: object, message: str, places: Places, refusal: Callable[[str], str]
) -> None:
    torch.save(content, places.inputs / "odd.pt")
    assert message in refusal("file:odd.pt")


def test_a_truncated_file_is_refused(places: Places, refusal: Callable[[str], str]) -> None:
    for name, save in (("t.safetensors", save_file), ("t.pt", torch.save)):
        save(STATE, places.inputs / name)
        path = places.inputs / name
        path.write_bytes(path.read_bytes()[:-40])
        assert f"'{name}'" in refusal(f"file:{name}")


def test_a_path_may_not_leave_the_inputs(refusal: Callable[[str], str]) -> None:
    assert "leaves the inputs directory" in refusal("file:../secret.pt")


@pytest.mark.parametrize("source", ["resnet18", "file:", "s3:bucket", "torchvision:"])
def test_what_names_no_source_is_told_the_forms(source: str, refusal: Callable[[str], str]) -> None:
    assert "write torchvision:NAME/WEIGHTS, timm:NAME, file:PATH, job:ID" in refusal(source)


def test_torchvisions_names_are_checked(refusal: Callable[[str], str]) -> None:
    assert "Did you mean 'resnet18'?" in refusal("torchvision:resnet17/IMAGENET1K_V1")
    assert "Did you mean 'IMAGENET1K_V1'?" in refusal("torchvision:resnet18/IMAGENET_V1")
    assert "Known: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT." in refusal("torchvision:resnet50")


def test_weights_that_are_not_here_say_which_file_to_put_where(refusal: Callable[[str], str]) -> None:
    message = refusal("torchvision:resnet18/IMAGENET1K_V1")
    assert "resnet18-f37072fd.pth is not here" in message
    assert "GRAFT_DOWNLOAD" in message


def test_a_plan_needs_no_file_where_it_may_be_downloaded_later(places: Places) -> None:
    source = read("torchvision:resnet18/IMAGENET1K_V1", places.model_copy(update={"download": True}), shapes_only=True)
    assert source.entries["fc.weight"].shape == (1000, 512)


def _publish(weights: Any, state: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a file as torchvision would have it, under a name that has its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "plain.pth")
    sha = hashlib.sha256((folder / "plain.pth").read_bytes()).hexdigest()
    path = (folder / "plain.pth").rename(folder / f"model-{sha[:8]}.pth")
    monkeypatch.setattr(type(weights), "url", property(lambda _: f"https://example.org/models/{path.name}"))
    return path


@pytest.mark.parametrize("folder", ["inputs", "inputs/weights", "hub/checkpoints"])
def test_official_weights_are_found_in_each_place(
    folder: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1")
    _publish(weights, vision.squeezenet1_1().state_dict(), tmp_path / folder, monkeypatch)
    spec = JobSpec.model_validate(
        {
            "dataset": {"source": "sklearn:digits"},
            "model": {"name": "torchvision:squeezenet1_1"},
            "pretrained": {"source": "torchvision:squeezenet1_1/IMAGENET1K_V1"},
        }
    )
    _, report = get_model(spec, 10, places)
    assert (report.loaded_share, report.format, len(str(report.sha256))) == (1, "torchvision", 64)


def test_official_weights_that_were_fetched_are_found_by_their_url(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1")
    path = _publish(weights, vision.squeezenet1_1().state_dict(), places.weights_cache, monkeypatch)
    known = pin("torchvision:squeezenet1_1/IMAGENET1K_V1", places)
    assert known is not None
    assert (known.path, known.sha256_begins) == (None, path.stem.removeprefix("model-"))
    path.rename(places.weights_cache / known.cache_names[0])
    assert read("torchvision:squeezenet1_1/IMAGENET1K_V1", places).tensors().keys() == vision.squeezenet1_1().state_dict().keys()


def test_timms_weights_are_read_from_a_file_alone_and_by_timms_own_names(places: Places) -> None:
    """Its older files call what became `head.fc` otherwise, or lack what a newer model has; that is timm's to know."""
    official = timm.create_model("test_resnet.r160_in1k")
    folder = places.inputs / "weights" / "timm" / "test_resnet.r160_in1k"
    folder.mkdir(parents=True)
    save_file(official.state_dict(), folder / "model.safetensors")
    source = read("timm:test_resnet.r160_in1k", places)
    assert source.format == "timm"
    assert source.entries.keys() == official.state_dict().keys()
    for name, tensor in source.tensors().items():
        assert torch.equal(tensor, official.state_dict()[name])
    known = preprocessing_of("timm:test_resnet.r160_in1k", places)
    assert known is not None
    assert known.size == 160


def _timm_of(content: object, path: Path, places: Places) -> Source:
    torch.save(content, path)
    return read("timm:test_resnet.r160_in1k", places)


def test_timms_names_are_checked(refusal: Callable[[str], str]) -> None:
    assert "Did you mean 'resnet18.a1_in1k'?" in refusal("timm:resnet18.a1_in1x")
    assert "timm/resnet18.a1_in1k/model.safetensors is not here, and downloads are off" in refusal("timm:resnet18.a1_in1k")


def test_a_file_that_is_not_timms_is_refused(places: Places) -> None:
    folder = places.inputs / "weights" / "timm" / "test_resnet.r160_in1k"
    folder.mkdir(parents=True)
    save_file(STATE, folder / "model.safetensors")
    with pytest.raises(TransferError, match="does not hold the weights of timm's test_resnet"):
        read("timm:test_resnet.r160_in1k", places).tensors()


@pytest.mark.parametrize("file", ["w.pth", "pytorch_model.bin"])
def test_of_a_timm_file_no_average_is_taken_silently_and_no_namespace_is_loaded(
    file: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own reader prefers `state_dict_ema`, and lets a pickle hold an argparse.Namespace."""
    config = dataclasses.replace(timm.models.get_pretrained_cfg("test_resnet.r160_in1k"), hf_hub_filename=file)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    path = places.inputs / "weights" / "timm" / "test_resnet.r160_in1k" / file
    path.parent.mkdir(parents=True)
    official = timm.create_model("test_resnet.r160_in1k").state_dict()
    source = _timm_of({"state_dict": {f"module.{key}": value for key, value in official.items()}, "epoch": 3}, path, places)
    assert torch.equal(source.tensors()["fc.weight"], official["fc.weight"])
    for content, message in (
        ({"state_dict": official, "state_dict_ema": official}, r"more than one state dict \(state_dict, state_dict_ema\)"),
        ({"state_dict_ema": official}, "by their name are an average"),
        ({"state_dict": official, "args": argparse.Namespace(lr=1)}, r"more than tensors \(argparse.Namespace\)"),
    ):
        with pytest.raises(SpecError, match=message):
            _timm_of(content, path, places).tensors()
        with pytest.raises(SpecError, match=message):
            read("timm:test_resnet.r160_in1k", places, shapes_only=True)


def test_a_file_that_changed_since_the_job_was_submitted_is_refused(places: Places) -> None:
    save_file(STATE, places.inputs / "w.safetensors")
    sha256 = hashlib.sha256((places.inputs / "w.safetensors").read_bytes()).hexdigest()
    pinned = places.model_copy(update={"pinned": {"file:w.safetensors": PinnedWeights(file="w.safetensors", sha256=sha256)}})
    assert read("file:w.safetensors", pinned).sha256 == sha256
    save_file({"other": torch.ones(1)}, places.inputs / "w.safetensors")
    with pytest.raises(TransferError, match="has changed since this job was submitted"):
        read("file:w.safetensors", pinned)


def test_a_file_that_is_still_as_it_was_pinned_is_not_read_for_its_hash_again(places: Places) -> None:
    path = places.inputs / "pinned.safetensors"
    save_file(STATE, path)
    told = PinnedWeights(file=path.name, sha256="ab" * 32, stamp=hashes.stamp_of(path))
    pinned = places.model_copy(update={"pinned": {f"file:{path.name}": told}})
    assert read(f"file:{path.name}", pinned).sha256 == "ab" * 32
    path.touch()
    with pytest.raises(TransferError, match="has changed since this job was submitted"):
        read(f"file:{path.name}", pinned)


@pytest.mark.parametrize("source", ["https://example.org/w.pth", "hf:org/repo"])
def test_what_lies_elsewhere_is_read_once_it_was_fetched(source: str, places: Places, refusal: Callable[[str], str]) -> None:
    assert "fetch it yourself and write file:PATH" in refusal(source)
    torch.save(STATE, places.inputs / "copy.pth")
    sha256 = hashlib.sha256((places.inputs / "copy.pth").read_bytes()).hexdigest()
    known = PinnedWeights(file="w.pth", sha256=sha256, url="https://example.org/w.pth")
    there = places.model_copy(update={"pinned": {source: known}})
    assert not is_here(source, there)
    places.weights_cache.mkdir(parents=True)
    (places.inputs / "copy.pth").rename(places.weights_cache / known.cache_names[0])
    assert is_here(source, there)
    assert torch.equal(read(source, there).tensors()["conv.weight"], torch.ones(2, 3))


def test_a_file_whose_name_says_another_hash_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1")
    path = _publish(weights, vision.squeezenet1_1().state_dict(), places.inputs, monkeypatch)
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TransferError, match="the file is damaged"):
        read("torchvision:squeezenet1_1/IMAGENET1K_V1", places)


def test_older_names_of_official_files_are_brought_up_to_date(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """DenseNet's files say `norm.1` where the model says `norm1`, and their norms have no counters."""
    model = vision.densenet121()
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    _publish(vision.get_weight("DenseNet121_Weights.IMAGENET1K_V1"), old, places.inputs, monkeypatch)
    tensors = read("torchvision:densenet121/IMAGENET1K_V1", places).tensors()
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(tensors[name], state[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": STATE, "model_ema": STATE}, "more than one state dict (model, model_ema)"),
        ({"model_ema": STATE}, "by their name are an average"),
        ({"model": STATE, "args": argparse.Namespace(lr=1)}, "more than tensors (argparse.Namespace)"),
    ],
)
def test_an_official_file_that_is_not_one_state_dict_is_refused_by_the_plan(
    content: Any, message: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is here already; of one that a worker fetches, only its name is known."""
    _publish(vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1"), content, places.inputs, monkeypatch)
    with pytest.raises(SpecError) as refused:
        read("torchvision:squeezenet1_1/IMAGENET1K_V1", places, shapes_only=True)
    (fault,) = refused.value.faults
    assert (fault.pointer, message in fault.message) == ("/pretrained/source", True)


def test_of_an_official_file_with_several_state_dicts_the_chosen_one_is_taken(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = vision.squeezenet1_1().state_dict()
    average = {key: value + 1 for key, value in official.items()}
    content: Any = {"model": official, "model_ema": average}
    _publish(vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1"), content, places.inputs, monkeypatch)
    name = "torchvision:squeezenet1_1/IMAGENET1K_V1"
    for container, state in content.items():
        source = read(name, places, container=container)
        assert torch.equal(source.tensors()["features.0.bias"], state["features.0.bias"])
        assert [(one.kind, one.detail) for one in source.steps] == [("container", container)]
    with pytest.raises(SpecError, match=r"Did you mean 'model_ema'\?") as refused:
        read(name, places, container="model_em", shapes_only=True)
    assert refused.value.faults[0].pointer == "/pretrained/container"


def test_of_timms_file_with_several_state_dicts_the_chosen_one_is_taken(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(timm.models.get_pretrained_cfg("test_resnet.r160_in1k"), hf_hub_filename="w.pth")
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    path = places.inputs / "weights" / "timm" / "test_resnet.r160_in1k" / "w.pth"
    path.parent.mkdir(parents=True)
    official = timm.create_model("test_resnet.r160_in1k").state_dict()
    torch.save({"state_dict": official, "state_dict_ema": {key: value + 1 for key, value in official.items()}}, path)
    source = read("timm:test_resnet.r160_in1k", places, container="state_dict_ema")
    assert torch.equal(source.tensors()["fc.bias"], official["fc.bias"] + 1)


@pytest.mark.parametrize("source", ["https://example.org/w.pth", "hf:org/repo/w.pth"])
def test_a_fetched_file_with_several_state_dicts_is_refused_by_the_plan_and_by_the_worker(source: str, places: Places) -> None:
    known = PinnedWeights(file="w.pth", sha256="ab" * 32, url="https://example.org/w.pth")
    there = places.model_copy(update={"pinned": {source: known}})
    places.weights_cache.mkdir(parents=True)
    torch.save({"state_dict": STATE, "state_dict_ema": STATE}, places.weights_cache / known.cache_names[0])
    for planned in (True, False):
        with pytest.raises(SpecError, match=r"more than one state dict \(state_dict, state_dict_ema\)"):
            read(source, there, shapes_only=planned)
    assert read(source, there, container="state_dict_ema", shapes_only=True).entries.keys() == STATE.keys()


def test_of_a_file_that_is_to_be_fetched_only_its_name_says_whether_it_has_containers(places: Places) -> None:
    later = places.model_copy(update={"download": True})
    source = read("torchvision:resnet18/IMAGENET1K_V1", later, container="model", shapes_only=True)
    assert [one.detail for one in source.steps] == ["model"]
    with pytest.raises(SpecError, match="a safetensors file has no containers"):
        read("timm:resnet18.a1_in1k", later, container="model", shapes_only=True)


def test_a_file_of_another_model_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(vision.get_weight("SqueezeNet1_1_Weights.IMAGENET1K_V1"), STATE, places.inputs, monkeypatch)
    with pytest.raises(TransferError, match="does not hold the weights of squeezenet1_1"):
        read("torchvision:squeezenet1_1/IMAGENET1K_V1", places).tensors()


@pytest.fixture
def job_3(places: Places, tmp_path: Path) -> Places:
    """The places of a job that takes its weights from job 3."""
    folder = tmp_path / "jobs" / "3" / "1" / "50"
    folder.mkdir(parents=True)
    save_file(STATE, folder / "model.safetensors")
    preprocessing = {"size": 40, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    (folder / "model.json").write_text(
        json.dumps({"classes": ["cat", "dog"], "preprocessing": preprocessing, "architecture": {"name": "torchvision:net"}})
    )
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return places.model_copy(update={"pinned": {"job:3": PinnedWeights(path=folder, sha256=sha256, step=50)}})


def test_a_jobs_weights_come_with_their_classes_and_preprocessing(job_3: Places) -> None:
    source = read("job:3", job_3)
    assert (source.format, source.classes, set(source.entries)) == ("safetensors", ("cat", "dog"), set(STATE))
    assert source.model == "torchvision:net"
    known = preprocessing_of("job:3", job_3)
    assert known is not None
    assert (known.size, known.mean) == (40, (0.1, 0.2, 0.3))


def test_a_jobs_weights_that_changed_since_are_refused(job_3: Places) -> None:
    save_file({"other": torch.ones(1)}, job_3.pinned["job:3"].path / "model.safetensors")
    with pytest.raises(TransferError, match="have changed"):
        read("job:3", job_3)


def test_a_job_without_weights_is_said_to_have_none(refusal: Callable[[str], str]) -> None:
    assert "'job:4' has no weights here" in refusal("job:4")


@pytest.mark.parametrize(
    ("source", "size"), [("torchvision:resnet50/IMAGENET1K_V2", 224), ("torchvision:vit_b_16/IMAGENET1K_SWAG_E2E_V1", 384)]
)
def test_official_weights_say_how_they_saw_images(source: str, size: int, places: Places) -> None:
    known = preprocessing_of(source, places)
    assert known is not None
    assert (known.size, known.std) == (size, (0.229, 0.224, 0.225))
