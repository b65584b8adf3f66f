"""The command that takes a checkpoint's weights home."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from client.http import Json
from client.tables import size
from client.terminal import AsJson, JobId, Url, err, service, show_answer

app = typer.Typer()
_WEIGHTS, _MODEL = "weights.safetensors", "model.json"


@app.command()
def download(
    job_id: JobId,
    checkpoint: Annotated[str, typer.Option(metavar="best|last|STEP", help="Which one.")] = "best",
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where to; by default job-ID-step-STEP.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint: its weights, checked by their hash, and model.json, which says what they are.

    One that was cut off goes on where it was; one that is there already is not asked for again.
    """
    with service(url, as_json) as client:
        chosen = _chosen(client.checkpoints(job_id), checkpoint)
        which, sha256 = (checkpoint, None) if chosen is None else (chosen["step"], chosen["sha256"])
        target = folder or Path(f"job-{job_id}-step-{which}")
        # what it is comes first: it is small, and where there is no such checkpoint the refusal says so
        model = client.download(job_id, which, _MODEL, target / _MODEL)
        with _shown(_WEIGHTS) as progress:
            weights = client.download(job_id, which, _WEIGHTS, target / _WEIGHTS, sha256=sha256, progress=progress)
        answer = {"step": which, "sha256": sha256, "weights": str(weights), "model": str(model)}
        show_answer(answer, _told, as_json)


def _chosen(checkpoints: Sequence[Json], which: str) -> Json | None:
    """That of `best`, `last` or a step; None where there is none, and the service has the words for it."""
    best = [row for row in checkpoints if row["best"]] if which == "best" else []
    fitting = best or [row for row in checkpoints if which in {"best", "last", str(row["step"])}]
    return fitting[-1] if fitting else None


@contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """What is told how many bytes are there, and draws it on standard error."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _told(answer: Json) -> RenderableType:
    weights = Path(answer["weights"])
    checked = f", SHA-256 {answer['sha256'][:16]}…" if answer["sha256"] else ""
    text = f"Step {answer['step']}: {weights} ({size(weights.stat().st_size)}{checked}) and {answer['model']}"
    return Text(text, overflow="fold")
