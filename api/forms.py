"""The forms of the log: the same stored events as NDJSON, as SSE frames, and as text for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from core.events import (
    AdjustedData,
    CheckpointData,
    EndData,
    EpochData,
    EvaluationData,
    GroupsData,
    IterationsData,
    LeftOutData,
    LogData,
    RewoundData,
    RuleData,
    StateData,
    TransferData,
    number,
    validated,
)
from store.events import StoredEvent

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""A line stays a line, and a terminal that shows it is told nothing."""


def ndjson(event: StoredEvent) -> bytes:
    """One envelope, one line."""
    return event.envelope() + b"\n"


def sse(event: StoredEvent) -> bytes:
    """One frame of `text/event-stream`; the `id` is what comes back as `Last-Event-ID`."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.kind.encode(), event.envelope())


@dataclass(frozen=True)
class LogText:
    """Events as lines for people. `steps_per_epoch` counts iterations within their epoch, from 1 as epochs are."""

    steps_per_epoch: int | None

    def __call__(self, event: StoredEvent) -> bytes:
        """The lines of one event; most have one."""
        data = orjson.loads(event.data)
        lines = self._iterations(data) if event.kind == IterationsData.kind else _LINES[event.kind](event, data)
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")

    def _iterations(self, data: dict[str, Any]) -> Iterator[str]:
        epoch = data["epoch"]
        before = epoch * (self.steps_per_epoch or 0)
        for index, loss in enumerate(data["losses"], start=data["first"] - before + 1):
            yield f"Epoch {epoch + 1}, iteration : {index}, loss = {number(loss):.4f}"


def _state(event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    said = {
        "queued": "The job waits in its queue",
        "paused": "The job is paused",
        "running": f"Attempt {event.attempt} runs",
        "succeeded": "The job succeeded",
        "failed": "The job failed",
        "cancelled": "The job was cancelled",
    }.get(data["state"], f"The job is {data['state']}")
    by = f" (by {data['by']})" if data.get("by") else ""
    told = data.get("reason") and data["state"] != "failed"  # the end says it whole
    yield _line(f"{said}{by}{': ' + data['reason'] if told else ''}")


def _transfer(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    if data["source"] is None:
        yield "Transfer : nothing, the model trains from scratch"
        return
    loaded = data["totals"].get("loaded", {}).get("tensors", 0)
    total = sum(count["tensors"] for count in data["totals"].values())
    share = f"{100 * data['loaded_share']:.1f} % of the elements outside its head"
    yield _line(f"Transfer : {loaded} of {total} tensors of the model ({share}) from {data['source']}")


def _groups(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    yield _line(f"Optimizer : {data['optimizer']} with {_counted(len(data['groups']), 'parameter group')}")
    if len(data["groups"]) > 20:  # one per parameter, as a rule
        return
    for group in data["groups"]:
        rate = f"lr {group['hyperparameters'].get('lr')}"
        if group["frozen"]:
            rate = "frozen" if group["until_epoch"] is None else f"frozen before epoch {group['until_epoch'] + 1}, then {rate}"
        yield _line(f"  {group['name']} : {_counted(group['tensors'], 'tensor')}, {rate}")


def _epoch(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    name = f"Epoch {data['epoch'] + 1}"
    yield f"{name} : Mean Loss was {number(data['mean_loss']):.4f}"
    if data["validation"]:
        figures = ", ".join(f"{figure} was {number(value):.4f}" for figure, value in data["validation"].items())
        yield _line(f"{name} : Validation {figures}")


def _evaluation(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    if data["hardest"]:
        hardest = data["hardest"][0]
        yield _line(f"Epoch {data['epoch'] + 1} : Hardest was {hardest['name']}, loss = {number(hardest['loss']):.4f}")


def _adjusted(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    changes = ", ".join(f"{key} {_value(change['from'])} -> {_value(change['to'])}" for key, change in data["changes"].items())
    told = f"not changed: {data['refused']}" if data["refused"] else changes
    yield _line(f"Step {data['step']}: group {data['group']}, {told} (by {data['by']})")


def _rule(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    yield _line(f"Rule {data['rule']} : {data['message']}")


def _value(value: Any) -> str:
    """A hyper-parameter; of the parts of a group each one's, where they differ."""
    if isinstance(value, dict):
        return " | ".join(dict.fromkeys(map(_value, value.values())))
    if isinstance(value, list):
        return f"({', '.join(map(_value, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _checkpoint(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    worth = ", the best so far" if data["best"] else ""
    if not validated(data["figures"]):  # one of a pause, say: the best only of those that were not validated either
        worth = ", not validated"
    yield f"Epoch {data['epoch'] + 1} : Checkpoint at step {data['step']}{worth}"


def _log(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    level = data.get("level", "info")
    yield _line(data["message"] if level == "info" else f"{level.capitalize()} : {data['message']}")


def _left_out(_event: StoredEvent, _data: dict[str, Any]) -> Iterator[str]:
    return iter(())  # lines of the log say it to people


def _rewound(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    yield f"Training goes on from step {data['to_step']} : what the lines above say beyond it is void"


def _end(_event: StoredEvent, data: dict[str, Any]) -> Iterator[str]:
    failure = data.get("failure")
    if failure:
        yield _line(f"Failure : {failure['type']}: {failure['message']}")
        yield _line(f"Next : {failure['hint']}")
    yield f"End : {data['state']}"


_LINES = {
    StateData.kind: _state,
    TransferData.kind: _transfer,
    GroupsData.kind: _groups,
    EpochData.kind: _epoch,
    EvaluationData.kind: _evaluation,
    AdjustedData.kind: _adjusted,
    RuleData.kind: _rule,
    CheckpointData.kind: _checkpoint,
    LeftOutData.kind: _left_out,
    LogData.kind: _log,
    RewoundData.kind: _rewound,
    EndData.kind: _end,
}


def _line(text: str) -> str:
    return _CONTROLS.sub(" ", text)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
