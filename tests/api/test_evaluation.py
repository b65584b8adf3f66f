"""What a validation found, by name; the samples of a step; why a job ended before its last epoch."""

from __future__ import annotations

from typing import Any

import pytest

from api import schemas
from core.events import EvaluationData

PLAN = {"dataset": {"classes": ["cat", "dog", "owl"], "fingerprint": "0" * 64}}


def evaluation(epoch: int = 0, **parts: Any) -> dict[str, Any]:
    """As a trainer writes it: 6 cats, of which 2 are taken for dogs; 4 dogs; no owl."""
    data = {
        "epoch": epoch, "task": "multiclass", "samples": 10,
        "per_class": {"support": [6, 4, 0], "predicted": [4, 6, 0], "correct": [4, 4, 0]},
        "confused": [[0, 1, 2]], "confused_left_out": 0,
        "hardest": [{"index": 7, "name": "cat/7.png", "target": [0], "prediction": [1], "loss": 3.5}],
    }  # fmt: skip
    return EvaluationData.model_validate({**data, **parts}).model_dump(mode="json")


def test_an_evaluation_is_told_by_names_with_what_follows_from_its_counts(bench, client):
    job_id = bench.running(plan=PLAN)
    bench.epoch(job_id, epoch=0, step=5, top1=0.8)
    bench.append(job_id, (5, "evaluation", evaluation()))
    answer = client.get(f"/jobs/{job_id}/evaluation").json()
    schemas.Evaluation.model_validate(answer)
    assert (answer["epoch"], answer["step"], answer["samples"]) == (0, 5, 10)
    assert answer["figures"] == {"loss": 0.4, "top1": 0.8}
    cat, dog, owl = answer["classes"]
    assert cat == {
        "name": "cat", "support": 6, "predicted": 4, "correct": 4, "recall": 4 / 6, "precision": 1.0, "f1": pytest.approx(0.8),
    }  # fmt: skip
    assert (dog["recall"], dog["precision"]) == (1.0, 4 / 6)
    assert (owl["recall"], owl["precision"], owl["f1"]) == (None, None, None)
    assert answer["confused"] == [{"target": "cat", "prediction": "dog", "samples": 2}]
    assert answer["hardest"] == [{"index": 7, "name": "cat/7.png", "target": "cat", "prediction": "dog", "loss": 3.5}]
    assert client.get(f"/jobs/{job_id}").json()["links"]["evaluation"] == f"/jobs/{job_id}/evaluation"


def test_of_labels_and_of_numbers_there_is_what_their_task_has(bench, client):
    job_id = bench.running(plan=PLAN)
    hard = {"index": 1, "name": "x.png", "loss": "inf"}
    per_class = {"support": [1, 1, 0], "predicted": [1, 0, 0], "correct": [1, 0, 0], "average_precision": [1.0, 0.5, None]}
    labels = [{**hard, "target": [0, 2], "prediction": []}]
    told = evaluation(task="multilabel", per_class=per_class, confused=None, hardest=labels)
    bench.append(job_id, (5, "evaluation", told))
    answer = client.get(f"/jobs/{job_id}/evaluation").json()
    schemas.Evaluation.model_validate(answer)
    assert [row["average_precision"] for row in answer["classes"]] == [1.0, 0.5, None]
    assert (answer["confused"], answer["hardest"][0]["target"], answer["hardest"][0]["prediction"]) == (None, ["cat", "owl"], [])
    per_class = {"mae": [0.1, 0.2, 0.3], "rmse": [0.1, 0.2, "nan"]}
    told = evaluation(1, task="regression", per_class=per_class, confused=None, hardest=None)
    bench.append(job_id, (9, "evaluation", told))
    answer = client.get(f"/jobs/{job_id}/evaluation").json()
    schemas.Evaluation.model_validate(answer)
    assert answer["classes"][2] == {"name": "owl", "mae": 0.3, "rmse": "nan"}
    assert answer["hardest"] is None


def test_each_epoch_has_its_own_and_a_rewind_voids_those_beyond_it(bench, client):
    job_id = bench.running(plan=PLAN, epochs=4)
    path = f"/jobs/{job_id}/evaluation"
    early = client.get(path)
    assert (early.status_code, early.json()["type"]) == (404, "urn:graft:problem:not-yet")
    assert "the first is made at the end of the first epoch" in early.json()["detail"]
    for epoch in range(3):
        bench.epoch(job_id, epoch=epoch, step=5 * epoch + 5)
        bench.append(job_id, (5 * epoch + 5, "evaluation", evaluation(epoch)))
    assert [client.get(path, params={"epoch": epoch}).json()["step"] for epoch in range(3)] == [5, 10, 15]
    assert client.get(path).json()["epoch"] == 2
    bench.append(job_id, (10, "rewound", {"to_step": 10}))
    assert client.get(path).json()["epoch"] == 1
    gone = client.get(path, params={"epoch": 2})
    assert gone.status_code == 404
    assert "of epoch 2" in gone.json()["detail"]
    bench.append(job_id, (15, "evaluation", evaluation(2, samples=11)))
    assert client.get(path).json()["samples"] == 11


