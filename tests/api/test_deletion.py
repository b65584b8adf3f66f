"""`DELETE /jobs/{id}`."""

from __future__ import annotations

import httpx


def test_an_ended_job_is_deleted_with_its_log_and_its_files(bench, client):
    job_id = bench.running()
    place = bench.checkpoint(job_id, epoch=0, step=10, top1=0.5)
    bench.finish(job_id)
    answer = client.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not place.parent.parent.exists()
    for path in ("", "/events", "/logs", "/checkpoints", "/checkpoints/best/weights.safetensors"):
        assert client.get(f"/jobs/{job_id}{path}").status_code == 404
    assert job_id not in [job["id"] for job in client.get("/jobs").json()["data"]]
    assert client.delete(f"/jobs/{job_id}").status_code == 404


def test_one_that_has_not_ended_is_a_conflict_that_says_what_to_do(bench, client):
    job_id = bench.running()
    place = bench.checkpoint(job_id, epoch=0, step=10, top1=0.5)
    answer = client.delete(f"/jobs/{job_id}")
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"job {job_id} has not ended: it is running; cancel it, or wait for its end"
    assert place.exists()
    bench.finish(job_id)


def test_a_stream_of_a_job_that_is_deleted_ends(bench, url, client):
    """Its reader is far behind: what the tail remembers is not what it has yet to read."""
    job_id = bench.running()
    for first in range(0, 600, 2):
        bench.losses(job_id, first=first, losses=[1.0, 1.0])
    with httpx.stream("GET", f"{url}/jobs/{job_id}/logs?follow=true", timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        bench.finish(job_id)
        assert client.delete(f"/jobs/{job_id}").status_code == 204
        assert sum(1 for _ in lines) <= 600 + 10
