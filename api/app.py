"""The application: its parts, put together, and their life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from api import (
    catalog,
    checkpoints,
    control,
    datasets,
    evaluation,
    events,
    forks,
    groups,
    health,
    jobs,
    openapi,
    plans,
    problems,
    reports,
    uploads,
)
from api.answers import JsonResponse
from api.broadcast import Broadcaster
from api.dependencies import Service, known_parameters
from api.stopping import on_stop
from sandbox import DEFAULT_PRELOAD, Sandbox
from store.database import Database
from store.hints import Hints
from store.settings import Settings


class NotAtHeadError(RuntimeError):
    """The database needs a migration, which on a shared one is a person's decision."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API as an ASGI application; `uvicorn --factory api.app:create_app` serves it too."""
    settings = settings or Settings()
    app = FastAPIOffline(  # a GPU host may have no way to the CDN that the page of FastAPI itself is loaded from
        title="Graft",
        version=version("graft"),
        summary="Runs transfer-learning jobs, and streams every iteration's loss back.",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=_lifespan,
        default_response_class=JsonResponse,
        dependencies=[Depends(known_parameters)],
        redoc_url=None,
    )
    app.state.settings = settings
    problems.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["DELETE", "GET", "HEAD", "PATCH", "POST"],
            allow_headers=["Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range"],
            expose_headers=["Allow", "Content-Disposition", "Content-Range", "ETag", "Location", "Retry-After"],
        )
    for module in (plans, jobs, control, forks, events, reports, evaluation, groups, checkpoints, datasets, catalog, health):
        app.include_router(module.router)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    database = Database(settings.database)
    sandbox = Sandbox(import_path=[settings.plugin_path], preload=(*DEFAULT_PRELOAD, "core.plan"))
    try:
        await run_in_threadpool(_check, database)
        await run_in_threadpool(uploads.sweep, settings.uploads, database)
        sandbox.start()
        broadcaster = Broadcaster(database, poll_seconds=settings.stream_seconds, heartbeat_seconds=settings.heartbeat_seconds)
        app.state.service = Service(
            settings=settings,
            database=database,
            sandbox=sandbox,
            hints=Hints(settings.broker),
            broadcaster=broadcaster,
            plan_slots=anyio.CapacityLimiter(settings.plans_at_once),
            check_slots=anyio.CapacityLimiter(settings.upload_checks_at_once),
        )
        with on_stop(broadcaster.stop):
            yield
        broadcaster.stop()
    finally:
        await run_in_threadpool(sandbox.close)
        database.dispose()


def _check(database: Database) -> None:
    """SQLite is ours alone: it is brought to head. PostgreSQL is shared: it must be there."""
    if database.engine.dialect.name == "sqlite":
        database.upgrade()
    elif not database.at_head():
        raise NotAtHeadError("the database is not at head; stop the workers, then run `python -m store.upgrade`")
