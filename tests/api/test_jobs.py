"""Jobs over HTTP: listed, looked at, cancelled."""

from __future__ import annotations

import re
import statistics
import threading
import time

import pytest

from core.events import Failure
from store import workers

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_queued_job_tells_its_place_and_that_nobody_serves_its_queue(bench, client):
    job_id = bench.job(name="mine", labels={"team": "web"}, plan={"warnings": ["small"]})
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["id"], job["name"], job["labels"], job["state"]) == (job_id, "mine", {"team": "web"}, "queued")
    assert (job["position"], job["ran_seconds"]) == (0, 0)
    assert job["warnings"][0] == "small"
    assert "no living worker serves the queue" in job["warnings"][1]
    assert job["spec"]["loader"]["batch_size"] == 32
    assert job["progress"] == {"step": 0, "steps": 100, "epoch": 0, "epochs": 2, "share": 0.0}
    assert ISO.fullmatch(job["created_at"])
    assert job["started_at"] is job["ended_at"] is job["eta_seconds"] is job["failure"] is None
    for path in job["links"].values():
        assert client.get(path).status_code in {200, 404}


@pytest.mark.parametrize(
    ("wanted", "gpus", "warned"), [(4, 2, True), (2, 2, False), (1, 0, True), (0, 0, False), (None, 0, False)]
)
def test_a_job_that_needs_more_gpus_than_any_living_worker_has_waits_and_says_so(bench, client, wanted, gpus, warned):
    job_id = bench.job(resources={"gpus": wanted})
    with bench.database.write() as session:
        devices = {"gpus": [str(index) for index in range(gpus)], "cpu_slots": 1}
        workers.heartbeat(session, name="here", host="host", queues=["default"], devices=devices, running=[])
        workers.heartbeat(session, name="cpu", host="other", queues=["default"], devices={"gpus": []}, running=[])
    warnings = client.get(f"/jobs/{job_id}").json()["warnings"]
    assert bool(warnings) == warned
    if warned:
        assert f"has {wanted} GPUs, the largest has {gpus}" in warnings[0]


def test_a_job_for_the_cpu_waits_where_no_worker_has_a_slot_for_it_and_the_place_of_others_does_not_count_it(bench, client):
    cpu, large, small = (bench.job(resources={"gpus": gpus, "queue": "gpus-only"}) for gpus in (0, 4, 1))
    assert [client.get(f"/jobs/{job_id}").json()["position"] for job_id in (cpu, large, small)] == [0, 1, 2]
    with bench.database.write() as session:
        devices = {"gpus": ["0", "1"], "cpu_slots": 0}
        workers.heartbeat(session, name="gpus only", host="host", queues=["gpus-only"], devices=devices, running=[])
    assert "has a CPU slot (GRAFT_CPU_SLOTS)" in client.get(f"/jobs/{cpu}").json()["warnings"][0]
    assert client.get(f"/jobs/{small}").json()["position"] == 0
    assert {job["id"]: job["position"] for job in client.get("/jobs", params={"limit": 3}).json()["data"]}[small] == 0


def test_a_queue_that_a_living_worker_serves_is_no_warning(bench, client):
    job_id = bench.job()
    queue = client.get(f"/jobs/{job_id}").json()["spec"]["resources"]["queue"]
    with bench.database.write() as session:
        workers.heartbeat(session, name="here", host="host", queues=[queue], devices={"cpu_slots": 1}, running=[job_id])
    assert client.get(f"/jobs/{job_id}").json()["warnings"] == []
    answer = client.get("/workers").json()
    assert answer["queues"][queue] == {"queued": 1}
    assert [(w["alive"], w["running"]) for w in answer["data"] if w["name"] == "here"] == [(True, [job_id])]


def test_a_running_job_tells_its_progress_figures_and_when_it_will_be_done(bench, client):
    job_id = bench.running(steps=100, epochs=2)
    bench.losses(job_id, first=0, losses=[2.5] * 50)
    bench.epoch(job_id, epoch=0, step=50)
    bench.checkpoint(job_id, epoch=0, step=50, top1=0.9)
    bench.losses(job_id, first=50, losses=[1.5, "nan"], epoch=1)
    job = client.get(f"/jobs/{job_id}").json()
    assert job["progress"] == {"step": 52, "steps": 100, "epoch": 1, "epochs": 2, "share": 0.52}
    assert job["latest"]["loss"] == "nan"
    assert job["latest"]["validation"] == {"loss": 0.4, "top1": 0.9}
    assert job["best"]["step"] == 50
    assert job["eta_seconds"] == pytest.approx(48 * 32 / 200, abs=0.1)
    assert (job["attempt"], job["position"]) == (1, None)


