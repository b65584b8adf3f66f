"""The commands that steer what is there: cancel, pause, resume, delete and fork jobs, change groups, list and drain workers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType

from client import overviews, reports
from client.http import Client, Json
from client.terminal import (
    AsJson,
    At,
    Follow,
    GroupName,
    JobId,
    JobIds,
    Key,
    Url,
    answer_submitted,
    for_each,
    out,
    read_file,
    service,
    show_answer,
)

app = typer.Typer()


@app.command()
def cancel(job_ids: JobIds, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel jobs: at once while they wait or are paused, within two seconds while they run."""
    for_each(job_ids, url, as_json, lambda client, job_id: show_answer(client.cancel(job_id), _told, as_json))


@app.command()
def pause(job_ids: JobIds, url: Url = None, as_json: AsJson = False) -> None:
    """Pause jobs: they give their slots to others, until they are resumed."""
    for_each(job_ids, url, as_json, lambda client, job_id: show_answer(client.pause(job_id), _told, as_json))


@app.command()
def resume(job_ids: JobIds, url: Url = None, as_json: AsJson = False) -> None:
    """Put paused jobs back into their queues; they go on from where they stood."""
    for_each(job_ids, url, as_json, lambda client, job_id: show_answer(client.resume(job_id), _told, as_json))


@app.command("delete", hidden=True, help="The same as `graft rm`.")
@app.command("rm")
def delete(job_ids: JobIds, url: Url = None, as_json: AsJson = False) -> None:
    """Remove jobs that have ended, with their logs and checkpoints: that frees the disk, and cannot be undone."""

    def remove(client: Client, job_id: int) -> None:
        client.delete(job_id)
        if not as_json:
            out.print(f"Job {job_id} is deleted.")

    for_each(job_ids, url, as_json, remove)


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
    group: GroupName,
    value: Annotated[float, typer.Argument(metavar="VALUE", min=0, help="The new lr; a schedule goes on from it.")],
    at: At = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change the lr of a parameter group, while the job runs, waits or is paused."""
    with service(url, as_json) as client:
        show_answer(client.adjust(job_id, group, {"lr": value}, at_step=at), reports.adjustment_text, as_json)


@app.command()
def freeze(job_id: JobId, group: GroupName, at: At = None, url: Url = None, as_json: AsJson = False) -> None:
    """Freeze a parameter group: it trains no more, until it is thawed."""
    with service(url, as_json) as client:
        show_answer(client.adjust(job_id, group, {"freeze": True}, at_step=at), reports.adjustment_text, as_json)


@app.command()
def thaw(job_id: JobId, group: GroupName, at: At = None, url: Url = None, as_json: AsJson = False) -> None:
    """Let a frozen parameter group train."""
    with service(url, as_json) as client:
        show_answer(client.adjust(job_id, group, {"freeze": False}, at_step=at), reports.adjustment_text, as_json)


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
