"""What the log says of a job, put together: losses, the transfer report, the parameter groups."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api import problems, schemas
from api.answers import JsonResponse
from api.dependencies import JobId, Service, Svc
from api.problems import ProblemError
from core.events import GroupsData, TransferData, present
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
    _, found = _latest(service, job_id, TransferData.kind, "transfer report")
    return JsonResponse(found)


@router.get("/groups", summary="The parameter groups", response_model=schemas.GroupsNow, responses=problems.responses(404))
def get_groups(job_id: JobId, service: Svc) -> Response:
    """Each parameter in exactly one group, and what the optimizer does with it, now."""
    job, table = _latest(service, job_id, GroupsData.kind, "table of its parameter groups")
    epoch = min(job.epoch, job.spec["training"]["epochs"] - 1)
    return JsonResponse(present(table, epoch, job.latest.get("lr") or {}))


def _latest(service: Service, job_id: int, kind: str, name: str) -> tuple[Job, dict[str, Any]]:
    """The job, and the newest report of that kind. Raises ProblemError, 404, before there is one."""
    with service.database.read() as session:
        job = jobs.get(session, job_id)
        found = events.latest(session, job_id, kind)
    if found is None:
        reason = f"job {job_id} is {job.state} and has no {name} yet; it comes when a worker begins (POST /plans shows it before)"
        if job.ended_at is not None:
            reason = f"job {job_id} is {job.state}; it ended before there was a {name}"
        raise ProblemError(404, "not-yet", reason)
    return job, found
