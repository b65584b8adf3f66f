"""One shape for every error, and nothing of the inside in it."""

from __future__ import annotations

import time

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from api.problems import Problem


def problem(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content, strict=True)
    assert found.status == status
    assert found.type.startswith("urn:graft:problem:")
    assert found.detail
    return found


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/", {}, 404),
        ("GET", "/jobs/999999", {}, 404),
        ("GET", "/jobs/999999/events", {}, 404),
        ("GET", "/jobs/999999/events", {"Accept": "text/event-stream"}, 404),
        ("GET", "/jobs/999999/logs", {}, 404),
        ("GET", "/jobs/999999/losses", {}, 404),
        ("GET", "/jobs/999999/transfer", {}, 404),
        ("GET", "/jobs/999999/groups", {}, 404),
        ("GET", "/jobs/999999/checkpoints", {}, 404),
        ("GET", "/jobs/999999/checkpoints/best/model.json", {}, 404),
        ("POST", "/jobs/999999/cancel", {}, 404),
        ("DELETE", "/jobs", {}, 405),
        ("POST", "/jobs/1", {}, 405),
        ("GET", "/jobs/1/events", {"Accept": "image/png"}, 406),
        ("POST", "/jobs", {}, 415),
        ("GET", "/jobs/one", {}, 422),
        ("GET", "/jobs/0", {}, 422),
        ("GET", "/jobs/99999999999999999999", {}, 422),
        ("GET", "/jobs/1/events?after=-1", {}, 422),
        ("GET", "/jobs/1/events?limit=1001", {}, 422),
        ("GET", "/jobs/1/events", {"Last-Event-ID": "x"}, 422),
        ("GET", "/health/live?a=1", {}, 422),
        ("POST", "/jobs", {"Idempotency-Key": "", "Content-Type": "application/json"}, 400),
    ],
)
def test_every_status_has_the_one_shape(client, method, path, headers, status):
    problem(client.request(method, path, headers=headers), status)


def test_a_wrong_method_is_told_which_are_right(client):
    answer = client.delete("/jobs")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}


def test_a_wrong_parameter_is_named_by_its_place(client):
    found = problem(client.get("/jobs/x/events?after=y", headers={"Last-Event-ID": "z"}), 422)
    assert [error.pointer for error in found.errors or []] == ["path/job_id", "query/after", "header/Last-Event-ID"]


def test_an_empty_idempotency_key_is_refused(client):
    answer = client.post("/jobs", json={}, headers={"Idempotency-Key": ""})
    assert [error.pointer for error in problem(answer, 422).errors or []] == ["header/Idempotency-Key"]


def test_what_was_sent_is_never_sent_back(client):
    answer = client.get("/jobs", params={"after": "<script>"})
    assert "script" not in answer.text


def test_a_defect_is_a_500_without_a_traceback(app, client, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("store.jobs.find", broken)
    answer = client.get("/jobs")
    problem(answer, 500)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    deadline = time.monotonic() + 5
    while "secret" not in caplog.text:  # the log has it, once the answer is out
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_database_that_is_away_is_a_503_that_says_when_to_come_back(client, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr("store.jobs.find", away)
    answer = client.get("/jobs")
    problem(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in answer.text


def test_a_service_that_is_not_ready_says_what_is_missing(app, client, monkeypatch):
    service = app.state.service
    monkeypatch.setattr(type(service.database), "at_head", lambda _: False)
    monkeypatch.setattr(type(service.sandbox), "ready", False)
    found = problem(client.get("/health/ready"), 503)
    assert [error.pointer for error in found.errors or []] == ["database", "sandbox"]
    assert client.get("/health/live").json() == {"status": "live"}


@pytest.mark.parametrize(
    "path", ["/jobs", "/workers", "/health/live", "/health/ready", "/jobs/404404", "/nowhere", "/jobs?limit=0"]
)
def test_every_answer_in_json_is_a_line_that_ends(client, path):
    answer = client.get(path)
    assert "json" in answer.headers["Content-Type"]
    assert answer.content.endswith(b"}\n")
    assert answer.content.count(b"\n") == 1


def test_the_answers_about_a_job_are_lines_that_end_too(bench, client):
    job = client.get(f"/jobs/{bench.running()}").json()
    for path in job["links"].values():
        answer = client.get(path)
        assert answer.content.endswith(b"\n"), path
