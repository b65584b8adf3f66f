"""Uploaded datasets: take an archive, check it, keep it; list, look at, delete."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api import problems, schemas, uploads
from api.answers import JsonResponse
from api.dependencies import INT64, Service, Svc
from api.problems import ProblemError
from api.uploads import Upload
from core.errors import Fault
from core.spec import Name
from sandbox import CallFailed, CallKilled, CallRefused, CallTimeout, Limits, SandboxError
from store import datasets
from store.clock import iso
from store.tables import Dataset

log = logging.getLogger(__name__)
router = APIRouter(tags=["datasets"])

DatasetId = Annotated[int, Path(ge=1, le=INT64, description="The dataset's `id`.", examples=[1])]
ARCHIVES = ("application/zip", "application/x-tar", "application/gzip")
_UNTOLD = {"", "application/octet-stream", "application/x-www-form-urlencoded"}
"""What curl says of a file that it sends without being told its type. What it is, its first bytes say."""
_SAME_AS = {"application/x-zip-compressed", "application/x-gzip", "application/x-gtar", "application/x-compressed-tar"}
_LONG = ("corrupt", "empty_classes", "duplicates", "classes")
ARCHIVE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "A zip or tar archive of class folders, or of images and a CSV, as it is: `curl --data-binary @FILE`, or "
            "`curl -X POST -T FILE`."
        ),
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVES},
    }
}
TAKEN: dict[int | str, dict[str, Any]] = {
    201: {"headers": {"Location": {"description": "The dataset.", "schema": {"type": "string"}}}},
    200: {"model": schemas.Dataset, "description": "The dataset that has the same files, uploaded before."},
}


@router.post(
    "/datasets",
    summary="Upload a dataset",
    status_code=201,
    response_model=schemas.Dataset,
    responses={**TAKEN, **problems.responses(413, 415, 507)},
    openapi_extra=ARCHIVE_BODY,
)
async def post_dataset(
    request: Request,
    service: Svc,
    name: Annotated[Name | None, Query(description="For people.", examples=["pets"])] = None,
) -> Response:
    """A folder for each class with its images in it, `train/` and `val/` of such folders, or images and a CSV of their labels.

    Folders around everything are taken away. Each image is decoded once, and the answer says what was found: classes and counts,
    images that cannot be read, duplicates. What cannot train is refused, and nothing of it stays. The same files, however they
    are packed, are one dataset. A job trains on it by `"dataset": {"source": "upload:ID"}`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {*ARCHIVES, *_UNTOLD, *_SAME_AS}:
        detail = (
            f"send the archive itself, with `Content-Type: {'`, `'.join(ARCHIVES)}`; curl does by --data-binary @FILE, not by -F"
        )
        raise ProblemError(415, "unsupported-media-type", detail)
    upload = await run_in_threadpool(Upload, service.settings.uploads)
    try:
        await upload.receive(request, service.settings.upload_bytes)
        report = await _check(service, upload)
        return await run_in_threadpool(_keep, service, upload, report, name)
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(upload.clear)


@router.get("/datasets", summary="List datasets", response_model=schemas.DatasetPage, responses=problems.responses())
def get_datasets(
    service: Svc,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[int | None, Query(ge=1, le=INT64, description="The `next` of the page before.")] = None,
) -> Response:
    """What was uploaded, the newest first, without the long lists that `GET /datasets/{id}` has."""
    with service.database.read() as session:
        found, has_more = datasets.find(session, limit=limit, after=after)
    data = [{key: value for key, value in _view(dataset).items() if key not in _LONG} for dataset in found]
    return JsonResponse({"data": data, "has_more": has_more, "next": found[-1].id if has_more else None})


@router.get(
    "/datasets/{dataset_id}", summary="Look at a dataset", response_model=schemas.Dataset, responses=problems.responses(404)
)
def get_dataset(dataset_id: DatasetId, service: Svc) -> Response:
    """What the check found in it when it was uploaded."""
    with service.database.read() as session:
        return JsonResponse(_view(datasets.get(session, dataset_id)))


@router.delete("/datasets/{dataset_id}", summary="Delete a dataset", status_code=204, responses=problems.responses(404, 409))
def delete_dataset(dataset_id: DatasetId, service: Svc) -> Response:
    """Remove its files. 409 while a job that has not ended names it."""
    with service.database.write() as session:
        datasets.delete(session, dataset_id)
    uploads.discard(service.settings.uploads, dataset_id)
    return Response(status_code=204)


def _keep(service: Service, upload: Upload, report: dict[str, Any], name: str | None) -> Response:
    """Put it at its place and commit its row; or, where the same is there, answer that."""
    with service.database.write() as session:
        dataset, new = datasets.create(session, name=name, report=report)
        if new or not (service.settings.uploads / str(dataset.id)).is_dir():  # or somebody removed its files by hand
            upload.put(dataset.id)
    answer = _view(dataset)
    return JsonResponse(answer, status_code=201 if new else 200, headers={"Location": f"/datasets/{dataset.id}"})


def _view(dataset: Dataset) -> dict[str, Any]:
    """A row as `schemas.Dataset`."""
    about = {"id": dataset.id, "name": dataset.name, "source": datasets.source(dataset.id)}
    return {**about, "task": None, **dataset.report, "created_at": iso(dataset.created_at)}


async def _check(service: Service, upload: Upload) -> dict[str, Any]:
    """Unpack and check it in a child of the sandbox; the report. Raises ProblemError."""
    settings = service.settings
    limits = Limits(seconds=settings.upload_seconds, memory=settings.upload_memory)
    bounds = {
        "files": settings.upload_files, "why_files": "GRAFT_UPLOAD_FILES",
        "bytes": settings.upload_unpacked_bytes, "why_bytes": "GRAFT_UPLOAD_UNPACKED_BYTES",
    }  # fmt: skip
    payload = {"archive": str(upload.archive), "folder": str(upload.folder), "bounds": bounds}

    def call() -> dict[str, Any]:
        return service.sandbox.call("core.data.uploads:unpack_request", payload, limits=limits)

    try:
        return await anyio.to_thread.run_sync(call, limiter=service.check_slots)
    except CallRefused as error:
        faults = [Fault(fault["pointer"], fault["message"]) for fault in error.faults]
        raise ProblemError.of_faults("invalid-dataset", faults) from None
    except CallTimeout as error:
        detail = f"unpacking and checking it took longer than {error.seconds:g} s (GRAFT_UPLOAD_SECONDS); send less at once"
        raise ProblemError(422, "upload-timeout", detail) from None
    except CallFailed as error:
        if error.kind == "disk_full":
            raise uploads.no_room() from None
        log.warning("an upload could not be checked: %s\n%s", error, "\n".join(error.lines))
        # a thread whose stack had no room; an allocation in C whose failure nobody reported
        starved = "can't start new thread" in error.message or error.type == "SystemError"
        if error.kind == "out_of_memory" or starved:
            detail = f"checking it takes more than {settings.upload_memory >> 20} MiB of memory (GRAFT_UPLOAD_MEMORY)"
            raise ProblemError(422, "upload-memory", detail) from None
        raise ProblemError(422, "upload-failed", f"it cannot be unpacked and checked: {error}") from None
    except CallKilled as error:
        log.warning("the check of an upload: %s\n%s", error, "\n".join(error.lines))
        raise ProblemError(422, "upload-crashed", f"unpacking or decoding this crashed: {error}") from None
    except SandboxError as error:
        raise ProblemError(503, "sandbox-unavailable", str(error), headers={"Retry-After": "10"}) from None
