"""What a person is shown of a plan, a transfer, the parameter groups and the jobs, as rich renderables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.http import Json, RefusedError

STATE_STYLES = {"queued": "cyan", "running": "blue", "succeeded": "green", "failed": "red", "cancelled": "yellow"}
_SHOWN_PATTERNS = 12


def transfer_view(transfer: Json) -> RenderableType:
    """A line that sums up, a row per module with its share as a bar, then what was not loaded, collapsed."""
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
    return Group(summary, _modules(transfer["modules"]), *_left_out(transfer))


def _modules(modules: Iterable[Json]) -> Table:
    table = _table()
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
    """Tables of the model's tensors that were not loaded and of the source's that were not used."""
    targets = [(entry["key"], entry["reason"]) for entry in transfer["targets"] if entry["status"] != "loaded"]
    sources = [(entry["key"], entry["reason"]) for entry in transfer["sources"] if entry["status"] != "used"]
    shown: list[RenderableType] = []
    for title, entries in (("in the model, not loaded", targets), ("in the source, not used", sources)):
        if not entries:
            continue
        table = _table()
        table.add_column(title)
        table.add_column("tensors", justify="right")
        table.add_column("why")
        rows = collapse(entries)
        for pattern, reason, count in rows[:_SHOWN_PATTERNS]:
            table.add_row(escape(pattern), str(count), escape(reason))
        if len(rows) > _SHOWN_PATTERNS:
            table.add_row(f"and {len(rows) - _SHOWN_PATTERNS} more kinds", "", "all of them: --json", style="dim")
        shown.append(table)
    return shown


def collapse(entries: Iterable[tuple[str, str | None]]) -> list[tuple[str, str, int]]:
    """`(key, reason)` pairs as `(pattern, reason, how many)`: keys that differ only in numbers are one, `*` for the numbers.

    A number in which a whole kind agrees stays. The order is that of the first key of each kind.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for key, reason in entries:
        kinds.setdefault((re.sub(r"\d+", "*", key), re.sub(r"\[[\d, ]*\]", "[…]", reason or "")), []).append(key)
    return [(_pattern(keys), reason, len(keys)) for (_, reason), keys in kinds.items()]


def _pattern(keys: Sequence[str]) -> str:
    numbers = zip(*(re.findall(r"\d+", key) for key in keys), strict=True)
    kept = iter([column[0] if len(set(column)) == 1 else "*" for column in numbers])
    return re.sub(r"\d+", lambda _: next(kept), keys[0])


