"""What a validation finds, against the plainest way to count it; and early stopping."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from core.events import EpochData, EvaluationData, Iteration, RewoundData, RuleData, number
from core.plan import plan
from core.prepare import prepare
from core.spec import EarlyStoppingSpec
from core.training import tallies
from core.training.evaluation import Evaluation, evaluate
from core.training.hardest import per_sample
from core.training.job import fit
from core.training.stopping import stopped


class Given:
    """A loader of outputs that a model passes on, in ragged batches."""

    def __init__(self, outputs: Tensor, targets: Tensor, size: int = 16) -> None:
        self.parts = list(zip(outputs.split(size), targets.split(size), strict=True))

    def batches(self, _epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.parts[start:])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int, count: int) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


def found(outputs: Tensor, targets: Tensor, loss: nn.Module, **keywords: Any) -> Evaluation:
    return evaluate(nn.Identity(), Given(outputs, targets), loss, **keywords)


# --- figures -----------------------------------------------------------------------------------------------------------------


def test_of_classes_top1_and_top5_are_shares_of_all_samples() -> None:
    outputs, targets = drawn(53, 12), labels(12, 53)
    figures = found(outputs, targets, nn.CrossEntropyLoss()).figures
    ranks = (outputs.argsort(dim=1, descending=True) == targets[:, None]).int().argmax(dim=1)
    assert figures["top1"] == pytest.approx((ranks < 1).double().mean().item())
    assert figures["top5"] == pytest.approx((ranks < 5).double().mean().item())
    assert figures["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, targets).item())
    assert list(found(outputs[:, :5], targets % 5, nn.CrossEntropyLoss()).figures) == ["loss", "top1"]


def test_a_share_is_told_as_a_person_would_write_it() -> None:
    outputs, targets = torch.eye(10), torch.tensor([0, *range(2, 10), 1])
    assert found(outputs, targets, nn.CrossEntropyLoss()).figures["top1"] == 0.1


def test_targets_with_one_1_a_row_are_classes() -> None:
    outputs, targets = drawn(20, 7), labels(7, 20)
    told = found(outputs, targets, nn.CrossEntropyLoss())
    hot = found(outputs, nn.functional.one_hot(targets, 7).float(), nn.CrossEntropyLoss())
    assert hot.figures == pytest.approx(told.figures)
    assert (hot.detail, [one[:3] for one in hot.hardest or ()]) == (told.detail, [one[:3] for one in told.hardest or ()])


def test_of_several_labels_map_is_over_the_classes_that_there_are() -> None:
    outputs, targets = drawn(53, 6) * 30, (drawn(53, 6, seed=2) > 0.8).float()  # large: a float32 sigmoid would be 1 of many
    targets[:, 4] = 0
    told = found(outputs, targets, nn.BCEWithLogitsLoss(), task="multilabel")
    each = [metrics.average_precision_score(targets[:, label], outputs[:, label]) for label in (0, 1, 2, 3, 5)]
    assert told.figures["mAP"] == pytest.approx(sum(each) / 5)
    assert told.detail.per_class.average_precision == pytest.approx([*each[:4], None, each[4]])
    assert told.detail.per_class.support == targets.sum(dim=0).tolist()
    assert told.detail.per_class.correct == ((outputs > 0) & (targets > 0)).sum(dim=0).tolist()
    likely = found(outputs.sigmoid(), targets, nn.BCELoss(), task="multilabel")
    assert likely.detail.per_class.predicted == told.detail.per_class.predicted, "0.5 of a probability is 0 of a logit"


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("width", [1, 3])
def test_of_numbers_errors_are_means_over_samples_and_targets(width: int, scale: float) -> None:
    outputs, targets = drawn(53, width) * scale, drawn(53, width, seed=2) * scale
    told = found(outputs, targets, nn.MSELoss(), task="regression")
    assert told.figures["mae"] == pytest.approx(metrics.mean_absolute_error(targets, outputs))
    assert told.figures["rmse"] == pytest.approx(metrics.root_mean_squared_error(targets, outputs))
    assert told.figures["r2"] == pytest.approx(metrics.r2_score(targets, outputs))
    assert told.detail.per_class.mae == pytest.approx((targets - outputs).abs().mean(dim=0).tolist())
    assert math.isnan(found(outputs[:1], targets[:1], nn.MSELoss(), task="regression").figures["r2"])


def test_a_validation_draws_no_random_number_and_warns_of_nothing() -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings(action="error"):
        found(drawn(5, 6), labels(6, 5), nn.CrossEntropyLoss())
        found(drawn(5, 6), torch.zeros(5, 6), nn.BCEWithLogitsLoss(), task="multilabel")
    assert torch.equal(torch.get_rng_state(), state)


HEAVY = torch.tensor([0.0, 5, 0.1, 1, 0, 2])


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        (nn.CrossEntropyLoss(weight=HEAVY), "multiclass"),
        (nn.CrossEntropyLoss(weight=HEAVY, label_smoothing=0.2), "multiclass"),
        (nn.CrossEntropyLoss(ignore_index=2), "multiclass"),
        (nn.CrossEntropyLoss(weight=HEAVY, ignore_index=2), "multiclass"),
        (nn.NLLLoss(weight=HEAVY), "multiclass"),
        (nn.MultiMarginLoss(weight=HEAVY), "multiclass"),
        (nn.BCEWithLogitsLoss(pos_weight=HEAVY), "multilabel"),
        (nn.BCEWithLogitsLoss(weight=HEAVY), "multilabel"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_loss_is_that_of_the_whole_set_in_one_batch(loss: nn.Module, task: str) -> None:
    outputs, classes = drawn(53, 6), labels(6, 53).sort().values  # so that batches differ in weight; some weigh nothing
    classes = torch.cat([torch.zeros(16, dtype=torch.int64), classes[16:]])
    targets = classes if task == "multiclass" else (drawn(53, 6, seed=2) > 0.8).float()
    told = found(outputs, targets, loss, task=task).figures["loss"]
    assert told == pytest.approx(loss(outputs, targets).item(), rel=1e-6)


def test_a_validation_in_which_nothing_weighs_anything_has_no_loss_and_its_other_figures() -> None:
    figures = found(drawn(20, 6), torch.zeros(20, dtype=torch.int64), nn.CrossEntropyLoss(weight=HEAVY)).figures
    assert math.isnan(figures["loss"])
    assert 0 <= figures["top1"] <= 1


# --- classes and samples -----------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_is_every_pair_that_there_was_the_most_frequent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = drawn(200, 6), labels(6, 200)
    pairs = list(zip(targets.tolist(), outputs.argmax(dim=1).tolist(), strict=True))
    detail = found(outputs, targets, nn.CrossEntropyLoss()).detail
    confused = {(row, column): count for row, column, count in detail.confused or ()}
    assert confused == Counter(pair for pair in pairs if pair[0] != pair[1])
    assert list(confused.values()) == sorted(confused.values(), reverse=True)
    columns = detail.per_class
    assert columns.correct == [pairs.count((one, one)) for one in range(6)]
    supported, predicted = ([column.count(one) for one in range(6)] for column in zip(*pairs, strict=True))
    assert (columns.support, columns.predicted) == (supported, predicted)
    monkeypatch.setattr(tallies, "MOST_CONFUSED", 4)
    cut = found(outputs, targets, nn.CrossEntropyLoss()).detail
    assert (cut.confused, cut.left_out) == ((detail.confused or [])[:4], sum(sorted(confused.values())[:-4]))


def test_a_thousand_classes_take_kilobytes_also_where_algorithms_must_be_deterministic() -> None:
    outputs, targets = drawn(3000, 1000), labels(1000, 3000)
    torch.use_deterministic_algorithms(True)
    try:
        event = found(outputs, targets, nn.CrossEntropyLoss()).event(0, range(len(targets)), "{}.png".format)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(event.model_dump_json()) < 40_000
    assert (len(event.confused or ()), event.samples) == (1000, 3000)
    told = sum(samples for *_, samples in event.confused or ())
    assert told + event.confused_left_out + sum(event.per_class.correct or ()) == 3000


def test_the_hardest_samples_are_those_with_the_highest_losses() -> None:
    outputs, targets = drawn(53, 6) * 3, labels(6, 53)
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    event = found(outputs, targets, nn.CrossEntropyLoss()).event(3, range(len(targets)), "cats/\udcff{}.png".format)
    order = losses.argsort(descending=True)[:16].tolist()
    hardest = event.hardest or []
    assert [one.index for one in hardest] == order
    assert [number(one.loss) for one in hardest] == pytest.approx(losses[order].tolist())
    assert [(one.target, one.prediction) for one in hardest] == [
        ([int(targets[at])], [int(outputs[at].argmax())]) for at in order
    ]
    assert hardest[0].name == f"cats/�{order[0]}.png", "what no JSON could carry is marked"
    assert EvaluationData.model_validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize(
    ("loss", "task", "targets"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), "multiclass", labels(6, 20)),
        (nn.MultiMarginLoss(), "multiclass", labels(6, 20)),
        (nn.BCEWithLogitsLoss(), "multilabel", (drawn(20, 6) > 0).float()),
        (nn.MultiLabelSoftMarginLoss(), "multilabel", (drawn(20, 6) > 0).float()),
        (nn.SmoothL1Loss(), "regression", drawn(20, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_loss_per_sample_is_the_loss_of_a_batch_of_it(loss: nn.Module, task: str, targets: Tensor) -> None:
    outputs = drawn(20, 6, seed=3)
    each = per_sample(loss)(outputs, targets)
    assert each is not None
    alone = [loss(outputs[at : at + 1], targets[at : at + 1]).item() for at in range(20)]
    assert each.tolist() == pytest.approx(alone, rel=1e-5)
    assert loss.reduction == "mean", "the loss itself stays as it is"


def test_a_loss_that_knows_no_samples_leaves_the_hardest_out() -> None:
    class Whole(nn.Module):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets)

    assert found(drawn(5, 6), labels(6, 5), Whole()).event(0, range(5), str).hardest is None


# --- early stopping ----------------------------------------------------------------------------------------------------------


def stops_after(values: list[Any], **rule: Any) -> int | None:
    """The number of epochs after which a job with these figures ends."""
    spec = EarlyStoppingSpec(metric="top1", **rule)
    history = [{"loss": 1.0, "top1": value} for value in values]
    return next((epochs for epochs in range(len(values) + 1) if stopped(spec, history[:epochs], 7)), None)


@pytest.mark.parametrize(
    ("values", "rule", "after"),
    [
        ([0.1, 0.2, 0.3, 0.4], {"patience": 1}, None),
        ([0.1, 0.2, 0.2, 0.1, 0.5], {"patience": 2}, 4),
        ([0.1, 0.2, 0.2, 0.3, 0.3], {"patience": 2}, None),
        ([0.5, 0.52, 0.54, 0.56], {"patience": 2, "min_delta": 0.05}, 3),
        ([0.5, 0.53, 0.56, 0.57], {"patience": 2, "min_delta": 0.05}, None),
        (["nan", "nan", 0.1], {"patience": 2}, 2),
        ([0.1, "nan", 0.2, "nan"], {"patience": 2}, None),
    ],
)
def test_it_ends_after_so_many_epochs_without_a_better_figure(values: list[Any], rule: Any, after: int | None) -> None:
    assert stops_after(values, **rule) == after


def test_better_is_lower_of_an_error_and_higher_of_a_share_and_the_task_says_which() -> None:
    falling = [{"loss": 3.0, "mae": 3.0 - epoch} for epoch in range(3)]
    assert stopped(EarlyStoppingSpec(patience=1), falling, 0) is None
    rule = stopped(EarlyStoppingSpec(patience=2, metric="loss"), falling, 12)
    assert rule == RuleData(
        rule="early_stopping", action="stop", step=12, value=3.0, limit=3.0,
        message="the validation's loss got no better in 2 epochs: the best is 3, of epoch 1; the job ends here",
    )  # fmt: skip
    once = stopped(EarlyStoppingSpec(patience=1, metric="loss"), falling[:2], 8)
    assert once is not None
    assert "got no better in 1 epoch: the best" in once.message
    assert stopped(None, falling, 0) is None


def test_a_job_that_stops_early_ends_with_a_checkpoint_and_says_why_also_once_more(tiny_spec, places, tmp_path) -> None:
    spec = tiny_spec(
        epochs=5,
        optimizer={"name": "SGD", "lr": 1e-9},
        training={"epochs": 5, "early_stopping": {"patience": 1, "metric": "top1", "min_delta": 0.5}},
        checkpoint={"every": {"steps": 40}},
        loader={"batch_size": 400},
    )
    events = list(fit(spec, places, tmp_path / "job"))
    story = [event[1].kind for event in events if not isinstance(event, Iteration)]
    assert story[2:] == ["epoch", "evaluation", "checkpoint", "epoch", "evaluation", "rule", "checkpoint"]
    (step, rule), (_, saved) = events[-2:]
    assert (step, rule.rule, rule.action, saved.step, saved.epoch) == (10, "early_stopping", "stop", 10, 1)
    again = list(fit(spec, places, tmp_path / "job", resume=[tmp_path / "job/10"]))
    assert [event[1].kind for event in again] == ["transfer", "groups", "rewound"]
    assert isinstance(again[-1][1], RewoundData)
    assert [event[1].epoch for event in events if not isinstance(event, Iteration) and isinstance(event[1], EpochData)] == [0, 1]


# --- which figure ------------------------------------------------------------------------------------------------------------


def test_a_spec_that_names_no_figure_goes_by_the_tasks_own_and_says_so(tiny_spec, places) -> None:
    resolved = plan(tiny_spec(training={"early_stopping": {}}, schedule={"name": "ReduceLROnPlateau"}), places).spec
    assert resolved.checkpoint.metric == "top1"
    assert resolved.training.early_stopping == EarlyStoppingSpec(metric="top1")
    assert resolved.schedule is not None
    assert resolved.schedule.metric == "loss"


def test_a_figure_that_is_not_measured_is_refused_with_those_that_are(tiny_spec, places) -> None:
    wrong = {
        "checkpoint": {"metric": "mAP"},
        "training": {"early_stopping": {"metric": "accuracy"}},
        "schedule": {"name": "ReduceLROnPlateau", "metric": "mae"},
    }
    for ask in (plan, partial(prepare, device=torch.device("cpu"))):  # a notebook trains without a plan
        with pytest.raises(ValueError, match="it has loss, top1, top5") as refusal:
            ask(tiny_spec(**wrong), places)
        assert {fault.pointer for fault in refusal.value.faults} == {
            "/checkpoint/metric", "/training/early_stopping/metric", "/schedule/metric",
        }  # fmt: skip
