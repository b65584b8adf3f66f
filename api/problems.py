"""Every error of the API in one shape: RFC 9457 `application/problem+json`.

A problem names its place by `errors[].pointer`: `/optimizer/lr` is a JSON pointer into the body; `query/limit`, `path/job_id`
and `header/Last-Event-ID` are parameters. The request is never echoed and no traceback leaves the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from api.answers import JsonResponse
from core.errors import Fault, did_you_mean
from store.engines import AWAY
from store.errors import StoreError

MEDIA_TYPE = "application/problem+json"


_UNFIT = {"int_parsing": "send a whole number", "string_pattern_mismatch": "this text does not fit"}
"""What is said of a parameter where pydantic would quote an expression."""


class Place(BaseModel):
    """One thing wrong with the request."""

    pointer: str = Field(
        description="A JSON pointer into the body (`/optimizer/lr`; empty for the whole), or `query/…`, `path/…`, `header/…`.",
        examples=["/optimizer/groups/0/params"],
    )
    message: str = Field(description="What is wrong, and what to send instead.")


class Problem(BaseModel):
    """RFC 9457: the one shape of every error."""

    type: str = Field(description="Stable; what a program should look at.", examples=["urn:graft:problem:invalid-spec"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(ge=400, le=599, examples=[422])
    detail: str = Field(description="What happened, and the next thing to try.")
    errors: list[Place] | None = Field(default=None, description="The places, where the request has any.")


class ProblemError(Exception):
    """An error with a status. `slug` ends the problem's `type`; `faults` are its `errors`."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        faults: Iterable[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.faults = list(faults)
        self.headers = dict(headers or {})

    @classmethod
    def of_faults(cls, slug: str, faults: Iterable[Fault]) -> ProblemError:
        """422 with these places; the detail is the first of them."""
        places = list(faults)
        more = f" (and {len(places) - 1} more, see `errors`)" if len(places) > 1 else ""
        where = f"{places[0].pointer}: " if places and places[0].pointer else ""
        return cls(422, slug, f"{where}{places[0].message}{more}" if places else "the request does not fit", faults=places)

    def response(self) -> Response:
        """As it is sent."""
        try:
            title = HTTPStatus(self.status).phrase
        except ValueError:
            title = "Error"
        body: dict[str, Any] = {
            "type": f"urn:graft:problem:{self.slug}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.faults:
            body["errors"] = [{"pointer": _sendable(f.pointer), "message": _sendable(f.message)} for f in self.faults]
            body["detail"] = _sendable(self.detail)
        return JsonResponse(body, status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses as OpenAPI responses, beside the 500 and 503 that any call may answer."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in sorted({*statuses, 422, 500, 503})
    }


def install(app: FastAPI) -> None:
    """Let every error of `app` leave as a problem."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(StoreError, _store_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    for unavailable in AWAY:
        app.add_exception_handler(unavailable, _database_away)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - registered for this type alone
    return error.response()


async def _store_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)  # noqa: S101
    return ProblemError(error.status, error.slug, str(error)).response()


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router itself answers: no such route, a method that the route does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101
    detail = {
        404: "there is nothing at this path; GET /openapi.json lists every call",
        405: f"this path does not take {request.method}; the Allow header names what it takes",
    }.get(error.status_code, error.detail)
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return ProblemError(error.status_code, slug, detail, headers=headers).response()


def _methods(request: Request) -> list[str]:
    """What the path takes, over all its routes: the router itself names those of the first alone."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    found = {m.upper() for path, item in paths.items() if compile_path(path)[0].match(request.url.path) for m in item}
    return sorted(found)


async def _invalid_parameters(request: Request, error: Exception) -> Response:
    """Parameters of path, query and header. (Bodies are read by `api.body`.) The input is never repeated."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = []
    for item in error.errors():
        place, *names = (str(part) for part in item["loc"])
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] in _UNFIT:
            message = f"{_UNFIT[item['type']]}{_described(request, names[-1])}"
        faults.append(Fault(f"{place}/{'/'.join(names)}", message))
    return ProblemError.of_faults("invalid-parameter", faults).response()


def _described(request: Request, name: str) -> str:
    """`. What fits: …`, where its route says what a parameter is."""
    dependant = request.scope["route"].dependant
    fields = [*dependant.path_params, *dependant.query_params, *dependant.header_params]
    said = next((field.field_info.description for field in fields if field.alias == name), None)
    return f". What fits: {said}" if said else ""


async def _database_away(_request: Request, _error: Exception) -> Response:
    return ProblemError(
        503, "database-unavailable", "the database does not answer; try again", headers={"Retry-After": "1"}
    ).response()


async def _gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads this: the client left while it sent its body."""
    return Response(status_code=400)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    """The server logs the traceback; the client learns only that it is not their fault."""
    return ProblemError(500, "internal-error", "this is a defect of the service; its log has the traceback").response()


def unknown_parameter(name: str, known: Iterable[str]) -> Fault:
    """A query parameter that the call does not have."""
    return Fault(f"query/{name}", f"this call has no such parameter.{did_you_mean(name, known)}")


def _sendable(text: str) -> str:
    """Text that came with a request may hold lone surrogates, which UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()
