"""What a plan says, and the parameter groups, for people: as rich renderables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.collapse import collapse
from client.curves import curves_view
from client.http import Json
from client.listing import Column, listing
from client.tables import size
from client.transfer import transfer_view

_SHOWN_ROWS = 12


def groups_view(groups: Json) -> RenderableType:
    """One row per parameter group: what is in it, and the values it trains with; where they are many, one per spec group."""
    rows = groups["groups"] if len(groups["groups"]) <= _SHOWN_ROWS else _together(groups["groups"])
    depths = _depths(groups["parameters"])
    names = [name for name in ("lr", "momentum", "betas", "weight_decay") if any(name in row["hyperparameters"] for row in rows)]
    alike = {name: {_value(_held(row).get(name)) for row in groups["groups"]} for name in names if name != "lr"}
    shared = {name: values.pop() for name, values in alike.items() if len(values) == 1}
    shown = [name for name in names if name not in shared]
    every = [name for row in rows for name in row["parameters"]]
    lines = [_row(row, shown, depths, every) for row in rows[:_SHOWN_ROWS]]
    if len(rows) > _SHOWN_ROWS:
        lines.append([Text(f"and {len(rows) - _SHOWN_ROWS} more", style="dim"), *[Text()] * (len(shown) + 4)])
    values = (Column(name, right=True, spare=0 if name == "lr" else 1) for name in shown)
    columns = (
        Column("group", least=18),
        Column("depth", right=True, spare=3),
        Column("tensors", right=True, spare=4),
        Column("elements", right=True, spare=2),
        *values,
        Column("parameters", least=14),
    )
    runs = f"the optimizer runs them as {groups['executed_groups']}: those with equal values are one"
    caption = runs if groups["executed_groups"] < len(groups["groups"]) else None
    table = listing(columns, lines, title=_title(groups, shared), caption=caption, tells=True)
    return Group(table, *(Text(adjustment_text(one), style="cyan") for one in groups.get("pending", ())))


def _row(row: Json, shown: Iterable[str], depths: Mapping[str, int], every: Collection[str]) -> list[Text]:
    """The cells of a group: what is in it, the values of `shown`, and its parameters."""
    held = _held(row)
    values = [_frozen(row) if row["frozen"] and name == "lr" else _value(held.get(name)) for name in shown]
    deep = _span([depths[name] for name in row["parameters"]])
    cells = [row["name"], deep, str(row["tensors"]), f"{row['elements']:,}", *values, _kinds(row["parameters"], every)]
    return [Text(cell, style="dim" if row["frozen"] else "") for cell in cells]


def _title(groups: Json, shared: Mapping[str, str]) -> str:
    """The optimizer, and the values that all groups share: a column of each would only make the table wider."""
    values = ", ".join(f"{name} {value}" for name, value in shared.items())
    runs = f" on {groups['runs']}" if groups.get("runs") else ""
    return f"{groups['optimizer']}{runs}, parameter groups" + (f"; in all: {values}" if values else "")


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


_OUTPUTS = {"multiclass": "classes", "multilabel": "labels", "regression": "numbers"}


def plan_view(plan: Json) -> RenderableType:
    """What a plan says, from the data to the warnings."""
    dataset, steps, memory = plan["dataset"], plan["steps"], plan["memory"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "dataset",
        f"{escape(dataset['source'])}: {dataset['train']:,} images to train on, {dataset['validation']:,} to validate, "
        f"{len(dataset['classes'])} {_OUTPUTS[dataset['task']]}",
    )
    facts.add_row("model", f"{escape(plan['spec']['model']['name'])} at {plan['spec']['dataset']['image_size']} px")
    facts.add_row("steps", f"{steps['total']:,} ({steps['per_epoch']:,} an epoch)")
    facts.add_row("memory", f"{size(memory['total'])} estimated")
    if plan["features"] is not None:
        facts.add_row("frozen part", _features(plan["features"]))
    warnings = [Text(f"! {warning}", style="yellow") for warning in plan["warnings"]]
    curves = [part for curve in curves_view(plan) for part in ("", curve)]
    return Group(facts, "", transfer_view(plan["transfer"], planned=True), "", groups_view(plan["groups"]), *curves, *warnings)


def _features(facts: Json) -> str:
    """Whether what is frozen is run once."""
    if not facts["once"]:
        return f"run each time: {escape(facts['reason'])}"
    shapes = " and ".join("x".join(map(str, shape)) for shape in facts["shapes"])
    return f"run once: {shapes} numbers of each image are kept, {size(facts['bytes'])}"


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


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _kinds(parameters: Collection[str], every: Collection[str]) -> str:
    """All of them: the terminal shows as many as it has room for."""
    return ", ".join(kind.pattern for kind in collapse(dict.fromkeys(parameters, ""), every))


def _spread(value: object) -> str:
    """A value; of the parts of a group each one's, where they differ."""
    if isinstance(value, dict):
        return " | ".join(dict.fromkeys(map(_spread, value.values())))
    return str(value).lower() if isinstance(value, bool) else _value(value)
