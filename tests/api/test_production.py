"""The same API on PostgreSQL and Redis."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from celery import Celery

from api.app import NotAtHeadError, create_app
from sandbox import Sandbox
from store.database import Database
from store.settings import Settings

pytestmark = pytest.mark.slow  # starts a PostgreSQL and a Redis, where no test before did


@pytest.fixture
def settings(tmp_path, postgres_url: str, redis_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=postgres_url, broker_url=redis_url)


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch, start_server: Any) -> Iterator[Any]:
    monkeypatch.setattr(Sandbox, "start", lambda _: None)  # nothing is planned here
    with start_server(settings) as (app, url):
        app.state.url = url
        yield app


def test_a_job_is_listed_followed_and_cancelled(app, settings, make_bench):
    database = Database(settings.database)
    bench = make_bench(database, settings.data_dir)
    job_id = bench.running(labels={"team": "web", "a.b": 'c"d'})
    with httpx.Client(base_url=app.state.url, timeout=30) as client:
        assert [job["id"] for job in client.get("/jobs", params={"label": ["team:web", 'a.b:c"d']}).json()["data"]] == [job_id]
        assert client.get("/jobs", params={"label": "team:other"}).json()["data"] == []
        for number in range(3):
            bench.losses(job_id, first=number * 2, losses=[1.0, "nan"])
        found: list[dict[str, Any]] = []

        def follow() -> None:
            with httpx.stream(
                "GET", f"{app.state.url}/jobs/{job_id}/events?follow=true", headers={"Accept": "application/x-ndjson"}, timeout=30
            ) as response:
                found.extend(json.loads(line) for line in response.iter_lines() if line)

        follower = threading.Thread(target=follow)
        follower.start()
        assert client.post(f"/jobs/{job_id}/cancel").json()["requested"] == "cancel"
        bench.losses(job_id, first=6, losses=[0.5])
        bench.finish(job_id, "cancelled")
        follower.join(60)
        assert found == client.get(f"/jobs/{job_id}/events").json()["data"]
        assert [event["kind"] for event in found][-3:] == ["iterations", "state", "end"]
        assert client.get(f"/jobs/{job_id}/losses").json()["steps"] == 7
        assert client.post(f"/jobs/{job_id}/cancel").status_code == 409
    database.dispose()


def test_the_hint_of_a_new_job_reaches_its_queue(app, redis_url):
    assert app.state.service.hints.send("fast")
    with Celery(broker=redis_url).connection_for_read() as connection:
        message = connection.SimpleQueue("fast").get(timeout=60)
    assert message.headers["task"] == "graft.work"


def test_a_database_that_is_not_at_head_is_refused_at_the_start(settings, postgres):
    unmade = settings.model_copy(update={"database_url": postgres})
    app = create_app(unmade)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    import anyio

    with pytest.raises(NotAtHeadError, match=r"python -m store.upgrade"):
        anyio.run(start)