def test_a_failed_job_tells_why_and_what_to_try(bench, client):
    job_id = bench.running()
    bench.finish(job_id, "failed", Failure(type="data", message="a.png is no image", hint="Remove it.", lines=["x"]))
    job = client.get(f"/jobs/{job_id}").json()
    assert job["state"] == "failed"
    assert job["failure"] == {"type": "data", "message": "a.png is no image", "hint": "Remove it.", "lines": ["x"]}
    assert ISO.fullmatch(job["ended_at"])


def test_lists_are_newest_first_and_paged_by_a_cursor(bench, client):
    made = [bench.job(labels={"set": "paged"}) for _ in range(5)]
    found, after = [], {}
    while True:
        page = client.get("/jobs", params={"label": "set:paged", "limit": 2, **after}).json()
        found += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
        bench.job(labels={"set": "paged"})  # what comes meanwhile moves no page
    assert found == made[::-1]
    assert page["next"] is None


def test_lists_are_filtered_by_state_and_by_every_label(bench, client):
    both = bench.job(labels={"a": "1", "b": "x:y", "mark": "f"})
    bench.job(labels={"a": "1", "mark": "f"})
    assert [job["id"] for job in client.get("/jobs?label=a:1&label=b:x:y").json()["data"]] == [both]
    client.post(f"/jobs/{both}/cancel")
    assert [job["id"] for job in client.get("/jobs?label=mark:f&state=cancelled").json()["data"]] == [both]


@pytest.mark.parametrize(
    ("query", "pointer", "said"),
    [
        ("state=runing", "query/state", "Did you mean 'running'?"),
        ("label=team", "query/label", "write key:value"),
        ("label=:web", "query/label", "write key:value"),
        ("label=a:%00", "query/label", "U+0000"),
        ("limit=0", "query/limit", "greater than or equal to 1"),
        ("limit=many", "query/limit", "send a whole number"),
        ("after=99999999999999999999", "query/after", "less than or equal"),
        ("lable=team:web", "query/lable", "Did you mean 'label'?"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(client, query, pointer, said):
    answer = client.get(f"/jobs?{query}")
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert said in answer.json()["errors"][0]["message"]


def test_cancel_ends_a_queued_job_at_once(bench, client):
    job_id = bench.job()
    job = client.post(f"/jobs/{job_id}/cancel").json()
    assert (job["state"], job["position"]) == ("cancelled", None)
    assert [event["kind"] for event in client.get(f"/jobs/{job_id}/events").json()["data"]] == ["state", "state", "end"]


def test_cancel_asks_the_worker_of_a_running_job(bench, client):
    job_id = bench.running()
    for _ in range(2):
        answer = client.post(f"/jobs/{job_id}/cancel")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["requested"]) == ("running", "cancel")
    bench.finish(job_id, "cancelled")


def test_cancel_of_an_ended_job_is_a_conflict_that_names_the_state(bench, client):
    job_id = bench.running()
    bench.finish(job_id)
    answer = client.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    assert "succeeded" in answer.json()["detail"]


def test_get_answers_in_a_few_milliseconds_while_jobs_train_and_are_followed(bench, client):
    job_id = bench.running()
    stop = threading.Event()

    def train() -> None:
        step = 0
        while not stop.wait(0.1):
            bench.losses(job_id, first=step, losses=[0.5] * 20)
            step += 20

    def watch() -> None:
        with client.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as response:
            for line in response.iter_lines():
                if "end" in line:
                    return

    threads = [threading.Thread(target=run) for run in (train, watch, watch)]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(60):
        began = time.perf_counter()
        assert client.get(f"/jobs/{job_id}").status_code == 200
        times.append(time.perf_counter() - began)
        time.sleep(0.005)
    stop.set()
    threads[0].join()
    bench.finish(job_id)
    for thread in threads:
        thread.join()
    assert statistics.median(times) < 1  # benchmarks/latency.py has the figure
