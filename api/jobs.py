"""Jobs: submit, list, look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import pins, plans, problems, schemas
from api.answers import JsonResponse
from api.dependencies import INT64, JobId, Service, Svc
from api.problems import ProblemError
from api.serving import Served, unserved
from core.adjustments import Adjustment
from core.errors import Fault, did_you_mean
from core.events import JobState, RuleData
from store import adjustments, events, jobs, workers
from store.clock import iso
from store.errors import PinLost
from store.tables import Job

router = APIRouter(tags=["jobs"])

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of yours. The same key and spec give the job that is there, with 200; another spec 409.",
    ),
]
Labels = Annotated[
    list[str] | None,
    Query(description="`key:value`, split at the first colon; repeat it, and all must fit.", examples=[["team:web"]]),
]
CREATED: dict[int | str, dict[str, Any]] = {
    201: {"headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}}},
    200: {"model": schemas.Job, "description": "The job that this Idempotency-Key made before."},
}
_PIN_TRIES = 2
"""Plans that are made again because a checkpoint went meanwhile, before that is an answer."""
State = Annotated[str | None, Query(description=f"One of {', '.join(schemas.STATES)}.", examples=["running"])]


@router.post(
    "/jobs",
    summary="Submit a job",
    status_code=201,
    response_model=schemas.Job,
    responses={**CREATED, **problems.responses(400, 409, 413, 415)},
    openapi_extra=plans.SPEC_BODY,
)
async def post_job(body: plans.Body, service: Svc, idempotency_key: Key = None) -> Response:
    """Check a spec as `POST /plans` does, and put the job into its queue.

    What cannot work is refused here, with every place named: parameter groups and rename rules that match nothing, too little
    loaded, unknown datasets, wrong keywords.
    """

    async def make() -> Submission:
        return Submission(await plans.plan(service, body))

    return await submit(service, idempotency_key, digest(body), make)


@router.get("/jobs", summary="List jobs", response_model=schemas.JobPage, responses=problems.responses())
def get_jobs(
    service: Svc,
    state: State = None,
    label: Labels = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[int | None, Query(ge=1, le=INT64, description="The `next` of the page before.")] = None,
) -> Response:
    """The newest first."""
    wanted, labels = _state(state), _labels(label or [])
    with service.database.read() as session:
        found, has_more = jobs.find(session, state=wanted, labels=labels, limit=limit, after=after)
        served = workers.capacities(session)
        data = [view(session, job, served) for job in found]
    return reply({"data": data, "has_more": has_more, "next": found[-1].id if has_more else None})


@router.get("/jobs/{job_id}", summary="Look at a job", response_model=schemas.Job, responses=problems.responses(404))
def get_job(job_id: JobId, service: Svc) -> Response:
    """Where a job stands: its state, progress, figures, and spec."""
    with service.database.read() as session:
        return reply(view(session, jobs.get(session, job_id)))


@dataclass(frozen=True)
class Submission:
    """What becomes a job."""

    planned: plans.Planned
    forked_from: dict[str, Any] | None = None
    adjustments: Sequence[Adjustment] = ()
    """What is asked of its parameter groups from the start."""


async def submit(service: Service, key: str | None, body_hash: str, make: Callable[[], Awaitable[Submission]]) -> Response:
    """Make a job, or answer the one that this key made before. Raises ProblemError as `make` does."""
    if (answer := await run_in_threadpool(_made_before, service, key, body_hash)) is not None:
        return answer
    for _ in range(_PIN_TRIES):
        with suppress(PinLost):  # pruned while it was planned: its job may have a better one now
            return await run_in_threadpool(_create, service, await make(), key, body_hash)
    return await run_in_threadpool(_create, service, await make(), key, body_hash)


def digest(body: Any) -> str:
    """The same for the same JSON, however it was written."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def view(session: Session, job: Job, served: Served | None = None) -> dict[str, Any]:
    """A row as `schemas.Job`. `served`: the workers' capacities, where they are known already."""
    served = workers.capacities(session) if served is None else served
    waits_for = unserved(job.queue, job.gpus, served) if job.state == "queued" else []
    here = f"/jobs/{job.id}"
    parts = ("events", "logs", "losses", "transfer", "groups", "evaluation", "checkpoints")
    stopped = _stopped_early(session, job)
    steps = job.step if stopped else job.steps_total
    share = min(1.0, job.step / steps) if steps else 0.0
    return {
        "id": job.id,
        "name": job.name,
        "labels": job.labels,
        "priority": job.priority,
        "state": job.state,
        "requested": job.requested,
        "spec": job.spec,
        "progress": {
            "step": job.step, "steps": steps, "epoch": job.epoch, "epochs": job.epochs, "share": share,
        },
        "latest": job.latest,
        "best": job.best,
        "attempt": job.attempt,
        "failures": job.failures,
        "failure": job.failure,
        "pinned": pins.view(job.plan.get("pinned", {})),
        "forked_from": job.forked_from,
        "ran_seconds": round(jobs.ran_seconds(session, job), 3),
        "position": jobs.position(session, job, served.get(job.queue, ())),
        "stopped_early": stopped,
        "eta_seconds": _eta(job),
        "warnings": [*job.plan.get("warnings", []), *waits_for],
        "waits_for": waits_for,
        "created_at": iso(job.created_at),
        "queued_at": iso(job.queued_at),
        "started_at": None if job.started_at is None else iso(job.started_at),
        "ended_at": None if job.ended_at is None else iso(job.ended_at),
        "links": {"self": here, **{part: f"{here}/{part}" for part in parts}},
    }  # fmt: skip


