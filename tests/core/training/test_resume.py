"""A job that goes on from a checkpoint, in the middle of an epoch too, is one that never stopped: bit for bit.

The model has dropout and a norm's running statistics; the order of samples is drawn anew each epoch; seven steps an epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core import randomness
from core.errors import NonFiniteLossError
from core.events import CheckpointData, EpochData, Iteration, RewoundData
from core.places import Places
from core.spec import JobSpec
from core.training import loop
from core.training.job import fit
from core.training.loop import Losses, train_fn
from core.training.progress import Tally
from core.training.readback import Readback

Spec = Callable[..., JobSpec]
ADAM = {"name": "Adam", "lr": 0.01}
SGD = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "groups": [{"params": "5.*", "lr": 0.1}, {"params": "0.*", "freeze": True}]}


@dataclass
class Story:
    """What a job said, by kind."""

    directory: Path
    losses: dict[int, float] = field(default_factory=dict)
    epochs: dict[int, EpochData] = field(default_factory=dict)
    saved: dict[int, CheckpointData] = field(default_factory=dict)
    rewound: int | None = None

    def end(self) -> dict[str, Any]:
        """All that the last checkpoint holds but the time that it took: weights, optimizer, generators, best figures."""
        place = self.directory / str(max(self.saved))
        files = {path.name: path.read_bytes() for path in place.glob("*.safetensors")}
        state = json.loads((place / "state.json").read_text())
        return {**files, "progress": state["progress"], "values": state["values"]}

    def means(self) -> dict[int, Any]:
        return {epoch: (data.mean_loss, data.validation) for epoch, data in self.epochs.items()}

    def figures(self) -> dict[int, Any]:
        return {step: (data.epoch, data.figures, data.best) for step, data in self.saved.items()}


@pytest.fixture
def spec(tiny_spec: Spec) -> Spec:
    """Two epochs of seven steps, the last one ragged; a checkpoint after each step."""

    def make(every: Any = None, epochs: int = 2, **parts: Any) -> JobSpec:
        parts = {"loader": {"batch_size": 256}, "checkpoint": {"every": every or {"steps": 1}}, "optimizer": ADAM, **parts}
        return tiny_spec(epochs=epochs, **parts)

    return make


@pytest.fixture
def tell(places: Places) -> Callable[..., Story]:
    """Run a job to its end, or until it has done a step; its story."""

    def run(spec: JobSpec, directory: Path, *, until: int = 10**9, resident: bool = True, **more: Any) -> Story:
        story = Story(directory)
        there = places if resident else places.model_copy(update={"resident_bytes": 0})
        with closing(fit(spec, there, directory, **more)) as job:
            for event in job:
                if isinstance(event, Iteration):
                    story.losses[event.step] = event.loss
                    if event.step == until:
                        break
                elif isinstance(event[1], EpochData):
                    story.epochs[event[1].epoch] = event[1]
                elif isinstance(event[1], CheckpointData):
                    story.saved[event[0]] = event[1]
                elif isinstance(event[1], RewoundData):
                    story.rewound = event[1].to_step
        return story

    return run


def same(whole: Story, *parts: Story) -> bool:
    """Whether a job in parts, each of which takes the place of what the ones before it had said beyond it, is the whole one."""
    losses: dict[int, float] = {}
    means: dict[int, Any] = {}
    for part in parts:
        begin = part.rewound or 0
        losses = {step: loss for step, loss in losses.items() if step < begin} | part.losses
        means |= part.means()
    return losses == whole.losses and means == whole.means() and parts[-1].end() == whole.end()


@pytest.mark.slow  # thirteen jobs, each from another checkpoint
@pytest.mark.parametrize(("optimizer", "resident"), [(ADAM, True), (SGD, False)], ids=["resident", "streaming"])
def test_from_each_checkpoint_of_a_job_it_goes_on_bit_for_bit(
    spec: Spec, tell: Callable[..., Story], tmp_path: Path, optimizer: Any, resident: bool
) -> None:
    whole = tell(spec(optimizer=optimizer), tmp_path / "whole", resident=resident)
    assert list(whole.saved) == list(range(1, 15))
    for step in range(1, 14):
        rest = tell(spec(optimizer=optimizer), tmp_path / str(step), resident=resident, resume=[tmp_path / "whole" / str(step)])
        assert (rest.rewound, min(rest.losses)) == (step, step)
        assert {at: loss for at, loss in whole.losses.items() if at < step} | rest.losses == whole.losses
        assert rest.means() == {epoch: mean for epoch, mean in whole.means().items() if step < 7 or epoch == 1}
        assert rest.figures() == {at: figures for at, figures in whole.figures().items() if at > step}
        assert rest.end() == whole.end()


@pytest.mark.slow  # starts reading processes, twice two
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_the_middle_of_an_epoch_that_processes_read_too(spec: Spec, tell: Callable[..., Story], tmp_path: Path) -> None:
    reading = spec({"steps": 5}, loader={"batch_size": 256, "workers": 2})
    whole = tell(spec({"steps": 5}), tmp_path / "whole")
    first = tell(reading, tmp_path / "1", until=11, resident=False)
    assert same(whole, first, tell(reading, tmp_path / "2", resident=False, resume=[tmp_path / "1/10"]))


def test_a_job_is_stopped_twice_in_one_epoch_and_no_one_can_tell(spec: Spec, tell: Callable[..., Story], tmp_path: Path) -> None:
    whole = tell(spec({"steps": 2}), tmp_path / "whole")
    first = tell(spec({"steps": 2}), tmp_path / "1", until=3)
    second = tell(spec({"steps": 2}), tmp_path / "2", until=5, resume=[tmp_path / "1/2"])
    third = tell(spec({"steps": 2}), tmp_path / "3", resume=[tmp_path / "2/4", tmp_path / "1/2"])
    assert (list(second.losses), list(third.losses)) == ([2, 3, 4, 5], list(range(4, 14)))
    assert same(whole, first, second, third)


def test_checkpoints_leave_no_trace_in_training(spec: Spec, tell: Callable[..., Story], tmp_path: Path) -> None:
    often = tell(spec({"steps": 1}), tmp_path / "often")
    seldom = tell(spec("epoch"), tmp_path / "seldom")
    assert (often.losses, often.means()) == (seldom.losses, seldom.means())
    assert {name: content for name, content in often.end().items() if name.endswith("safetensors")} == {
        name: content for name, content in seldom.end().items() if name.endswith("safetensors")
    }


def test_a_damaged_one_in_an_epoch_is_passed_over_for_the_one_before(
    spec: Spec, tell: Callable[..., Story], tmp_path: Path
) -> None:
    whole = tell(spec({"steps": 2}), tmp_path / "whole")
    first = tell(spec({"steps": 2}), tmp_path / "1", until=12)
    (tmp_path / "1/12/state.json").write_text((tmp_path / "1/12/state.json").read_text().replace('"steps": 5', '"steps": 6'))
    second = tell(spec({"steps": 2}), tmp_path / "1", resume=[tmp_path / "1/12", tmp_path / "1/10"])
    assert second.rewound == 10
    assert same(whole, first, second)


# --- which are written, and what they say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "keep_best", "steps"),
    [
        ("epoch", 1, [7, 14]),
        ({"steps": 3}, 0, [3, 6, 9, 12, 14]),
        ({"steps": 3}, 1, [3, 6, 7, 9, 12, 14]),  # the first epoch is the best so far
        ({"steps": 7}, 0, [7, 14]),
        ({"steps": 1000}, 0, [14]),
        ({"minutes": 1}, 0, [3, 6, 9, 12, 14]),
        ({"minutes": 1}, 1, [3, 6, 7, 10, 13, 14]),
    ],
)  # fmt: skip
def test_checkpoints_are_written_as_often_as_the_spec_says_and_at_the_end(
    spec: Spec, places: Places, tmp_path: Path, every: Any, keep_best: int, steps: list[int]
) -> None:
    now, written = 0.0, []
    job = fit(spec(checkpoint={"every": every, "keep_best": keep_best}), places, tmp_path / "job", clock=lambda: now)
    for event in job:
        now += 20 * isinstance(event, Iteration)  # each step takes twenty seconds
        if not isinstance(event, Iteration) and isinstance(event[1], CheckpointData):
            written.append(event[0])
    assert written == steps
    assert sorted(int(path.name) for path in (tmp_path / "job").iterdir()) == steps


def test_in_an_epoch_a_checkpoint_knows_the_mean_so_far_and_no_validation(
    spec: Spec, tell: Callable[..., Story], tmp_path: Path
) -> None:
    story = tell(spec({"steps": 3}), tmp_path / "job")
    assert {step: (data.epoch, sorted(data.figures)) for step, data in story.saved.items()} == {
        3: (0, ["mean_loss"]), 6: (0, ["mean_loss"]), 7: (0, ["loss", "mean_loss", "top1", "top5"]),
        9: (1, ["mean_loss"]), 12: (1, ["mean_loss"]), 14: (1, ["loss", "mean_loss", "top1", "top5"]),
    }  # fmt: skip
    assert story.saved[9].figures["mean_loss"] == (story.losses[7] * 256 + story.losses[8] * 256) / 512
    assert story.saved[14].figures["mean_loss"] == story.epochs[1].mean_loss
    assert [step for step, data in story.saved.items() if data.best] == [3, 6, 7, 14], "never better than what was validated"
    card = json.loads((tmp_path / "job/9/model.json").read_text())
    assert (card["step"], card["epoch"], list(card["figures"])) == (9, 2, ["mean_loss"])


def test_the_seconds_of_a_resumed_epoch_are_those_of_all_its_steps(
    spec: Spec, tell: Callable[..., Story], tmp_path: Path
) -> None:
    tell(spec({"steps": 5}), tmp_path / "1", until=5)
    state = json.loads((tmp_path / "1/5/state.json").read_text())
    before = state["progress"]["seconds"]
    second = tell(spec({"steps": 5}), tmp_path / "2", resume=[tmp_path / "1/5"])
    assert 0 < before < second.epochs[0].seconds
    assert second.epochs[0].samples_per_second == pytest.approx(1617 / second.epochs[0].seconds)


@pytest.mark.parametrize("lag", [0, 2])
def test_where_it_pauses_every_loss_has_been_told_and_none_was_broken(monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    monkeypatch.setattr(loop, "Readback", partial(Readback, lag=lag))  # two steps behind, as on a GPU
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    points = [torch.randn(4, 2) for _ in range(6)]
    points[4][0, 0] = math.nan

    class Given:
        def batches(self, _epoch: int, start: int = 0) -> Any:
            return iter([(images, torch.tensor([0, 1, 1, 0])) for images in points[start:]])

    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": 0.1, "names": ["default"]}])
    losses, seen = Losses(0, Tally(1, 4, 8.0)), []
    with pytest.raises(NonFiniteLossError, match="at step 4"):
        seen.extend(
            train_fn(
                0, Given(), model, optimizer, nn.CrossEntropyLoss(), step=1, losses=losses, pause=lambda step: step in (3, 5)
            )
        )
    kinds = [event.step if isinstance(event, Iteration) else "pause" for event in seen]
    assert kinds == [1, 2, "pause", 3, 4]
    assert seen[2] == Tally(3, 12, 8.0 + seen[0].loss * 4 + seen[1].loss * 4)


# --- the same bits on a GPU ----------------------------------------------------------------------------------------------------


def settings() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    filled = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, filled


@pytest.mark.parametrize("wanted", [False, True])
def test_a_deterministic_job_uses_only_such_algorithms_and_then_leaves_things_as_they_were(
    spec: Spec, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    job = fit(spec(training={"deterministic": wanted}), places, tmp_path / "job")
    next(job)
    assert settings() == ((True, True, False, False) if wanted else before)
    job.close()
    assert settings() == before


def test_an_operation_without_such_an_algorithm_fails_by_its_name() -> None:
    with randomness.deterministic(), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


@pytest.mark.gpu
def test_on_a_gpu_too_a_deterministic_job_goes_on_bit_for_bit(spec: Spec, tell: Callable[..., Story], tmp_path: Path) -> None:
    exact = {"epochs": 2, "deterministic": True}
    whole = tell(spec({"steps": 5}, training=exact), tmp_path / "whole", device="cuda")
    first = tell(spec({"steps": 5}, training=exact), tmp_path / "1", until=11, device="cuda")
    assert same(whole, first, tell(spec({"steps": 5}, training=exact), tmp_path / "2", device="cuda", resume=[tmp_path / "1/10"]))
