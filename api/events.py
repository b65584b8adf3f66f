"""The log of a job: as pages, as streams, and as text for people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from api import forms, problems, schemas
from api.answers import JsonResponse
from api.dependencies import INT64, JobId, Service, Svc
from api.negotiation import negotiate
from api.problems import ProblemError
from api.streams import HEADERS, LogStream, with_heartbeats
from core.errors import Fault, did_you_mean
from core.events import KINDS
from store import events, jobs

router = APIRouter(prefix="/jobs/{job_id}", tags=["log"])

SEQ = "Graft-Seq"
JSON, NDJSON, SSE = "application/json", "application/x-ndjson", "text/event-stream"
PAGE = 100
MOST_LINES = 100_000
HEARTBEAT = b": heartbeat\n\n"
RETRY = b"retry: 1000\n\n"
"""The first bytes of an SSE stream: it lives, and a client that is cut off comes back after a second."""

After = Annotated[int, Query(ge=0, le=INT64, description="Only events with a greater `seq`.")]
Limit = Annotated[int | None, Query(ge=1, le=1000, description=f"At most that many events; pages have {PAGE} by default.")]
Kinds = Annotated[
    list[str] | None,
    Query(description=f"Only these kinds, repeated or separated by commas: {', '.join(KINDS)}.", examples=[["iterations,epoch"]]),
]
Follow = Annotated[
    bool | None,
    Query(description="Stay and send what comes, until `end`. By default SSE does and NDJSON does not; a page cannot."),
]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=INT64,
        description="Where an SSE client was cut off; counts as `after` where it is greater.",
    ),
]
STREAMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The log, oldest first, in the form that `Accept` asks for.",
        "content": {
            NDJSON: {"schema": {"type": "string", "description": "One event a line; blank lines say that the stream lives."}},
            SSE: {"schema": {"type": "string", "description": "`id:` is the seq, `event:` the kind, `data:` the event."}},
        },
    },
    204: {"description": "SSE only: the client comes back past `end`, and nothing will follow."},
}


@router.get(
    "/events",
    summary="Read or follow the log",
    response_model=schemas.EventPage,
    responses={**STREAMS, **problems.responses(404, 406)},
)
async def get_events(
    request: Request,
    service: Svc,
    job_id: JobId,
    *,
    after: After = 0,
    limit: Limit = None,
    kinds: Kinds = None,
    follow: Follow = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Everything that happened to a job, in order, by one cursor: `seq`, from 1, without gaps.

    `Accept: application/json` gives a page, `application/x-ndjson` a line per event, `text/event-stream` SSE. A followed stream
    ends with the event `end`; one that ends without it was cut: go on with `after=` or `Last-Event-ID`, and nothing is lost or
    doubled. Server-sent events are named by their kind: in a browser, `addEventListener("iterations", …)` hears one, `onmessage`
    does not.
    """
    wanted = _kinds(kinds)
    form = negotiate(request, [JSON, NDJSON, SSE])
    after = max(after, last_event_id or 0)
    follow = form == SSE if follow is None else follow
    _check_form(form, limit, follow=follow)
    if form == JSON:
        return await run_in_threadpool(_page, service, job_id, after, limit or PAGE, wanted)
    last, ended = await run_in_threadpool(_last_seq, service, job_id)
    if form == SSE and ended and after >= last:
        return Response(status_code=204)
    encoder, beat, first = (forms.sse, HEARTBEAT, RETRY) if form == SSE else (forms.ndjson, b"\n", b"")
    if limit is not None:
        found = await run_in_threadpool(_read, service, job_id, after, limit, wanted)
        return Response(b"".join(map(encoder, found)), media_type=form, headers=HEADERS)
    read = service.broadcaster.follow if follow else service.broadcaster.replay
    return LogStream(with_heartbeats(read(job_id, after, encoder, wanted), beat, first), form)


