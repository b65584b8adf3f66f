from __future__ import annotations

import hashlib
import json

import pytest

from client.http import Client, Fault, GraftError, RefusedError, UnreachableError

PROBLEM = {
    "type": "urn:graft:problem:invalid-spec",
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "/optimizer/lr: too high (and 1 more)",
    "errors": [{"pointer": "/optimizer/lr", "message": "too high"}, {"pointer": "", "message": "no model"}],
}


def lines(events):
    return [json.dumps(event).encode() + b"\n" for event in events]


def serve_log(service, log, *, per_connection, whole=True, half_line=False):
    """Answer with at most so many events a connection, then cut it."""

    def answer(query, _body):
        rest = log[int(query["after"]) :]
        part = rest[:per_connection]
        chunks = [b"\n", *lines(part)]
        if half_line and len(rest) > len(part):
            chunks.append(lines(rest)[per_connection][:20])
        return 200, "application/x-ndjson", chunks, whole and not half_line

    service.answers["/jobs/7/events"] = answer


@pytest.mark.parametrize("per_connection", [1, 3, 100])
def test_following_gives_each_event_once_however_often_the_stream_ends_early(service, client, log, job, per_connection):
    serve_log(service, log, per_connection=per_connection)
    service.answer("/jobs/7", {**job, "state": "running"})
    assert list(client.events(7, follow=True)) == log


def test_following_goes_on_after_a_connection_that_broke_in_the_middle_of_a_line(service, client, log):
    serve_log(service, log, per_connection=4, half_line=True)
    assert list(client.events(7, follow=True)) == log


def test_a_followed_tail_goes_on_after_its_last_event_without_a_line_lost_or_doubled(service, client, job):
    text = [f"line {number}" for number in range(6)] + ["End : succeeded"]  # a line per event, from seq 1
    service.answer("/jobs/7", {**job, "state": "succeeded"})
    headers = {"Graft-Seq": "3"}

    def answer(query, _body):
        if "tail" in query:
            return 200, "text/plain", [b"line 1\nline 2\n"], True, headers
        told = "".join(f"{line}\n" for line in text[int(query["after"]) :]).encode()
        whole = len(service.asked) > 3
        return 200, "text/plain", [told if whole else told[:10]], whole

    service.answers["/jobs/7/logs"] = answer
    assert list(client.logs(7, follow=True, tail=2)) == text[1:]
    assert [query for _, path, query, _ in service.asked if path.endswith("logs")] == [
        {"tail": "2"},
        *[{"follow": "true", "after": "3"}] * 3,
    ]


def test_each_cut_is_told_once_and_so_is_that_it_goes_on(service, log, job, monkeypatch):
    monkeypatch.setattr("client.http.RETRY_SECONDS", 0.001)
    notes = []
    serve_log(service, log, per_connection=7, half_line=True)
    cut, answer = [], service.answers["/jobs/7/events"]

    def sometimes(query, body):
        cut.append(1)
        return (503, "application/problem+json", [b"{}"], True) if len(cut) in {2, 3} else answer(query, body)

    service.answers["/jobs/7/events"] = sometimes
    with Client(service.url, patience=30, note=notes.append) as client:
        assert list(client.events(7, follow=True)) == log
    assert [note.split(";")[0] for note in notes] == [f"The stream from {service.url} was cut", "Connected again"] * 2


def test_following_begins_past_the_cursor(service, client, log):
    serve_log(service, log, per_connection=100)
    assert [event["seq"] for event in client.events(7, after=9, follow=True)] == [event["seq"] for event in log[9:]]


def test_following_waits_for_a_service_whose_database_is_away(service, client, log, job):
    serve_log(service, log, per_connection=3)
    asked = []

    def answer(_query, _body):
        asked.append(1)
        body = {"title": "Service Unavailable", "status": 503, "detail": "the database does not answer; try again"}
        away = len(asked) % 2
        return 503 if away else 200, "application/json", [json.dumps(body if away else job).encode()], True

    service.answers["/jobs/7"] = answer
    assert list(client.events(7, follow=True)) == log


