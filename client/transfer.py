"""The transfer report for people: what was loaded, what was done to make it fit, and what was not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.collapse import collapse
from client.http import Json
from client.tables import plain_table

_SHOWN_ROWS = 12
_SHOWN_STEPS = 3
_TARGETS = {
    "adapted": "adapted to fit",
    "reinit": "starts anew",
    "missing": "not in the source",
    "excluded": "excluded",
    "own": "computed by the model",
    "tied": "loaded under another name",
}
_SOURCES = {"dropped": "of the source, dropped", "unexpected": "of the source, unexpected"}
_SAID_BY_TITLE = ("not in the source; ", "not in the source", "the model has no entry of that name")


def transfer_view(transfer: Json | None, *, planned: bool = False) -> RenderableType:
    """A line that sums up, what was done to the names, a row per module with its share as a bar, then what needs a word."""
    if transfer is None:
        return Text("Pretrained weights: not fetched yet; the worker says what was loaded, once it has them.", style="dim")
    if transfer["source"] is None:
        return Text("From scratch: no pretrained weights.", style="dim")
    parts = [
        _summary(transfer, planned=planned),
        _steps(transfer.get("steps", [])),
        _modules(transfer["modules"]),
        _exceptions(transfer),
    ]
    shown = [part for part in parts if part is not None]
    return Group(*(item for part in shown for item in (part, "")[: 1 if part is shown[-1] else 2]))


def _summary(transfer: Json, *, planned: bool) -> Text:
    sources = transfer["source_totals"]
    used, total = _tensors(sources, "used"), sum(count["tensors"] for count in sources.values())
    adapted = _tensors(transfer.get("totals", {}), "adapted")
    summary = Text.assemble(
        (f"{used} of {total}", "bold green" if used else "bold red"),
        f" tensors of {transfer['source']} {'would be' if planned else 'were'} loaded",
        f", {adapted} of them adapted" if adapted else "",
        ": ",
        (f"{transfer['loaded_share']:.1%}", "bold"),
        " of the model outside its head.",
    )
    if sha := transfer.get("sha256"):
        summary.append(f"\n{transfer['format']}, SHA-256 {sha[:16]}…", style="dim")
    return summary


def _steps(steps: Sequence[Json]) -> Table | None:
    """What was done to the source's names; of many rules of one kind the first ones."""
    table = plain_table()
    table.add_column("names")
    table.add_column("", overflow="fold")
    table.add_column("changed", justify="right")
    for kind, found in groupby(steps, lambda step: step["kind"]):
        rows = list(found)
        for step in rows[: _SHOWN_STEPS if len(rows) > _SHOWN_STEPS + 1 else None]:
            table.add_row(kind, escape(step["detail"]), f"{step['keys']:,}")
        if len(rows) > _SHOWN_STEPS + 1:
            rest = rows[_SHOWN_STEPS:]
            table.add_row(kind, f"and {len(rest)} more", f"{sum(step['keys'] for step in rest):,}", style="dim")
    return table if table.row_count else None


def _modules(modules: Sequence[Json]) -> Table:
    table = plain_table()
    table.add_column("module", overflow="fold")
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("elements", justify="right", no_wrap=True)
    table.add_column("loaded", no_wrap=True)
    rows = [
        (module["module"], _came(module, "tensors"), module["total"]["tensors"], _came(module, "elements"),
         module["total"]["elements"])
        for module in modules
    ]  # fmt: skip
    if len(rows) > _SHOWN_ROWS:  # what is whole needs no row of its own
        whole = [row for row in rows if row[1] == row[2]]
        if len(whole) > 1:
            sums = (sum(column) for column in list(zip(*whole, strict=True))[1:])
            rows = [row for row in rows if row not in whole] + [(f"the {len(whole)} others", *sums)]
    for name, tensors, of_tensors, elements, of_elements in rows[:_SHOWN_ROWS]:
        counts = f"{tensors} of {of_tensors}", f"{quantity(elements)} of {quantity(of_elements)}"
        table.add_row(escape(name), *counts, _bar(elements, of_elements))
    if len(rows) > _SHOWN_ROWS:
        table.add_row(f"and {len(rows) - _SHOWN_ROWS} more", style="dim")
    return table


def _came(module: Json, what: str) -> int:
    """Of a module's tensors or elements, those that came from the source: as they are, or adapted."""
    return int(module["loaded"][what] + module.get("adapted", {}).get(what, 0))


def _exceptions(transfer: Json) -> Table | None:
    """All that was not simply loaded, by what became of it: the names collapsed, how many, and why."""
    table = plain_table()
    table.add_column("", overflow="fold")
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for titles, entries in ((_TARGETS, transfer["targets"]), (_SOURCES, transfer["sources"])):
        said: dict[str, dict[str, str]] = {status: {} for status in titles}
        for entry in entries:
            status = _status(entry)
            if status in said:
                said[status][entry["key"]] = _why(entry)
        every = [entry["key"] for entry in entries]
        for status, title in titles.items():
            _section(table, title, said[status], every)
    casts = Counter(entry["cast"] for entry in transfer["targets"] if entry.get("cast"))
    if casts:
        table.add_row("loaded as another type", style="dim")
    for cast, count in casts.items():
        table.add_row(f"  {cast}", str(count))
    return table if table.row_count else None


def _section(table: Table, title: str, said: Mapping[str, str], every: Sequence[str]) -> None:
    kinds = collapse(said, every)
    if kinds:
        table.add_row(title, style="dim")
    for kind in kinds[:_SHOWN_ROWS]:
        table.add_row(f"  {escape(kind.pattern)}", str(kind.names), escape(kind.said))
    if len(kinds) > _SHOWN_ROWS:
        rest = kinds[_SHOWN_ROWS:]
        table.add_row(f"  and {len(rest)} more kinds", str(sum(kind.names for kind in rest)), "all of them: --json", style="dim")


def _status(entry: Json) -> str:
    tied = entry["status"] == "loaded" and (entry.get("reason") or "").startswith("tied to")
    return "tied" if tied else str(entry["status"])


def _why(entry: Json) -> str:
    """The reason, with both shapes where a tensor was adapted; nothing where the title says it already."""
    reason = entry.get("reason") or ""
    if entry.get("adapter"):
        shapes = f"{entry['source_shape']} -> {entry['shape']}"
        return f"{entry['adapter'].replace('_', ' ')}: {shapes}" + (f"; {reason}" if reason else "")
    said = next((words for words in _SAID_BY_TITLE if reason.startswith(words)), "")
    return reason.removeprefix(said)


def quantity(count: int) -> str:
    """A count for people: `9,408`, `25.6 M`."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G"):
        if value < (10_000 if unit == "" else 999.5):
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}" if unit else f"{count:,}"


def _tensors(totals: Json, status: str) -> int:
    return int(totals.get(status, {}).get("tensors", 0))


def _bar(part: int, whole: int, width: int = 12) -> Text:
    share = part / whole if whole else 0.0
    filled = width if part == whole else min(round(share * width), width - 1)
    return Text.assemble(("━" * filled, "green"), ("─" * (width - filled), "bright_black"), f" {share:.1%}")
