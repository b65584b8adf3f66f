"""The services of docker-compose.yml on a real PostgreSQL and a real Valkey: jobs through them, and two workers on one queue.

Slow: the api and both workers import torch, once each. The last test stops a worker.
"""

from __future__ import annotations

import signal
import socket
import time
from datetime import datetime

import pytest
import redis
from safetensors.torch import load_file

from client.http import FINAL_STATES
from store import jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WORKERS = {"the-host-gpu": "worker", "the-host-cpu": "worker-cpu"}
SLOTS = 4
"""Of two workers with two each. On a machine with GPUs too: the jobs here are for the CPU."""
PATIENCE = 3.0
"""Seconds that a job may wait beside a free slot: a worker that was not told looks after one, and the machine may be busy."""


@pytest.fixture(scope="module")
def services(stack):
    """All of them, started in the order that `depends_on` asks for."""
    assert stack.start("migrate").wait(60) == 0, stack.log("migrate").read_text()
    for name in WORKERS.values():
        assert "has not begun" in stack.check(name).stderr
    for name in ("api", *WORKERS.values()):
        stack.start(name)
    for name in ("api", *WORKERS.values()):
        stack.wait_healthy(name)
    return stack


@pytest.fixture
def submit(services, store, make_spec):
    """Into the queue without a plan, so that many come at once."""

    def submit(model, epochs):
        parts = {"dataset": {"source": "sklearn:digits", "image_size": 8}, "model": {"name": f"python:plugins:{model}"}}
        spec = make_spec(**parts, training={"epochs": epochs}, resources={"gpus": 0})
        database, hints = store
        with database.write() as session:
            job, _ = jobs.create(session, spec=spec, plan={"steps": {"total": 1}})
        hints.send("default")
        return job.id

    return submit


def until(ask, seconds=30):
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)
    return answer


def moves(client, job):
    """When the job entered which state, by whom: [(state, seconds, by)]."""
    found = [event for event in client.events(job) if event["kind"] == "state"]
    return [(event["data"]["state"], datetime.fromisoformat(event["at"]).timestamp(), event["data"]["by"]) for event in found]


def test_redis_wants_its_password_keeps_all_and_drops_nothing(stack):
    server = redis.from_url(stack.settings.broker)
    kept = server.config_get("appendonly", "maxmemory-policy")
    server.close()
    assert kept == {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with socket.create_connection(("127.0.0.1", int(stack.instead["redis:6379"].rpartition(":")[2]))) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_what_keeps_is_healthy_by_its_own_check(stack, name):
    assert stack.check(name).returncode == 0


def test_redis_is_not_healthy_for_whom_has_another_password(stack):
    password = stack.folder / "secrets" / "graft_broker_password"
    right = password.read_text()
    password.write_text("wrong")
    try:
        assert stack.check("redis").returncode != 0
    finally:
        password.write_text(right)


def test_the_api_refuses_to_start_before_the_migration(stack):
    assert stack.start("api").wait(60) != 0
    assert "run `python -m store.upgrade`" in stack.log("api").read_text()


def test_a_job_runs_from_its_spec_to_its_weights(services, client, tmp_path):
    job = client.submit(
        {
            "dataset": {"source": "sklearn:digits", "image_size": 8},
            "model": {"name": "python:plugins:Tiny"},
            "resources": {"gpus": 0},
        }
    )
    kinds = [event["kind"] for event in client.events(job["id"], follow=True)]

    assert client.job(job["id"])["state"] == "succeeded"
    assert kinds[-1] == "end"
    assert "iterations" in kinds
    weights = client.download(job["id"], "best", "weights.safetensors", tmp_path / "weights.safetensors")
    assert set(load_file(weights)) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


def test_no_job_runs_twice_and_none_waits_beside_a_free_slot(services, client, submit):
    long = submit("Slow", epochs=12)
    submitted = [long, *(submit("Slow", epochs=1) for _ in range(4))]
    until(lambda: all(client.job(job)["state"] in FINAL_STATES for job in submitted), 90)

    found = [moves(client, job) for job in submitted]
    assert [[state for state, _, _ in states] for states in found] == [["queued", "running", "succeeded"]] * 5
    times = [[at for _, at, _ in states] for states in found]
    assert times[0][2] == max(ended for _, _, ended in times)  # the long one was running all the while
    patience = max(PATIENCE, (times[0][2] - times[0][1]) / 2)  # who waits for the long one waits longer, however slow the machine
    for queued, started, _ in times:
        moments = sorted([queued, *(ended for _, _, ended in times if ended > queued)])
        free = next(at for at in moments if sum(began <= at < ended for _, began, ended in times) < SLOTS)
        assert started - free < patience
    assert {states[1][2] for states in found} == set(WORKERS)


def test_a_worker_that_is_stopped_gives_its_job_to_the_other_one_uncounted(services, client, store, submit):
    job = submit("Slow", epochs=1000)
    until(lambda: client.job(job)["progress"]["step"])
    first = moves(client, job)[-1][2]
    process = services.running[WORKERS[first]]
    process.send_signal(signal.SIGTERM)

    assert process.wait(15) == 0  # compose would wait two minutes
    assert "stopped" in services.check(WORKERS[first]).stderr
    until(lambda: [state for state, _, _ in moves(client, job)] == ["queued", "running", "queued", "running"])
    with store[0].read() as session:
        found = jobs.get(session, job)
    assert (found.attempt, found.failures, {first, found.lease_owner}) == (2, 0, set(WORKERS))
    client.cancel(job)
    until(lambda: client.job(job)["state"] == "cancelled")
