"""Stand-ins for the trainer: each does one thing that a supervisor must cope with."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from core.adjustments import Adjustment, Adjustments
from core.events import AdjustedData, Change, CheckpointData, EpochData, Iteration, RewoundData
from sandbox import Channel
from worker.link import CancelledError, Link, PausedError

Json = dict[str, Any]


def _say(channel: Channel, at: int, event: str, **data: Any) -> None:
    channel.send({"step": at, "kind": event, "data": data})


def _loss(channel: Channel, step: int) -> None:
    _say(channel, step + 1, "iterations", epoch=0, first=step, losses=[1.0 / (step + 1)], lr={"default": 0.1})


def steady(channel: Channel) -> None:
    """As many losses as the label says, an event each."""
    steps = int(channel.receive()["spec"]["labels"]["steps"])
    for step in range(steps):
        _loss(channel, step)
    data = EpochData(epoch=0, mean_loss=0.5, validation=None, seconds=1, samples_per_second=1)
    _say(channel, steps, "epoch", **data.model_dump())
    channel.send({"kind": "done"})


def told(channel: Channel) -> None:
    """Print the start message's own facts."""
    start = channel.receive()
    for key in ("job", "attempt", "device", "directory", "resume"):
        print(f"{key}={start[key]}")
    print(f"cwd={Path.cwd()}")
    channel.send({"kind": "done"})


def talkative(channel: Channel) -> None:
    channel.receive()
    print("by print")
    print("to stderr", file=sys.stderr)
    os.write(1, b"by native code\n")
    os.write(1, b"10%\r20%\rdone")
    channel.send({"kind": "done"})


def flood(channel: Channel) -> None:
    channel.receive()
    _loss(channel, 0)
    line = b"x" * 60 + b"\n"
    for _ in range(200):
        os.write(1, line * 1000)
    os.write(1, b"the last line\n")
    channel.send({"kind": "done"})


def abort(channel: Channel) -> None:
    channel.receive()
    _loss(channel, 0)
    for number in range(30):
        print(f"line {number}")
    os.abort()


def leave(channel: Channel) -> None:
    channel.receive()
    sys.exit(7)


def fail(channel: Channel) -> None:
    channel.receive()
    print("as a last word")
    failure = {"type": "non_finite_loss", "message": "the loss became nan", "hint": "Lower the lr.", "lines": []}
    channel.send({"kind": "failed", "failure": failure})


def stubborn(channel: Channel) -> None:
    """Hears nothing."""
    channel.receive()
    _loss(channel, 0)
    time.sleep(60)


def obedient(channel: Channel) -> None:
    """Trains until it is cancelled or paused, as long as its permit holds."""
    start = channel.receive()
    link = Link(channel, start["permit"])
    try:
        for step in range(100_000):
            link.wait()
            link.iteration(Iteration(step=step, epoch=0, loss=1.0, samples=1, lr={"default": 0.1}))
            time.sleep(0.01)
    except CancelledError:
        link.end(kind="cancelled")
    except PausedError:
        link.end(kind="paused")


def forge(channel: Channel) -> None:
    channel.receive()
    _say(channel, 1, "end", state="succeeded", failure=None, last_seq=3)
    time.sleep(60)


def garble(channel: Channel) -> None:
    channel.receive()
    os.write(channel.fileno(), b"no JSON at all\n")
    time.sleep(60)


def save(channel: Channel) -> None:
    """Six checkpoints, of which the second is the best."""
    start = channel.receive()
    for number in range(1, 7):
        step = number * 10
        (Path(start["directory"]) / str(step)).mkdir()
        (Path(start["directory"]) / str(step) / "model.safetensors").write_bytes(b"weights")
        figures = {"loss": 1.0, "top1": 0.9 if number == 2 else number / 100}
        data = CheckpointData(step=step, epoch=number, figures=figures, best=False, path=str(step), sha256="0" * 64, bytes=7)
        _say(channel, step, "checkpoint", **data.model_dump())
    (Path(start["directory"]) / ".70.partial").mkdir()
    channel.send({"kind": "done"})


