"""Follow a job on a terminal: a bar with the newest losses below, a line per epoch above it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from client.http import Json
from client.reports import adjusted_text
from client.tables import FIGURES, STATE_STYLES, figure
from client.transfer import transfer_view

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24


class Follower:
    """Draws the events of one job as they come. Use it as a context manager, and `feed` it each event.

    On a terminal a bar shows each iteration's loss; elsewhere only the lines above it are printed.
    """

    def __init__(self, console: Console, job: Json, *, transfer: bool = True) -> None:
        self.losses: list[float] = []
        self.end: Json | None = None
        self._epochs: list[tuple[int, Json]] = []
        self._console = console
        self._transfer = transfer
        self._recent: deque[float] = deque(maxlen=_SPARK_WIDTH)
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("loss [bold]{task.fields[loss]}[/] [cyan]{task.fields[spark]}[/]"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID = self._progress.add_task(
            f"job {job['id']}", total=job["progress"]["steps"], completed=job["progress"]["step"], loss="", spark=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def epochs(self) -> list[Json]:
        """The data of each `epoch` so far."""
        return [epoch for _, epoch in self._epochs]

    def feed(self, event: Json) -> None:
        """Draw one event."""
        draw = getattr(self, f"_on_{event['kind']}", None)
        if draw is not None:
            draw(event["data"], event["step"])

    def follow(self, events: Iterable[Json]) -> Json:
        """Draw all events; the data of `end`."""
        for event in events:
            self.feed(event)
        assert self.end is not None  # noqa: S101 (a followed stream closes with it, or raises)
        return self.end

    def _on_state(self, data: Json, _step: int) -> None:
        if data["state"] == "queued" and data.get("reason"):
            self._line(f"back in the queue: {data['reason']}", style="yellow")
        if data["state"] == "paused":
            why = f": {data['reason']}" if data.get("reason") else ""
            self._line(f"paused{why}; it goes on when it is resumed", style="yellow")

    def _on_transfer(self, data: Json, _step: int) -> None:
        if self._transfer:
            self._console.print(transfer_view(data))

    def _on_iterations(self, data: Json, _step: int) -> None:
        losses = [float(loss) for loss in data["losses"]]
        del self.losses[data["first"] :]
        self.losses += losses
        self._recent.extend(losses)
        spark = sparkline(list(self._recent))
        self._progress.update(self._bar, completed=len(self.losses), loss=figure(losses[-1]), spark=spark)

    def _on_epoch(self, data: Json, step: int) -> None:
        self._epochs.append((step, data))
        figures = {"mean loss": data["mean_loss"]}
        figures |= {FIGURES.get(name, name): value for name, value in (data["validation"] or {}).items()}
        text = "  ".join(f"{name} [bold]{figure(value)}[/]" for name, value in figures.items())
        self._console.print(f"  epoch {data['epoch'] + 1}  {text}  [dim]{data['seconds']:.1f} s[/]")

    def _on_adjusted(self, data: Json, _step: int) -> None:
        self._line(adjusted_text(data), style="cyan")

    def _on_rule(self, data: Json, _step: int) -> None:
        self._line(f"{data['rule'].replace('_', ' ')}: {data['message']}", style="yellow")

    def _on_log(self, data: Json, _step: int) -> None:
        styles = {"warning": "yellow", "error": "red"}
        self._line(data["message"], style=styles.get(data["level"], "dim"))

    def _on_rewound(self, data: Json, _step: int) -> None:
        self._line(f"going on from step {data['to_step']}", style="yellow")
        del self.losses[data["to_step"] :]
        self._epochs = [(step, epoch) for step, epoch in self._epochs if step <= data["to_step"]]
        self._progress.update(self._bar, completed=data["to_step"])

    def _on_end(self, data: Json, _step: int) -> None:
        self.end = data

    def _line(self, text: str, style: str) -> None:
        self._console.print(f"  {escape(text)}", style=style, highlight=False)


def outcome(end: Json) -> Text:
    """How a job ended, and if it failed, why and what to try; what it printed has been shown."""
    text = Text(end["state"], style=f"bold {STATE_STYLES[end['state']]}")
    if failure := end.get("failure"):
        text.append(f" ({failure['type']}): {failure['message']}", style="default")
        text.append(f"\n{failure['hint']}", style="default")
    return text


def sparkline(values: list[float]) -> str:
    """Values as a row of blocks, the lowest and the highest of them at the two ends of the scale."""
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / span * top)] if abs(value) < float("inf") else "!" for value in values)
