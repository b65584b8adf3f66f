"""Iterations per second of the same training by the well-known libraries, by ours, and by as little as training can be.

make benchmark-peers                              all five workloads; some 35 minutes on two idle cores
make benchmark-peers ARGS="--quick"               fewer and shorter turns; some ten minutes
make benchmark-peers ARGS="--workload 4 --markdown"

Each contender is a process of its own (`contenders/`), with the same model, seed, images decoded in memory, batch of 64, Adam
at 1e-3 and threads; for the rest as its documentation would have one write it, with the log and progress bar that it has by
default, and without worker processes, which on two cores only cost. They take turns of a second or so, so that a slow moment of
the machine falls on all; whoever has no turn stands still. The figure of a turn is the mean of its iterations, a contender's is
the median of its turns but the first, which warms up. Two contenders are compared round by round: their ratio is the median of
the ratios of those turns of theirs that were next to each other. An iteration begins where the one before it has ended; the
first of a turn and of an epoch do not count, so neither do validation and checkpoints.

Workloads 3 and 5 are told in seconds instead: ten whole epochs from the call that trains to its return, with all that the library
does around them. How long each took until then is told beside it: the libraries read decoded images and build the model, ours
decodes them, plans, builds and grafts. Through the service all of that counts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from multiprocessing import Pipe
from pathlib import Path

import torch
from contenders.turns import Block, Task
from contenders.workloads import BATCH, WORKLOADS, Workload
from loop import machine

HERE = Path(__file__).parent
ARTICLE = {"article": "the article's loop"}
LIBRARIES = {
    "lightning": "Lightning",
    "fastai": "fastai",
    "timm": "timm",
    "transformers": "Hugging Face Trainer",
}
PEERS = {**ARTICLE, **LIBRARIES}
OURS = {"ours": "ours, every loss taken", "service": "ours, through the service"}
BARE = {"bare": "bare", "bare_channels_last": "bare, channels last"}
NAMES = {**PEERS, **OURS, **BARE}
OF_BARE = 0.97
"""Of the bare rate, the better of both memory formats, what ours must reach in process."""
OF_BEST_LIBRARY = 8.0
"""Of the best library's speed, what ours must reach where the backbone is frozen. The article's loop does not validate."""
_SAID = {True: ": met", False: ": missed", None: ""}


class Absent(Exception):  # noqa: N818 - it is no error: the table says it
    """A contender that cannot take part, and why."""


@dataclass
class Record:
    """What a contender did on a workload."""

    turns: list[float] = field(default_factory=list)
    """The mean seconds of an iteration in each turn."""
    totals: list[float] = field(default_factory=list)
    """Seconds of each whole run, where the workload has an end."""
    ready: list[float] = field(default_factory=list)
    """Seconds before each of them, until all was decoded and built."""
    absent: str | None = None

    @property
    def rounds(self) -> list[float]:
        """Of each round its seconds: of an iteration, or of the whole run."""
        return self.totals or self.turns

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    def against(self, other: Record) -> float:
        """How many times as fast as the other: the median over the rounds that both took part in."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.rounds, other.rounds, strict=False))

    def quartiles(self) -> tuple[float, float]:
        """The first and the third; of very few whole runs, the lowest and the highest."""
        values = self.rounds
        if len(values) < 4:
            return min(values), max(values)
        low, _, high = statistics.quantiles(values, n=4)
        return low, high


