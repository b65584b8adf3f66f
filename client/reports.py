"""What a plan says, and the parameter groups, for people: as rich renderables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.collapse import collapse
from client.http import Json
from client.tables import plain_table, size
from client.transfer import transfer_view

_SHOWN_ROWS = 12
_SHOWN_KINDS = 3
_PARAMETERS_WIDTH = 30


def groups_view(groups: Json) -> RenderableType:
    """One row per parameter group: what is in it, and the values it trains with."""
    rows = groups["groups"]
    names = [name for name in ("lr", "momentum", "betas", "weight_decay") if any(name in row["hyperparameters"] for row in rows)]
    every = [name for row in rows for name in row["parameters"]]
    table = plain_table(title=f"{groups['optimizer']}, parameter groups")
    table.add_column("group", no_wrap=True)
    for name in ("tensors", "elements", *names):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="ellipsis", no_wrap=True, max_width=_PARAMETERS_WIDTH)
    for row in rows[:_SHOWN_ROWS]:
        held = row["hyperparameters"]
        values = ["frozen" if row["frozen"] and name == "lr" else _value(held.get(name)) for name in names]
        style = "dim" if row["frozen"] else None
        table.add_row(
            escape(row["name"]),
            str(row["tensors"]),
            f"{row['elements']:,}",
            *values,
            _kinds(row["parameters"], every),
            style=style,
        )
    if len(rows) > _SHOWN_ROWS:
        table.add_row(f"and {len(rows) - _SHOWN_ROWS} more", style="dim")
    if groups["executed_groups"] < len(rows):
        table.caption = f"run as {groups['executed_groups']}: equal ones are one, frozen ones none"
    return table


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
    return Group(facts, "", transfer_view(plan["transfer"]), "", groups_view(plan["groups"]), *warnings)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _kinds(parameters: Sequence[str], every: Sequence[str]) -> str:
    kinds = [kind.pattern for kind in collapse(dict.fromkeys(parameters, ""), every)]
    more = f" and {len(kinds) - _SHOWN_KINDS} more kinds" if len(kinds) > _SHOWN_KINDS else ""
    return escape(", ".join(kinds[:_SHOWN_KINDS]) + more)