def test_following_past_the_end_of_an_ended_job_stops(service, client, log, job):
    service.answers["/jobs/7/events"] = lambda query, _: (
        (200, "application/x-ndjson", [], True)
        if "follow" in query
        else (200, "application/json", [b'{"data": [], "has_more": false, "next": 99}'], True)
    )
    service.answer("/jobs/7", {**job, "state": "succeeded"})
    assert list(client.events(7, after=99, follow=True)) == []


def test_following_a_few_kinds_asks_for_the_end_as_well(service, client, log):
    serve_log(service, log, per_connection=100)
    list(client.events(7, follow=True, kinds=["epoch"]))
    assert service.asked[0][2]["kinds"] == "epoch,end"


def test_following_gives_up_once_nobody_has_answered_for_the_patience(service, client, log):
    serve_log(service, log, per_connection=2, whole=False)
    events = client.events(7, follow=True)
    assert next(events) == log[0]
    service.answers["/jobs/7/events"] = lambda *_: (503, "application/problem+json", [b"{}"], True)
    with pytest.raises(GraftError):
        list(events)


def test_following_a_job_that_is_not_there_is_refused_at_once(service, client):
    service.answer("/jobs/7/events", {"title": "Not Found", "status": 404, "detail": "there is no job 7"}, 404)
    with pytest.raises(RefusedError, match="there is no job 7"):
        list(client.events(7, follow=True))
    assert len(service.asked) == 1


