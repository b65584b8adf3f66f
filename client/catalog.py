"""The command that says what a spec may name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from client.http import Json
from client.listing import Column, listing
from client.terminal import AsJson, Url, service, show_answer

app = typer.Typer()
_SHOWN, _SHOWN_OF_A_QUERY = 8, 60
Rows = list[tuple[str, str]]
"""Names, and what there is to say of each."""


@app.command()
def catalog(
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="Only names that contain this.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List what a spec may name: datasets, models and their weights, losses, optimizers, schedules, augmentations."""
    with service(url, as_json) as client:
        found = client.catalog(query)
    show_answer(found, lambda found: _answer(found, query), as_json)


def catalog_view(found: Json, most: int) -> RenderableType:
    """A table for each kind of thing that has any, of at most so many rows."""
    parts: list[RenderableType] = []
    for kind, rows in _kinds(found):
        if rows:
            shown = [(Text(name), Text(said, style="dim")) for name, said in rows[:most]]
            parts.append(listing((Column(kind), Column("", least=12, spare=1)), shown))
        if len(rows) > most:
            parts.append(Text(f"and {len(rows) - most:,} more: graft catalog QUERY, or --json", style="dim"))
        parts += [""] if rows else []
    return Group(*parts[:-1])


def _answer(found: Json, query: str | None) -> RenderableType:
    names = [name for _, rows in _kinds(found) for name, _ in rows]
    view = catalog_view(found, _SHOWN if query is None else _SHOWN_OF_A_QUERY)
    if query is None or any(query.lower() in name.lower() for name in names):
        return view
    none = f"No name contains '{query}'. "
    return Group(Text(f"{none}Close to it:"), view) if names else Text(f"{none}`graft catalog` lists what there is.")


def _kinds(found: Json) -> Iterator[tuple[str, Rows]]:
    """Each kind of thing that a spec names, with its names."""
    yield "datasets", [(f"{scheme}:{name}", "") for scheme, names in found["datasets"].items() for name in names]
    weights = found["pretrained"]
    yield "models", [(name, ", ".join(weights.get(name.partition(":")[2], ()))) for name in found["models"]]
    for kind in ("losses", "optimizers", "schedules", "augmentations"):
        yield kind, [(name, _said(entry)) for name, entry in found[kind].items()]


def _said(entry: Json) -> str:
    """Its keywords with their defaults, or why a job cannot use it."""
    if entry["refused"]:
        return f"not here: {entry['refused']}"
    return ", ".join(name if value is None else f"{name} {value}" for name, value in entry["keywords"].items())