class Contender:
    """The process of one of them, and our end of its pipe."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._connection, theirs = Pipe()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"contenders.{name}", str(theirs.fileno()), str(threads)],
                cwd=HERE, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        theirs.close()

    def receive(self) -> Block:
        """The next block. Raises Absent."""
        try:
            block: Block = self._connection.recv()
        except EOFError:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise Absent(lines[-1] if lines else "it died without a word") from None
        if block.failure:
            self._connection.recv()
            raise Absent(block.failure)
        return block

    def ask(self, task: Task) -> None:
        """Prepare a workload. Raises Absent."""
        try:
            self._connection.send(task)
        except OSError:
            raise Absent("it died in the workload before") from None

    def turn(self) -> Block:
        """Let it do its block."""
        self._connection.send(True)
        return self.receive()

    def stop(self) -> None:
        """End its present training."""
        self._connection.send(False)
        self._connection.recv()

    def done(self) -> None:
        """Wait until a training that ended by itself is gone."""
        self._connection.recv()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            try:
                self._connection.send(None)
                self._process.wait(30)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
        self._process.wait()
        self._connection.close()


@contextmanager
def contenders(names: Iterable[str], folder: Path, threads: int) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Those that have started, and why the others have not."""
    with ExitStack() as stack:
        started, absent = {}, {}
        for name in names:
            started[name] = Contender(name, folder, threads)
            stack.callback(started[name].close)
        for name in list(started):
            try:
                started[name].receive()
            except Absent as why:
                absent[name] = str(why)
                del started[name]
        yield started, absent


def ready(contender: Contender, task: Task, record: Record) -> None:
    """Have it prepare, unless it is out already."""
    if record.absent:
        return
    try:
        contender.ask(task)
        record.ready.append(contender.receive().seconds)
    except Absent as why:
        record.absent = str(why)


def race(started: dict[str, Contender], task: Task, turns: int, records: dict[str, Record]) -> None:
    """A first turn that is not kept, then `turns` of each; whoever fails is out."""
    for name, contender in started.items():
        ready(contender, task, records[name])
    running = [name for name in started if not records[name].absent]
    for turn in range(turns + 1):
        for name in _rotated(running, turn):
            try:
                block = started[name].turn()
            except Absent as why:
                records[name].absent = str(why)
                running.remove(name)
                continue
            if turn:
                records[name].turns.append(statistics.mean(block.iterations))
    for name in running:
        started[name].stop()


def race_to_the_end(started: dict[str, Contender], task: Task, records: dict[str, Record]) -> None:
    """A whole run of each, in turns of a second; the seconds of its turns add up."""
    for name, contender in started.items():
        ready(contender, task, records[name])
    running = [name for name in started if not records[name].absent]
    sums = dict.fromkeys(running, 0.0)
    for turn in itertools.count():
        for name in _rotated(running, turn):
            try:
                block = started[name].turn()
            except Absent as why:
                records[name].absent = str(why)
                running.remove(name)
                continue
            sums[name] += block.seconds
            if block.finished:
                records[name].totals.append(sums[name])
                started[name].done()
                running.remove(name)
        if not running:
            return


def _rotated(names: Sequence[str], by: int) -> list[str]:
    """Nobody always goes first, while the caches are another's."""
    cut = by % len(names) if names else 0
    return [*names[cut:], *names[:cut]]


def measure(
    workload: Workload, started: dict[str, Contender], absent: dict[str, str], given: argparse.Namespace
) -> dict[str, Record]:
    """The records of all on one workload."""
    records = {name: Record(absent=absent.get(name)) for name in NAMES if name in started or name in absent}
    block = workload.block and (given.block or workload.block)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data.pt"
        inputs = workload.inputs(Path(directory))
        splits = workload.decode(inputs)
        torch.save({name: tuple(split) for name, split in splits.items()}, data)
        taking_part = {name: one for name, one in started.items() if not (workload.epochs and name in BARE)}
        records = {name: record for name, record in records.items() if name not in BARE or not workload.epochs}
        epochs = workload.epochs or 1 + (given.loops + 1) * (block or 0) // 25
        task = Task(workload.number, len(splits["train"].labels), data, inputs, Path(directory), epochs, block)
        if workload.epochs:
            for _ in range(given.runs):
                race_to_the_end(taking_part, task, records)
        else:
            race(taking_part, task, given.loops, records)
    return records


