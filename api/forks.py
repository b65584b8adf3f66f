"""Forks: a new job from the spec and the weights of one that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool

from api import examples, groups, jobs, patches, plans, problems, schemas
from api.body import json_patch
from api.checkpoints import choose, kept
from api.dependencies import JobId, Service, Svc
from api.problems import ProblemError
from core.adjustments import Adjustment
from core.errors import Fault
from store import adjustments as changes
from store import jobs as stored

router = APIRouter(tags=["jobs"])

Patch = Annotated[dict[str, Any], Depends(json_patch)]
Which = Annotated[
    str | None,
    Query(
        pattern=r"^([0-9]{1,18}|best|last)$",
        description="`best`, `last`, or the step of a checkpoint that is kept: its weights are the pretrained ones of the new "
        "job. By default the best; where there is none, the new job begins as this one did.",
        examples=["best"],
    ),
]


Again = Annotated[
    bool,
    Query(
        description="Run the same spec from its start, with the changes that were made to its parameter groups, each at its "
        "step. By default a fork goes by the patched spec alone: it begins a new schedule, on other weights."
    ),
]


@router.post(
    "/jobs/{job_id}/fork",
    summary="Fork a job",
    status_code=201,
    response_model=schemas.Job,
    responses={**jobs.CREATED, **problems.responses(400, 404, 409, 413, 415)},
    openapi_extra=patches.request_body(
        {"type": "object", "additionalProperties": True},
        examples.FORKS,
        required=False,
        description="A JSON merge patch (RFC 7386) of the spec: keys are set, null takes them away. None: the same spec again.",
    ),
)
async def post_fork(
    job_id: JobId,
    patch: Patch,
    service: Svc,
    *,
    checkpoint: Which = None,
    adjustments: Again = False,
    idempotency_key: jobs.Key = None,
) -> Response:
    """A new job with this one's spec, as the patch changes it, on the weights of one of its checkpoints.

    Its `pretrained` is `job:ID@STEP`, unless the patch says otherwise; optimizer and schedule begin anew. It is checked as
    `POST /jobs` checks a spec, and `forked_from` tells where it comes from. To try a failed job again, fork it without a patch.
    """
    if adjustments and checkpoint is not None:
        fault = Fault("query/adjustments", "they belong to a job that runs from its start; leave one of the two out")
        raise ProblemError.of_faults("invalid-parameter", [fault])
    digest = jobs.digest({"fork": job_id, "checkpoint": checkpoint, "adjustments": adjustments, "patch": patch})

    async def make() -> jobs.Submission:
        if adjustments:
            spec, told = await run_in_threadpool(_start, service, job_id)
            planned = await plans.plan(service, patches.merged(spec, patch))
            _check(planned, told)
            return jobs.Submission(planned, {"job": job_id, "step": None}, told)
        base = await run_in_threadpool(_base, service, job_id, checkpoint)
        planned = await plans.plan(service, patches.merged(base, patch))
        own = planned.pin is not None and planned.pin.job == job_id
        return jobs.Submission(planned, {"job": job_id, "step": planned.pin.step if planned.pin is not None and own else None})

    return await jobs.submit(service, idempotency_key, digest, make)


def _start(service: Service, job_id: int) -> tuple[dict[str, Any], list[Adjustment]]:
    """The spec that is run again, and the changes that were made to its groups."""
    with service.database.read() as session:
        spec = stored.get(session, job_id).spec
        return spec, [replace(one, by=f"job {job_id}") for one in changes.done(session, job_id)]


def _check(planned: plans.Planned, told: Sequence[Adjustment]) -> None:
    """Whether the new job can take them. Raises ProblemError."""
    table, steps = planned.plan["groups"], planned.plan["steps"]["total"]
    faults = []
    for one in told:
        messages = [fault.message for fault in groups.refused(table["groups"], one, table["optimizer"], steps)]
        if (message := groups.unknown(table["groups"], one.group)) is not None:
            messages = [message]
        faults += [Fault("query/adjustments", f"step {one.step}, group {one.group}: {message}") for message in messages]
    if faults:
        raise ProblemError.of_faults("invalid-parameter", faults)


def _base(service: Service, job_id: int, which: str | None) -> dict[str, Any]:
    """The spec that is patched."""
    with service.database.read() as session:
        spec = stored.get(session, job_id).spec
    state, found = kept(service, job_id)
    chosen = choose(found, which or "best")
    if chosen is not None:
        return {**spec, "pretrained": {"source": f"job:{job_id}@{chosen['step']}"}}
    if which is None and not found:
        return spec
    steps = f"it keeps those of steps {', '.join(str(item['step']) for item in found)}" if found else "it has none yet"
    fault = Fault("query/checkpoint", f"job {job_id} is {state} and has no checkpoint '{which}'; {steps}")
    raise ProblemError.of_faults("invalid-parameter", [fault])
