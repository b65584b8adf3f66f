"""The commands about uploaded datasets: send one, list them, look at one, delete it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from client import tables
from client.http import Json
from client.packing import Parcel, parcel
from client.terminal import AsJson, Url, err, out, service, show_answer

app = typer.Typer()
DatasetId = Annotated[int, typer.Argument(metavar="ID", min=1, help="The dataset's id.")]
_SHOWN = 10
"""Names of a long list; `--json` has the rest."""
_CHECKED = "Sent; the service decodes every image once"


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A zip or tar archive of class folders, or the folder itself.")],
    name: Annotated[str | None, typer.Option(help="What people call it; by default the file's or folder's name.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload a dataset: a folder for each class, or train/ and val/ of such folders. A folder is packed while it is sent."""
    with service(url, as_json) as client:
        sent = parcel(path)
        called = name or path.resolve().name.partition(".")[0][:200] or None
        with _shown(sent) as pieces:
            dataset = client.upload(pieces, size=sent.size, media_type=sent.media_type, name=called)
        show_answer(dataset, _dataset_view, as_json)


@app.command()
def datasets(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20, url: Url = None, as_json: AsJson = False
) -> None:
    """List uploaded datasets, newest first."""
    with service(url, as_json) as client:
        show_answer(client.datasets(limit=limit), _datasets_view, as_json)


@app.command()
def dataset(
    dataset_id: DatasetId,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, unless a job that has not ended names it.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show an uploaded dataset: its classes, images that cannot be read, duplicates."""
    with service(url, as_json) as client:
        if not delete:
            show_answer(client.dataset(dataset_id), _dataset_view, as_json)
            return
        client.delete_dataset(dataset_id)
        if not as_json:
            out.print(f"Dataset {dataset_id} is deleted.")


@contextmanager
def _shown(sent: Parcel) -> Iterator[Iterator[bytes]]:
    """The pieces, with a bar on standard error for as long as they go, and then a clock for as long as they are checked."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with ExitStack() as shown:

        def show(*columns: ProgressColumn) -> Progress:
            return shown.enter_context(Progress(*columns, console=err, transient=True, disable=not err.is_terminal))

        def pieces() -> Iterator[bytes]:
            sending = show(*columns)
            task = sending.add_task("Sending", total=sent.size)
            for piece in sent.pieces():
                yield piece
                sending.advance(task, len(piece))
            shown.close()
            show(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()).add_task(_CHECKED, total=None)

        yield pieces()


def _datasets_view(found: list[Json]) -> RenderableType:
    """A row per dataset."""
    if not found:
        return Text("No datasets. `graft upload PATH` makes one.", style="dim")
    table = tables.plain_table()
    for name in ("source", "name", "classes", "images", "size", "uploaded"):
        table.add_column(name, justify="left" if name in {"source", "name"} else "right")
    for one in found:
        table.add_row(
            one["source"],
            escape(one["name"] or ""),
            str(one["counts"]["classes"]),
            str(one["images"]),
            tables.size(one["bytes"]),
            tables.ago(one["created_at"]),
        )
    return table


def _dataset_view(one: Json) -> RenderableType:
    """What is in it, and what to mend."""
    head = Text(f"dataset {one['id']}", style="bold")
    head.append(f"  {one['name'] or ''}  {one['images']} images, {tables.size(one['bytes'])}", style="default")
    classes = tables.plain_table()
    for name in ("class", "train", "validation"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for row in one["classes"][:_SHOWN]:
        classes.add_row(escape(row["name"]), str(row["train"]), str(row["validation"] or ""))
    parts: list[RenderableType] = [head, classes, *_more(len(one["classes"]))]
    parts += [Text(f"! {warning}", style="yellow") for warning in one["warnings"]]
    if corrupt := one["corrupt"]:
        parts += [Text(f"  {bad['name']}: {bad['reason']}") for bad in corrupt[:_SHOWN]]
        parts += _more(one["counts"]["corrupt"])
    for kind, told in (("conflicting", "in several classes"), ("leaking", "in both splits"), ("repeated", "more than once")):
        same = one["duplicates"][kind]
        parts += [Text(f"  {told}: {', '.join(each['names'])}") for each in same[:_SHOWN]]
        parts += _more(one["counts"][kind])
    parts.append(Text.assemble(("A job trains on it by ", "dim"), f'"dataset": {{"source": "{one["source"]}"}}'))
    return Group(*parts)


def _more(count: int) -> list[Text]:
    return [Text(f"  and {count - _SHOWN} more (--json)", style="dim")] if count > _SHOWN else []
