"""What the commands share: their options, how they speak to the service, what they print and how they exit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from client import tables
from client.errors import FileError
from client.follow import Follower, outcome
from client.http import DEFAULT_URL, Client, GraftError, Json, RefusedError, UnreachableError
from client.specs import SpecFileError, read_spec


class Exit(IntEnum):
    """What the exit status tells a script."""

    OK = 0
    JOB_FAILED = 1
    REFUSED = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    CANCELLED = 5
    INTERRUPTED = 130


EXITS = {
    Exit.OK: "done; for a followed job: it succeeded",
    Exit.JOB_FAILED: "the followed job failed; for `serve`: it stopped by itself",
    Exit.REFUSED: "wrong usage, a file here that cannot be read or written, or a spec or a dataset that was refused",
    Exit.NOT_FOUND: "no such job or dataset, or one in a state that does not fit",
    Exit.UNREACHABLE: "no answer from the service, one that blames itself, or a download that arrived damaged",
    Exit.CANCELLED: "the followed job was cancelled",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; a followed job goes on",
}
OF_STATE = {"succeeded": Exit.OK, "failed": Exit.JOB_FAILED, "cancelled": Exit.CANCELLED}
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A job spec, JSON or YAML; `-` reads standard input.")]
JobId = Annotated[int, typer.Argument(metavar="ID", min=1, help="The job's id.")]
JobIds = Annotated[list[int], typer.Argument(metavar="ID...", min=1, help="The ids of one job or more.")]
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="Its name, as `graft groups` has it.")]
At = Annotated[int | None, typer.Option(metavar="STEP", min=0, help="When; by default at the next step.")]


def _or_global(context: typer.Context, value: str | None) -> str | None:
    """The address after the command, else that before it, else that of the environment."""
    return value or context.find_root().params.get("url")


_WHERE = f"Where the service is (default: {DEFAULT_URL})."
GlobalUrl = Annotated[str | None, typer.Option("--url", envvar="GRAFT_URL", help=_WHERE)]
Url = Annotated[str | None, typer.Option("--url", callback=_or_global, help=f"As `graft --url`. {_WHERE}")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end; Ctrl-C leaves it running.")]
Key = Annotated[str | None, typer.Option(help="Idempotency key: the same key and body make one job, however often sent.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: JSON; streams as NDJSON.")]


def _follow(client: Client, job: Json) -> Json:
    """Draw the job to its end; the data of `end`. Ctrl-C leaves the job running."""
    try:
        with Follower(out, job) as follower:
            end = follower.follow(client.events(job["id"], follow=True))
    except KeyboardInterrupt:
        err.print(f"Job {job['id']} goes on. Watch it: graft logs -f {job['id']}   Stop it: graft cancel {job['id']}")
        raise
    out.print(outcome(end))
    out.print(tables.checkpoints_view(client.checkpoints(job["id"]), client.url), crop=False)
    return end


def stream_json(client: Client, job_id: int, *, follow: bool = True) -> Json | None:
    """Print each event as a line of JSON; the data of `end`, if it came."""
    event: Json = {}
    for event in client.events(job_id, follow=follow):
        typer.echo(json.dumps(event, ensure_ascii=False))
    return event["data"] if event.get("kind") == "end" else None


def exit_as(end: Json | None) -> NoReturn:
    """Exit as the job ended."""
    raise typer.Exit(OF_STATE[end["state"]] if end else Exit.UNREACHABLE)


def answer_submitted(client: Client, job: Json, *, follow: bool, as_json: bool) -> None:
    """Say that a job was made, and with `follow` show it to its end."""
    if not follow:
        show_answer(job, _submitted, as_json)
        return
    if as_json:
        exit_as(stream_json(client, job["id"]))
    out.print(_submitted(job))
    exit_as(_follow(client, job))


def _submitted(job: Json) -> RenderableType:
    place = f", {job['position']} before it" if job["position"] else ""
    text = Text.assemble((f"Job {job['id']}", "bold"), f" is {job['state']}{place}.")
    for warning in job["warnings"]:
        text.append(f"\n! {warning}", style="yellow")
    return text


def read_file(name: str) -> Json:
    """The JSON object in a file, or exit with status 2."""
    try:
        return read_spec(name)
    except SpecFileError as error:
        fail(str(error), Exit.REFUSED)


def for_each(job_ids: Iterable[int], url: str | None, as_json: bool, act: Callable[[Client, int], None]) -> None:
    """Act on each job. One that is refused keeps none of the others back; the exit status is that of the first of them."""
    statuses = []
    for job_id in dict.fromkeys(job_ids):
        try:
            with service(url, as_json) as client:
                act(client, job_id)
        except typer.Exit as ended:
            statuses.append(Exit(ended.exit_code))
            if ended.exit_code == Exit.UNREACHABLE:
                break  # nor would the next one be answered
    if statuses:
        raise typer.Exit(statuses[0])


def show_answer(answer: Any, view: Callable[[Any], RenderableType], as_json: bool) -> None:
    """Print what the service answered: for people by `view`, or as JSON."""
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    else:
        out.print(view(answer))


@contextmanager
def service(url: str | None, as_json: bool) -> Iterator[Client]:
    """A client whose errors become a readable message and an exit status; with `--json` the problem goes to stdout too."""
    try:
        with Client(url, note=_aside) as client:
            yield client
    except RefusedError as error:
        if as_json:
            typer.echo(json.dumps(error.body, ensure_ascii=False))
        err.print(tables.refusal_view(error))
        raise typer.Exit(_status_of(error)) from None
    except UnreachableError as error:
        fail(str(error), Exit.UNREACHABLE)
    except FileError as error:
        fail(str(error), Exit.REFUSED)
    except GraftError as error:
        fail(str(error), Exit.UNREACHABLE)


def _aside(text: str) -> None:
    """Not by `err`: where a bar is drawn, rich puts above it what is written to this one."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _status_of(error: RefusedError) -> Exit:
    if error.status >= 500:
        return Exit.UNREACHABLE
    return Exit.NOT_FOUND if error.status in {404, 409, 410} else Exit.REFUSED


def fail(message: str, status: Exit) -> NoReturn:
    """Exit with a message."""
    err.print(Text(message, style="red"), soft_wrap=True)
    raise typer.Exit(status)
