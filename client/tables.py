"""Jobs, checkpoints and refusals for people, as rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.http import Json, RefusedError

STATE_STYLES = {
    "queued": "cyan",
    "running": "blue",
    "paused": "magenta",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
}


FIGURES = {"loss": "validation loss", "top1": "top-1", "top5": "top-5"}
"""The figures of a validation as people call them, where that is not their own name."""


def job_view(job: Json) -> RenderableType:
    """Where a job stands."""
    facts = Table.grid(padding=(0, 2))
    state = Text(job["state"], style=f"bold {STATE_STYLES.get(job['state'], '')}")
    for note in (job["requested"] and f"{job['requested']} requested", job["position"] and f"{job['position']} before it"):
        if note:
            state.append(f" ({note})", style="default")
    facts.add_row(Text(f"job {job['id']}", style="bold"), state)
    if failure := job["failure"]:
        lines = "".join(f"\n| {line}" for line in failure["lines"])
        facts.add_row("", Text(f"{failure['type']}: {failure['message']}\n{failure['hint']}").append(lines, style="dim"))
    if job["name"]:
        facts.add_row("name", escape(job["name"]))
    if job["labels"]:
        facts.add_row("labels", escape(", ".join(f"{name}:{value}" for name, value in job["labels"].items())))
    if origin := job["forked_from"]:
        weights = "" if origin["step"] is None else f", on its weights at step {origin['step']}"
        facts.add_row("forked from", f"job {origin['job']}{weights}")
    facts.add_row("dataset", escape(job["spec"]["dataset"]["source"]))
    facts.add_row("model", escape(job["spec"]["model"]["name"]))
    if stopped := job.get("stopped_early"):
        facts.add_row("stopped early", escape(stopped["message"]))
    eta = f", {lasted(job['eta_seconds'])} to go" if job["eta_seconds"] is not None else ""
    facts.add_row("steps", progress_text(job) + eta)
    if job["ran_seconds"]:
        facts.add_row("ran for", lasted(job["ran_seconds"]))
    if shown := _latest(job["latest"]):
        facts.add_row("latest", ", ".join(shown))
    facts.add_row("submitted", ago(job["created_at"]))
    return Group(facts, *(Text(f"! {warning}", style="yellow") for warning in job["warnings"]))


def _latest(latest: Json) -> list[str]:
    """The newest figures, each with its name."""
    figures = {"loss": latest.get("loss"), "mean loss": latest.get("mean_loss")}
    figures |= {FIGURES.get(name, name): value for name, value in (latest.get("validation") or {}).items()}
    return [f"{name} {figure(value)}" for name, value in figures.items() if value is not None]


def checkpoints_view(checkpoints: Sequence[Json], url: str) -> RenderableType:
    """The checkpoints that are kept, and where their weights can be had."""
    if not checkpoints:
        return Text("No checkpoint yet.", style="dim")
    table = plain_table()
    for name in ("checkpoint", "epoch", "figures", "size"):
        table.add_column(name)
    for row in checkpoints:
        figures = ", ".join(f"{name} {figure(value)}" for name, value in row["figures"].items())
        step = Text(f"step {row['step']}").append(" best" if row["best"] else "", style="bold green")
        table.add_row(step, str(row["epoch"] + 1), figures, size(row["bytes"]))
    chosen = next((row for row in checkpoints if row["best"]), checkpoints[-1])
    where = Text.assemble(("Weights: ", "dim"), f"curl -O {url}{chosen['weights']}", overflow="ignore", no_wrap=True)
    return Group(table, where)


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


def lasted(seconds: float) -> str:
    """How long something took, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def plain_table(**options: Any) -> Table:
    """A table without lines."""
    return Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left", caption_justify="left", **options)
