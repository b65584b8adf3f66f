"""The `graft` command."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Group

from client import catalog, control, data, evaluation, overviews, reports, tables, taking, transfer
from client.http import Json, RefusedError
from client.serve import Ready, ServeError
from client.serve import serve as run_service
from client.terminal import (
    EXITS,
    OF_STATE,
    AsJson,
    Exit,
    Follow,
    GlobalUrl,
    JobId,
    Key,
    Spec,
    Url,
    answer_submitted,
    err,
    exit_as,
    fail,
    out,
    read_file,
    service,
    show_answer,
    stream_json,
)

_EPILOG = "Exit status:\n\n" + "\n\n".join(f"{code.value}: {meaning}" for code, meaning in EXITS.items())
app = typer.Typer(
    name="graft",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"graft {version('graft')}")
        raise typer.Exit


@app.callback()
def main(
    url: GlobalUrl = None,
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is, and exit.")
    ] = False,
) -> None:
    """Transfer learning as a service: send a job, watch every iteration's loss."""


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
        if not told.worker:
            out.print("[dim]Its worker is still warming up; jobs wait in their queue until it is.[/]")
        out.print(f"[dim]Data: {told.data_dir}   Inputs: {told.inputs_dir}   Stop: Ctrl-C[/]", soft_wrap=True)

    if not as_json:
        out.print("[dim]Starting; PyTorch takes ten seconds or so …[/]")
    try:
        run_service(host, port, ready=ready, note=lambda text: err.print(text, style="yellow"))
    except ServeError as error:
        fail(str(error), Exit.JOB_FAILED)


@app.command()
def plan(spec: Spec, url: Url = None, as_json: AsJson = False) -> None:
    """Show what a job would do, without training: data, transfer, parameter groups, lr curves, steps, memory."""
    with service(url, as_json) as client:
        show_answer(client.plan(read_file(spec)), reports.plan_view, as_json)


@app.command()
def submit(
    spec: Spec,
    follow: Follow = False,
    key: Key = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a job."""
    with service(url, as_json) as client:
        answer_submitted(client, client.submit(read_file(spec), key=key), follow=follow, as_json=as_json)


@app.command()
def jobs(
    state: Annotated[str | None, typer.Option(help=f"Only these: {', '.join(tables.STATE_STYLES)}.")] = None,
    label: Annotated[str | None, typer.Option(help="Only those with this label, as NAME:VALUE.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with service(url, as_json) as client:
        show_answer(client.jobs(state=state, label=label, limit=limit), overviews.jobs_view, as_json)


@app.command()
def show(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job: where it stands, its figures, its transfer, its checkpoints."""
    with service(url, as_json) as client:
        job = client.job(job_id)
        found = {name: _report(read, job_id) for name, read in (("transfer", client.transfer), ("groups", client.groups))}
        if as_json:
            show_answer({**job, **found}, tables.job_view, as_json)
            return
        out.print(tables.job_view(job))
        for name, view in (("transfer", transfer.transfer_view), ("groups", reports.groups_view)):
            if report := found[name]:
                out.print(Group("", view(report)))
        out.print(Group("", tables.checkpoints_view(client.checkpoints(job_id), client.url)), crop=False)


def _report(read: Callable[[int], Json], job_id: int) -> Json | None:
    """A report of a job; None before there is one."""
    try:
        return read(job_id)
    except RefusedError as error:
        if error.status != 404:
            raise
        return None


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Only so many of the last lines, then what comes.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's log as text, a line per iteration; with --json every event."""
    if as_json and tail is not None:
        raise typer.BadParameter("it counts lines of text, and --json has events", param_hint="--tail")
    with service(url, as_json) as client:
        if as_json:
            end = stream_json(client, job_id, follow=follow)
            if follow:
                exit_as(end)
            return
        for line in client.logs(job_id, follow=follow, tail=tail):
            typer.echo(line)
        if follow:
            raise typer.Exit(OF_STATE[client.job(job_id)["state"]])


app.add_typer(evaluation.app)
app.add_typer(taking.app)
app.add_typer(control.app)
app.add_typer(data.app)
app.add_typer(catalog.app)
