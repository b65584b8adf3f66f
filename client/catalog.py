"""The command that says what a spec may name."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from client.http import Json
from client.listing import Column, listing
from client.terminal import AsJson, Url, service, show_answer

app = typer.Typer()
_SHOWN, _SHOWN_OF_A_QUERY = 8, 60
_CLOSE, _MOST_CLOSE = 0.6, 8
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
        if query is None or as_json or any(rows for _, rows in _kinds(found)):
            show_answer(found, lambda found: catalog_view(found, _SHOWN if query is None else _SHOWN_OF_A_QUERY), as_json)
            return
        show_answer(close_names(client.catalog(), query), lambda close: _nothing(query, close), as_json)


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


def close_names(found: Json, query: str) -> list[str]:
    """The names that are most like it, the likest first; what stands before a colon does not count."""
    wanted = query.lower()
    likeness = {}
    for _, rows in _kinds(found):
        for name, _ in rows:
            ratio = SequenceMatcher(None, wanted, name.rpartition(":")[2].lower()).ratio()
            if ratio >= _CLOSE:
                likeness[name] = ratio
    return sorted(likeness, key=lambda name: -likeness[name])[:_MOST_CLOSE]


def _nothing(query: str, close: list[str]) -> RenderableType:
    like = f" Close to it: {', '.join(close)}." if close else " `graft catalog` lists what there is."
    return Text(f"No name contains '{query}'.{like}")


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
