"""A frozen backbone is run once, and nothing but the time shows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from core.adjustments import Adjustments
from core.errors import NonFiniteLossError
from core.events import AdjustedData, EpochData, Iteration, LogData, RewoundData
from core.models import features
from core.models.build import build_model
from core.models.cut import Cut, cut, is_sound
from core.models.folding import folded
from core.optimizer.assignment import resolve
from core.optimizer.freezing import freeze
from core.places import Places
from core.plan import plan
from core.prepare import prepare
from core.spec import GroupSpec, JobSpec, ModelSpec, OptimizerSpec
from core.training.job import fit

HEAD_ALONE = {"name": "Adam", "lr": 1e-2, "groups": [{"name": "body", "params": "0.*", "freeze": True},
                                                     {"name": "norm", "params": "1.*", "freeze": True}]}  # fmt: skip

ENDED = "the frozen part was thawed, or frozen anew: from here on the model is run whole"


@pytest.fixture
def frozen(tiny_spec) -> Callable[..., JobSpec]:
    def make(epochs: int = 3, **parts: Any) -> JobSpec:
        return tiny_spec(epochs=epochs, **{"optimizer": HEAD_ALONE, **parts})

    return make


@pytest.fixture
def runs_of_the_stem(monkeypatch) -> list[int]:
    """How many images each call of the first convolution had."""
    seen: list[int] = []
    plain = nn.Conv2d.forward

    def counting(self: nn.Conv2d, images: Tensor) -> Tensor:
        if not images.is_meta:
            seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", counting)
    return seen


def story(spec: JobSpec, places: Places, folder: Path, **more: Any) -> tuple[list[float], list[Any]]:
    events = list(fit(spec, places, folder, **more))
    losses = [event.loss for event in events if isinstance(event, Iteration)]
    return losses, [event[1] for event in events if not isinstance(event, Iteration)]


def without_features(monkeypatch) -> None:
    monkeypatch.setattr(features, "cut", lambda _: "not now")


def test_the_losses_and_figures_are_those_of_the_plain_run(frozen, places, tmp_path, monkeypatch, runs_of_the_stem):
    fast, told = story(frozen(), places, tmp_path / "fast")
    images = sum(runs_of_the_stem)
    runs_of_the_stem.clear()
    without_features(monkeypatch)
    plain, told_plainly = story(frozen(), places, tmp_path / "plain")
    assert images < 1797 + 30 < sum(runs_of_the_stem) / 2.9
    assert fast == pytest.approx(plain, rel=1e-4)  # with dropout: the draws are the same, too
    assert "frozen part run once" in told[1].runs
    for one, other in zip(told, told_plainly, strict=True):
        if isinstance(one, EpochData):
            assert one.validation == pytest.approx(other.validation, rel=1e-4)


def test_a_fold_that_changes_the_features_is_not_used(frozen, places, tmp_path, monkeypatch):
    expected, _ = story(frozen(), places, tmp_path / "as it is")

    def bent(before: fx.GraphModule) -> fx.GraphModule:
        quick = folded(before)
        convolution = next(module for module in quick.modules() if isinstance(module, nn.Conv2d))
        convolution.weight.data += 0.1
        return quick

    monkeypatch.setattr(features, "folded", bent)
    told_plainly, told = story(frozen(), places, tmp_path / "bent")
    assert "frozen part run once" in told[1].runs
    assert told_plainly == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("training", "rel"),
    [({"accumulate": 3, "ema": 0.9, "clip_grad_norm": 0.5}, 1e-4), ({"precision": "bf16", "ema": 0.9}, 1e-2)],
    ids=["accumulated, averaged, clipped", "bf16"],
)
def test_so_they_are_with_the_techniques_of_a_step(frozen, places, tmp_path, monkeypatch, training, rel):
    spec = frozen(training={"epochs": 2, **training})
    fast, told = story(spec, places, tmp_path / "fast")
    without_features(monkeypatch)
    plain, told_plainly = story(spec, places, tmp_path / "plain")
    assert "frozen part run once" in told[1].runs
    assert "frozen part run once" not in told_plainly[1].runs
    assert fast == pytest.approx(plain, rel=rel)
    figures, expected = (
        [event.validation["loss"] for event in events if isinstance(event, EpochData)] for events in (told, told_plainly)
    )
    assert figures == pytest.approx(expected, rel=rel)


def test_the_plan_says_so_with_its_bytes(frozen, places):
    said = plan(frozen(), places)
    assert said.features is not None
    assert said.features.once
    assert said.features.shapes == [[72]]
    assert said.features.bytes == 1797 * 72 * 4
    assert plan(frozen(optimizer={"name": "Adam"}), places).features is None


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"epochs": 1}, "one epoch"),
        ({"optimizer": {"groups": [{"params": "0.*", "freeze": {"until_epoch": 1}}]}}, "one epoch"),
        ({"optimizer": {"groups": [{"params": ["1.*", "5.*"], "freeze": True}]}}, "0 comes first, and it trains"),
        ({"dataset": {"source": "sklearn:digits", "augment": "light"}}, "augmented"),
        ({"training": {"epochs": 2, "mixup": 0.2}}, "mixed"),
    ],
)
def test_the_plan_says_why_not(frozen, places, parts, reason):
    said = plan(frozen(**parts), places).features
    assert said is not None
    assert not said.once
    assert reason in said.reason


def test_features_that_do_not_fit_are_not_held(frozen, places):
    small = places.model_copy(update={"resident_bytes": 100_000})
    said = plan(frozen(), small).features
    assert said is not None
    assert "100000 may be held" in said.reason
    assert prepare(frozen(), small, torch.device("cpu")).recipe.backbone is None


def test_what_thaws_later_is_run_whole_from_then_on(frozen, places, tmp_path, monkeypatch):
    until = {"until_epoch": 2}
    groups = [{**group, "freeze": until} for group in HEAD_ALONE["groups"]]
    spec = frozen(epochs=3, optimizer={**HEAD_ALONE, "groups": groups})
    fast, told = story(spec, places, tmp_path / "fast")
    without_features(monkeypatch)
    plain, _ = story(spec, places, tmp_path / "plain")
    assert fast == pytest.approx(plain, rel=1e-2)
    assert [event.message for event in told if isinstance(event, LogData)] == [ENDED]
    assert fast[-1] != pytest.approx(fast[30], rel=0.05)


def test_back_from_behind_a_thaw_it_is_run_once_again_as_by_a_job_that_goes_on(frozen, places, tmp_path, runs_of_the_stem):
    """It thaws at step 34, the lr explodes at 35, and the job goes back to 30. Only what is run whole has batches of 100."""
    groups = [{**group, "freeze": {"until_epoch": 2}} for group in HEAD_ALONE["groups"]]
    spec = frozen(
        loader={"batch_size": 100},
        optimizer={"name": "SGD", "lr": 0.01, "groups": groups},
        schedule={"name": "MultiStepLR", "per": "step", "milestones": [35], "gamma": 1e30},
        checkpoint={"every": {"steps": 15}, "keep_last": 2, "keep_best": 0},
        training={"epochs": 3, "divergence": {"non_finite": "rollback", "lr_factor": 1, "times": 1}},
    )
    told: list[Any] = []
    with pytest.raises(NonFiniteLossError):
        told.extend(fit(spec, places, tmp_path))
    assert [event[1].to_step for event in told if isinstance(event[1], RewoundData)] == [30]
    steps = [event.step for event in told if isinstance(event, Iteration)]
    assert steps == [*range(37), *range(30, 37)]
    assert runs_of_the_stem.count(100) == 2 * len([34, 35, 36])


def test_a_group_that_is_thawed_by_hand_trains_from_that_very_step(frozen, places, tmp_path, monkeypatch, runs_of_the_stem):
    def thawing() -> Adjustments:
        asked = Adjustments()
        asked.adjust("body", at_step=40, freeze=False)
        return asked

    fast, told = story(frozen(), places, tmp_path / "fast", adjustments=thawing())
    assert [event.step for event in told if isinstance(event, AdjustedData)] == [40]
    assert sum(runs_of_the_stem) > 1797 + 30 * 64  # the rest of that epoch, and the next
    without_features(monkeypatch)
    plain, _ = story(frozen(), places, tmp_path / "plain", adjustments=thawing())
    assert fast == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(("group", "ends"), [("top", False), ("body", True)])
def test_freezing_by_hand_ends_features_where_it_is_of_the_frozen_part_and_the_log_says_so_once(
    frozen, places, tmp_path, runs_of_the_stem, group, ends
):
    """Thawed and frozen again; the job that goes on from between the two does to the bit what the whole one did."""
    groups = [*HEAD_ALONE["groups"], {"name": "top", "params": "*.bias"}]

    def asked() -> Adjustments:
        made = Adjustments()
        made.adjust(group, at_step=10, freeze=group == "top")
        made.adjust(group, at_step=20, freeze=group == "body")
        return made

    spec = frozen(epochs=2, optimizer={**HEAD_ALONE, "groups": groups}, checkpoint={"every": {"steps": 25}})
    adjustments = asked()
    whole, told = story(spec, places, tmp_path / "whole", adjustments=adjustments)
    lines = [event.message for event in told if isinstance(event, LogData)]
    assert lines == ([ENDED] if ends else [])
    assert (sum(runs_of_the_stem) < 1797 + 100) != ends
    again, told = story(
        spec, places, tmp_path / "again", resume=[tmp_path / "whole/25"], adjustments=Adjustments(adjustments.done)
    )
    assert again == whole[25:]
    assert not [event for event in told if isinstance(event, LogData)], "it was said before"


def test_a_job_that_goes_on_is_an_undisturbed_one_bit_for_bit(frozen, places, tmp_path):
    spec = frozen(checkpoint={"every": {"steps": 10}})
    whole, _ = story(spec, places, tmp_path / "whole")
    again, _ = story(spec, places, tmp_path / "again", resume=[tmp_path / "whole" / "30"])
    assert again == whole[30:]


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier"), ("vit_b_32", "heads"), ("densenet121", "classifier")],
)
def test_a_torchvision_model_is_cut_before_its_head(name, head, places):
    keywords = {"image_size": 32} if name.startswith("vit") else {}
    model = build_model(ModelSpec(name=f"torchvision:{name}", **keywords), 3, places)
    optimizer = OptimizerSpec(groups=[GroupSpec(params=f"{head}.*"), GroupSpec(params="*", freeze=True)])
    freeze(model, resolve(model, optimizer), 0)
    made = cut(model)
    assert isinstance(made, Cut)
    trained = {id(one) for one in model.parameters() if one.requires_grad}
    assert {id(one) for one in made.after.parameters()} == trained
    assert is_sound(made, model, torch.randn(2, 3, 32, 32))


class Counting(nn.Module):
    """Its frozen part is another one each time, in a way that no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.stem.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images) + self.calls.add_(1))


class Mixing(nn.Module):
    """What it makes of an image depends on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.stem.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images)
        return self.head(found - found.mean(0))


@pytest.mark.parametrize("kind", [Counting, Mixing])
def test_a_cut_that_is_not_what_the_model_does_is_not_trusted(kind):
    model = kind()
    made = cut(model)
    assert isinstance(made, Cut)
    assert not is_sound(made, model, torch.randn(3, 4))


class Branching(nn.Module):
    """No graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.stem.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images)
        return self.head(found if found.sum() > 0 else -found)


def test_a_model_without_a_graph_is_run_whole():
    assert "depends on data" in str(cut(Branching()))
