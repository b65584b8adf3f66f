"""The reports of a plan and a job for people: the transfer and the parameter groups, as rich renderables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.curves import curves_view
from client.http import Json
from client.tables import plain_table, size

_SHOWN_ROWS = 12
_SHOWN_KINDS = 3
_PARAMETERS_WIDTH = 30
_NUMBER = re.compile(r"\d+")


def transfer_view(transfer: Json | None) -> RenderableType:
    """A line that sums up, a row per module with its share as a bar, then what was not loaded, collapsed."""
    if transfer is None:
        return Text("Pretrained weights: not fetched yet; the worker says what was loaded, once it has them.", style="dim")
    if transfer["source"] is None:
        return Text("From scratch: no pretrained weights.", style="dim")
    sources = transfer["source_totals"]
    used, total = _tensors(sources, "used"), sum(count["tensors"] for count in sources.values())
    share = transfer["loaded_share"]
    summary = Text.assemble(
        (f"{used} of {total}", "bold green" if used else "bold red"),
        f" tensors of {transfer['source']} were loaded: ",
        (f"{share:.1%}", "bold"),
        " of the model outside its head.",
    )
    return Group(summary, "", _modules(transfer["modules"]), *_left_out(transfer))


def _modules(modules: Iterable[Json]) -> Table:
    table = plain_table()
    table.add_column("module")
    table.add_column("tensors", justify="right")
    table.add_column("elements", justify="right")
    table.add_column("loaded")
    for module in modules:
        loaded, total = module["loaded"], module["total"]
        table.add_row(
            escape(module["module"]),
            f"{loaded['tensors']} of {total['tensors']}",
            f"{loaded['elements']:,} of {total['elements']:,}",
            _bar(loaded["elements"], total["elements"]),
        )
    return table


def _left_out(transfer: Json) -> list[RenderableType]:
    """A table of the model's tensors that were not loaded, and of the source's that were not used, if there are any."""
    table = plain_table()
    table.add_column("left out")
    table.add_column("tensors", justify="right")
    table.add_column("why")
    for title, entries, good in (("the model's", transfer["targets"], "loaded"), ("the source's", transfer["sources"], "used")):
        rows = collapse((entry["key"], entry["reason"]) for entry in entries if entry["status"] != good)
        if rows:
            table.add_row(title, style="dim")
        for pattern, reason, count in rows[:_SHOWN_ROWS]:
            table.add_row(f"  {escape(pattern)}", str(count), escape(reason))
        if len(rows) > _SHOWN_ROWS:
            table.add_row(f"  and {len(rows) - _SHOWN_ROWS} more kinds", "", "all of them: --json", style="dim")
    return ["", table] if table.row_count else []


def collapse(entries: Iterable[tuple[str, str | None]]) -> list[tuple[str, str, int]]:
    """`(key, reason)` pairs as `(pattern, reason, how many)`: those that differ only in numbers are one, `*` for the numbers.

    A number in which a whole kind agrees stays. The order is that of the first key of each kind.
    """
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key, reason in entries:
        kinds.setdefault((_NUMBER.sub("*", key), _NUMBER.sub("*", reason or "")), []).append((key, reason or ""))
    return [(_pattern([key for key, _ in kind]), _pattern([reason for _, reason in kind]), len(kind)) for kind in kinds.values()]


def _pattern(texts: Sequence[str]) -> str:
    numbers = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    kept = iter([column[0] if len(set(column)) == 1 else "*" for column in numbers])
    return _NUMBER.sub(lambda _: next(kept), texts[0])


def groups_view(groups: Json) -> RenderableType:
    """One row per parameter group: what is in it, and the values it trains with; where they are many, one per spec group."""
    rows = groups["groups"] if len(groups["groups"]) <= _SHOWN_ROWS else _together(groups["groups"])
    depths = _depths(groups["parameters"])
    names = [name for name in ("lr", "momentum", "betas", "weight_decay") if any(name in row["hyperparameters"] for row in rows)]
    table = plain_table(title=f"{groups['optimizer']}, parameter groups")
    table.add_column("group", no_wrap=True)
    for name in ("depth", "tensors", "elements", *names):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="ellipsis", no_wrap=True, max_width=_PARAMETERS_WIDTH)
    for row in rows[:_SHOWN_ROWS]:
        held = _held(row)
        values = [_frozen(row) if row["frozen"] and name == "lr" else _value(held.get(name)) for name in names]
        deep = _span([depths[name] for name in row["parameters"]])
        style = "dim" if row["frozen"] else None
        table.add_row(
            escape(row["name"]),
            deep,
            str(row["tensors"]),
            f"{row['elements']:,}",
            *values,
            _kinds(row["parameters"]),
            style=style,
        )
    if len(rows) > _SHOWN_ROWS:
        table.add_row(f"and {len(rows) - _SHOWN_ROWS} more", style="dim")
    if groups["executed_groups"] < len(groups["groups"]):
        table.caption = f"run as {groups['executed_groups']}: equal ones are one, frozen ones none"
    return Group(table, *(Text(adjustment_text(one), style="cyan") for one in groups.get("pending", ())))


def _together(rows: Sequence[Json]) -> list[Json]:
    """The parts of each group of the spec as one row; a value that differs between them as `lowest … highest`."""
    families: dict[str, list[Json]] = {}
    for row in rows:
        families.setdefault(row["of"], []).append(row)
    return [family[0] if len(family) == 1 else _as_one(name, family) for name, family in families.items()]


def _as_one(name: str, family: Sequence[Json]) -> Json:
    values: Json = {}
    for key in family[0]["hyperparameters"]:
        found = [_held(row)[key] for row in family]
        differ = any(value != found[0] for value in found)
        values[key] = f"{_value(min(found))} … {_value(max(found))}" if differ else found[0]
    return {
        **family[0],
        "name": f"{name}, {len(family)} parts",
        "hyperparameters": values,
        "present": values,
        "tensors": sum(row["tensors"] for row in family),
        "elements": sum(row["elements"] for row in family),
        "parameters": [parameter for row in family for parameter in row["parameters"]],
    }


def _held(row: Json) -> Json:
    """Its hyper-parameters: those of now, where the answer has them."""
    held: Json = row.get("present") or row["hyperparameters"]
    return held


def _depths(parameters: Iterable[Json]) -> dict[str, int]:
    return {row["names"][0]: row["depth"] for row in parameters}


def _span(depths: Sequence[int]) -> str:
    if not depths:  # of a job that no worker has begun
        return ""
    low, high = min(depths), max(depths)
    return str(low) if low == high else f"{low}..{high}"


def _frozen(row: Json) -> str:
    return "frozen" if row["until_epoch"] is None else f"frozen before epoch {row['until_epoch'] + 1}"


def plan_view(plan: Json) -> RenderableType:
    """What a plan says, from the data to the warnings."""
    dataset, steps, memory = plan["dataset"], plan["steps"], plan["memory"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "dataset",
        f"{escape(dataset['source'])}: {dataset['train']:,} images to train on, {dataset['validation']:,} to validate, "
        f"{len(dataset['classes'])} classes",
    )
    facts.add_row("model", f"{escape(plan['spec']['model']['name'])} at {plan['spec']['dataset']['image_size']} px")
    facts.add_row("steps", f"{steps['total']:,} ({steps['per_epoch']:,} an epoch)")
    facts.add_row("memory", f"{size(memory['total'])} estimated")
    warnings = [Text(f"! {warning}", style="yellow") for warning in plan["warnings"]]
    curves = [part for curve in curves_view(plan) for part in ("", curve)]
    return Group(facts, "", transfer_view(plan["transfer"]), "", groups_view(plan["groups"]), *curves, *warnings)


def adjusted_text(data: Json) -> str:
    """What an `adjusted` event says, on a line."""
    changes = ", ".join(f"{key} {_spread(change['from'])} -> {_spread(change['to'])}" for key, change in data["changes"].items())
    told = f"not changed: {data['refused']}" if data["refused"] else changes
    return f"step {data['step']}: group {data['group']}, {told} (by {data['by']})"


def adjustment_text(asked: Json) -> str:
    """A change that is to come, on a line."""
    when = "the next step" if asked["at_step"] is None else f"step {asked['at_step']}"
    changes = ", ".join(f"{key} {_spread(value)}" for key, value in asked["changes"].items() if value is not None)
    return f"From {when} on: group {asked['group']}, {changes} (by {asked['by']})"


def _tensors(totals: Json, status: str) -> int:
    return int(totals.get(status, {}).get("tensors", 0))


def _bar(part: int, whole: int, width: int = 12) -> Text:
    share = part / whole if whole else 0.0
    filled = width if part == whole else min(round(share * width), width - 1)
    return Text.assemble(("━" * filled, "green"), ("─" * (width - filled), "bright_black"), f" {share:.1%}")


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _kinds(parameters: Iterable[str]) -> str:
    kinds = [pattern for pattern, _, _ in collapse((key, None) for key in parameters)]
    more = f" and {len(kinds) - _SHOWN_KINDS} more kinds" if len(kinds) > _SHOWN_KINDS else ""
    return escape(", ".join(kinds[:_SHOWN_KINDS]) + more)


def _spread(value: object) -> str:
    """A value; of the parts of a group each one's, where they differ."""
    return " | ".join(dict.fromkeys(map(_value, value.values()))) if isinstance(value, dict) else _value(value)
