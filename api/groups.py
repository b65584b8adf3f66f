"""The parameter groups of a job: as they are now, and changed while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import examples, problems, schemas
from api.answers import JsonResponse
from api.body import json_object
from api.dependencies import JobId, Service, Svc
from api.problems import ProblemError
from api.reports import not_yet
from core.adjustments import Adjustment, check, patch_of
from core.errors import Fault, SpecError, did_you_mean
from core.events import AdjustedData, present
from store import adjustments, events, jobs
from store.tables import Job

router = APIRouter(prefix="/jobs/{job_id}/groups", tags=["reports"])

Body = Annotated[dict[str, Any], Depends(json_object)]
Name = Annotated[str, Path(description="As `GET /jobs/{id}/groups` has it; it may contain `/`.", examples=["head"])]


@router.get("", summary="The parameter groups", response_model=schemas.GroupsNow, responses=problems.responses(404))
def get_groups(job_id: JobId, service: Svc) -> Response:
    """Each parameter in exactly one group, what the optimizer does with it now, and the changes that are still to come.

    Before a worker has begun, the groups are those of the plan, without the names of their parameters.
    """
    with service.database.read() as session:
        job = jobs.get(session, job_id)
        table = _table(session, job)
        answer = {**_now(session, job, table), "pending": [shown(one) for one in adjustments.pending(session, job)]}
    return JsonResponse(answer)


@router.patch(
    "/{group:path}",
    summary="Change a parameter group",
    status_code=202,
    response_model=schemas.Adjustment,
    responses=problems.responses(400, 404, 409, 413, 415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/TimedPatch"}, "examples": examples.GROUP_PATCHES}
            },
        }
    },
)
async def patch_group(job_id: JobId, group: Name, body: Body, service: Svc) -> Response:
    """Give a group another lr, momentum, betas or weight decay, freeze it or let it train. The job may run, wait or be paused.

    It takes effect at the next step, or at `at_step`; the event `adjusted` says at which, from what to what. A schedule goes on
    from the new lr, in proportion. The name of a group of the spec means all its parts.
    """
    try:
        patch = patch_of(body)
    except SpecError as error:
        raise ProblemError.of_faults("invalid-adjustment", error.faults) from None
    asked = Adjustment(group, patch.changes, patch.at_step, "api")
    return await run_in_threadpool(_adjust, service, job_id, asked)


def shown(one: Adjustment) -> dict[str, Any]:
    """An adjustment as `schemas.Adjustment`."""
    return {"id": one.id, "group": one.group, "changes": one.changes, "at_step": one.step, "by": one.by}


def unknown(rows: Sequence[dict[str, Any]], name: str) -> str | None:
    """What to say where no group, and no group of the spec that has parts, is called that."""
    names = dict.fromkeys(one for row in rows for one in (row["name"], row["of"]))
    return None if name in names else f"there is no parameter group '{name[:200]}'.{did_you_mean(name[:200], names)}"


def refused(rows: Sequence[dict[str, Any]], asked: Adjustment, optimizer: str, steps: int | None) -> list[Fault]:
    """What of `asked` a job of so many steps, with these groups, cannot do."""
    chosen = next((row for row in rows if asked.group in (row["name"], row["of"])), None)
    faults = [] if chosen is None else check(asked.changes, chosen["hyperparameters"], optimizer)
    if asked.step is not None and steps is not None and asked.step >= steps:
        faults.append(Fault("/at_step", f"the job has {steps} steps: {steps - 1} is the last that a change can come before"))
    return faults


def _adjust(service: Service, job_id: int, asked: Adjustment) -> Response:
    with service.database.write() as session:
        job = adjustments.open_job(session, job_id)
        table = _table(session, job)
        if (message := unknown(table["groups"], asked.group)) is not None:
            raise ProblemError(404, "no-such-group", f"job {job_id}: {message}")
        faults = refused(table["groups"], asked, table["optimizer"], job.steps_total)
        if not faults and asked.changes.get("freeze") and (step := _all_frozen(session, job, table, asked)) is not None:
            faults = [Fault("/freeze", f"from step {step} on every group would be frozen: nothing would train")]
        if faults:
            raise ProblemError.of_faults("invalid-adjustment", faults)
        answer = shown(adjustments.adjust(session, job, asked))
    return JsonResponse(answer, status_code=202)


def _table(session: Session, job: Job) -> dict[str, Any]:
    found = adjustments.table(session, job.id)
    if found is None:
        raise not_yet(job, "table of its parameter groups")
    return found


def _now(session: Session, job: Job, table: dict[str, Any]) -> dict[str, Any]:
    done = [row.data for row in events.folded(session, job.id, {AdjustedData.kind})]
    epoch = min(job.epoch, job.epochs - 1)
    return present(table, epoch, job.latest.get("lr") or {}, step=job.step, adjusted=done)


def _all_frozen(session: Session, job: Job, table: dict[str, Any], asked: Adjustment) -> int | None:
    """The first step at which nothing would train any more, with `asked` and all that is to come beside it."""
    coming = [replace(one, step=max(job.step, one.step or 0)) for one in [*adjustments.asked(session, job.id), asked]]
    told = sorted([*adjustments.done(session, job.id), *coming], key=lambda one: one.step or 0)
    per_epoch = max(1, (job.steps_total or 0) // job.epochs)
    for step in sorted({one.step or 0 for one in told}):
        if step >= (coming[-1].step or 0) and all(_is_frozen(row, told, step, per_epoch) for row in table["groups"]):
            return step
    return None


def _is_frozen(row: dict[str, Any], told: Sequence[Adjustment], step: int, per_epoch: int) -> bool:
    """Whether a group of the table is, at that step, with what is `told` of it, in order."""
    for one in reversed(told):
        if (one.step or 0) <= step and one.group in (row["name"], row["of"]) and "freeze" in one.changes:
            return bool(one.changes["freeze"])
    return row["frozen"] and (row["until_epoch"] is None or step < row["until_epoch"] * per_epoch)
