"""Precision, accumulation, clipping, the running average, the layout: each against a few lines of torch."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.errors import CompileError
from core.events import Iteration
from core.models import layout
from core.optimizer.groups import build_optimizer
from core.prepare import prepare
from core.spec import OptimizerSpec, TrainingSpec
from core.training.averaging import Average
from core.training.checkpoints import load
from core.training.evaluation import evaluate
from core.training.job import fit
from core.training.loop import train_fn
from core.training.precision import Precision, choose
from core.training.ranks import Ranks, Window
from core.training.recipe import Recipe, make_recipe

CPU = torch.device("cpu")


class Given:
    """Batches that are there already."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.given = batches

    def batches(self, epoch: int, start: int = 0):  # noqa: ARG002
        return iter(self.given[start:])


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()


def data(samples: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, 8, 8, generator=draw, dtype=torch.float64), torch.randint(0, 5, (samples,), generator=draw)


def trained(batches, loss_fn, **recipe) -> tuple[list[float], dict[str, Tensor]]:
    model = net()
    optimizer, _ = build_optimizer(model, OptimizerSpec(name="SGD", lr=0.1, momentum=0.9), CPU)
    events = train_fn(0, Given(batches), model, optimizer, loss_fn, recipe=Recipe(model, **recipe))
    return [event.loss for event in events if isinstance(event, Iteration)], model.state_dict()


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1, 2, 3, 7], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1),
        nn.MultiMarginLoss(),
    ],
    ids=["mean", "weighted", "ignoring", "margin"],
)
def test_an_accumulated_step_is_that_of_one_batch_of_all_its_samples(loss_fn):
    images, labels = data(22)  # two windows: 4 + 4 + 4, and a ragged one of 4 + 4 + 2
    small = list(zip(images.split(4), labels.split(4), strict=True))
    large = list(zip(images.split(12), labels.split(12), strict=True))
    losses, weights = trained(small, loss_fn, accumulate=3)
    as_one, expected = trained(large, loss_fn)
    assert len(losses) == 2
    assert losses == pytest.approx(as_one, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-10, atol=1e-12)


def test_targets_that_are_probabilities_accumulate_by_samples():
    loss_fn = nn.CrossEntropyLoss(weight=torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    images, labels = data(10)
    soft = nn.functional.one_hot(labels, 5).double() * 0.7 + 0.06
    losses, _ = trained([(images[:7], soft[:7]), (images[7:], soft[7:])], loss_fn, accumulate=2)
    as_one, _ = trained([(images, soft)], loss_fn)
    assert losses == pytest.approx(as_one, rel=1e-6)


def test_an_epoch_goes_on_at_a_window_not_at_a_batch():
    batches = [(torch.full((1, 3, 8, 8), float(number)), torch.zeros(1, dtype=torch.int64)) for number in range(7)]
    windows = Ranks().windows(Given(batches), 0, 1, 3)
    firsts = [[int(images[0, 0, 0, 0]) for images, _ in window.batches] for window in windows]
    assert firsts == [[3, 4, 5], [6]]


def test_clipping_scales_the_gradients_of_all_parameters_together():
    images, labels = data(8)
    model, by_hand = net(), net()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    optimizer, _ = build_optimizer(model, OptimizerSpec(name="SGD", lr=1.0), CPU)
    list(train_fn(0, Given([(images, labels)]), model, optimizer, nn.CrossEntropyLoss(), recipe=Recipe(model, clip=0.01)))
    nn.CrossEntropyLoss()(by_hand(images), labels).backward()
    norm = torch.cat([one.grad.flatten() for one in by_hand.parameters()]).norm()
    assert norm > 0.02
    for (name, after), one in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(after, before[name] - one.grad * 0.01 / (norm + 1e-6))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_what_is_clipped_is_the_gradients_without_the_scale_of_their_loss(kind):
    model = nn.Linear(2, 2)
    optimizer, _ = build_optimizer(model, OptimizerSpec(name="SGD", lr=1.0), CPU)
    before = [one.detach().clone() for one in model.parameters()]
    precision = Precision(kind)
    precision.backward(model(torch.ones(1, 2)).sum())  # six gradients of 1
    precision.step(optimizer, clip=1.0)
    for one, after in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(one - after, torch.full_like(one, 6**-0.5))


def test_the_average_is_its_closed_form():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    average = Average(model, 0.9)
    expected = model[0].weight.detach().clone()
    for number in range(1, 5):
        with torch.no_grad():
            model[0].weight += number
            model[1].running_mean += 1
            model[1].num_batches_tracked += 1
        average.update()
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.tensors["0.weight"], expected)
    assert average.tensors["1.running_mean"].tolist() == [4, 4]
    assert average.tensors["1.num_batches_tracked"] == 4


def test_within_swapped_the_model_has_the_average_and_after_it_its_own():
    model = nn.Linear(2, 2)
    own = model.weight.detach().clone()
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    with average.swapped():
        torch.testing.assert_close(model.weight.detach(), own)
    torch.testing.assert_close(model.weight.detach(), own + 1)


def test_what_is_kept_is_the_average_and_what_trains_beside_it(tiny_spec, places, tmp_path):
    spec = tiny_spec(training={"epochs": 2, "ema": 0.9, "clip_grad_norm": 1.0, "accumulate": 2})
    *_, (step, last) = fit(spec, places, tmp_path)
    weights, state, content = load(tmp_path / last.path)
    assert content["values"]["recipe"]["averaged"] == step
    assert not torch.equal(weights["0.weight"], state["trained/0.weight"])
    assert torch.equal(weights["1.running_mean"], state["trained/1.running_mean"])


