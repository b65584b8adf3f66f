"""The commands that look into the data: what a validation found, and the samples of a step."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.http import Json
from client.tables import FIGURES, figure, plain_table
from client.terminal import AsJson, JobId, Url, service, show_answer

app = typer.Typer()

_SHOWN = 10


@app.command()
def evaluation(
    job_id: JobId,
    epoch: Annotated[int | None, typer.Option(min=1, help="That after this epoch, from 1; by default the last one.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show a validation in full: the worst classes, the most frequent confusions, the hardest samples."""
    with service(url, as_json) as client:
        show_answer(client.evaluation(job_id, epoch=None if epoch is None else epoch - 1), evaluation_view, as_json)


@app.command()
def samples(  # noqa: PLR0917 (each is an option of the command)
    job_id: JobId,
    step: Annotated[int | None, typer.Argument(metavar="[STEP]", min=0, help="The step, from 0 over the whole job.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="In place of STEP: the epoch, from 1, as the log counts.")] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="And the iteration in that epoch, from 1.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Name the training samples of a step, and its loss: what is behind a spike."""
    if (step is None) == (epoch is None) or (epoch is None) != (iteration is None):
        raise typer.BadParameter("give either STEP, or --epoch and --iteration as the log counts them", param_hint="STEP")
    with service(url, as_json) as client:
        show_answer(client.samples(job_id, step, epoch=epoch, iteration=iteration), samples_view, as_json)


def evaluation_view(found: Json) -> RenderableType:
    """The figures, the worst classes, the most frequent confusions and the hardest samples."""
    figures = "  ".join(f"{FIGURES.get(name, name)} [bold]{figure(value)}[/]" for name, value in found["figures"].items())
    head = Text.from_markup(f"After epoch {found['epoch'] + 1}, on {found['samples']:,} samples: {figures}")
    parts = [_classes_table(found["classes"])]
    if found["confused"]:
        parts.append(_confusions_table(found))
    if found["hardest"]:
        parts.append(_hardest_table(found["hardest"]))
    return Group(head, *(piece for part in parts for piece in ("", part)))


def samples_view(found: Json) -> RenderableType:
    """A row per sample."""
    table = plain_table()
    for name in ("index", "sample", "label"):
        table.add_column(name, justify="right" if name == "index" else "left")
    table.add_column()
    for row in found["samples"]:
        table.add_row(str(row["index"]), escape(row["name"]), escape(_label(row["label"])), "left out" if row["left_out"] else "")
    batches = found["batches"]
    which = f"batch {batches[0] + 1}" if len(batches) == 1 else f"batches {batches[0] + 1} to {batches[-1] + 1}"
    count = "" if found["iteration"] is None else f", iteration {found['iteration']}"
    loss = "not trained yet" if found["loss"] is None else f"loss {figure(found['loss'])}"
    return Group(Text(f"Step {found['step']}: epoch {found['epoch'] + 1}{count}, {which}, {loss}"), table)


def _classes_table(classes: list[Json]) -> Table:
    """The worst first, by what its task has."""
    keys = [key for key in ("support", "recall", "precision", "f1", "average_precision", "mae", "rmse") if key in classes[0]]
    by = next(key for key in ("average_precision", "f1", "mae") if key in classes[0])
    sign = -1 if by == "mae" else 1
    known = [row for row in classes if row[by] is not None]
    table = plain_table(title=f"worst classes, by {_named(by)}")
    table.add_column("class")
    for key in keys:
        table.add_column(_named(key), justify="right")
    for row in sorted(known, key=lambda row: sign * float(row[by]))[:_SHOWN]:
        values = (str(row[key]) if key == "support" else figure(row[key]) for key in keys)
        table.add_row(escape(row["name"]), *values)
    if len(classes) > _SHOWN:
        table.caption = f"{_SHOWN} of {len(classes)}"
    return table


def _confusions_table(found: Json) -> Table:
    table = plain_table(title="most frequent confusions")
    for name, justify in (("samples", "right"), ("of class", "left"), ("taken for", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in found["confused"][:_SHOWN]:
        table.add_row(str(row["samples"]), escape(row["target"]), escape(row["prediction"]))
    left = sum(row["samples"] for row in found["confused"][_SHOWN:]) + found["confused_left_out"]
    if left:
        table.caption = f"{left} samples in rarer ones"
    return table


def _hardest_table(hardest: list[Json]) -> Table:
    table = plain_table(title="hardest samples")
    for name, justify in (("loss", "right"), ("sample", "left"), ("is", "left"), ("predicted", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in hardest:
        table.add_row(figure(row["loss"]), escape(row["name"]), escape(_label(row["target"])), escape(_label(row["prediction"])))
    return table


def _named(key: str) -> str:
    return key.replace("_", " ")


def _label(value: str | list[str | float]) -> str:
    """A class, labels, or numbers."""
    if isinstance(value, str):
        return value
    return ", ".join(one if isinstance(one, str) else f"{one:g}" for one in value)