def test_without_follow_the_log_is_read_in_pages(service, client, log):
    def page(query, _body):
        after = int(query["after"])
        part = log[after : after + 4]
        body = {"data": part, "has_more": after + 4 < len(log), "next": after + len(part)}
        return 200, "application/json", [json.dumps(body).encode()], True

    service.answers["/jobs/7/events"] = page
    assert list(client.events(7)) == log
    assert len(service.asked) == -(-len(log) // 4)


def test_followed_text_comes_once_over_several_connections(service, client, job):
    text = [f"line {number}\n".encode() for number in range(20)] + [b"End : succeeded\n"]
    served = iter([5, 12, 21])
    service.answers["/jobs/7/logs"] = lambda *_: (200, "text/plain", text[: next(served)], True)
    service.answer("/jobs/7", {**job, "state": "succeeded"})
    assert list(client.logs(7, follow=True)) == [line.decode().rstrip() for line in text]


def test_a_problem_becomes_an_error_with_its_pointers(service, client):
    service.answer("/jobs", PROBLEM, 422)
    with pytest.raises(RefusedError) as caught:
        client.submit({})
    assert caught.value.status == 422
    assert caught.value.faults == [Fault("/optimizer/lr", "too high"), Fault("", "no model")]


def test_an_error_that_is_no_problem_still_tells_its_status_and_text(service, client):
    service.answers["/jobs/7"] = lambda *_: (502, "text/html", [b"<h1>Bad gateway</h1>"], True)
    with pytest.raises(RefusedError, match="Bad gateway") as caught:
        client.job(7)
    assert caught.value.status == 502


def test_another_web_server_at_the_address_is_told_apart(service, client):
    service.answers["/jobs/7"] = lambda *_: (200, "text/html", [b"<h1>It works!</h1>"], True)
    with pytest.raises(UnreachableError, match="no Graft service"):
        client.job(7)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:8000", "http://[::1"])
def test_an_address_where_nobody_answers_is_an_error_that_names_it(url):
    with pytest.raises(UnreachableError) as caught, Client(url) as client:
        client.job(1)
    assert url in str(caught.value)


def test_jobs_are_listed_over_as_many_pages_as_the_limit_takes(service, client):
    def page(query, _body):
        after = int(query.get("after", 250))
        ids = list(range(after, max(after - int(query["limit"]), 0), -1))
        body = {"data": [{"id": number} for number in ids], "has_more": True, "next": ids[-1] - 1}
        return 200, "application/json", [json.dumps(body).encode()], True

    service.answers["/jobs"] = page
    assert [job["id"] for job in client.jobs(limit=230)] == list(range(250, 20, -1))
    assert len(service.asked) == 3


def test_an_idempotency_key_is_sent_as_its_header(service, client, job):
    service.answer("/jobs", job, 201)
    assert client.submit({"model": 1}, key="k1")["id"] == 7
    assert service.asked[0][3] == {"model": 1}


def test_a_download_is_checked_against_its_hash_and_appears_whole_or_not_at_all(service, client, tmp_path):
    path, content = "/jobs/7/checkpoints/best/weights.safetensors", b"weights" * 1000
    service.answers[path] = lambda *_: (200, "application/octet-stream", [content[:3000], content[3000:]], True)
    target = tmp_path / "kept" / "w.safetensors"
    assert client.download(7, "best", "weights.safetensors", target, sha256=hashlib.sha256(content).hexdigest()) == target
    assert target.read_bytes() == content

    with pytest.raises(GraftError, match="damaged"):
        client.download(7, "best", "weights.safetensors", tmp_path / "other", sha256="0" * 64)
    service.answers[path] = lambda *_: (200, "application/octet-stream", [content[:3000]], False)
    with pytest.raises(UnreachableError):
        client.download(7, "best", "weights.safetensors", tmp_path / "other")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kept"]


def test_a_download_that_is_cut_goes_on_where_it_was_now_and_at_the_next_call(service, client, tmp_path):
    path, content, target = "/jobs/7/checkpoints/9/weights.safetensors", bytes(range(256)) * 40, tmp_path / "w.safetensors"
    digest = hashlib.sha256(content).hexdigest()
    cuts, gone = [3000, 7000], (503, "application/problem+json", [b"{}"], True)

    def answer(_query, _body):
        asked = service.headers[-1]
        first = int(asked.get("Range", "bytes=0-")[6:-1])
        assert asked.get("If-Range") == (f'"{digest}"' if first else None)
        end = cuts.pop(0) if cuts else len(content)
        headers = {"ETag": f'"{digest}"'}
        return 206 if first else 200, "application/octet-stream", [content[first:end]], end == len(content), headers

    service.answers[path] = answer
    assert client.download(7, 9, "weights.safetensors", target, sha256=digest).read_bytes() == content
    assert [asked.get("Range") for asked in service.headers] == [None, "bytes=3000-", "bytes=7000-"]
    assert client.download(7, 9, "weights.safetensors", target, sha256=digest) == target
    assert len(service.asked) == 3, "it is there already"

    target.unlink()
    cuts.append(4000)
    service.answers[path] = lambda *_: answer(*_) if cuts else gone
    with pytest.raises(RefusedError):
        client.download(7, 9, "weights.safetensors", target, sha256=digest)
    assert [entry.name for entry in tmp_path.iterdir()] == [f".w.safetensors.{digest[:16]}.part"]
    service.answers[path] = answer
    told = []
    client.download(7, 9, "weights.safetensors", target, sha256=digest, progress=lambda done, _: told.append(done))
    assert service.headers[-1]["Range"] == "bytes=4000-"
    assert (told[-1], target.read_bytes()) == (len(content), content)
    assert list(tmp_path.iterdir()) == [target]


def test_a_part_of_another_file_is_not_gone_on_from(service, client, tmp_path):
    """The part on the disk was spoilt: what arrives is damaged, and the next call begins anew."""
    path, content, target = "/jobs/7/checkpoints/9/weights.safetensors", b"weights" * 100, tmp_path / "w"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / f".w.{digest[:16]}.part").write_bytes(b"spoilt")
    service.answers[path] = lambda *_: (
        (206, "application/octet-stream", [content[6:]], True)
        if "Range" in service.headers[-1]
        else (200, "application/octet-stream", [content], True)
    )
    with pytest.raises(GraftError, match="damaged"):
        client.download(7, 9, "weights.safetensors", target, sha256=digest)
    assert list(tmp_path.iterdir()) == []
    assert client.download(7, 9, "weights.safetensors", target, sha256=digest).read_bytes() == content
