"""A checkpoint of some 350 MB on to its model: Graft's read, plan and apply beside plain PyTorch and beside safetensors.

Each way runs in processes of its own, the ways taking turns, over the same file: seconds by the clock, from the file to the
loaded model, and the most memory that the process held beyond what it held before (imports, and the model).
The file has been read once before, so that it comes from memory for all of them. A job knows the file's SHA-256 from its
submission, and that its numbers are finite; where that is not known, as in a notebook, both are found out on the way. Run it:
`python benchmarks/transfer.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from loop import machine
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torchvision.models import vit_b_16

TARGET = 1.2
CLASSES = 1000


def graft(model: nn.Module, path: Path, known: bool = False) -> None:
    """Plan, check and load, with the report that comes of it. `known`: its pin says what a plan has found out of the file."""
    from core import hashes  # noqa: PLC0415
    from core.places import PinnedWeights, Places  # noqa: PLC0415
    from core.spec import PretrainedSpec  # noqa: PLC0415
    from core.transfer.heads import Head  # noqa: PLC0415  (the others need none of it)
    from core.transfer.weights import apply_transfer, plan_transfer, read  # noqa: PLC0415

    head = Head(frozenset({"heads.head.weight", "heads.head.bias"}), ("heads.head",))
    name = f"file:{path.name}"
    pin = PinnedWeights(file=path.name, sha256="0" * 64, stamp=hashes.stamp_of(path), finite=True)
    source = read(name, Places(inputs=path.parent, pinned={name: pin} if known else {}))
    plan = plan_transfer(model, source, PretrainedSpec(source=source.name, head="keep", min_loaded=1), head)
    apply_transfer(model, source, plan)


def graft_pinned(model: nn.Module, path: Path) -> None:
    """The same for a file as a job has it."""
    graft(model, path, known=True)


def plain(model: nn.Module, path: Path) -> None:
    """`torch.load`, safely and mapped, and `load_state_dict`."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def from_file(model: nn.Module, path: Path) -> None:
    """Safetensors' `load_file`, and `load_state_dict`."""
    model.load_state_dict(load_file(path))


def whole_model(model: nn.Module, path: Path) -> None:
    """Safetensors' `load_model`."""
    load_model(model, path)


WAYS: dict[str, tuple[str, str, Callable[[nn.Module, Path], None]]] = {
    "graft, .safetensors": ("Graft in a job: read, plan, apply", ".safetensors", graft_pinned),
    "graft anew, .safetensors": ("the same, nothing known of the file", ".safetensors", graft),
    "load_file": ("safetensors: load_file + load_state_dict", ".safetensors", from_file),
    "load_model": ("safetensors: load_model", ".safetensors", whole_model),
    "graft, .pth": ("Graft in a job: read, plan, apply", ".pth", graft_pinned),
    "graft anew, .pth": ("the same, nothing known of the file", ".pth", graft),
    "torch.load": ("torch.load(weights_only, mmap) + load_state_dict", ".pth", plain),
}
OURS = (graft, graft_pinned)


def main() -> int:
    """Print the table; 1 if Graft takes longer than the target allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is run")
    parser.add_argument("--one", metavar=("WAY", "FILE"), nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, file = arguments.one
        sys.stdout.write(json.dumps(measure(WAYS[way][2], Path(file))))
        return 0
    console = Console(highlight=False, width=120)
    for line in machine():
        console.print(line, style="dim")
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as directory:
        size = write(Path(directory))
        found = rounds(Path(directory), arguments.rounds)
    console.print(f"ViT-B/16 with {CLASSES} classes, {size / 1e6:.0f} MB, {arguments.rounds} rounds", style="dim")
    return show(console, found)


def write(directory: Path) -> int:
    """The checkpoint in both formats; its bytes."""
    state = empty_model().state_dict()
    for value in state.values():
        value.normal_()
    torch.save(state, directory / "vit.pth")
    save_file(state, directory / "vit.safetensors")
    return (directory / "vit.pth").stat().st_size


def rounds(directory: Path, count: int) -> dict[str, list[tuple[float, float]]]:
    """Per way its (seconds, peak MB), the ways taking turns, there and back."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for round_ in range(count):
        for way in list(WAYS)[:: -1 if round_ % 2 else 1]:
            suffix = WAYS[way][1]
            command = [sys.executable, __file__, "--one", way, str(directory / f"vit{suffix}")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(tuple(json.loads(done.stdout)))
    return found


def measure(load: Callable[[nn.Module, Path], None], path: Path) -> tuple[float, float]:
    """(seconds, MB beyond what was there before) of one load; a small one before it pays for what is imported late."""
    model = empty_model()
    rehearse(load, path)
    path.read_bytes()
    gc.collect()
    gc.freeze()  # as a job's process has it, before it begins: no way's objects have torch's own looked through
    before = reset_peak()
    begun = time.perf_counter()
    load(model, path)
    seconds = time.perf_counter() - begun
    return seconds, memory("VmHWM") - before


def empty_model() -> nn.Module:
    """The model with zeros for weights: what a constructor draws takes longer than all that is measured here."""
    with torch.device("meta"):
        model = vit_b_16(num_classes=CLASSES)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    return model


def rehearse(load: Callable[[nn.Module, Path], None], path: Path) -> None:
    """The same way over a model of the same names that is small."""
    small = nn.ModuleDict({"heads": nn.ModuleDict({"head": nn.Linear(2, 2)}), "body": nn.Linear(2, 2)})
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / path.name
        (torch.save if file.suffix == ".pth" else save_file)(small.state_dict(), file)  # type: ignore[operator]
        load(small, file)


def reset_peak() -> float:
    """Start the kernel's high-water mark anew (proc(5), clear_refs); the MB that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> float:
    """A line of /proc/self/status, in MB. Pages of a mapped file count, as they do for every way."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def show(console: Console, found: dict[str, list[tuple[float, float]]]) -> int:
    """A row per way, Graft's with its ratio to the faster of the others of its format."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("", "format", "median", "fastest", "peak memory", "to the faster"):
        table.add_column(name, justify="right" if name not in {"", "format"} else "left")
    medians = {way: statistics.median(seconds for seconds, _ in runs) for way, runs in found.items()}
    worst = 0.0
    for way, runs in found.items():
        title, suffix, load = WAYS[way]
        others = [medians[other] for other, (_, theirs, their) in WAYS.items() if theirs == suffix and their not in OURS]
        ratio = medians[way] / min(others)
        worst = max(worst, ratio if load is graft_pinned else 0.0)
        peak = statistics.median(mb for _, mb in runs)
        seconds = f"{medians[way]:.3f} s", f"{min(second for second, _ in runs):.3f} s"
        table.add_row(title, suffix, *seconds, f"{peak:.0f} MB", f"{ratio:.2f}")
    console.print(table)
    met = worst <= TARGET
    console.print(f"Target: within {TARGET} of the faster. {'Met' if met else 'Missed'}.", style="green" if met else "red")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