def main() -> int:
    """Exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=int, action="append", choices=[one.number for one in WORKLOADS], help="by default all")
    parser.add_argument("--loops", type=int, default=20, help="turns of each, after the one that warms up")
    parser.add_argument("--block", type=int, help="iterations in a turn, by default as many as take about a second")
    parser.add_argument("--runs", type=int, default=2, help="whole runs of each, for workloads 3 and 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", action="append", choices=NAMES, help="some of the contenders")
    parser.add_argument("--quick", action="store_true", help="eight turns, and one whole run")
    parser.add_argument("--markdown", action="store_true", help="print the tables as docs/performance.md has them")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.quick:
        given.loops, given.runs = min(given.loops, 8), 1
    chosen = [one for one in WORKLOADS if not given.workload or one.number in given.workload]
    met = True
    with (
        tempfile.TemporaryDirectory() as folder,
        contenders(given.only or NAMES, Path(folder), given.threads) as (started, absent),
    ):
        print((", " if given.markdown else "\n").join([*machine(), versions()]), flush=True)
        for workload in chosen:
            records = measure(workload, started, absent, given)
            print(f"\n{workload.number}. {workload.title}, batch {BATCH}\n")
            print("\n".join(table(workload, records, markdown=given.markdown)) + "\n")
            for line, reached in targets(workload, records):
                print(f"{'- ' if given.markdown else ''}{line}{_SAID[reached]}", flush=True)
                met &= reached is not False
    return 0 if met else 1


def versions() -> str:
    """Of the peers that are installed."""
    return ", ".join(f"{one.metadata['Name']} {one.version}" for one in distributions() if one.metadata["Name"] in PEERS)


def table(workload: Workload, records: dict[str, Record], *, markdown: bool) -> Iterator[str]:
    """The lines of a table, the fastest first."""
    whole = workload.epochs is not None
    head = ["", "seconds", "lowest … highest", "of ours", "ready after"] if whole else ["", "ms", "quartiles", "it/s", "of bare"]
    run = {name: record for name, record in records.items() if not record.absent}
    rows = []
    for name, record in sorted(run.items(), key=lambda one: one[1].seconds):
        low, high = record.quartiles()
        scale, digits = (1, 1) if whole else (1000, 1 if record.seconds > 0.02 else 2)
        row = [NAMES[name], f"{record.seconds * scale:.{digits}f}", f"{low * scale:.{digits}f} … {high * scale:.{digits}f}"]
        if whole:
            ratio = f"{records['ours'].against(record):.2f}" if "ours" in run else ""
            row += [ratio, f"{statistics.median(record.ready):.1f}"]
        else:
            share = _against(record, run, BARE)
            row += [f"{1 / record.seconds:.2f}", f"{share:.3f}" if share else ""]
        rows.append(row)
    rows += [
        [NAMES[name], "not run:", record.absent, *[""] * (len(head) - 3)] for name, record in records.items() if record.absent
    ]
    if markdown:
        yield from ("| " + " | ".join(row) + " |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *rows])
        return
    for row in [head, *rows]:
        yield f"{row[0]:27}{row[1]:>10}{row[2]:>20}" + "".join(f"{cell:>13}" for cell in row[3:])


def targets(workload: Workload, records: dict[str, Record]) -> Iterator[tuple[str, bool | None]]:
    """What is to be reached, and whether it is; None of what is told without a target: whole runs through the service."""
    run = {name: record for name, record in records.items() if not record.absent}
    if "ours" in run and (share := _against(run["ours"], run, BARE)):
        yield f"ours is {share:.3f} of bare, the target is {OF_BARE}", share >= OF_BARE
    wanted, others, best = (OF_BEST_LIBRARY, LIBRARIES, "library") if workload.epochs else (1.0, PEERS, "peer")
    for name in OURS:
        if name in run and (times := _against(run[name], run, others)):
            told = f"{NAMES[name]}: {times:.2f} times the best {best}"
            if workload.epochs and name == "service":
                yield told, None
            else:
                yield f"{told}, the target is {wanted:g}", times >= wanted


def _against(record: Record, run: dict[str, Record], others: Iterable[str]) -> float | None:
    """How many times as fast as the best of the others; None where none of them ran."""
    return min((record.against(run[name]) for name in others if name in run), default=None)


if __name__ == "__main__":
    sys.exit(main())
