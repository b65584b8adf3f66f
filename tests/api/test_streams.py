"""The log as pages, as NDJSON and as SSE: the same events, each once, in order, whatever is cut."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from api import forms
from api.broadcast import Broadcaster
from store import events

NDJSON = {"Accept": "application/x-ndjson"}
SSE = {"Accept": "text/event-stream"}


def ndjson(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines if line)


def frames(lines: Iterator[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(id, event, data) of each whole SSE frame."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            found[name] = value
        elif "data" in found:
            yield int(found["id"]), found["event"], json.loads(found["data"])
            found = {}


def pages(client: httpx.Client, job_id: int, **query: Any) -> list[dict[str, Any]]:
    data, after, more = [], 0, True
    while more:
        page = client.get(f"/jobs/{job_id}/events", params={"after": after, **query}).json()
        data, after, more = data + page["data"], page["next"], page["has_more"]
    return data


def write(bench: Any, job_id: int, chunks: int, pause: float = 0.0) -> None:
    for chunk in range(chunks):
        bench.losses(job_id, first=chunk * 5, losses=[chunk + i / 8 for i in range(5)])
        time.sleep(pause)
    bench.finish(job_id)


def test_ndjson_sse_and_pages_give_the_same_log(bench, client):
    job_id = bench.running()
    write(bench, job_id, chunks=40)
    by_pages = pages(client, job_id, limit=7)
    with client.stream("GET", f"/jobs/{job_id}/events", headers=NDJSON) as response:
        assert list(ndjson(response.iter_lines())) == by_pages
    with client.stream("GET", f"/jobs/{job_id}/events", headers=SSE) as response:
        found = list(frames(response.iter_lines()))
    assert [data for _, _, data in found] == by_pages
    assert all(seq == data["seq"] and kind == data["kind"] for seq, kind, data in found)
    assert [event["seq"] for event in by_pages] == list(range(1, len(by_pages) + 1))
    assert by_pages[-1]["kind"] == "end"
    assert by_pages[-1]["data"]["last_seq"] == by_pages[-1]["seq"]


def test_a_stream_that_is_cut_again_and_again_loses_and_doubles_nothing(bench, client):
    job_id = bench.running()
    writer = threading.Thread(target=write, args=(bench, job_id, 60, 0.005))
    writer.start()
    seen: list[dict[str, Any]] = []
    cuts = 0
    while not seen or seen[-1]["kind"] != "end":
        headers = {**SSE, "Last-Event-ID": str(seen[-1]["seq"])} if seen else SSE
        with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
            for number, (_, _, event) in enumerate(frames(response.iter_lines())):
                seen.append(event)
                if number == 6:
                    cuts += 1
                    break
    writer.join()
    assert cuts > 4
    assert seen == pages(client, job_id)


def test_followers_of_a_running_job_all_get_every_event_as_it_comes(bench, client):
    job_id = bench.running()
    results: list[list[int]] = []

    def follow(headers: dict[str, str], after: int) -> None:
        url = f"{client.base_url}/jobs/{job_id}/events?follow=true&after={after}"
        with httpx.stream("GET", url, headers=headers, timeout=30) as response:
            lines = response.iter_lines()
            read = ndjson(lines) if headers is NDJSON else (data for _, _, data in frames(lines))
            results.append([after, *(event["seq"] for event in read)])

    threads = [threading.Thread(target=follow, args=([NDJSON, SSE][i % 2], i // 4)) for i in range(12)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
        bench.losses(job_id, first=0, losses=[1.0])
    write(bench, job_id, chunks=20, pause=0.002)
    for thread in threads:
        thread.join()
    last = bench.last_seq(job_id)
    assert sorted(results) == sorted(list(range(i // 4, last + 1)) for i in range(12))


def test_a_new_event_reaches_a_follower_as_it_comes(bench, client):
    job_id = bench.running()
    delays = []
    with client.stream("GET", f"/jobs/{job_id}/events?after=2", headers=SSE) as response:
        found = frames(response.iter_lines())
        for step in range(15):
            time.sleep(0.03 + step * 0.011)
            sent = time.monotonic()
            bench.losses(job_id, first=step, losses=[0.5])
            next(found)
            delays.append(time.monotonic() - sent)
    bench.finish(job_id)
    assert statistics.median(delays) < 1, delays  # benchmarks/latency.py has the figures


def test_more_followers_than_database_connections_leave_room_for_requests(bench, client):
    job_ids = [bench.running() for _ in range(4)]
    with ExitStack() as stack:
        crowd = stack.enter_context(httpx.Client(base_url=client.base_url, timeout=30, limits=httpx.Limits(max_connections=None)))
        paths = [f"/jobs/{job_ids[number % 4]}/events" for number in range(60)]
        open_streams = [stack.enter_context(crowd.stream("GET", path, headers=SSE)).iter_raw() for path in paths]
        assert all(next(stream) for stream in open_streams)
        for _ in range(10):
            assert client.get(f"/jobs/{job_ids[0]}", timeout=30).status_code == 200
    for job_id in job_ids:
        bench.finish(job_id)


def test_a_reader_who_takes_nothing_holds_up_itself_alone(app, bench, client, monkeypatch):
    monkeypatch.setattr("api.streams.SEND_SECONDS", 600)  # a slow machine must not give it up meanwhile
    job_id = bench.running()
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((client.base_url.host, client.base_url.port))
        stuck.sendall(f"GET /jobs/{job_id}/events?follow=true HTTP/1.1\r\nHost: x\r\nAccept: {NDJSON['Accept']}\r\n\r\n".encode())
        until(lambda: watched(app, job_id) == 1)
        for number in range(60):  # some 20 MB: more than any socket buffers (the kernel lets one grow to 4 MiB and more)
            bench.losses(job_id, first=number * 20_000, losses=[number + 0.123456789012345] * 20_000)
        assert watched(app, job_id) == 1  # not after the end: what is left may have fitted into the server's last write
        bench.finish(job_id)
        with client.stream("GET", f"/jobs/{job_id}/events?follow=true", headers=NDJSON) as response:
            assert [event["seq"] for event in ndjson(response.iter_lines())] == list(range(1, bench.last_seq(job_id) + 1))
    until(lambda: watched(app, job_id) == 0)


def test_a_reader_who_takes_nothing_is_given_up(app, bench, client, monkeypatch, caplog):
    monkeypatch.setattr("api.streams.SEND_SECONDS", 0.2)
    job_id = bench.running()
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((client.base_url.host, client.base_url.port))
        stuck.sendall(f"GET /jobs/{job_id}/logs?follow=true HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: watched(app, job_id) == 1)
        for number in range(60):
            bench.losses(job_id, first=number * 5000, losses=[0.5] * 5000)
        until(lambda: "was given up" in caplog.text, seconds=60)  # told by the server's thread, once the reader is let go
    assert watched(app, job_id) == 0
    bench.finish(job_id)


@pytest.mark.parametrize("way", ["follow", "replay"])
def test_a_reader_far_behind_is_sent_chunks_of_bounded_size(bench, monkeypatch, way):
    monkeypatch.setattr("api.broadcast.CHUNK_BYTES", 10_000)
    job_id = bench.running()
    for number in range(30):
        bench.losses(job_id, first=number * 100, losses=[0.123456789012345] * (2000 if number == 7 else 100))
    bench.finish(job_id)

    async def read() -> list[bytes]:
        broadcaster = Broadcaster(bench.database, poll_seconds=0.1, heartbeat_seconds=10)
        return [chunk async for chunk in getattr(broadcaster, way)(job_id, 0, forms.ndjson)]

    chunks = asyncio.run(read())
    inside = [[json.loads(line)["seq"] for line in chunk.splitlines()] for chunk in chunks]
    assert list(itertools.chain(*inside)) == list(range(1, bench.last_seq(job_id) + 1))
    assert all(len(chunk) <= 10_000 or len(events) == 1 for chunk, events in zip(chunks, inside, strict=True))
    assert 8 <= len(chunks) <= 12


def test_the_tail_runs_from_the_first_viewer_to_the_last(app, bench, client):
    job_id = bench.running()
    with ExitStack() as stack:
        open_streams = [
            stack.enter_context(client.stream("GET", f"/jobs/{job_id}/events", headers=SSE)).iter_raw() for _ in range(3)
        ]
        assert all(next(stream) for stream in open_streams)
        until(lambda: watched(app, job_id) == 3)
    until(lambda: watched(app, job_id) == 0)
    bench.finish(job_id)


def test_a_viewer_far_behind_reads_the_database_then_joins_the_rest(app, bench, client, monkeypatch):
    monkeypatch.setattr("api.broadcast.REMEMBERED", 5)
    monkeypatch.setattr("api.broadcast.PAGE", 4)
    job_id = bench.running()
    with client.stream("GET", f"/jobs/{job_id}/events", headers=SSE) as first:
        ahead = frames(first.iter_lines())
        next(ahead)
        for number in range(37):
            bench.losses(job_id, first=number, losses=[1.0])
        with client.stream("GET", f"/jobs/{job_id}/events?follow=true", headers=NDJSON) as late:
            behind = ndjson(late.iter_lines())
            assert [next(behind)["seq"] for _ in range(30)] == list(range(1, 31))
            for number in range(37, 60):
                bench.losses(job_id, first=number, losses=[1.0])
            bench.finish(job_id)
            last = bench.last_seq(job_id)
            assert [event["seq"] for event in behind] == list(range(31, last + 1))
        assert [seq for seq, _, _ in ahead] == list(range(2, last + 1))


def test_a_viewer_far_behind_waits_for_a_database_that_is_away(bench, client, monkeypatch):
    monkeypatch.setattr("api.broadcast.PAGE", 4)
    monkeypatch.setattr("api.broadcast.AWAY_SECONDS", 0.01)
    job_id = bench.running()
    write(bench, job_id, chunks=20)
    read, calls = events.read, itertools.count(1)

    def away_now_and_then(*arguments: Any, **options: Any) -> Any:
        if next(calls) % 3:
            raise OperationalError("SELECT", {}, ConnectionError("the server closed the connection"))
        return read(*arguments, **options)

    monkeypatch.setattr("api.broadcast.events.read", away_now_and_then)
    with client.stream("GET", f"/jobs/{job_id}/events?follow=true", headers=NDJSON) as response:
        found = [event["seq"] for event in ndjson(response.iter_lines())]
    assert found == list(range(1, bench.last_seq(job_id) + 1))


@pytest.mark.parametrize(("headers", "beat"), [(SSE, ": heartbeat"), (NDJSON, "")])
def test_an_idle_stream_says_that_it_lives(bench, client, headers, beat):
    job_id = bench.running()
    with client.stream("GET", f"/jobs/{job_id}/events?follow=true&after=2", headers=headers) as response:
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.iter_lines()
        if headers is SSE:
            assert next(lines) == "retry: 1000"
            assert next(lines) == ""
        assert next(lines) == beat
    bench.finish(job_id)


def test_an_sse_client_that_comes_back_past_the_end_is_told_to_stay_away(bench, client):
    job_id = bench.running()
    bench.finish(job_id)
    last = bench.last_seq(job_id)
    assert client.get(f"/jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": str(last)}).status_code == 204
    assert client.get(f"/jobs/{job_id}/events?after={last + 9}", headers=SSE).status_code == 204
    assert client.get(f"/jobs/{job_id}/events?follow=true&after={last}", headers=NDJSON).text == ""
    assert client.get(f"/jobs/{job_id}/events?after={last + 9}").json() == {"data": [], "has_more": False, "next": last + 9}


def test_a_follower_of_some_kinds_gets_those_and_the_end(bench, client):
    job_id = bench.running()
    with client.stream("GET", f"/jobs/{job_id}/events?kinds=epoch&kinds=log", headers=SSE) as response:
        found = frames(response.iter_lines())
        for number in range(3):
            bench.losses(job_id, first=number * 2, losses=[1.0, 0.5], epoch=number)
            bench.epoch(job_id, epoch=number, step=number * 2 + 2)
        bench.append(job_id, (6, "log", {"level": "info", "message": "bye"}))
        bench.finish(job_id)
        assert [kind for _, kind, _ in found] == ["epoch", "epoch", "epoch", "log", "end"]
    by_pages = pages(client, job_id, kinds="epoch,log", limit=2)
    assert [event["kind"] for event in by_pages] == ["epoch", "epoch", "epoch", "log"]


def test_sse_follows_by_default_ndjson_and_pages_do_not(bench, client):
    job_id = bench.running()
    assert len(client.get(f"/jobs/{job_id}/events", headers=NDJSON).text.splitlines()) == 2
    assert len(client.get(f"/jobs/{job_id}/events?limit=1", headers=NDJSON).text.splitlines()) == 1
    assert client.get(f"/jobs/{job_id}/events?follow=false", headers=SSE).text.count("id: ") == 2
    refused = client.get(f"/jobs/{job_id}/events?follow=true")
    assert refused.json()["errors"][0]["pointer"] == "query/follow"
    assert client.get(f"/jobs/{job_id}/events?limit=3", headers=SSE).json()["errors"][0]["pointer"] == "query/limit"
    bench.finish(job_id)


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("text/event-stream", "text/event-stream; charset=utf-8"),
        ("text/*", "text/event-stream; charset=utf-8"),
        ("application/x-ndjson;q=0, */*", "application/json"),
    ],
)
def test_accept_chooses_the_form(bench, client, accept, answer):
    job_id = bench.running()
    bench.finish(job_id)
    assert client.get(f"/jobs/{job_id}/events", headers={"Accept": accept}).headers["content-type"] == answer


def test_a_form_that_is_not_there_is_refused_with_those_that_are(bench, client):
    answer = client.get(f"/jobs/{bench.job()}/events", headers={"Accept": "text/html"})
    assert answer.status_code == 406
    assert "text/event-stream" in answer.json()["detail"]


def test_an_unknown_kind_is_refused_with_the_one_that_was_meant(bench, client):
    answer = client.get(f"/jobs/{bench.job()}/events?kinds=epoch,iteration")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "query/kinds", "message": "there is no kind 'iteration'. Did you mean 'iterations'?"}
    ]


def watched(app: Any, job_id: int) -> int:
    viewers: int = app.state.service.broadcaster.watched.get(job_id, 0)
    return viewers


def until(true: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
