"""What the log says of a job, put together: losses and the transfer report."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import problems, schemas
from api.answers import JsonResponse
from api.dependencies import JobId, Svc
from api.problems import ProblemError
from core.events import TransferData
from store import events, jobs
from store.losses import MOST_POINTS
from store.tables import Job

router = APIRouter(prefix="/jobs/{job_id}", tags=["reports"])

Points = Annotated[
    int | None,
    Query(ge=1, le=MOST_POINTS, description="Into at most that many buckets, each with min, max and mean; the ends are exact."),
]


@router.get("/losses", summary="The loss of every step", response_model=schemas.Losses, responses=problems.responses(404))
def get_losses(job_id: JobId, service: Svc, points: Points = None) -> Response:
    """Each step once, in order, with rewinds applied; or as many buckets as `points`."""
    with service.database.read() as session:
        jobs.get(session, job_id)
        losses = events.losses(session, job_id)
    if points is None:
        answer = {"steps": len(losses), "losses": losses.figures()}
    else:
        answer = {"steps": len(losses), "buckets": events.buckets(losses, points)}
    return JsonResponse(answer)


@router.get("/transfer", summary="The transfer report", response_model=TransferData, responses=problems.responses(404))
def get_transfer(job_id: JobId, service: Svc) -> Response:
    """Each tensor of the model and of the source, once, and what became of it."""
    with service.database.read() as session:
        job = jobs.get(session, job_id)
        found = events.latest(session, job_id, TransferData.kind)
    if found is None:
        raise not_yet(job, "transfer report")
    return JsonResponse(found)


def not_yet(job: Job, name: str) -> ProblemError:
    """404, with when it will be there."""
    reason = f"job {job.id} is {job.state} and has no {name} yet; it comes when a worker begins (POST /plans shows it before)"
    if job.ended_at is not None:
        reason = f"job {job.id} is {job.state}; it ended before there was a {name}"
    return ProblemError(404, "not-yet", reason)
