"""The loop: every loss, in order; their mean; validation that leaves no trace; a job's events."""

import math
import multiprocessing
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from core.errors import NonFiniteLossError
from core.events import Iteration, chunk
from core.models.outputs import logits_of, loss_of
from core.prepare import prepare
from core.training import loop
from core.training.evaluation import evaluate
from core.training.job import fit
from core.training.readback import Readback

CPU = torch.device("cpu")


class Given:
    """A loader of these batches."""

    def __init__(self, batches):
        self.given = batches

    def batches(self, _epoch, start=0):
        return iter(self.given[start:])


@pytest.fixture
def batches():
    """Five batches of 4 and a ragged one of 2: points in the plane, and which side of a line they are on."""
    points = torch.randn(22, 2, generator=torch.Generator().manual_seed(1))
    sides = (points.sum(dim=1) > 0).long()
    return list(zip(points.split(4), sides.split(4), strict=True))


@pytest.fixture
def parts():
    """A model and its optimizer, the same each time."""

    def make():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        groups = [
            {"params": [model.weight], "lr": 0.1, "names": ["default"]},
            {"params": [model.bias], "lr": 0.5, "names": ["bias", "also"]},
        ]
        return model, torch.optim.SGD(groups)

    return make


def run(generator):
    """What a generator yields, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(generator))
        except StopIteration as stop:
            return seen, stop.value


# --- one epoch -------------------------------------------------------------------------------------------------------------


def test_train_fn_trains_as_a_loop_by_hand_does_bit_for_bit(batches, parts):
    model, optimizer = parts()
    iterations, _ = run(loop.train_fn(0, Given(batches), model, optimizer, nn.CrossEntropyLoss()))
    by_hand, its_optimizer = parts()
    losses = []
    for images, targets in batches:
        loss = nn.functional.cross_entropy(by_hand(images), targets)
        its_optimizer.zero_grad()
        loss.backward()
        its_optimizer.step()
        losses.append(loss.item())
    assert [iteration.loss for iteration in iterations] == losses
    assert torch.equal(model.weight, by_hand.weight)
    assert torch.equal(model.bias, by_hand.bias)


def test_each_iteration_says_where_it_is_and_at_which_rates(batches, parts):
    model, optimizer = parts()
    iterations, _ = run(loop.train_fn(3, Given(batches), model, optimizer, nn.CrossEntropyLoss(), step=18))
    assert [iteration.step for iteration in iterations] == [18, 19, 20, 21, 22, 23]
    assert {iteration.epoch for iteration in iterations} == {3}
    assert [iteration.samples for iteration in iterations] == [4, 4, 4, 4, 4, 2]
    assert iterations[-1].lr == {"default": 0.1, "bias": 0.5, "also": 0.5}


def test_the_mean_of_an_epoch_weighs_each_loss_by_its_samples(batches, parts):
    iterations, mean = run(loop.train_fn(0, Given(batches), *parts(), nn.CrossEntropyLoss()))
    assert mean == sum(i.loss * i.samples for i in iterations) / 22
    assert mean != sum(i.loss for i in iterations) / 6


def test_a_loss_that_is_not_finite_fails_by_its_step_once_it_was_yielded(batches, parts, monkeypatch):
    batches[2][0][0, 0] = math.nan
    for lag, after in ((0, 0), (2, 2)):  # two more are on their way when the ring is read two steps behind
        monkeypatch.setattr(loop, "Readback", partial(Readback, lag=lag))
        seen = []
        with pytest.raises(NonFiniteLossError, match="became nan at step 102, in epoch 2"):
            seen.extend(loop.train_fn(1, Given(batches), *parts(), nn.CrossEntropyLoss(), step=100))
        assert [iteration.step for iteration in seen] == list(range(100, 103 + after))
        assert chunk(seen).losses[2] == "nan"


# --- validation ------------------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_mean_loss_and_the_share_that_is_right(batches, parts):
    model, _ = parts()
    points, sides = (torch.cat(column) for column in zip(*batches, strict=True))
    figures = evaluate(model, Given(batches), nn.CrossEntropyLoss()).figures
    assert figures["loss"] == pytest.approx(nn.functional.cross_entropy(model(points), sides).item())
    assert figures["top1"] == pytest.approx((model(points).argmax(dim=1) == sides).double().mean().item())
    assert model.weight.grad is None
    assert not model.training


def test_validation_leaves_no_trace_in_training(tiny_spec, places, tmp_path):
    """Two epochs with validation and checkpoints between them are two epochs without, bit for bit: shuffled, with dropout."""
    spec = tiny_spec(epochs=2)
    losses = [event.loss for event in fit(spec, places, tmp_path / "job") if isinstance(event, Iteration)]
    job = prepare(spec, places, CPU)
    without = []
    for epoch in range(2):
        iterations, _ = run(loop.train_fn(epoch, job.train, job.model, job.optimizer, job.loss))
        without += [iteration.loss for iteration in iterations]
    assert losses == without


# --- models that return more than logits -------------------------------------------------------------------------------------


def test_auxiliary_classifiers_count_by_their_weights():
    main, one, two = (torch.randn(4, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3))
    targets = torch.tensor([0, 1, 2, 0])
    loss = nn.CrossEntropyLoss()
    assert torch.equal(
        loss_of(GoogLeNetOutputs(main, two, one), targets, loss),
        loss(main, targets) + 0.3 * loss(two, targets) + 0.3 * loss(one, targets),
    )
    assert torch.equal(loss_of(InceptionOutputs(main, one), targets, loss), loss(main, targets) + 0.4 * loss(one, targets))
    assert torch.equal(loss_of(InceptionOutputs(main, None), targets, loss), loss(main, targets))
    assert torch.equal(loss_of(main, targets, loss), loss(main, targets))


def test_what_is_no_logits_is_refused_by_its_type():
    with pytest.raises(TypeError, match="returned a tuple; return the logits as a tensor"):
        logits_of((torch.zeros(1, 2), torch.zeros(1, 2)))


# --- a job -------------------------------------------------------------------------------------------------------------------


def test_a_job_tells_its_story_in_order_and_learns(tiny_spec, places, tmp_path):
    events = list(fit(tiny_spec(epochs=4), places, tmp_path / "job"))
    iterations = [event for event in events if isinstance(event, Iteration)]
    assert [iteration.step for iteration in iterations] == list(range(104))
    assert [iteration.epoch for iteration in iterations] == [step // 26 for step in range(104)]
    story = [(event.epoch, "loss") if isinstance(event, Iteration) else (event[0], event[1].kind) for event in events]
    assert story[:2] == [(0, "transfer"), (0, "groups")]
    assert story[2:31] == [(0, "loss")] * 26 + [(26, "epoch"), (26, "evaluation"), (26, "checkpoint")]
    assert story[-3:] == [(104, "epoch"), (104, "evaluation"), (104, "checkpoint")]
    last = events[-3][1]
    assert last.validation["top1"] > 0.85, "chance is 0.1"
    assert last.mean_loss == pytest.approx(sum(i.loss * i.samples for i in iterations[-26:]) / 1617)


def test_the_best_checkpoint_so_far_is_marked_by_the_metric_of_the_spec(tiny_spec, places, tmp_path):
    for metric, sign in (("top1", 1), ("loss", -1)):
        spec = tiny_spec(epochs=3, optimizer={"name": "SGD", "lr": 1.5}, checkpoint={"metric": metric})
        saved = [
            e[1]
            for e in fit(spec, places, tmp_path / metric)
            if isinstance(e, tuple) and len(e) == 2 and e[1].kind == "checkpoint"
        ]
        values = [sign * data.figures[metric] for data in saved]
        assert [data.best for data in saved] == [value > max(values[:at], default=-math.inf) for at, value in enumerate(values)]


def test_to_stop_a_job_is_to_close_it(tiny_spec, places, tmp_path):
    job = fit(tiny_spec(epochs=100), places, tmp_path / "job")
    steps = [event.step for event in (next(job) for _ in range(12)) if isinstance(event, Iteration)]
    assert steps == list(range(10))
    job.close()
    with pytest.raises(StopIteration):
        next(job)
    assert list((tmp_path / "job").glob("*")) == []


@pytest.mark.slow  # starts reading processes
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_closed_job_leaves_no_process_behind(tiny_spec, places, tmp_path):
    streaming = places.model_copy(update={"resident_bytes": 0})
    before = set(multiprocessing.active_children())
    job = fit(tiny_spec(loader={"batch_size": 64, "workers": 2}), streaming, tmp_path / "job")
    losses = [event.loss for event in (next(job) for _ in range(6)) if isinstance(event, Iteration)]
    assert len(losses) == 4
    assert len(set(multiprocessing.active_children()) - before) == 2
    job.close()
    assert set(multiprocessing.active_children()) <= before
    resident = fit(tiny_spec(), places, tmp_path / "again")
    assert losses == [event.loss for event in (next(resident) for _ in range(6)) if isinstance(event, Iteration)]
