"""Specs against the real sandbox: what passes is queued, what cannot work is refused with every place named."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from api import examples, schemas
from store import workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]  # the sandbox imports torch once

SMALL = {"dataset": {"source": "sklearn:digits", "image_size": 32}, "model": {"name": "torchvision:resnet18"}}


def test_a_plan_says_everything_that_can_be_known_before_training(client):
    answer = client.post("/plans", json=SMALL)
    assert answer.status_code == 200, answer.text
    plan = schemas.Plan.model_validate(answer.json())
    assert plan.spec.loader.batch_size == 32
    assert len(plan.dataset.classes) == 10
    assert plan.steps.total == plan.steps.per_epoch > 10
    assert sum(row.tensors for row in plan.groups.groups) == len(plan.transfer.targets) - 60  # 60 buffers
    assert plan.memory["total"] > 44_000_000


def test_a_plan_warns_where_no_living_worker_could_run_it_and_a_job_does_not_keep_that(bench, client):
    def warnings(gpus):
        answer = client.post("/plans", json={**SMALL, "resources": {"queue": "planned", "gpus": gpus}})
        assert answer.status_code == 200, answer.text
        return answer.json()["warnings"]

    assert any("no living worker serves the queue 'planned'" in warning for warning in warnings(None))
    with bench.database.write() as session:
        devices = {"gpus": ["0", "1"], "cpu_slots": 1}
        workers.heartbeat(session, name="planned", host="host", queues=["planned"], devices=devices, running=[])
    assert [warning for warning in warnings(4) if "worker" in warning] == [
        "no living worker of the queue 'planned' has 4 GPUs, the largest has 2; it waits for one that has"
    ]
    assert [warning for warning in warnings(2) if "worker" in warning] == []
    job = client.post("/jobs", json={**SMALL, "resources": {"queue": "planned", "gpus": 4}}).json()
    with bench.database.write() as session:
        devices = {"gpus": ["0", "1", "2", "3"], "cpu_slots": 1}
        workers.heartbeat(session, name="planned", host="host", queues=["planned"], devices=devices, running=[])
    assert any("has 4 GPUs" in warning for warning in job["warnings"])
    assert client.get(f"/jobs/{job['id']}").json()["warnings"] == warnings(4)


@pytest.mark.parametrize("example", [name for name in examples.SPECS if name != "transfer"])
def test_the_examples_of_the_openapi_page_work(client, example):
    assert client.post("/plans", json=examples.SPECS[example]["value"]).status_code == 200


def test_the_transfer_example_lacks_only_what_cannot_be_downloaded_here(client):
    faults = client.post("/plans", json=examples.SPECS["transfer"]["value"]).json()["errors"]
    assert {fault["pointer"] for fault in faults} <= {"/dataset/source", "/pretrained/source"}


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"optimzer": {}}, "/optimzer", "Did you mean 'optimizer'?"),
        ({"loader": {"batch_size": 0}}, "/loader/batch_size", "greater than or equal to 1"),
        ({"loss": "CrossEntropyLoss"}, "/loss", 'send an object: {"name": "CrossEntropyLoss"}'),
        ({"training": {"batch_size": 8}}, "/training/batch_size", "It belongs to /loader/batch_size."),
        ({"optimizer": {"epochs": 8}}, "/optimizer/epochs", "It belongs to /training/epochs."),
        ({"schedule": {"name": "cosine"}}, "/schedule/name", "Did you mean 'CosineAnnealingLR' or"),
        ({"loss": {"name": "FocalLoss"}}, "/loss/name", "torch.nn has no loss 'FocalLoss'. Known: Adaptive"),
        ({"loader": {"batchsize": 8}}, "/loader/batchsize", "Did you mean 'batch_size'?"),
        ({"dataset": {"source": "sklearn:digitz"}}, "/dataset/source", "digits"),
        ({"dataset": {"source": "folder:nothing"}}, "/dataset/source", "nothing"),
        ({"model": {"name": "torchvision:resnet8"}}, "/model/name", "Did you mean 'resnet18'?"),
        ({"model": {"name": "torchvision:resnet18", "widths": 3}}, "/model/widths", ""),
        ({"optimizer": {"name": "Adan"}}, "/optimizer/name", "Did you mean 'Adam'?"),
        ({"optimizer": {"name": "Adam", "momentum": 0.9}}, "/optimizer/momentum", "unknown keyword of Adam. Known: lr"),
        ({"optimizer": {"groups": [{"params": "head.*"}]}}, "/optimizer/groups/0/params", ""),
        ({"optimizer": {"lr": "fast"}}, "/optimizer/lr", ""),
        ({"schedule": {"name": "CosineAnealingLR"}}, "/schedule/name", "Did you mean 'CosineAnnealingLR'?"),
        ({"schedule": {"name": "StepLR", "step_size": 0}}, "/schedule/step_size", "an integer of 1 or more, got 0"),
        ({"schedule": {"warmup_steps": 1, "warmup_epochs": 1}}, "/schedule", "the warmup is given twice"),
        ({"schedule": {"warmup_steps": -1}}, "/schedule/warmup_steps", ""),
        ({"loss": {"name": "CrossEntropyLos"}}, "/loss/name", "Did you mean 'CrossEntropyLoss'?"),
        ({"pretrained": {"source": "job:999999"}}, "/pretrained/source", "there is no job 999999"),
        ({"pretrained": {"source": "job:one"}}, "/pretrained/source", "names no job"),
        ({"pretrained": {"source": "file:../x.pth"}}, "/pretrained/source", "leaves the inputs directory"),
        ({"name": "a\u0000b"}, "/name", "U+0000"),
        ({"training": {"seed": 2**70}}, "/training/seed", ""),
        ({"model": {"name": "torchvision:resnet18", "x": [[1]]}}, "/model/x", ""),
    ],
)
def test_what_cannot_work_is_refused_at_its_place(client, change, pointer, said):
    answer = client.post("/jobs", json={**SMALL, **change})
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "urn:graft:problem:invalid-spec"
    found = [error for error in problem["errors"] if error["pointer"] == pointer]
    assert found, problem
    assert said in found[0]["message"]


def test_every_fault_is_named_at_once(client):
    answer = client.post("/plans", json={"loader": {"batch_size": 0}, "models": {}})
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/dataset", "/model", "/loader/batch_size", "/models"}
    assert "(and 3 more" in answer.json()["detail"]


def test_weights_that_are_not_there_hide_no_other_fault(client):
    wrong = {"pretrained": {"source": "file:nothing.pth"}, "optimizer": {"name": "Adan"}, "dataset": {"source": "folder:nothing"}}
    answer = client.post("/plans", json={**SMALL, **wrong})
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/dataset/source", "/optimizer/name", "/pretrained/source"}


def test_a_submitted_job_is_there_resolved_and_queued(client):
    answer = client.post("/jobs", json={**SMALL, "name": "first", "labels": {"team": "web"}})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert client.get(answer.headers["location"]).json() == job
    assert (job["state"], job["name"]) == ("queued", "first")
    assert job["progress"]["steps"] > 10
    assert job["spec"]["dataset"]["image_size"] == 32
    schemas.Job.model_validate(job)


def test_the_same_key_and_spec_give_the_same_job_and_another_spec_a_conflict(client):
    headers = {"Idempotency-Key": "k-1"}
    first = client.post("/jobs", json=SMALL, headers=headers)
    again = client.post("/jobs", content=json.dumps(SMALL, indent=8), headers={**headers, **JSON})
    other = client.post("/jobs", json={**SMALL, "name": "other"}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert str(first.json()["id"]) in other.json()["detail"]


def test_one_key_sent_many_times_at_once_makes_one_job(url):
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(httpx.post(f"{url}/jobs", json=SMALL, headers={"Idempotency-Key": "k-2"}, timeout=60))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_an_earlier_job_is_pinned_to_its_best_checkpoint(app, bench, client):
    early = bench.running()
    answer = client.post("/plans", json={**SMALL, "pretrained": {"source": f"job:{early}"}})
    assert "has no checkpoint yet" in answer.json()["errors"][0]["message"]
    for epoch, top1 in enumerate([0.9, 0.5]):
        bench.checkpoint(early, epoch=epoch, step=epoch + 1, top1=top1)
    from api.pins import pin
    from core.spec import JobSpec

    spec = JobSpec.model_validate({**SMALL, "pretrained": {"source": f"job:{early}"}})
    pinned = pin(app.state.service, spec)
    assert pinned is not None
    assert (pinned.path, pinned.sha256) == (bench.data_dir / "jobs" / str(early) / "1" / "1", f"{1:064x}")
    assert (pinned.job, pinned.step) == (early, 1)


def test_the_catalog_names_what_a_spec_may_name(client):
    began = time.monotonic()
    catalog = schemas.Catalog.model_validate(client.get("/catalog").json())
    assert "torchvision:resnet50" in catalog.models
    assert "lr" in catalog.optimizers["Adam"].keywords
    assert (catalog.schedules["StepLR"].per, catalog.schedules["StepLR"].keywords) == ("epoch", {"step_size": None, "gamma": 0.1})
    assert client.get("/catalog").elapsed.total_seconds() < (time.monotonic() - began)


def test_the_catalog_can_be_asked_for_the_names_that_contain_a_text(client):
    found = schemas.Catalog.model_validate(client.get("/catalog?q=ResNet50d").json())
    assert "timm:resnet50d" in found.models
    assert all("resnet50d" in name for name in found.models)
    assert (found.losses, found.optimizers, found.datasets["torchvision"]) == ({}, {}, [])
    assert "Adam" in client.get("/catalog?q=adam").json()["optimizers"]


def test_a_name_that_the_catalog_lacks_is_answered_with_those_that_come_closest(client):
    found = client.get("/catalog?q=resnt18").json()
    assert "torchvision:resnet18" in found["models"]
    assert len(found["models"]) < 30
    assert next(iter(client.get("/catalog?q=CosinAnealingLR").json()["schedules"])) == "CosineAnnealingLR"


def test_requests_are_answered_while_plans_run_and_wait(client, url):
    threads = [
        threading.Thread(target=httpx.post, args=(f"{url}/plans",), kwargs={"json": SMALL, "timeout": 60}) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    slowest = max(client.get("/jobs?limit=1").elapsed.total_seconds() for _ in range(20))
    for thread in threads:
        thread.join()
    assert slowest < 1


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        ("timeout", 422, "plan-timeout"),
        ("memory", 422, "plan-memory"),
        ("killed", 422, "plan-crashed"),
        ("lost", 503, "sandbox-unavailable"),
        ("raised", 422, "plan-failed"),
    ],
)
def test_a_plan_that_breaks_its_child_is_a_problem_not_a_500(app, client, monkeypatch, error, status, slug):
    from sandbox import CallFailed, CallKilled, CallTimeout, SandboxLost

    errors: dict[str, Exception] = {
        "timeout": CallTimeout(60),
        "memory": CallFailed("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        "killed": CallKilled(11, None, ["last words"]),
        "lost": SandboxLost("the forkserver died; try again"),
        "raised": CallFailed("KeyError", "'x'", hint="Mend it.", lines=["Traceback: secret"]),
    }

    def call(*_: Any, **__: Any) -> dict[str, Any]:
        raise errors[error]

    monkeypatch.setattr(app.state.service.sandbox, "call", call)
    answer = client.post("/plans", json=SMALL)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:graft:problem:{slug}")
    assert "secret" not in answer.text
    assert ("Retry-After" in answer.headers) is (status == 503)  # the others are the spec's own fault, each time