@pytest.mark.usefixtures("warm")
def test_the_samples_of_a_step_are_named_unless_the_dataset_is_another_one(bench, client):
    """Three calls of the sandbox."""
    job_id = bench.job(plan={**PLAN, "steps": {"total": 100}})
    answer = client.get(f"/jobs/{job_id}/samples?step=3")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:graft:problem:dataset-changed")
    assert "'sklearn:digits' has changed" in answer.json()["detail"]
    assert "was 000000000000…" in answer.json()["detail"]
    known = bench.running(plan={"steps": {"total": 100}})
    bench.append(known, (0, "left_out", {"split": "validation", "since": 0, "samples": list(range(2000))}))
    seen = client.get(f"/jobs/{known}/samples?step=3").json()["samples"]
    assert not any(sample["left_out"] for sample in seen)
    bench.append(known, (0, "left_out", {"split": "training", "since": 2, "samples": [seen[5]["index"]]}))
    answer = client.get(f"/jobs/{known}/samples?step=3").json()
    assert [sample["index"] for sample in answer["samples"] if sample["left_out"]] == [seen[5]["index"]]
    schemas.StepSamples.model_validate(answer)
    assert (answer["step"], answer["epoch"], answer["batches"], len(answer["samples"])) == (3, 0, [3], 32)
    assert (answer["iteration"], answer["loss"]) == (4, None)
    assert set(answer["samples"][0]) == {"index", "name", "label", "left_out"}
    for wrong, said in (("?step=100", "its steps are 0 to 99"), ("", "send either step"), ("?step=-1", "greater than or equal")):
        refused = client.get(f"/jobs/{job_id}/samples{wrong}")
        assert refused.status_code == 422
        assert said in refused.json()["detail"]


@pytest.mark.usefixtures("warm")
def test_a_step_is_found_as_the_log_counts_with_its_loss(bench, client):
    job_id = bench.running(steps=102, epochs=2)
    bench.losses(job_id, first=0, losses=[1.0] * 51)
    bench.losses(job_id, first=51, losses=[1.0, 2.5, "nan"], epoch=1)
    bench.append(job_id, (53, "rewound", {"to_step": 53}))
    line = client.get(f"/jobs/{job_id}/logs").text.splitlines()[-3]
    assert line == "Epoch 2, iteration : 2, loss = 2.5000"
    path = f"/jobs/{job_id}/samples"
    answer = client.get(path, params={"epoch": 2, "iteration": 2}).json()
    schemas.StepSamples.model_validate(answer)
    assert (answer["step"], answer["epoch"], answer["iteration"], answer["loss"]) == (52, 1, 2, 2.5)
    assert client.get(path, params={"step": 52}).json() == answer
    assert client.get(path, params={"step": 53}).json()["loss"] is None, "it was rewound"
    for wrong, place, said in (
        ({"epoch": 3, "iteration": 1}, "query/epoch", "its epochs are 1 to 2"),
        ({"epoch": 1, "iteration": 52}, "query/iteration", "it has 1 to 51"),
        ({"epoch": 1}, "query/step", "either step, or epoch and iteration"),
        ({"step": 1, "epoch": 1, "iteration": 1}, "query/step", "either step, or epoch and iteration"),
    ):
        refused = client.get(path, params=wrong)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, place)
        assert said in refused.json()["detail"]


def test_a_job_that_stopped_early_says_why_and_is_done(bench, client):
    job_id = bench.running(steps=100, epochs=10)
    bench.losses(job_id, first=0, losses=[1.0] * 40)
    bench.epoch(job_id, epoch=3, step=40)
    rule = {"rule": "early_stopping", "action": "stop", "step": 40, "value": 0.5, "limit": 0.6, "message": "no better"}
    bench.append(job_id, (40, "rule", rule))
    assert client.get(f"/jobs/{job_id}").json()["stopped_early"] is None
    bench.finish(job_id)
    job = client.get(f"/jobs/{job_id}").json()
    schemas.Job.model_validate(job)
    assert job["stopped_early"] == rule
    assert job["progress"] == {"step": 40, "steps": 40, "epoch": 4, "epochs": 10, "share": 1.0}
    assert "Rule early_stopping : no better" in client.get(f"/jobs/{job_id}/logs").text
