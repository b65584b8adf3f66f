"""Bodies that no spec is: refused with a reason, and never by a 500."""

from __future__ import annotations

import pytest

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b"{", "no JSON"),
        (b"dataset: digits", "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": -Infinity}', "no JSON"),
        (b'{"a": 1e999}', "no JSON"),
        (b'{"a": 01}', "no JSON"),
        (b'{"a": 1,}', "no JSON"),
        (b'{"a": "\\ud800"}', "no JSON"),
        (b'{"\\udc00": 1}', "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        ('{"a": 1}'.encode("utf-16"), "no JSON"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b'{"a": "\x01"}', "no JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", None),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "JSON"),
        (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, "JSON"),
        (b"[]", "must be a JSON object"),
        (b'"spec"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize("path", ["/jobs", "/plans"])
def test_a_body_that_is_no_json_object_is_400(client, path, body, said):
    answer = client.post(path, content=body, headers=JSON)
    assert answer.headers["content-type"] == "application/problem+json"
    if said is None:  # JSON, but no spec
        assert answer.status_code == 422
    else:
        assert answer.status_code == 400
        assert said in answer.json()["detail"]
        assert len(answer.content) < 500


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"dataset": null, "model": []}',
        b'{"dataset": {"source": "x"}, "model": {"name": "y", "k": ' + b"[" * 400 + b"]" * 400 + b"}}",
        b'{"dataset": {"source": "x"}, "model": {"name": "y", "k": ' + b"9" * 30 + b"}}",
        b'{"dataset": {"source": "\\u0000"}, "model": {"name": "y"}}',
        b'{"dataset": {"source": "x"}, "model": {"name": "y"}, "labels": {"\\u0000": "v"}}',
        b'{"dataset": {"source": "x"}, "model": {"name": "y"}, "labels": {"a~b/c": 1}}',
        b'{"dataset": {"source": "x"}, "model": {"name": "' + b"n" * 5000 + b'"}}',
    ],
)
def test_json_that_is_no_spec_is_422_with_places(client, body):
    answer = client.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 422
    assert all(error["pointer"].startswith("/") and error["message"] for error in answer.json()["errors"])
    assert len(answer.content) < 2000


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_another_content_type_is_415(client, kind):
    answer = client.post("/jobs", content=b"{}", headers={} if kind is None else {"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/graft+json"])
def test_json_by_any_of_its_names_is_read(client, kind):
    assert client.post("/jobs", content=b"{}", headers={"Content-Type": kind}).status_code == 422


def test_a_body_beyond_the_limit_is_413_declared_or_not(client, settings):
    body = b'{"a": "' + b"x" * settings.max_body + b'"}'
    declared = client.post("/jobs", content=body, headers=JSON)
    chunked = client.post("/jobs", content=iter([body[:1000], body[1000:]]), headers=JSON)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert str(settings.max_body) in answer.json()["detail"]