def _made_before(service: Service, key: str | None, body_hash: str) -> Response | None:
    """The job that this key made: known before the plan, which then need not be made again."""
    if key is None:
        return None
    with service.database.read() as session:
        job = jobs.made_before(session, key, body_hash)
        return None if job is None else _located(view(session, job), status=200)


def _create(service: Service, made: Submission, key: str | None, body_hash: str) -> Response:
    spec, facts = made.planned.spec, made.planned.facts
    with service.database.write() as session:
        job, new = jobs.create(
            session, spec=spec, plan=facts, key=key, body_hash=body_hash,
            forked_from=made.forked_from, pinned=made.planned.pin,
        )  # fmt: skip
        if new:
            adjustments.adopt(session, job, made.adjustments)
    if new:  # after the commit, so that the worker finds what it is told of
        service.hints.send(job.queue)
    with service.database.read() as session:
        return _located(view(session, job), status=201 if new else 200)


def _located(answer: dict[str, Any], status: int) -> Response:
    return JsonResponse(answer, status_code=status, headers={"Location": answer["links"]["self"]})


def reply(answer: dict[str, Any]) -> Response:
    """A job, or a page of them, as it is sent."""
    return JsonResponse(answer)


def _stopped_early(session: Session, job: Job) -> dict[str, Any] | None:
    """The rule that ended it, where it succeeded with epochs left."""
    if job.state != "succeeded" or job.epoch >= job.epochs:
        return None
    rule = events.latest(session, job.id, RuleData.kind)
    return rule if rule is not None and rule["action"] == "stop" else None


def _eta(job: Job) -> float | None:
    """The steps that are left at the pace of the last epoch."""
    pace: float | None = job.latest.get("samples_per_second")
    if job.state != "running" or not pace or job.steps_total is None:
        return None
    left: int = (job.steps_total - job.step) * job.spec["loader"]["batch_size"]
    return round(max(0.0, left / pace), 1)


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    for state in schemas.STATES:
        if state == text:
            return state
    fault = Fault("query/state", f"there is no state '{text[:100]}'.{did_you_mean(text, schemas.STATES)}")
    raise ProblemError.of_faults("invalid-parameter", [fault])


def _labels(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition(":") for text in texts]
    faults = []
    if any(not colon or not key for key, colon, _ in pairs):
        faults.append(Fault("query/label", "write key:value, such as label=team:web"))
    if any("\0" in text for text in texts):
        faults.append(Fault("query/label", "the character U+0000 is in no label"))
    if faults:
        raise ProblemError.of_faults("invalid-parameter", faults)
    return {key: value for key, _, value in pairs}
