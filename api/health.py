"""Whether the service lives, whether it takes jobs, and who works for it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from sqlalchemy.exc import SQLAlchemyError

from api import problems, schemas
from api.answers import JsonResponse
from api.dependencies import Service, Svc
from api.problems import ProblemError
from core.errors import Fault
from core.spec import Name
from store import jobs, workers
from store.clock import iso
from store.workers import WorkerStatus

router = APIRouter(tags=["service"])


@router.get("/workers", summary="List workers", response_model=schemas.Workers, responses=problems.responses())
def get_workers(service: Svc) -> Response:
    """Who serves which queue, on which devices, and what each queue holds."""
    with service.database.read() as session:
        found = workers.listing(session)
        queues = jobs.counts(session)
    return JsonResponse({"data": [_view(worker) for worker in found], "queues": queues})


@router.post("/workers/{name}/drain", summary="Drain a worker", response_model=schemas.Worker, responses=problems.responses(404))
def drain_worker(name: Annotated[Name, Path(description="As GET /workers calls it.")], service: Svc) -> Response:
    """It takes no new job from now on, finishes those it runs, and leaves: before its host is serviced, for example."""
    with service.database.write() as session:
        workers.drain(session, name)
        worker = next(worker for worker in workers.listing(session) if worker.name == name)
    return JsonResponse(_view(worker))


def _view(worker: WorkerStatus) -> dict[str, Any]:
    return {**asdict(worker), "started_at": iso(worker.started_at), "seen_at": iso(worker.seen_at)}


@router.get("/health/live", summary="Does it live", response_model=schemas.Health)
async def get_live() -> schemas.Health:
    """Answers as long as the process does."""
    return schemas.Health(status="live")


@router.get("/health/ready", summary="Does it take jobs", response_model=schemas.Health, responses=problems.responses())
def get_ready(service: Svc) -> schemas.Health:
    """Once the database is at head and the sandbox that plans jobs is warm; before that a 503 that says what is missing.

    Of the api alone: a job is taken though no worker is warm yet, and waits. `GET /workers` tells of them by `devices.ready`.
    """
    missing = [*_database(service), *_sandbox(service)]
    if missing:
        detail = "; ".join(fault.message for fault in missing)
        raise ProblemError(503, "not-ready", detail, faults=missing, headers={"Retry-After": "1"})
    return schemas.Health(status="ready")


def _database(service: Service) -> list[Fault]:
    try:
        if service.database.at_head():
            return []
    except SQLAlchemyError:
        return [Fault("database", "the database does not answer")]
    return [Fault("database", "the database is not at head: run `python -m store.upgrade`")]


def _sandbox(service: Service) -> list[Fault]:
    if service.sandbox.ready:
        return []
    service.sandbox.start()  # one that died is replaced
    return [Fault("sandbox", "the sandbox is warming up (torch is being imported: about 10 s)")]
