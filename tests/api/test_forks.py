"""Forks, checked in the real sandbox as any spec is."""

from __future__ import annotations

from pathlib import Path

import pytest

from api import examples, schemas

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]  # the sandbox imports torch once


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Of the model that the jobs here have."""
    from safetensors.torch import save
    from torchvision.models import resnet18

    return save(resnet18(num_classes=10).state_dict())


@pytest.fixture
def parent(bench, weights) -> int:
    """A job with three checkpoints; the best is the second."""
    job_id = bench.running(
        name="parent", labels={"team": "web"}, epochs=3, dataset={"source": "sklearn:digits", "image_size": 32},
        checkpoint={"keep_last": 3},
    )  # fmt: skip
    for epoch, top1 in enumerate([0.5, 0.9, 0.7]):
        bench.checkpoint(job_id, epoch=epoch, step=10 * (epoch + 1), top1=top1, weights=weights)
    bench.finish(job_id)
    return job_id


def pinned(bench, job):
    from store import jobs

    with bench.database.read() as session:
        return {source: Path(pin["path"]).name for source, pin in jobs.get(session, job["id"]).plan["pinned"].items()}


def test_a_fork_has_the_spec_as_patched_the_best_weights_and_its_lineage(bench, client, parent):
    patch = {"name": "finer", "optimizer": {"lr": 1e-4}, "labels": {"team": None}}
    answer = client.post(f"/jobs/{parent}/fork", json=patch)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    schemas.Job.model_validate(job)
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert client.get(f"/jobs/{job['id']}").json() == job
    assert job["forked_from"] == {"job": parent, "step": 20}
    assert (job["state"], job["name"], job["labels"], job["spec"]["optimizer"]["lr"]) == ("queued", "finer", {}, 1e-4)
    assert (job["spec"]["training"]["epochs"], job["spec"]["dataset"]["image_size"]) == (3, 32)
    assert job["spec"]["pretrained"]["source"] == f"job:{parent}@20"
    assert pinned(bench, job) == {f"job:{parent}@20": "20"}


@pytest.mark.parametrize(("which", "step"), [("best", 20), ("last", 30), ("10", 10)])
def test_a_fork_begins_at_the_checkpoint_that_is_named(bench, client, parent, which, step):
    job = client.post(f"/jobs/{parent}/fork?checkpoint={which}").json()
    assert job["forked_from"] == {"job": parent, "step": step}
    assert pinned(bench, job) == {f"job:{parent}@{step}": str(step)}


def test_a_checkpoint_can_be_named_in_any_spec(bench, client, parent):
    spec = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}}
    job = client.post("/jobs", json={**spec, "pretrained": {"source": f"job:{parent}@last"}}).json()
    assert pinned(bench, job) == {f"job:{parent}@last": "30"}
    assert job["forked_from"] is None
    refused = client.post("/jobs", json={**spec, "pretrained": {"source": f"job:{parent}@15"}})
    assert "it keeps those of steps 10, 20, 30" in refused.json()["errors"][0]["message"]


def test_a_fork_is_warned_of_weights_that_were_not_validated(bench, client, weights):
    paused = bench.running(dataset={"source": "sklearn:digits", "image_size": 32})
    bench.checkpoint(paused, epoch=0, step=7, top1=None, weights=weights)
    warnings = client.post(f"/jobs/{paused}/fork").json()["warnings"]
    assert [w for w in warnings if f"checkpoint of job {paused} at step 7 was not validated" in w]


def test_a_patch_may_choose_other_weights_or_none(client, parent):
    job = client.post(f"/jobs/{parent}/fork", json={"pretrained": None}).json()
    assert (job["spec"]["pretrained"], job["forked_from"]) == (None, {"job": parent, "step": None})
    job = client.post(f"/jobs/{parent}/fork", json={"pretrained": {"head": "reset"}}).json()
    assert (job["spec"]["pretrained"]["head"], job["forked_from"]["step"]) == ("reset", 20)


@pytest.mark.parametrize("example", examples.FORKS)
def test_the_forks_of_the_openapi_page_work(client, parent, example):
    assert client.post(f"/jobs/{parent}/fork", json=examples.FORKS[example]["value"]).status_code == 201


def test_a_job_that_failed_before_its_first_checkpoint_begins_anew(bench, client):
    job_id = bench.running(dataset={"source": "sklearn:digits", "image_size": 32})
    bench.finish(job_id, "failed")
    job = client.post(f"/jobs/{job_id}/fork").json()
    assert (job["spec"]["pretrained"], job["forked_from"]) == (None, {"job": job_id, "step": None})
    refused = client.post(f"/jobs/{job_id}/fork?checkpoint=best").json()
    assert refused["errors"][0]["pointer"] == "query/checkpoint"
    assert "has no checkpoint 'best'" in refused["errors"][0]["message"]


def test_a_fork_that_cannot_work_is_refused_at_its_place(client, parent):
    refused = client.post(f"/jobs/{parent}/fork", json={"optimizer": {"groups": [{"params": "head.*"}]}, "trainig": {}})
    assert refused.status_code == 422
    assert {error["pointer"] for error in refused.json()["errors"]} == {"/trainig"}
    refused = client.post(f"/jobs/{parent}/fork", json={"optimizer": {"groups": [{"params": "head.*"}]}})
    assert {error["pointer"] for error in refused.json()["errors"]} == {"/optimizer/groups/0/params"}
    assert client.post("/jobs/99999999/fork").status_code == 404
    assert client.post(f"/jobs/{parent}/fork?checkpoint=11").json()["errors"][0]["pointer"] == "query/checkpoint"


def test_the_same_key_and_patch_give_the_same_fork_and_anything_else_a_conflict(client, parent):
    headers = {"Idempotency-Key": f"fork-{parent}"}
    first = client.post(f"/jobs/{parent}/fork", json={"name": "a"}, headers=headers)
    again = client.post(f"/jobs/{parent}/fork", json={"name": "a"}, headers=headers)
    other = client.post(f"/jobs/{parent}/fork?checkpoint=last", json={"name": "a"}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json()["id"] == first.json()["id"]
