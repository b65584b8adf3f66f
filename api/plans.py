"""Plans: everything that can be known before training, found out in a limited child of the sandbox."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from api import examples, pins, problems, schemas
from api.answers import JsonResponse
from api.body import json_object
from api.dependencies import Service, Svc
from api.problems import ProblemError
from api.serving import unserved
from core.errors import Fault
from core.places import PinnedWeights
from core.spec import JobSpec, faults_of
from sandbox import CallFailed, CallKilled, CallRefused, CallTimeout, Limits, SandboxError
from store import datasets, workers
from store.pins import Pin

log = logging.getLogger(__name__)
router = APIRouter(tags=["plans"])

Body = Annotated[dict[str, Any], Depends(json_object)]
SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The job spec. Only `dataset` and `model` are required.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}, "examples": examples.SPECS}},
    }
}


@dataclass(frozen=True)
class Planned:
    """A spec that can work: with every default filled in, what the plan found, and its source of weights as it is now."""

    spec: dict[str, Any]
    plan: dict[str, Any]
    pinned: dict[str, Any]

    @property
    def source(self) -> str:
        """Where the pretrained weights come from; empty where the job trains from scratch."""
        return self.spec["pretrained"]["source"] if self.spec.get("pretrained") else ""

    @property
    def facts(self) -> dict[str, Any]:
        """What is kept with the job: all but the spec and the long lists, which the log has."""
        plan = {key: value for key, value in self.plan.items() if key not in {"spec", "lr", "momentum"}}
        if plan["transfer"] is not None:
            plan["transfer"] = {key: value for key, value in plan["transfer"].items() if key not in {"targets", "sources"}}
        groups = [{key: value for key, value in row.items() if key != "parameters"} for row in plan["groups"]["groups"]]
        plan["groups"] = {**plan["groups"], "groups": groups, "parameters": []}
        return {**plan, "pinned": self.pinned}

    @property
    def pin(self) -> Pin | None:
        """The checkpoint that must be kept for it."""
        pinned = self.pinned.get(self.source, {})
        return Pin(pinned["job"], pinned["step"]) if "job" in pinned else None


@router.post(
    "/plans",
    summary="Plan a job",
    response_model=schemas.Plan,
    responses=problems.responses(400, 413, 415),
    openapi_extra=SPEC_BODY,
)
async def post_plan(body: Body, service: Svc) -> Response:
    """Check a spec against the real dataset, weights and model, and train nothing.

    Answers the spec with every default filled in, the transfer report, the parameter groups, the lr curve and the memory it
    will take. A spec that passes here is one that `POST /jobs` takes.
    """
    planned = await plan(service, body)
    waits_for = await run_in_threadpool(_unserved, service, planned.spec["resources"])
    return JsonResponse({**planned.plan, "warnings": [*planned.plan["warnings"], *waits_for]})


def _unserved(service: Service, resources: Mapping[str, Any]) -> list[str]:
    """As the job would warn while it waits: of no use to keep with it, for a worker may come."""
    with service.database.read() as session:
        return unserved(resources["queue"], resources["gpus"], workers.capacities(session))


async def plan(service: Service, body: Mapping[str, Any]) -> Planned:
    """The plan of the spec in `body`. Raises ProblemError, 422 with every place that cannot work."""
    try:
        spec = JobSpec.model_validate(body)
    except ValidationError as error:
        raise ProblemError.of_faults("invalid-spec", faults_of(error)) from None
    try:
        pinned = await run_in_threadpool(pins.pin, service, spec)
    except ProblemError as error:
        raise await _with_all_else(service, spec, body, error) from None
    async with _readable(service, pinned) as known:
        named = {} if spec.pretrained is None or known is None else {spec.pretrained.source: known.model_dump(mode="json")}
        found = await _ask_core(service, spec, body, named)
    if pinned is None and found["pinned"] is not None:
        official = PinnedWeights.model_validate(found["pinned"])
        pinned = await run_in_threadpool(pins.complete, service, spec, official)
    elif pinned is not None and found["pinned"] is not None and found["pinned"]["finite"]:
        pinned = pins.looked_through(pinned)
    stored = {} if spec.pretrained is None or pinned is None else {spec.pretrained.source: _stored(pinned)}
    transfer = _hashed(found["transfer"], pinned)
    warnings = [*found["warnings"], *await run_in_threadpool(pins.warnings, service, pinned)]
    told = {"transfer": transfer, "pinned": pins.view(stored), "warnings": warnings}
    return Planned(spec=found["spec"], plan={**found, **told}, pinned=stored)


async def _ask_core(service: Service, spec: JobSpec, body: Mapping[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    unreadable = await run_in_threadpool(_unreadable, service, spec.dataset.source)
    places = {**service.settings.places(), "pinned": named, "unreadable": unreadable}
    return await ask(service, "core.plan:plan_request", {"spec": body, "places": places})


async def _with_all_else(service: Service, spec: JobSpec, body: Mapping[str, Any], error: ProblemError) -> ProblemError:
    """What is wrong with the weights, and with all of the spec but those: one answer tells every fault that can be found."""
    try:
        await _ask_core(service, spec, {**body, "pretrained": None}, {})
    except ProblemError as other:
        if error.faults and other.faults:
            return ProblemError.of_faults(error.slug, [*other.faults, *error.faults])
    return error


def _unreadable(service: Service, source: str) -> list[str]:
    with service.database.read() as session:
        return datasets.unreadable(session, source)


@asynccontextmanager
async def _readable(service: Service, pinned: PinnedWeights | None) -> AsyncIterator[PinnedWeights | None]:
    """`pins.readable`, whose ways in and out ask the network and the disk."""
    manager = pins.readable(service, pinned)
    known = await run_in_threadpool(manager.__enter__)
    try:
        yield known
    finally:
        await run_in_threadpool(manager.__exit__, None, None, None)


def _hashed(transfer: dict[str, Any] | None, pinned: PinnedWeights | None) -> dict[str, Any] | None:
    """The transfer report with the hash of the pin, which the trainer will find: a plan itself hashes nothing."""
    known = None if pinned is None else pinned.sha256
    return transfer if transfer is None or known is None else {**transfer, "sha256": known}


def _stored(pinned: PinnedWeights) -> dict[str, Any]:
    return pinned.model_dump(mode="json", exclude_defaults=True)


async def ask(service: Service, target: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Call a function of core in the sandbox, a few at a time. What goes wrong there leaves as a problem."""
    limits = Limits(seconds=service.settings.plan_seconds, memory=service.settings.plan_memory)

    def call() -> dict[str, Any]:
        return service.sandbox.call(target, payload, limits=limits)

    try:
        return await anyio.to_thread.run_sync(call, limiter=service.plan_slots)
    except CallRefused as error:
        faults = [Fault(fault["pointer"], fault["message"]) for fault in error.faults]
        raise ProblemError.of_faults("invalid-spec", faults) from None
    except CallTimeout as error:
        # no 503: whoever sends it again has it run for as long again
        detail = (
            f"this was stopped after {error.seconds:g} s (GRAFT_PLAN_SECONDS), and would take as long again: look for code of "
            "your own that does not end, by calling the model on one batch; where it is only slow, plan less, or allow more"
        )
        raise ProblemError(422, "plan-timeout", detail) from None
    except CallFailed as error:
        log.warning("%s failed: %s\n%s", target, error, "\n".join(error.lines))
        raise _failed(service, error) from None
    except CallKilled as error:
        log.warning("%s: %s\n%s", target, error, "\n".join(error.lines))
        last = f"; it last printed: {error.lines[-1]}" if error.lines else ""
        raise ProblemError(422, "plan-crashed", f"planning this crashed: {error}{last}") from None
    except SandboxError as error:
        raise ProblemError(503, "sandbox-unavailable", str(error), headers={"Retry-After": "10"}) from None


def _failed(service: Service, error: CallFailed) -> ProblemError:
    if error.type == "MemoryError" or "can't allocate memory" in error.message:
        size = service.settings.plan_memory >> 20
        return ProblemError(422, "plan-memory", f"planning this takes more than {size} MiB (GRAFT_PLAN_MEMORY)")
    hint = f" {error.hint}" if error.hint else ""
    return ProblemError(422, "plan-failed", f"this cannot be planned: {error}.{hint}")
