"""What is asked of a job that is there: cancel, pause, resume, delete, and a change of its name, labels or priority."""

from __future__ import annotations

import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from api import examples, patches, problems, schemas
from api.body import json_object
from api.dependencies import JobId, Service, Svc
from api.jobs import reply, view
from api.patches import merged
from api.problems import ProblemError
from core.errors import Fault
from core.spec import MOST_LABELS, faults_of
from store import commands, deletion, jobs
from store.tables import Job

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])
CONFLICTS = problems.responses(404, 409)


@router.post("/cancel", summary="Cancel a job", response_model=schemas.Job, responses=CONFLICTS)
def cancel_job(job_id: JobId, service: Svc) -> Response:
    """A waiting or paused job ends at once; a running one as soon as its worker obeys, until then it has `requested: cancel`."""
    with service.database.write() as session:
        return reply(view(session, commands.cancel(session, job_id, by="api")))


@router.post("/pause", summary="Pause a job", response_model=schemas.Job, responses=CONFLICTS)
def pause_job(job_id: JobId, service: Svc) -> Response:
    """A waiting job is paused at once; a running one writes a checkpoint where it stands; until then it has `requested: pause`.

    A paused job gives its slot to others. Its attempt is over, but does not count as a failure.
    """
    with service.database.write() as session:
        return reply(view(session, commands.pause(session, job_id, by="api")))


@router.post("/resume", summary="Resume a job", response_model=schemas.Job, responses=CONFLICTS)
def resume_job(job_id: JobId, service: Svc) -> Response:
    """A paused job goes back to its place in the queue, and on from where it stood; the event `rewound` says from where.

    A pause that was not yet obeyed is withdrawn.
    """
    with service.database.write() as session:
        job = commands.resume(session, job_id, by="api")
        answer = reply(view(session, job))
    if job.state == "queued":  # told after the commit
        service.hints.send(job.queue)
    return answer


@router.patch(
    "",
    summary="Change a job",
    response_model=schemas.Job,
    responses=problems.responses(400, 404, 409, 413, 415),
    openapi_extra=patches.request_body(
        {"$ref": "#/components/schemas/JobPatch"},
        examples.JOB_PATCHES,
        required=True,
        description="A JSON merge patch (RFC 7386) of `name`, `labels` and `priority`.",
    ),
)
async def patch_job(job_id: JobId, patch: Annotated[dict[str, Any], Depends(json_object)], service: Svc) -> Response:
    """Change its name, labels or priority; `null` takes a label or the name away. A queued job takes its new place at once."""
    try:
        schemas.JobPatch.model_validate(patch)
    except ValidationError as error:
        raise ProblemError.of_faults("invalid-patch", faults_of(error, schemas.JobPatch)) from None
    return await run_in_threadpool(_edit, service, job_id, patch)


@router.delete("", summary="Delete a job", status_code=204, responses=problems.responses(404, 409))
def delete_job(job_id: JobId, service: Svc) -> Response:
    """Remove an ended job: its log, its reports, and its checkpoints, which frees their place on the disk. It cannot be undone.

    409 while it has not ended, and while a job that has not ended begins with one of its checkpoints. Jobs that began with them
    stay as they are, and still name it by `forked_from`; its `id` is never used again.
    """
    with service.database.write() as session:
        deletion.delete(session, job_id)
    # what cannot be removed, or stays since this process dies here, goes when a worker next looks
    shutil.rmtree(service.settings.data_dir / "jobs" / str(job_id), ignore_errors=True)
    return Response(status_code=204)


def _edit(service: Service, job_id: int, patch: dict[str, Any]) -> Response:
    with service.database.write() as session:
        job = jobs.locked(session, job_id)
        after = merged(_editable(job), patch)
        labels = after.get("labels", {})
        if len(labels) > MOST_LABELS:
            raise ProblemError.of_faults("invalid-patch", [Fault("/labels", f"a job has at most {MOST_LABELS} labels")])
        jobs.edit(session, job, name=after.get("name"), labels=labels, priority=after.get("priority", 0))
        return reply(view(session, job))


def _editable(job: Job) -> dict[str, Any]:
    return {"name": job.name, "labels": job.labels, "priority": job.priority}
