"""Control over HTTP: pause, resume, change a job, drain a worker."""

from __future__ import annotations

import json

import pytest

from api import examples
from api.patches import merged
from store import workers


def test_a_queued_job_is_paused_and_resumed_at_once(bench, client):
    job_id = bench.job()
    job = client.post(f"/jobs/{job_id}/pause").json()
    assert (job["state"], job["requested"], job["position"], job["ended_at"]) == ("paused", None, None, None)
    assert job_id in [job["id"] for job in client.get("/jobs?state=paused").json()["data"]]
    job = client.post(f"/jobs/{job_id}/resume").json()
    assert (job["state"], job["position"]) == ("queued", 0)
    assert "The job is paused (by api): paused on request\n" in client.get(f"/jobs/{job_id}/logs").text


def test_a_running_job_is_asked_to_pause_and_the_pause_can_be_withdrawn(bench, client):
    job_id = bench.running()
    assert client.post(f"/jobs/{job_id}/pause").json()["requested"] == "pause"
    job = client.post(f"/jobs/{job_id}/resume").json()
    assert (job["state"], job["requested"]) == ("running", None)
    bench.finish(job_id)


@pytest.mark.parametrize("call", ["pause", "resume"])
def test_what_has_ended_is_a_conflict_and_what_is_not_there_is_not_found(bench, client, call):
    job_id = bench.running()
    bench.finish(job_id)
    answer = client.post(f"/jobs/{job_id}/{call}")
    assert (answer.status_code, "succeeded" in answer.json()["detail"]) == (409, True)
    assert client.post(f"/jobs/99999999/{call}").status_code == 404


def test_a_job_with_another_priority_has_another_place(bench, client):
    first = bench.job(resources={"queue": "places"})
    second = bench.job(resources={"queue": "places"})
    job = client.patch(f"/jobs/{second}", json={"priority": 5}).json()
    assert (job["priority"], job["spec"]["resources"]["priority"], job["position"]) == (5, 5, 0)
    assert client.get(f"/jobs/{first}").json()["position"] == 1
    assert client.patch(f"/jobs/{second}", json={"priority": None}).json()["position"] == 1


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_labels_and_the_name_are_merged(bench, client, media_type):
    job_id = bench.job(name="old", labels={"team": "web", "draft": "yes"})
    patch = {"name": "new", "labels": {"draft": None, "place": "lab"}}
    job = client.patch(f"/jobs/{job_id}", content=json.dumps(patch), headers={"Content-Type": media_type}).json()
    assert (job["name"], job["labels"]) == ("new", {"team": "web", "place": "lab"})
    assert (job["spec"]["name"], job["spec"]["labels"]) == (job["name"], job["labels"])
    assert client.get("/jobs?label=place:lab").json()["data"][0]["id"] == job_id
    assert client.patch(f"/jobs/{job_id}", json={"name": None}).json()["name"] is None


@pytest.mark.parametrize("example", examples.JOB_PATCHES)
def test_the_patches_of_the_openapi_page_work(bench, client, example):
    answer = client.patch(f"/jobs/{bench.job()}", json=examples.JOB_PATCHES[example]["value"])
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("patch", "pointer", "said"),
    [
        ({"prioritty": 1}, "/prioritty", "Did you mean 'priority'?"),
        ({"priority": "high"}, "/priority", "a whole number, not the text"),
        ({"priority": 1001}, "/priority", "1000"),
        ({"labels": {"a": 1}}, "/labels/a", "string"),
        ({"name": "a\u0000b"}, "/name", "U+0000"),
        ({"spec": {}}, "/spec", "unknown key"),
    ],
)
def test_a_patch_of_anything_else_is_refused_at_its_place(bench, client, patch, pointer, said):
    answer = client.patch(f"/jobs/{bench.job()}", json=patch)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert said in answer.json()["errors"][0]["message"]


def test_a_job_never_has_more_labels_than_a_spec_may_have(bench, client):
    job_id = bench.job(labels={f"a{number}": "" for number in range(40)})
    answer = client.patch(f"/jobs/{job_id}", json={"labels": {f"b{number}": "" for number in range(40)}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/labels")


def test_the_priority_of_an_ended_job_is_a_conflict(bench, client):
    job_id = bench.running()
    bench.finish(job_id)
    assert client.patch(f"/jobs/{job_id}", json={"priority": 3}).status_code == 409
    assert client.patch(f"/jobs/{job_id}", json={"name": "kept"}).json()["name"] == "kept"


def test_a_drained_worker_is_shown_and_its_queue_has_nobody(bench, client):
    job_id = bench.job()
    queue = client.get(f"/jobs/{job_id}").json()["spec"]["resources"]["queue"]
    with bench.database.write() as session:
        workers.heartbeat(session, name="host a.1", host="host", queues=[queue], devices={"cpu_slots": 1}, running=[3])
    assert client.get(f"/jobs/{job_id}").json()["warnings"] == []
    worker = client.post("/workers/host%20a.1/drain").json()
    assert (worker["name"], worker["draining"], worker["running"]) == ("host a.1", True, [3])
    assert [w["draining"] for w in client.get("/workers").json()["data"] if w["name"] == "host a.1"] == [True]
    assert "no living worker serves" in client.get(f"/jobs/{job_id}").json()["warnings"][0]


def test_a_job_that_waits_for_a_gpu_that_is_out_of_use_says_so(bench, client):
    job_id = bench.job()
    queue = client.get(f"/jobs/{job_id}").json()["spec"]["resources"]["queue"]
    devices = {"gpus": [], "gpus_out": ["0"], "cpu_slots": 1}
    with bench.database.write() as session:
        workers.heartbeat(session, name="broken", host="host", queues=[queue], devices=devices, running=[])
    (warning,) = client.get(f"/jobs/{job_id}").json()["warnings"]
    assert "out of use (GET /workers, `gpus_out`)" in warning


@pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("a%00b", 422)])
def test_a_worker_that_is_not_there_cannot_be_drained(client, name, status):
    assert client.post(f"/workers/{name}/drain").status_code == status


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_merges_as_the_rfc_says(target, patch, result):
    before = json.dumps(target)
    assert merged(target, patch) == result
    assert json.dumps(target) == before
