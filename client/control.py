"""The commands that steer what is there: cancel, pause, resume and fork a job; list the workers, drain one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType

from client import overviews, reports
from client.http import Json
from client.terminal import AsJson, Follow, JobId, Key, Url, answer_submitted, read_file, service, show_answer

app = typer.Typer()


@app.command()
def cancel(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a job: at once while it waits or is paused, within two seconds while it runs."""
    with service(url, as_json) as client:
        show_answer(client.cancel(job_id), _told, as_json)


@app.command()
def pause(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Pause a job: it gives its slot to others, until it is resumed."""
    with service(url, as_json) as client:
        show_answer(client.pause(job_id), _told, as_json)


@app.command()
def resume(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Put a paused job back into its queue; it goes on from where it stood."""
    with service(url, as_json) as client:
        show_answer(client.resume(job_id), _told, as_json)


@app.command()
def fork(  # noqa: PLR0917 (each is an option of the command)
    job_id: JobId,
    patch: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATCH]",
            help="What the new spec has otherwise: a JSON merge patch, as JSON or YAML; `-` reads standard input.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Whose weights it begins with: best (the default), last, or a step.")
    ] = None,
    adjustments: Annotated[
        bool, typer.Option("--adjustments", help="From its start, with what was changed in its groups, at the same steps.")
    ] = False,
    follow: Follow = False,
    key: Key = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a new job of this one's spec, on its weights; of a failed job without a checkpoint, the same once more."""
    with service(url, as_json) as client:
        job = client.fork(
            job_id, {} if patch is None else read_file(patch), checkpoint=checkpoint, adjustments=adjustments, key=key
        )
        answer_submitted(client, job, follow=follow, as_json=as_json)


@app.command()
def lr(  # noqa: PLR0917 (each is an option of the command)
    job_id: JobId,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Its name, as `graft groups` has it.")],
    value: Annotated[float, typer.Argument(metavar="VALUE", min=0, help="The new lr; a schedule goes on from it.")],
    at: Annotated[int | None, typer.Option(metavar="STEP", min=0, help="When; by default at the next step.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change the lr of a parameter group, while the job runs, waits or is paused."""
    with service(url, as_json) as client:
        show_answer(client.adjust(job_id, group, {"lr": value}, at_step=at), reports.adjustment_text, as_json)


@app.command()
def groups(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job's parameter groups as they are now, and the changes that are still to come."""
    with service(url, as_json) as client:
        show_answer(client.groups(job_id), reports.groups_view, as_json)


@app.command()
def workers(url: Url = None, as_json: AsJson = False) -> None:
    """List the workers: what they serve, have free and run; and how many jobs each queue holds."""
    with service(url, as_json) as client:
        show_answer(client.workers(), overviews.workers_view, as_json)


@app.command()
def drain(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Its name, as `graft workers` has it.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have a worker take no new job, finish those it runs, and leave."""
    with service(url, as_json) as client:
        show_answer(client.drain(worker), _draining, as_json)


def _told(job: Json) -> RenderableType:
    soon = {"cancel": " and will stop in a moment.", "pause": " and will pause in a moment."}
    return f"Job {job['id']} is {job['state']}{soon.get(job['requested'], '.')}"


def _draining(worker: Json) -> RenderableType:
    running = ", ".join(str(job) for job in worker["running"])
    return f"Worker {worker['name']} takes no new job, and leaves " + (f"after job {running}." if running else "in a moment.")
