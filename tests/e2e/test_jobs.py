"""What a job does, by HTTP alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from client.http import RefusedError

pytestmark = pytest.mark.timeout(60)


def test_a_cancel_takes_a_queued_job_at_once_and_a_running_one_soon(client, spec, until):
    running = client.submit(
        spec("torchvision:resnet18", dataset={"source": "sklearn:digits", "image_size": 32}, training={"epochs": 99})
    )
    queued = client.submit(spec())
    try:
        until(lambda: client.job(running["id"])["progress"]["step"])
        assert client.cancel(queued["id"])["state"] == "cancelled"
        assert client.job(running["id"])["state"] == "running"
    finally:
        assert client.cancel(running["id"])["requested"] == "cancel"
    until(lambda: client.job(running["id"])["state"] == "cancelled")
    with pytest.raises(RefusedError, match="cancelled") as caught:
        client.cancel(running["id"])
    assert caught.value.status == 409


def test_the_lr_of_a_running_job_changes_while_it_is_followed(client, spec, until):
    job = client.submit(
        spec("people:Slow", training={"epochs": 999}, optimizer={"name": "SGD", "lr": 0.1, "groups": [
            {"name": "top", "params": "head.*"}, {"name": "low", "params": "hidden.*", "freeze": True}]})
    )["id"]  # fmt: skip
    try:
        until(lambda: client.job(job)["progress"]["step"])
        asked = [client.adjust(job, "top", {"lr": 0.5, "momentum": 0.9}), client.adjust(job, "low", {"freeze": False})]
        followed = client.events(job, follow=True, kinds=["adjusted"])
        told = [next(followed)["data"] for _ in asked]
        assert [one["id"] for one in told] == [one["id"] for one in asked]
        assert told[0]["changes"] == {"lr": {"from": 0.1, "to": 0.5}, "momentum": {"from": 0, "to": 0.9}}
        until(lambda: client.job(job)["progress"]["step"] > told[1]["step"])
        groups = client.groups(job)
        assert groups["pending"] == []
        now = {row["name"]: (row["present"]["lr"], row["present"]["momentum"], row["frozen"]) for row in groups["groups"]}
        assert now == {"top": (0.5, 0.9, False), "low": (0.1, 0, False)}
        assert client.job(job)["latest"]["lr"] == {"top": 0.5, "low": 0.1}
        line = f"Step {told[0]['step']}: group top, lr 0.1 -> 0.5, momentum 0 -> 0.9 (by api)"
        assert line in list(client.logs(job))
        with pytest.raises(RefusedError, match="Did you mean 'top'"):
            client.adjust(job, "to", {"lr": 0.1})
    finally:
        client.cancel(job)


def test_what_the_training_code_prints_and_warns_is_in_the_log(run, spec):
    _, events = run(spec("people:Chatty"))
    told = [(event["data"]["level"], event["data"]["message"]) for event in events if event["kind"] == "log"]
    messages = "\n".join(message for _, message in told)
    assert messages.count("a word to standard output") == 1
    assert messages.count("a word to standard error") == 1
    assert any(level == "warning" and "a warning of the model" in message for level, message in told)


@pytest.mark.parametrize(("how", "said"), [("raise", "the flux capacitor is empty"), ("exit", "3"), ("abort", "SIGABRT")])
def test_a_trainer_that_breaks_ends_as_a_typed_failure_with_the_last_lines_it_printed(run, spec, how, said):
    job, events = run(spec("people:Breaking", {"how": how}, resources={"max_attempts": 1}))
    failure = job["failure"]
    assert (job["state"], failure["type"]) == ("failed", "crashed")
    assert said in failure["message"]
    assert "the last line before the end" in "\n".join(failure["lines"])
    assert failure["hint"]
    assert events[-1]["data"]["failure"] == failure
    steps = [loss for event in events if event["kind"] == "iterations" for loss in event["data"]["losses"]]
    assert len(steps) >= 7  # what it had done is not lost with it


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"model": {"name": "torchvision:resnet5O"}}, "/model/name", "Did you mean 'resnet50'?"),
        ({"model": {"name": "python:people:Tiny", "widht": 3}}, "/model/widht", "Did you mean 'width'?"),
        ({"model": {"name": "python:os:system"}}, "/model/name", "not on the operator's list"),
        ({"dataset": {"source": "sklearn:digit"}}, "/dataset/source", "Did you mean 'digits'?"),
        ({"dataset": {"source": "folder:../.."}}, "/dataset/source", "leaves the inputs directory"),
        ({"optimizer": {"groups": [{"params": "fc.*"}]}}, "/optimizer/groups/0/params", "no parameter"),
        ({"optimizer": {"name": "LBFGS"}}, "/optimizer/name", "several times a step"),
        ({"optimizer": {"name": "SGD", "betas": [0.9, 0.99]}}, "/optimizer/betas", "unknown keyword of SGD"),
        ({"loss": {"name": "GaussianNLLLoss"}}, "/loss/name", ""),
        ({"pretrained": {"source": "file:resnet50.pth"}}, "/pretrained", ""),
        ({"pretrained": {"source": "job:999999"}}, "/pretrained/source", "there is no job 999999"),
        ({"model": {"name": "torchvision:resnet50"}, "pretrained": {"source": "file:resnet50.pth", "rename": [["no", "x"]]}},
         "/pretrained/rename/0", ""),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_work_is_refused_with_its_place(client, spec, change, pointer, said):
    with pytest.raises(RefusedError) as caught:
        client.submit({**spec(), **change})
    assert caught.value.status == 422
    assert any(fault.pointer.startswith(pointer) and said in fault.message for fault in caught.value.faults)


def test_an_idempotency_key_makes_one_job_and_another_spec_under_it_is_refused(client, spec):
    first = client.submit(spec(), key="e2e-1")
    assert client.submit(spec(), key="e2e-1")["id"] == first["id"]
    with pytest.raises(RefusedError) as caught:
        client.submit(spec(training={"epochs": 2}), key="e2e-1")
    assert caught.value.status == 409


def test_a_job_goes_on_from_the_weights_of_an_earlier_one(client, run, spec, tmp_path):
    first, _ = run(spec(training={"epochs": 3}))
    source = f"job:{first['id']}"
    second, events = run(spec(pretrained={"source": source}, optimizer={"name": "SGD", "lr": 0.0}))
    report = client.transfer(second["id"])
    assert {status: count["tensors"] for status, count in report["totals"].items() if count["tensors"]} == {"loaded": 4}
    best = next(row for row in client.checkpoints(first["id"]) if row["best"])
    validation = next(event["data"]["validation"] for event in events if event["kind"] == "epoch")
    assert validation["top1"] == pytest.approx(best["figures"]["top1"])  # at an lr of 0 it stays as good as it was
    weights = [
        load_file(client.download(job["id"], "best", "weights.safetensors", tmp_path / f"{job['id']}.safetensors"))
        for job in (first, second)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_resnet50_with_another_head_and_one_group_per_parameter_as_in_the_article(client, run, spec, resnet50_weights):
    names = [name for name in resnet50_weights if name.rpartition(".")[2] in {"weight", "bias"}]
    groups = [{"params": name, "lr": 1e-3 if name.startswith("fc.") else 1e-4 + 1e-7 * index} for index, name in enumerate(names)]
    job, _ = run(
        spec(
            "torchvision:resnet50",
            dataset={"source": "folder:few", "image_size": 16},
            pretrained={"source": "file:resnet50.pth"},
            optimizer={"name": "Adam", "groups": groups},
        )
    )
    assert job["state"] == "succeeded"
    transfer = client.transfer(job["id"])
    assert transfer["totals"]["loaded"]["tensors"] == len(resnet50_weights) - 2
    assert transfer["head"] == ["fc"]
    assert transfer["loaded_share"] == 1.0
    rows = client.groups(job["id"])["groups"]
    assert [(row["parameters"], row["hyperparameters"]["lr"]) for row in rows] == [
        ([group["params"]], pytest.approx(group["lr"])) for group in groups
    ]
    assert set(job["latest"]["lr"]) == {f"group-{index}" for index in range(len(names))}
