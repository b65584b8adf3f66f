"""Too little loaded is never silent, though it is enough for `min_loaded`."""

from __future__ import annotations

import pytest
import torch
from torchvision import models as vision

from core.errors import SpecError
from core.events import TransferData
from core.spec import PretrainedSpec
from core.transfer.entries import Entry, Source
from core.transfer.heads import Head
from core.transfer.shortfall import shortfall
from core.transfer.weights import plan_transfer

HEAD = Head(frozenset({"fc.weight", "fc.bias"}), ("fc",))


def planned(model: str, of: str, *, says: bool = True, **wish: object) -> TransferData:
    """The report of a job on `model` from the weights that job 1 has of another one."""
    with torch.device("meta"):
        here, there = (vision.get_model(name, num_classes=3) for name in (model, of))
    entries = {key: Entry(tuple(one.shape), one.dtype) for key, one in there.state_dict().items()}
    source = Source("job:1", "safetensors", entries, dict, model=f"torchvision:{of}" if says else None)
    spec = PretrainedSpec.model_validate({"source": "job:1", **wish})
    return plan_transfer(here, source, spec, HEAD).report


def test_a_smaller_model_of_the_same_family_is_warned_of_with_the_modules_at_fault() -> None:
    said = shortfall(planned("resnet34", "resnet18"), "torchvision:resnet34")
    assert said is not None
    assert said.startswith(
        "only 52.5% of the model outside its head would be loaded, "
        "for job:1 is a torchvision:resnet18 and this is torchvision:resnet34; the rest starts at random: layer3 (69% of it), "
    )
    assert "conv1" not in said
    assert "fc" not in said


def test_a_source_that_does_not_know_its_model_says_the_rest() -> None:
    said = shortfall(planned("resnet34", "resnet18", says=False), "torchvision:resnet34")
    assert said is not None
    assert "would be loaded; the rest starts at random" in said


def test_what_is_all_loaded_or_left_out_on_purpose_is_no_shortfall() -> None:
    assert shortfall(planned("resnet18", "resnet18"), "torchvision:resnet18") is None
    assert shortfall(planned("resnet18", "resnet18", exclude=["layer4.*"]), "torchvision:resnet18") is None


def test_another_architecture_is_called_one_and_no_rule_is_advised() -> None:
    with pytest.raises(SpecError) as refused:
        planned("mobilenet_v2", "resnet18")
    assert "nothing would be loaded; job:1 is a torchvision:resnet18; left out here: " in str(refused.value)
    assert "most likely the weights of another architecture" in str(refused.value)
    assert "rename" not in str(refused.value)
