"""A small client of the service: what it answers, as plain dictionaries; what it refuses, as exceptions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx

from client.errors import GraftError
from client.saving import Part, holds, saved

__all__ = [
    "DEFAULT_URL",
    "FINAL_STATES",
    "Client",
    "Fault",
    "GraftError",
    "Json",
    "RefusedError",
    "UnreachableError",
]

DEFAULT_URL = "http://127.0.0.1:8000"
FINAL_STATES = ("succeeded", "failed", "cancelled")
RETRY_SECONDS = 0.2
SILENCE_SECONDS = 60.0
"""A followed stream says something at least each 15 s (a heartbeat); quiet for longer, it counts as cut."""

Json = dict[str, Any]


class Fault(NamedTuple):
    """One thing wrong with a request: a JSON pointer into its body, and what to write instead."""

    pointer: str
    message: str


class _Break(Enum):
    """Why the lines of a stream begin anew: it ended, as far as HTTP can tell, or was cut."""

    ENDED = 1
    CUT = 2


class UnreachableError(GraftError):
    """Nothing that speaks for Graft answered at this address."""


class RefusedError(GraftError):
    """The service answered with 400 or above: the parts of its problem (RFC 9457)."""

    def __init__(self, body: Json) -> None:
        super().__init__(body["detail"] or body["title"])
        self.body = body
        self.status: int = body["status"]
        self.detail: str = body["detail"] or body["title"]
        self.faults = [Fault(item["pointer"], item["message"]) for item in body.get("errors") or []]

    @classmethod
    def of(cls, response: httpx.Response) -> RefusedError:
        """The problem in a response whose body has been read; a body that is none becomes its detail."""
        try:
            return cls(response.json())
        except (ValueError, KeyError, AttributeError, TypeError):
            title = response.reason_phrase
            return cls({"title": title, "status": response.status_code, "detail": response.text[:500]})


class Client:
    """Speaks to one service. Every call raises RefusedError or UnreachableError; use it as a context manager, or `close` it.

    `patience`: for how many seconds a followed stream that was cut is sought again before UnreachableError is raised; `note` is
    told, once each time, that it is sought and that it goes on.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 90.0,
        patience: float = 60.0,
        note: Callable[[str], None] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = (url or os.environ.get("GRAFT_URL") or DEFAULT_URL).rstrip("/")
        self.patience = patience
        self._note = note or (lambda _: None)
        try:
            self._http = httpx.Client(base_url=self.url, timeout=httpx.Timeout(timeout, connect=10.0), transport=transport)
        except httpx.InvalidURL as error:
            raise UnreachableError(f"'{self.url}' is no address ({error}); it should look like {DEFAULT_URL}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Asking and submitting

    def ready(self) -> bool:
        """Whether the api takes jobs; whether a worker is warm that runs them is told by `workers`."""
        try:
            return self._http.get("/health/ready").is_success
        except httpx.HTTPError:
            return False

    def workers(self) -> Json:
        """Who works for the service (`data`), and whether each is warm (`devices.ready`); what each of the `queues` holds."""
        return self._json("GET", "/workers")

    def catalog(self, query: str | None = None) -> Json:
        """What a spec may name, by kind; only names that contain `query`, where one is given."""
        return self._json("GET", "/catalog", query={"q": query})

    def plan(self, spec: Json) -> Json:
        """Everything that can be known before training: the resolved spec, transfer, groups, steps, memory, warnings."""
        return self._json("POST", "/plans", body=spec)

    def submit(self, spec: Json, *, key: str | None = None) -> Json:
        """The new job; with a `key` that was used before for the same spec, the job it made then."""
        return self._json("POST", "/jobs", body=spec, headers={"Idempotency-Key": key} if key else {})

    def job(self, job_id: int) -> Json:
        """One job: state, progress, figures, spec."""
        return self._json("GET", f"/jobs/{job_id}")

    def jobs(self, *, state: str | None = None, label: str | None = None, limit: int = 20) -> list[Json]:
        """The newest jobs first, over as many pages as `limit` takes."""
        return self._listed("/jobs", {"state": state, "label": label}, limit)

    def cancel(self, job_id: int) -> Json:
        """The job, cancelled if it was queued, else with `requested: cancel`."""
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def delete(self, job_id: int) -> None:
        """Remove a job that has ended, with its log and its checkpoints."""
        self._answer("DELETE", f"/jobs/{job_id}")

    def pause(self, job_id: int) -> Json:
        """The job, paused if it waited, else with `requested: pause`."""
        return self._json("POST", f"/jobs/{job_id}/pause")

    def resume(self, job_id: int) -> Json:
        """The job, back in its queue."""
        return self._json("POST", f"/jobs/{job_id}/resume")

    def fork(
        self, job_id: int, patch: Json, *, checkpoint: str | None = None, adjustments: bool = False, key: str | None = None
    ) -> Json:
        """A new job of this one's spec, changed by a JSON merge patch, on its weights.

        With `adjustments` it begins as this one did, and its groups change as this one's have, at the same steps.
        """
        headers = {"Idempotency-Key": key} if key else {}
        query = {"checkpoint": checkpoint, "adjustments": "true" if adjustments else None}
        return self._json("POST", f"/jobs/{job_id}/fork", body=patch, query=query, headers=headers)

    def change(self, job_id: int, patch: Json) -> Json:
        """The job, with another `name`, `labels` or `priority`, by a JSON merge patch."""
        return self._json("PATCH", f"/jobs/{job_id}", body=patch)

    def adjust(self, job_id: int, group: str, changes: Json, *, at_step: int | None = None) -> Json:
        """The change that is to come: `changes` has new values of lr, momentum, betas, weight_decay, freeze."""
        body = changes if at_step is None else {**changes, "at_step": at_step}
        return self._json("PATCH", f"/jobs/{job_id}/groups/{quote(group)}", body=body)

    # Datasets

    def upload(
        self, content: Iterable[bytes], *, size: int, media_type: str = "application/octet-stream", name: str | None = None
    ) -> Json:
        """The dataset that an archive of `size` bytes makes, or made before: classes, counts, what is wrong with its images."""
        headers = {"Content-Type": media_type, "Content-Length": str(size)}
        timeout = httpx.Timeout(90.0, connect=10.0, read=None)  # the answer comes once every image was decoded
        return self._json("POST", "/datasets", content=content, query={"name": name}, headers=headers, timeout=timeout)

    def datasets(self, *, limit: int = 20) -> list[Json]:
        """The newest datasets first, over as many pages as `limit` takes."""
        return self._listed("/datasets", {}, limit)

    def dataset(self, dataset_id: int) -> Json:
        """One dataset: classes and counts, corrupt images, duplicates."""
        return self._json("GET", f"/datasets/{dataset_id}")

    def delete_dataset(self, dataset_id: int) -> None:
        """Remove its files."""
        self._answer("DELETE", f"/datasets/{dataset_id}")

    # Workers

    def drain(self, worker: str) -> Json:
        """The worker, which takes no new job from now on."""
        return self._json("POST", f"/workers/{quote(worker, safe='')}/drain")

    # Reading a job

    def transfer(self, job_id: int) -> Json:
        """What became of each tensor of the model and of the source."""
        return self._json("GET", f"/jobs/{job_id}/transfer")

    def groups(self, job_id: int) -> Json:
        """The parameter groups as they train now, and the changes that are still to come."""
        return self._json("GET", f"/jobs/{job_id}/groups")

    def losses(self, job_id: int) -> Json:
        """Every step's loss, once."""
        return self._json("GET", f"/jobs/{job_id}/losses")

    def evaluation(self, job_id: int, *, epoch: int | None = None) -> Json:
        """A validation in full: classes, confusions, hardest samples; that of `epoch`, from 0, or the last one."""
        return self._json("GET", f"/jobs/{job_id}/evaluation", query={"epoch": epoch})

    def samples(self, job_id: int, step: int | None = None, *, epoch: int | None = None, iteration: int | None = None) -> Json:
        """The training samples of a step and its loss: of `step`, from 0 over the whole job, or as the log counts, from 1."""
        return self._json("GET", f"/jobs/{job_id}/samples", query={"step": step, "epoch": epoch, "iteration": iteration})

    def checkpoints(self, job_id: int) -> list[Json]:
        """The checkpoints that are kept, with their figures."""
        data: list[Json] = self._json("GET", f"/jobs/{job_id}/checkpoints")["data"]
        return data

    def logs(self, job_id: int, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """The log as text for people, a line each: up to now, or with `follow` as it grows, to its end; only the last `tail`.

        It only grows, so a stream that was cut is taken up again past the lines that have come.
        """
        path, query, last = f"/jobs/{job_id}/logs", {"follow": "true"}, ""
        if not follow or tail is not None:
            with self._stream(path, {} if tail is None else {"tail": str(tail)}, "text/plain") as response:
                for last in response.iter_lines():
                    yield last
                query["after"] = response.headers.get("Graft-Seq", "0")
            if not follow:
                return
        seen = number = 0
        for line in self._follow(path, query, "text/plain"):
            if isinstance(line, _Break):
                if line is _Break.ENDED and last.startswith("End : ") and self._ended(job_id):
                    return
                if line is _Break.ENDED and not seen and tail == 0 and self._ended(job_id, query["after"]):
                    return  # past its end already, of which no line was asked for
                number = 0
                continue
            number += 1
            if number > seen:
                seen, last = number, line
                yield line

    def events(self, job_id: int, *, after: int = 0, follow: bool = False, kinds: Iterable[str] = ()) -> Iterator[Json]:
        """The events past the cursor `after`, in order, each once.

        With `follow` they come as they happen, up to and with `end`. A stream that was cut is taken up again at the last
        event that arrived, so none is lost or doubled.
        """
        path, query = f"/jobs/{job_id}/events", {"after": str(after)}
        if kinds:
            query["kinds"] = ",".join([*kinds, "end"])
        if not follow:
            more = True
            while more:
                page = self._json("GET", path, query={**query, "limit": 1000})
                yield from page["data"]
                query["after"], more = str(page["next"]), page["has_more"]
            return
        query["follow"] = "true"
        for line in self._follow(path, query, "application/x-ndjson"):
            if isinstance(line, _Break):
                if line is _Break.ENDED and self._ended(job_id, query["after"]):
                    return
            elif (event := _event(line)) is not None:
                query["after"] = str(event["seq"])
                yield event
                if event["kind"] == "end":
                    return

    def download(
        self,
        job_id: int,
        which: str | int,
        name: str,
        target: Path,
        *,
        sha256: str | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Path:
        """Save `name` (`weights.safetensors` or `model.json`) of checkpoint `which` (a step, `best`, `last`) as `target`.

        The file appears whole or not at all. One that is cut off goes on where it was, now and, where `sha256` is known, at the
        next call too. `progress` is told how many bytes are there, of how many. Raises GraftError where its hash is not `sha256`.
        """
        if sha256 is not None and holds(target, sha256):
            return target
        path = f"/jobs/{job_id}/checkpoints/{which}/{name}"
        with saved(target, sha256) as part:
            etag, most, failing = None if sha256 is None else f'"{sha256}"', part.size, None
            while True:
                try:
                    etag = self._fetch(path, part, etag, progress)
                except (UnreachableError, RefusedError) as error:
                    if isinstance(error, RefusedError) and error.status < 500:
                        raise
                    if part.size > most:
                        most, failing = part.size, None
                    failing = failing or time.monotonic()
                    if time.monotonic() - failing > self.patience:
                        raise
                else:
                    break
                time.sleep(RETRY_SECONDS)
        return target

    def _fetch(self, path: str, part: Part, etag: str | None, progress: Callable[[int, int | None], None] | None) -> str | None:
        """Add the rest of a file, or all of it where it is no longer the one of `etag`; the ETag that it has."""
        headers = {"Accept-Encoding": "identity"}
        if part.size and etag is not None:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": etag}
        try:
            with self._stream(path, {}, "*/*", headers=headers) as response:
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    part.restart()
                etag = response.headers.get("ETag")
                length = response.headers.get("Content-Length")
                total = None if length is None else part.size + int(length)
                for block in response.iter_bytes():
                    part.write(block)
                    if progress is not None:
                        progress(part.size, total)
        except RefusedError as error:
            if error.status != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise  # else nothing is missing
        return etag

    # How

    def _follow(self, path: str, query: Mapping[str, str], accept: str) -> Iterator[str | _Break]:
        """The lines of a stream that is opened anew, by `query` as it is then, when it breaks; and how it did."""
        failing: float | None = None
        cut = False
        while True:
            try:
                with self._stream(path, query, accept, silence=SILENCE_SECONDS) as response:
                    for line in response.iter_lines():
                        if cut:
                            self._note("Connected again; it goes on where it was.")
                        failing, cut = None, False
                        yield line
            except (UnreachableError, RefusedError) as error:
                if isinstance(error, RefusedError) and error.status < 500:
                    raise
                failing = failing or time.monotonic()
                if time.monotonic() - failing > self.patience:
                    raise
                yield _Break.CUT
            else:
                yield _Break.ENDED
            if not cut:
                cut = True
                self._note(f"The stream from {self.url} was cut; connecting again, for up to {self.patience:.0f} s …")
            time.sleep(RETRY_SECONDS)

    def _ended(self, job_id: int, cursor: str | None = None) -> bool:
        """Whether the job has ended, and nothing lies past `cursor`. False while nobody answers, or the database is away."""
        try:
            if self.job(job_id)["state"] not in FINAL_STATES:
                return False
            path, query = f"/jobs/{job_id}/events", {"after": cursor, "limit": 1}
            return cursor is None or not self._json("GET", path, query=query)["data"]
        except UnreachableError:
            return False
        except RefusedError as error:
            if error.status < 500:
                raise
            return False

    def _listed(self, path: str, query: Mapping[str, str | None], limit: int) -> list[Json]:
        """The first `limit` of a list, page by page."""
        found: list[Json] = []
        after: int | None = None
        while len(found) < limit:
            page = self._json("GET", path, query={**query, "limit": min(limit - len(found), 100), "after": after})
            found += page["data"]
            after = page["next"]
            if not page["has_more"]:
                break
        return found

    def _json(self, method: str, path: str, **request: Any) -> Json:
        """What is answered; `request` as `_answer` takes it."""
        response = self._answer(method, path, **request)
        try:
            answer: Json = response.json()
        except ValueError:
            raise UnreachableError(f"what answers at {self.url} is no Graft service: {path} gave no JSON") from None
        return answer

    def _answer(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        content: Iterable[bytes] | None = None,
        query: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> httpx.Response:
        params = {name: value for name, value in (query or {}).items() if value is not None}
        request = self._http.build_request(
            method, path, json=body, content=content, params=params, headers=headers, timeout=timeout or self._http.timeout
        )
        try:
            response = self._http.send(request)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise RefusedError.of(response)
        return response

    @contextmanager
    def _stream(
        self,
        path: str,
        query: Mapping[str, str],
        accept: str,
        *,
        silence: float = 90.0,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """A response whose body is read as it comes; `silence`: seconds without a byte after which it counts as cut."""
        timeout = httpx.Timeout(silence, connect=10.0)
        try:
            with self._http.stream(
                "GET", path, params=query, headers={**(headers or {}), "Accept": accept}, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise RefusedError.of(response)
                yield response
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"no answer from {self.url} ({error or type(error).__name__}); is `graft serve` running there?")


def _event(line: str) -> Json | None:
    """The event on a line; None for a heartbeat, and for a line that was cut off on its way."""
    try:
        event: Json | None = json.loads(line) if line.strip() else None
    except ValueError:
        return None
    return event
