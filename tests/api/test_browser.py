"""Pages from elsewhere, and which of them a browser lets use the api."""

from __future__ import annotations

import pytest

from api.app import create_app
from store.settings import Settings

OURS, OTHER = "https://lab.example.org", "https://elsewhere.example"
ALLOWED = "access-control-allow-origin"


def test_a_page_of_an_origin_that_is_named_may_follow_a_job(bench, client):
    job_id = bench.running()
    bench.finish(job_id)
    for origin, allowed in (OURS, OURS), (OTHER, None):
        headers = {"Accept": "text/event-stream", "Origin": origin}
        answer = client.get(f"/jobs/{job_id}/events", headers=headers)
        assert "event: end\n" in answer.text
        assert answer.headers.get(ALLOWED) == allowed


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_such_a_page_may_ask_for_every_method_with_our_headers(client, method):
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type, idempotency-key"}
    answer = client.options("/jobs/1", headers={"Origin": OURS, **asked})
    assert (answer.status_code, answer.headers[ALLOWED]) == (200, OURS)
    assert method in answer.headers["access-control-allow-methods"]
    refused = client.options("/jobs/1", headers={"Origin": OTHER, **asked})
    assert (refused.status_code, ALLOWED in refused.headers) == (400, False)


def test_by_default_no_page_from_elsewhere_may(tmp_path):
    assert not create_app(Settings(data_dir=tmp_path)).user_middleware