def groups_view(groups: Json) -> RenderableType:
    """One row per parameter group: what is in it, and the values it trains with."""
    rows = groups["groups"]
    names = [name for name in ("lr", "momentum", "betas", "weight_decay") if any(name in row["hyperparameters"] for row in rows)]
    table = _table(title=f"{groups['optimizer']}, parameter groups")
    table.add_column("group")
    table.add_column("tensors", justify="right")
    table.add_column("elements", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("parameters", overflow="ellipsis", no_wrap=True)
    for row in rows[:_SHOWN_PATTERNS]:
        held = row["hyperparameters"]
        values = ["frozen" if row["frozen"] and name == "lr" else _value(held.get(name)) for name in names]
        patterns = ", ".join(pattern for pattern, _, _ in collapse((key, None) for key in row["parameters"]))
        style = "dim" if row["frozen"] else None
        table.add_row(escape(row["name"]), str(row["tensors"]), f"{row['elements']:,}", *values, escape(patterns), style=style)
    if len(rows) > _SHOWN_PATTERNS:
        table.add_row(f"and {len(rows) - _SHOWN_PATTERNS} more", style="dim")
    if groups["executed_groups"] < len(rows):
        table.caption = f"run as {groups['executed_groups']}: groups with equal values are one"
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
    return Group(facts, transfer_view(plan["transfer"]), groups_view(plan["groups"]), *warnings)


def jobs_view(jobs: Sequence[Json]) -> RenderableType:
    """A row per job."""
    if not jobs:
        return Text("No jobs.", style="dim")
    table = _table()
    for name, justify in (("id", "right"), ("name", "left"), ("state", "left"), ("progress", "left"), ("top-1", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("model", overflow="ellipsis", no_wrap=True)
    table.add_column("submitted", justify="right")
    for job in jobs:
        table.add_row(
            str(job["id"]),
            escape(job["name"] or ""),
            Text(job["state"], style=STATE_STYLES.get(job["state"], "")),
            progress_text(job),
            figure(job["best"]["figures"].get("top1") if job["best"] else None),
            escape(job["spec"]["model"]["name"]),
            ago(job["created_at"]),
        )
    return table


def job_view(job: Json) -> RenderableType:
    """Where a job stands."""
    facts = Table.grid(padding=(0, 2))
    state = Text(job["state"], style=f"bold {STATE_STYLES.get(job['state'], '')}")
    for note in (job["requested"] and f"{job['requested']} requested", job["position"] and f"{job['position']} before it"):
        if note:
            state.append(f" ({note})", style="default")
    facts.add_row(Text(f"job {job['id']}", style="bold"), state)
    if job["failure"]:
        facts.add_row("", Text(f"{job['failure']['type']}: {job['failure']['message']}\n{job['failure']['hint']}"))
    if job["name"]:
        facts.add_row("name", escape(job["name"]))
    if job["labels"]:
        facts.add_row("labels", escape(", ".join(f"{name}:{value}" for name, value in job["labels"].items())))
    facts.add_row("dataset", escape(job["spec"]["dataset"]["source"]))
    facts.add_row("model", escape(job["spec"]["model"]["name"]))
    eta = f", {job['eta_seconds']:.0f} s to go" if job["eta_seconds"] is not None else ""
    facts.add_row("steps", progress_text(job) + eta)
    latest = job["latest"]
    figures = {"loss": latest["loss"], "mean loss": latest["mean_loss"], **(latest["validation"] or {})}
    shown = [f"{name} {figure(value)}" for name, value in figures.items() if value is not None]
    if shown:
        facts.add_row("latest", ", ".join(shown))
    facts.add_row("submitted", ago(job["created_at"]))
    return Group(facts, *(Text(f"! {warning}", style="yellow") for warning in job["warnings"]))


def checkpoints_view(checkpoints: Sequence[Json], url: str) -> RenderableType:
    """The checkpoints that are kept, and where their weights can be had."""
    if not checkpoints:
        return Text("No checkpoint yet.", style="dim")
    table = _table()
    for name in ("checkpoint", "epoch", "figures", "size"):
        table.add_column(name)
    table.add_column("weights", overflow="fold")
    for row in checkpoints:
        figures = ", ".join(f"{name} {figure(value)}" for name, value in row["figures"].items())
        step = Text(f"step {row['step']}").append(" best" if row["best"] else "", style="bold green")
        table.add_row(step, str(row["epoch"] + 1), figures, size(row["bytes"]), escape(f"{url}{row['weights']}"))
    return table


def refusal_view(problem: RefusedError) -> RenderableType:
    """A refused request as a list: where in the spec, and what to write instead."""
    if not problem.faults:
        return Text(problem.detail, style="red")
    count = len(problem.faults)
    table = Table.grid(padding=(0, 2))
    for fault in problem.faults:
        table.add_row(Text("  " + (fault.pointer or "(the whole)"), style="cyan"), Text(fault.message))
    return Group(Text(f"Refused: {count} place{'s' if count > 1 else ''} to mend", style="bold red"), table)


def progress_text(job: Json) -> str:
    """`45 of 78`."""
    progress = job["progress"]
    return f"{progress['step']} of {progress['steps']}" if progress.get("steps") else str(progress["step"])


def figure(value: float | str | None) -> str:
    """A figure with four digits; the events carry what is not finite as text."""
    return "" if value is None else f"{float(value):.4f}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def ago(moment: str, now: datetime | None = None) -> str:
    """How long ago an ISO time was."""
    seconds = int(((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds())
    for length, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {name} ago"
    return f"{max(seconds, 0)} s ago"


def _table(**options: Any) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left", caption_justify="left", **options)


def _tensors(totals: Json, status: str) -> int:
    return int(totals.get(status, {}).get("tensors", 0))


def _bar(part: int, whole: int, width: int = 12) -> Text:
    share = part / whole if whole else 0.0
    filled = width if part == whole else min(round(share * width), width - 1)
    return Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "bright_black"), f" {share:.1%}")


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
