"""The same losses by every way to read them."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

ITERATIONS = 1000


@pytest.fixture(scope="module")
def thousand(client):
    """A job of 1,000 iterations, followed in three ways at once while it ran: its id and the events by way."""
    spec = {
        "dataset": {"source": "sklearn:digits", "validation": 0.11},  # 1599 images to train on
        "loader": {"batch_size": 16},
        "model": {"name": "python:people:Slow"},
        "training": {"epochs": 10},
        "checkpoint": {"keep_last": 2, "keep_best": 1, "metric": "loss"},
    }
    job = client.submit(spec)
    read: dict[str, list[dict]] = {}
    ways = {"ndjson": follow_ndjson, "sse": follow_sse, "pages": follow_pages}
    threads = [
        threading.Thread(target=lambda name=name, way=way: read.update({name: list(way(client, job["id"]))}))
        for name, way in ways.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return job["id"], read


def follow_ndjson(client, job_id):
    yield from client.events(job_id, follow=True)


def follow_sse(client, job_id):
    """By SSE, over a connection that is cut after every 40th frame and taken up with Last-Event-ID."""
    last = None
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        url = f"{client.url}/jobs/{job_id}/events?follow=true"
        with httpx.stream("GET", url, headers=headers, timeout=30) as response:
            if response.status_code == 204:
                return
            frames = 0
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    last = value
                elif field == "data":
                    yield json.loads(value)
                    frames += 1
                    if frames == 40:
                        break


def follow_pages(client, job_id):
    """By JSON pages of ten, asked for again and again."""
    after = 0
    while True:
        page = httpx.get(f"{client.url}/jobs/{job_id}/events", params={"after": after, "limit": 10}).json()
        for event in page["data"]:
            yield event
            if event["kind"] == "end":
                return
        after = page["next"]


def losses(events):
    return [loss for event in events if event["kind"] == "iterations" for loss in event["data"]["losses"]]


@pytest.mark.parametrize("way", ["ndjson", "sse", "pages"])
def test_every_way_gives_every_event_once_in_order_and_then_the_end(thousand, way):
    _, read = thousand
    events = read[way]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "end"
    assert events[-1]["data"] == {"state": "succeeded", "failure": None, "last_seq": len(events)}
    assert len(losses(events)) == ITERATIONS
    assert events == read["ndjson"]


def test_the_losses_resource_says_the_same_and_its_buckets_cover_it(thousand, client):
    job_id, read = thousand
    assert client.losses(job_id)["losses"] == losses(read["ndjson"])
    buckets = httpx.get(f"{client.url}/jobs/{job_id}/losses", params={"points": 10}).json()["buckets"]
    assert [(bucket["first"], bucket["count"]) for bucket in buckets] == [(100 * index, 100) for index in range(10)]
    assert min(bucket["min"] for bucket in buckets) == min(losses(read["ndjson"]))


def test_the_text_has_the_articles_lines_for_each_iteration_and_epoch(thousand, client):
    job_id, read = thousand
    lines = list(client.logs(job_id))
    iterations = [line for line in lines if ", iteration : " in line]
    assert len(iterations) == ITERATIONS
    assert iterations[-1] == f"Epoch 10, iteration : 100, loss = {losses(read['ndjson'])[-1]:.4f}"
    assert sum("Mean Loss was" in line for line in lines) == 10
    assert lines[-1] == "End : succeeded"


def test_the_first_losses_are_sent_at_once(thousand):
    _, read = thousand
    first = next(event for event in read["ndjson"] if event["kind"] == "iterations")
    assert len(first["data"]["losses"]) < 5


def test_checkpoints_keep_to_their_retention_in_the_log_and_on_disk(thousand, client, service):
    job_id, read = thousand
    epochs = [event["data"] for event in read["ndjson"] if event["kind"] == "epoch"]
    best = min(epochs, key=lambda epoch: epoch["validation"]["loss"])["epoch"]
    expected = sorted({(best + 1) * 100, 900, 1000})
    kept = client.checkpoints(job_id)
    assert [row["step"] for row in kept] == expected
    assert [row["step"] for row in kept if row["best"]] == [(best + 1) * 100]
    on_disk = sorted(int(path.name) for path in (service.data_dir / "jobs" / str(job_id) / "1").iterdir())
    assert on_disk == expected