def save_and_go_back(channel: Channel) -> None:
    """The log hears of two checkpoints; of the third, written after it went back, once the first has been let go."""
    start = channel.receive()
    places = {name: Path(start["directory"]) / name for name in ("10", "20", "15.1")}
    for place in places.values():
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"weights")

    def tell(step: int, name: str) -> None:
        figures = {"top1": step / 100}
        data = CheckpointData(step=step, epoch=0, figures=figures, best=False, path=name, sha256="0" * 64, bytes=7)
        _say(channel, step, "checkpoint", **data.model_dump())

    tell(10, "10")
    tell(20, "20")
    while places["10"].exists():
        time.sleep(0.01)
    _say(channel, 10, "rewound", to_step=10)
    tell(15, "15.1")
    channel.send({"kind": "done"})


def stray(channel: Channel) -> None:
    """A checkpoint in a place that is none."""
    channel.receive()
    data = CheckpointData(step=1, epoch=0, figures={}, best=False, path="../9/1", sha256="0" * 64, bytes=7)
    _say(channel, 1, "checkpoint", **data.model_dump())
    time.sleep(60)


def save_and_die(channel: Channel) -> None:
    """A checkpoint, and a half of one, per attempt; at the third attempt it works."""
    start = channel.receive()
    step = start["attempt"] * 10
    (Path(start["directory"]) / str(step)).mkdir()
    (Path(start["directory"]) / ".half").mkdir()
    if start["attempt"] == 3:
        print(f"resume={start['resume']}")
        channel.send({"kind": "done"})
        return
    data = CheckpointData(step=step, epoch=0, figures={"top1": 0.5}, best=False, path=str(step), sha256="0" * 64, bytes=7)
    _say(channel, step, "checkpoint", **data.model_dump())
    os.abort()


def given(channel: Channel) -> None:
    """Print where each source of weights lies."""
    for source, pinned in channel.receive()["places"]["pinned"].items():
        print(f"{source} {pinned['path']}")
    channel.send({"kind": "done"})


def ranked(channel: Channel) -> None:
    """Print what a rank is told of itself; rank 0 waits for the others, which have no need to say a word."""
    start = channel.receive()
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"]
    print(f"device={start['device']}", *(f"{name}={os.environ.get(name)}" for name in names))
    if os.environ.get("RANK", "0") == "0":
        time.sleep(0.3)
    channel.send({"kind": "done"})


def ranks_stand(channel: Channel) -> None:
    """Rank 0 trains as long as it may; the others wait for it, as in a collective that never ends."""
    if os.environ["RANK"] == "0":
        obedient(channel)
    else:
        stubborn_rank(channel)


def stubborn_rank(channel: Channel) -> None:
    channel.receive()
    print(f"pid={os.getpid()}")
    time.sleep(60)


def adjustable(channel: Channel) -> None:
    """Takes steps, and does between them what is asked; its first attempt dies at the step that a label says."""
    start = channel.receive()
    asked = Adjustments(Adjustment(**one) for one in start["adjusted"])
    for one in start["adjust"]:
        asked.ask(Adjustment(**one))
    link = Link(channel, start["permit"], adjustments=asked)
    first = int(start["spec"]["labels"].get("from", "0")) if start["attempt"] > 1 else 0
    if start["attempt"] > 1:
        link.event(first, RewoundData(to_step=first))
    link.line("info", f"settled {[one.id for one in asked.settled(first)]}")
    try:
        for step in range(first, 100_000):
            link.wait()
            if start["attempt"] == 1 and step == int(start["spec"]["labels"].get("dies", "-1")):
                time.sleep(1)  # what was said is heard
                os.abort()
            for one in asked.due(step):
                changes = {key: Change(before=None, to=value) for key, value in one.changes.items()}
                link.event(step, AdjustedData(id=one.id, group=one.group, step=step, changes=changes, by=one.by))
            link.iteration(Iteration(step=step, epoch=0, loss=1.0, samples=1, lr={"default": 0.1}))
            time.sleep(0.01)
    except CancelledError:
        link.end(kind="cancelled")
    except PausedError:
        link.end(kind="paused")