@router.get(
    "/logs",
    summary="Read or follow the log as text",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Lines for people.",
            "headers": {SEQ: {"description": "With `tail`: the `after` that goes on from it.", "schema": {"type": "integer"}}},
        },
        **problems.responses(404),
    },
)
def get_logs(
    job_id: JobId,
    service: Svc,
    follow: Annotated[bool, Query(description="Stay and send what comes, until the job has ended.")] = False,
    tail: Annotated[
        int | None, Query(ge=0, le=MOST_LINES, description="Only so many of the last lines, then what comes.")
    ] = None,
    after: After = 0,
) -> Response:
    """What a training script prints, and what else happened, a line each.

    `Epoch 1, iteration : 97, loss = 0.6931` for every iteration (both count from 1, iterations within their epoch),
    `Epoch 1 : Mean Loss was 0.7012` for every epoch.
    """
    with service.database.read() as session:
        job = jobs.get(session, job_id)
    encoder = forms.LogText(job.steps_total // job.epochs if job.steps_total else None)
    text, headers = b"", {}
    if tail is not None:
        text, after = _tail(service, job_id, encoder, tail, after)
        headers = {SEQ: str(after)}
        if not follow:
            return PlainTextResponse(text, headers=headers)
    read = service.broadcaster.follow if follow else service.broadcaster.replay
    stream = LogStream(with_heartbeats(read(job_id, after, encoder), b"", text), "text/plain; charset=utf-8")
    stream.headers.update(headers)
    return stream


def _tail(service: Service, job_id: int, encoder: forms.LogText, count: int, after: int) -> tuple[bytes, int]:
    """The last lines of what lies past `after`, read from the end; and the `seq` of the last event among them."""
    lines: list[bytes] = []
    with service.database.read() as session:
        last, _ = events.last_seq(session, job_id)
        start = last
        while start > after and len(lines) < count:
            before = max(after, start - PAGE)
            page = events.read(session, job_id, after=before, limit=start - before)  # without gaps: these, and all of them
            lines = [line for event in page for line in encoder(event).splitlines(keepends=True)] + lines
            start = before
    return b"".join(lines[max(0, len(lines) - count) :]), max(last, after)


def _check_form(form: str, limit: int | None, *, follow: bool) -> None:
    if follow and form == JSON:
        fault = Fault("query/follow", f"a page cannot follow; send `Accept: {NDJSON}` or `Accept: {SSE}`")
    elif follow and limit is not None:
        fault = Fault("query/limit", "a followed stream ends with the job; leave limit out, or send follow=false")
    else:
        return
    raise ProblemError.of_faults("invalid-parameter", [fault])


def _kinds(kinds: list[str] | None) -> list[str] | None:
    """The kinds that were asked for; an unknown one is refused with the one that was likely meant."""
    if kinds is None:
        return None
    wanted = [kind.strip() for part in kinds for kind in part.split(",") if kind.strip()]
    faults = [Fault("query/kinds", f"there is no kind '{k[:100]}'.{did_you_mean(k, KINDS)}") for k in wanted if k not in KINDS]
    if faults:
        raise ProblemError.of_faults("invalid-parameter", faults)
    return wanted or None


def _page(service: Service, job_id: int, after: int, limit: int, kinds: list[str] | None) -> Response:
    found = _read(service, job_id, after, limit + 1, kinds)
    has_more, found = len(found) > limit, found[:limit]
    following = found[-1].seq if found else after
    data = b",".join(event.envelope() for event in found)
    body = b'{"data":[%s],"has_more":%s,"next":%d}' % (data, b"true" if has_more else b"false", following)
    return JsonResponse(body)


def _read(service: Service, job_id: int, after: int, limit: int, kinds: list[str] | None) -> list[events.StoredEvent]:
    with service.database.read() as session:
        jobs.get(session, job_id)
        return events.read(session, job_id, after=after, limit=limit, kinds=kinds)


def _last_seq(service: Service, job_id: int) -> tuple[int, bool]:
    with service.database.read() as session:
        jobs.get(session, job_id)
        return events.last_seq(session, job_id)
