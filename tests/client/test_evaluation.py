"""`graft evaluation` and `graft samples`, against answers as the service gives them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from client.cli import app

CLASS = {"support": 4, "predicted": 4, "correct": 2, "recall": 0.5, "precision": 0.5, "f1": 0.5}
FOUND = {
    "epoch": 1, "step": 52, "task": "multiclass", "samples": 1000, "figures": {"loss": 0.5, "top1": 0.75}, "classes":
    [{"name": f"class-{number}", **CLASS, "f1": None if number == 3 else number / 20} for number in range(20)],
    "confused": [{"target": "[red]cat", "prediction": "dog", "samples": 30 - number} for number in range(20)],
    "confused_left_out": 5,
    "hardest": [{"index": 7, "name": "cat/7.png", "target": ["cat", "owl"], "prediction": [], "loss": "nan"}],
}  # fmt: skip


@pytest.fixture
def graft(service):
    def run(*words):
        return CliRunner().invoke(app, words, env={"GRAFT_URL": service.url, "COLUMNS": "100"})

    return run


def test_an_evaluation_shows_the_worst_of_everything(service, graft):
    service.answer("/jobs/7/evaluation", FOUND)
    rows = [" ".join(row.split()) for row in graft("evaluation", "7", "--epoch", "2").stdout.splitlines()]
    assert service.asked[0][2] == {"epoch": "1"}, "people count epochs from 1"
    assert rows[0] == "After epoch 2, on 1,000 samples: validation loss 0.5000 top-1 0.7500"
    classes = [row.split()[0] for row in rows if row.startswith("class-")]
    assert classes == ["class-0", "class-1", "class-2", *(f"class-{number}" for number in range(4, 11))]
    assert "30 [red]cat dog" in rows
    assert f"{sum(range(11, 21)) + 5} samples in rarer ones" in rows
    assert "nan cat/7.png cat, owl" in rows
    assert json.loads(graft("evaluation", "7", "--json").stdout) == FOUND


def test_a_regression_shows_the_targets_with_the_largest_errors_first(service, graft):
    classes = [{"name": name, "mae": error, "rmse": error} for name, error in (("width", 0.1), ("height", 0.5))]
    service.answer("/jobs/7/evaluation", {**FOUND, "task": "regression", "classes": classes, "confused": None, "hardest": None})
    text = graft("evaluation", "7").stdout
    assert text.index("height") < text.index("width")
    assert "confusions" not in text


def test_the_samples_of_a_step_are_a_row_each(service, graft):
    samples = [
        {"index": 3, "name": "cat/3.png", "label": "cat", "left_out": True},
        {"index": 9, "name": "9.png", "label": [0.5, 2.0], "left_out": False},
    ]
    answer = {"step": 0, "epoch": 0, "iteration": 1, "loss": 2.25, "batches": [0, 1], "samples": samples}
    service.answer("/jobs/7/samples", answer)
    rows = [" ".join(row.split()) for row in graft("samples", "7", "0").stdout.splitlines()]
    assert service.asked[0][2] == {"step": "0"}
    assert rows == [
        "Step 0: epoch 1, iteration 1, batches 1 to 2, loss 2.2500", "index sample label", "3 cat/3.png cat left out",
        "9 9.png 0.5, 2",
    ]  # fmt: skip
    service.answer("/jobs/7/samples", {**answer, "iteration": None, "loss": None, "batches": [0]})
    assert graft("samples", "7", "0").stdout.startswith("Step 0: epoch 1, batch 1, not trained yet\n")


def test_the_samples_of_a_line_of_the_log_are_asked_for_as_it_counts(service, graft):
    answer = {"step": 200, "epoch": 2, "iteration": 97, "loss": "nan", "batches": [96], "samples": []}
    service.answer("/jobs/7/samples", answer)
    assert (
        "Step 200: epoch 3, iteration 97, batch 97, loss nan" in graft("samples", "7", "--epoch", "3", "--iteration", "97").stdout
    )
    assert service.asked[0][2] == {"epoch": "3", "iteration": "97"}
    for half in (("--epoch", "3"), ("--iteration", "97"), (), ("5", "--epoch", "3", "--iteration", "97")):
        assert graft("samples", "7", *half).exit_code == 2
