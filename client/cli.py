"""The `graft` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from client import reports, tables
from client.follow import Follower, outcome
from client.http import DEFAULT_URL, Client, GraftError, Json, RefusedError, UnreachableError
from client.serve import Ready, ServeError
from client.serve import serve as run_service
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
    Exit.REFUSED: "wrong usage, or a spec that was refused",
    Exit.NOT_FOUND: "no such job, or one in a state that does not fit",
    Exit.UNREACHABLE: "no answer from the service, or one that blames itself",
    Exit.CANCELLED: "the followed job was cancelled",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; a followed job goes on",
}
_EPILOG = "Exit status:\n\n" + "\n\n".join(f"{code.value}: {meaning}" for code, meaning in EXITS.items())
_OF_STATE = {"succeeded": Exit.OK, "failed": Exit.JOB_FAILED, "cancelled": Exit.CANCELLED}

app = typer.Typer(
    name="graft",
    help="Transfer learning as a service: send a job, watch every iteration's loss.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A job spec, JSON or YAML; `-` reads standard input.")]
JobId = Annotated[int, typer.Argument(metavar="ID", min=1, help="The job's id.")]
Url = Annotated[str | None, typer.Option("--url", envvar="GRAFT_URL", help=f"Where the service is (default: {DEFAULT_URL}).")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: JSON; streams as NDJSON.")]


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Start the service here: the api and one worker, until Ctrl-C. Data lies in GRAFT_DATA_DIR (graft-data)."""

    def ready(told: Ready) -> None:
        if as_json:
            typer.echo(told.json())
            return
        out.print(
            f"[bold green]Ready[/] at [bold]{told.url}[/] in {told.seconds:.0f} s; the API: {told.url}/docs", soft_wrap=True
        )
        out.print(f"[dim]Data: {told.data_dir}   Inputs: {told.inputs_dir}   Stop: Ctrl-C[/]", soft_wrap=True)

    if not as_json:
        out.print("[dim]Starting; PyTorch takes ten seconds or so …[/]")
    try:
        run_service(host, port, ready=ready, note=lambda text: err.print(text, style="yellow"))
    except ServeError as error:
        _fail(str(error), Exit.JOB_FAILED)


@app.command()
def plan(spec: Spec, url: Url = None, as_json: AsJson = False) -> None:
    """Show what a job would do, without training: data, transfer, parameter groups, steps, memory."""
    with _service(url, as_json) as client:
        _show(client.plan(_spec(spec)), reports.plan_view, as_json)


@app.command()
def submit(
    spec: Spec,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end; Ctrl-C leaves it running.")] = False,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key and spec make one job, however often sent.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a job."""
    with _service(url, as_json) as client:
        job = client.submit(_spec(spec), key=key)
        if not follow:
            _show(job, _submitted, as_json)
            return
        if as_json:
            _exit_as(_stream_json(client, job["id"]))
        out.print(_submitted(job))
        _exit_as(_follow(client, job))


@app.command()
def jobs(
    state: Annotated[str | None, typer.Option(help="Only these: queued, running, succeeded, failed or cancelled.")] = None,
    label: Annotated[str | None, typer.Option(help="Only those with this label, as NAME:VALUE.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with _service(url, as_json) as client:
        _show(client.jobs(state=state, label=label, limit=limit), tables.jobs_view, as_json)


@app.command()
def show(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job: where it stands, its figures, its transfer, its checkpoints."""
    with _service(url, as_json) as client:
        job = client.job(job_id)
        if as_json:
            _show(job, tables.job_view, as_json)
            return
        out.print(tables.job_view(job))
        for read, view in ((client.transfer, reports.transfer_view), (client.groups, reports.groups_view)):
            try:
                out.print(Group("", view(read(job_id))))
            except RefusedError as error:
                if error.status != 404:
                    raise
        out.print(Group("", tables.checkpoints_view(client.checkpoints(job_id), client.url)))


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's log as text, a line per iteration; with --json every event."""
    with _service(url, as_json) as client:
        if as_json:
            end = _stream_json(client, job_id, follow=follow)
            if follow:
                _exit_as(end)
            return
        for line in client.logs(job_id, follow=follow):
            typer.echo(line)
        if follow:
            raise typer.Exit(_OF_STATE[client.job(job_id)["state"]])


@app.command()
def cancel(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a job: at once while it is queued, within two seconds while it runs."""
    with _service(url, as_json) as client:
        _show(client.cancel(job_id), _cancelled, as_json)


def _follow(client: Client, job: Json) -> Json:
    """Draw the job to its end; the data of `end`. Ctrl-C leaves the job running."""
    try:
        with Follower(out, job) as follower:
            end = follower.follow(client.events(job["id"], follow=True))
    except KeyboardInterrupt:
        err.print(f"Job {job['id']} goes on. Watch it: graft logs -f {job['id']}   Stop it: graft cancel {job['id']}")
        raise
    out.print(outcome(end))
    out.print(tables.checkpoints_view(client.checkpoints(job["id"]), client.url))
    return end


def _stream_json(client: Client, job_id: int, *, follow: bool = True) -> Json | None:
    """Print each event as a line of JSON; the data of `end`, if it came."""
    event: Json = {}
    for event in client.events(job_id, follow=follow):
        typer.echo(json.dumps(event, ensure_ascii=False))
    return event["data"] if event.get("kind") == "end" else None


def _exit_as(end: Json | None) -> NoReturn:
    raise typer.Exit(_OF_STATE[end["state"]] if end else Exit.UNREACHABLE)


def _submitted(job: Json) -> RenderableType:
    place = f", {job['position']} before it" if job["position"] else ""
    text = Text.assemble((f"Job {job['id']}", "bold"), f" is {job['state']}{place}.")
    for warning in job["warnings"]:
        text.append(f"\n! {warning}", style="yellow")
    return text


def _cancelled(job: Json) -> RenderableType:
    return f"Job {job['id']} is {job['state']}" + (" and will stop in a moment." if job["requested"] else ".")


def _spec(name: str) -> Json:
    try:
        return read_spec(name)
    except SpecFileError as error:
        _fail(str(error), Exit.REFUSED)


def _show(answer: Any, view: Callable[[Any], RenderableType], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    else:
        out.print(view(answer))


@contextmanager
def _service(url: str | None, as_json: bool) -> Iterator[Client]:
    """A client whose errors become a readable message and an exit status; with `--json` the problem goes to stdout too."""
    try:
        with Client(url) as client:
            yield client
    except RefusedError as error:
        if as_json:
            typer.echo(json.dumps(error.body, ensure_ascii=False))
        err.print(tables.refusal_view(error))
        raise typer.Exit(_status_of(error)) from None
    except UnreachableError as error:
        _fail(str(error), Exit.UNREACHABLE)
    except GraftError as error:
        _fail(str(error), Exit.JOB_FAILED)


def _status_of(error: RefusedError) -> Exit:
    if error.status >= 500:
        return Exit.UNREACHABLE
    return Exit.NOT_FOUND if error.status in {404, 409, 410} else Exit.REFUSED


def _fail(message: str, status: Exit) -> NoReturn:
    err.print(Text(message, style="red"), soft_wrap=True)
    raise typer.Exit(status)
