"""What routes are given: the parts of the running service, and parameters that many share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Path, Request
from fastapi.routing import APIRoute

from api.broadcast import Broadcaster
from api.problems import ProblemError, unknown_parameter
from sandbox import Sandbox
from store.database import Database
from store.hints import Hints
from store.settings import Settings

INT64 = 2**63 - 1


@dataclass(frozen=True)
class Service:
    """The parts of one api process."""

    settings: Settings
    database: Database
    sandbox: Sandbox
    hints: Hints
    broadcaster: Broadcaster
    plan_slots: anyio.CapacityLimiter
    check_slots: anyio.CapacityLimiter


def service_of(request: Request) -> Service:
    """The service that this request reached."""
    service: Service = request.app.state.service
    return service


def known_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not have: a typing error must not widen a search silently."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute):
        return
    known = _query_names(route)
    faults = [unknown_parameter(name, known) for name in request.query_params if name not in known]
    if faults:
        raise ProblemError.of_faults("invalid-parameter", faults)


def _query_names(route: APIRoute) -> list[str]:
    names = [field.alias for field in route.dependant.query_params]
    for dependant in route.dependant.dependencies:
        names += [field.alias for field in dependant.query_params]
    return names


Svc = Annotated[Service, Depends(service_of)]
JobId = Annotated[int, Path(ge=1, le=INT64, description="The job's `id`; `GET /jobs` lists them.", examples=[1])]