def test_what_is_validated_is_what_is_kept(tiny_spec, places, tmp_path):
    spec = tiny_spec(training={"ema": 0.9})
    *_, (_, epoch), _, (_, last) = fit(spec, places, tmp_path)
    job = prepare(spec, places, CPU)
    weights, state, _ = load(tmp_path / last.path)
    losses = []
    for kept in (weights, {name.removeprefix("trained/"): one for name, one in state.items() if name.startswith("trained/")}):
        job.model.load_state_dict(kept)
        losses.append(evaluate(job.model, job.validation, job.loss).figures["loss"])
    assert losses[0] == epoch.validation["loss"] != losses[1]


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_job_with_every_technique_goes_on_bit_for_bit(tiny_spec, places, tmp_path, channels_last):
    spec = tiny_spec(
        training={"epochs": 2, "ema": 0.9, "clip_grad_norm": 0.5, "accumulate": 3, "channels_last": channels_last},
        checkpoint={"every": {"steps": 4}},
    )

    def run(folder: Path, resume: list[Path] | None = None) -> tuple[dict[int, float], Path]:
        events = list(fit(spec, places, folder, resume=resume))
        losses = {event.step: event.loss for event in events if isinstance(event, Iteration)}
        return losses, folder / str(events[-1][0])

    losses, whole = run(tmp_path / "whole")
    again, resumed = run(tmp_path / "again", [tmp_path / "whole" / "4"])
    assert again == {step: loss for step, loss in losses.items() if step >= 4}
    for file in ("model.safetensors", "state.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()


def test_channels_last_changes_no_more_than_rounding(tiny_spec, places, tmp_path):
    def losses(channels_last: bool) -> list[float]:
        spec = tiny_spec(training={"channels_last": channels_last})
        return [event.loss for event in fit(spec, places, tmp_path / str(channels_last)) if isinstance(event, Iteration)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-3)


def test_the_layout_goes_by_what_the_convolutions_do():
    def deep(side: int) -> bool:
        return layout.helps(nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 64, 3, 4, 1)), side, CPU, half=False)

    assert deep(64)
    assert not deep(16)  # most weights work on a map of one pixel
    assert not layout.helps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2, CPU, half=False)
    assert not layout.helps(nn.Conv2d(3, 8, 3), 64, torch.device("cuda"), half=False)
    assert layout.helps(nn.Conv2d(3, 8, 3), 64, torch.device("cuda"), half=True)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_sixteen_bits_train_as_fp32_does_within_their_rounding(tiny_spec, places, tmp_path, kind):
    def losses(precision: str) -> list[float]:
        spec = tiny_spec(training={"precision": precision}, loader={"batch_size": 256})
        return [event.loss for event in fit(spec, places, tmp_path / precision) if isinstance(event, Iteration)]

    found, exact = losses(kind), losses("fp32")
    assert found != exact
    assert found == pytest.approx(exact, rel=0.02)


def test_an_fp16_step_whose_gradients_overflow_is_left_out_and_the_scale_halved():
    model = nn.Linear(2, 2)
    optimizer, _ = build_optimizer(model, OptimizerSpec(name="SGD", lr=1.0), CPU)
    precision = Precision("fp16")
    before = copy.deepcopy(model.state_dict())
    precision.backward(model(torch.full((1, 2), 1e38)).sum())
    precision.step(optimizer, clip=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    state = precision.state()
    assert state is not None
    assert state["scale"] == 32768
    other = Precision("fp16")
    other.restore(state)
    assert other.state() == state


def test_auto_is_fp32_on_the_cpu():
    assert choose("auto", CPU) == "fp32"
    assert choose("bf16", CPU) == "bf16"


def test_a_loss_is_taken_of_float32_even_where_the_model_answers_in_16_bits():
    seen: list[torch.dtype] = []

    def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return logits.sum()

    model = nn.Linear(2, 2)
    window = Window([(torch.ones(1, 2), torch.zeros(1))], 1)
    list(Ranks().losses(Recipe(model, precision=Precision("bf16")), window, loss_fn))
    assert seen == [torch.float32]


def test_a_model_that_cannot_be_compiled_fails_with_the_way_out(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(model: nn.Module, **_: object):
        def run(images: Tensor) -> Tensor:
            raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(CompileError, match="cannot compile") as caught:
        Recipe(nn.Linear(2, 2), compiled=True)(torch.ones(1, 2))
    assert "training.compile" in caught.value.hint


def test_overfitting_one_batch_goes_to_zero():
    images, labels = data(16)
    model = net()
    optimizer, _ = build_optimizer(model, OptimizerSpec(name="Adam", lr=1e-2), CPU)
    events = train_fn(0, Given([(images, labels)] * 150), model, optimizer, nn.CrossEntropyLoss())
    losses = [event.loss for event in events if isinstance(event, Iteration)]
    assert losses[-1] < 1e-3 < losses[0]
    assert sum(later < earlier for earlier, later in pairwise(losses)) > 140


def test_the_spec_names_what_the_recipe_takes():
    spec = TrainingSpec(precision="bf16", accumulate=2, clip_grad_norm=1.0, ema=0.99, channels_last=True)
    recipe = make_recipe(nn.Conv2d(3, 4, 3), spec, 8, CPU)
    assert (str(recipe), recipe.accumulate, recipe.clip) == ("bf16, channels_last", 2, 1.0)
    assert recipe.average is not None
    assert recipe.model.weight.is_contiguous(memory_format=torch.channels_last)
