"""Checkpoints: which there are, and their download."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from api import problems, schemas
from api.answers import JsonResponse
from api.dependencies import JobId, Service, Svc
from api.problems import ProblemError
from core.events import validated
from store import events, jobs

router = APIRouter(prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"])

FileName = Literal["weights.safetensors", "model.json"]
FILES: dict[FileName, tuple[str, str]] = {
    "weights.safetensors": ("model.safetensors", "application/octet-stream"),
    "model.json": ("model.json", "application/json"),
}
"""How the API calls it: how the checkpoint's directory does, and its media type."""
Which = Annotated[
    str, Path(pattern=r"^([0-9]{1,18}|best|last)$", description="`best`, `last`, or the step of a checkpoint.", examples=["best"])
]


@router.get("", summary="List checkpoints", response_model=schemas.Checkpoints, responses=problems.responses(404))
def get_checkpoints(job_id: JobId, service: Svc) -> Response:
    """Those that are kept by the spec's rule (`checkpoint.keep_last`, `keep_best`), oldest first, with their figures."""
    _, found = kept(service, job_id)
    fields = ("step", "epoch", "figures", "best", "sha256", "bytes")
    data = []
    for item in found:
        here = f"/jobs/{job_id}/checkpoints/{item['step']}"
        links = {"weights": f"{here}/weights.safetensors", "model": f"{here}/model.json"}
        found_out = {"validated": validated(item["figures"]), "weights_bytes": _weights_bytes(service, item)}
        data.append({**{field: item[field] for field in fields}, **found_out, **links})
    return JsonResponse({"data": data})


@router.head("/{which}/{name}", include_in_schema=False)
@router.get(
    "/{which}/{name}",
    summary="Download a checkpoint",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The file; `ETag` is the SHA-256 of the weights.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": {"type": "object"}},
            },
        },
        206: {"description": "The part that `Range` asked for."},
        304: {"description": "`If-None-Match` names what the client has."},
        **problems.responses(404, 416),
    },
)
def get_checkpoint_file(job_id: JobId, which: Which, name: FileName, service: Svc, request: Request) -> Response:
    """The weights as safetensors, or what they are: architecture, classes, preprocessing, figures, hashes."""
    state, found = kept(service, job_id)
    chosen = _demand(job_id, state, which, found)
    stored, media_type = FILES[name]
    root = service.settings.data_dir.resolve()
    path = (root / chosen["path"] / stored).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ProblemError(
            404, "not-found", f"the files of job {job_id}'s checkpoint at step {chosen['step']} are not there any more"
        )
    etag = f'"{chosen["sha256"]}{"" if name == "weights.safetensors" else "-model"}"'
    if etag in re.findall(r'"[^"]*"', request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers={"ETag": etag})
    filename = f"job-{job_id}-step-{chosen['step']}-{name}"
    return _Download(path, media_type=media_type, filename=filename, headers={"ETag": etag}, stat_result=path.stat())


class _Download(FileResponse):
    """A file whose refusals (a `Range` that it does not have) are problems too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = 0

        async def pass_on(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = message["status"]
            if not refused:
                await send(message)

        await super().__call__(scope, receive, pass_on)
        if refused:
            size = "" if self.stat_result is None else str(self.stat_result.st_size)
            detail = f"this file has {size} bytes; send a Range such as bytes=0-99, or none"
            problem = ProblemError(416, "range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
            await problem.response()(scope, receive, send)


def kept(service: Service, job_id: int) -> tuple[str, list[dict[str, Any]]]:
    """The job's state, and its checkpoints, oldest first. Raises NotFound."""
    with service.database.read() as session:
        return jobs.get(session, job_id).state, events.checkpoints(session, job_id)


def choose(found: Sequence[dict[str, Any]], which: str) -> dict[str, Any] | None:
    """That of `best`, `last` or a step among a job's checkpoints; None where it is not there."""
    if which == "best":
        return next((item for item in found if item["best"]), found[-1] if found else None)
    return next((item for item in found[::-1] if which == "last" or item["step"] == int(which)), None)


def _weights_bytes(service: Service, checkpoint: dict[str, Any]) -> int | None:
    path = service.settings.data_dir / str(checkpoint["path"]) / FILES["weights.safetensors"][0]
    try:
        return path.stat().st_size
    except OSError:
        return None


def _demand(job_id: int, state: str, which: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    if not found:
        detail = f"job {job_id} is {state} and has no checkpoint; its checkpoint.every says when one is written"
        raise ProblemError(404, "not-yet", detail)
    if (chosen := choose(found, which)) is not None:
        return chosen
    steps = ", ".join(str(item["step"]) for item in found)
    raise ProblemError(404, "not-found", f"job {job_id} keeps no checkpoint '{which}'; it keeps those of steps {steps}")
