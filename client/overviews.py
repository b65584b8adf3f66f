"""The jobs of a service, and the workers: a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from client.http import Json
from client.listing import Column, listing
from client.tables import STATE_STYLES, ago, figure, lasted, progress_text

_TO_GO = Column("to go", right=True, spare=2)
_JOBS = (
    Column("id", right=True),
    Column("name", least=10),
    Column("state"),
    Column("progress"),
    _TO_GO,
    Column("best", right=True, spare=3),
    Column("model", least=10, spare=4),
    Column("submitted", right=True, spare=1),
)
_WORKERS = (
    Column("worker"),
    Column("state"),
    Column("queues", least=8, spare=2),
    Column("GPUs"),
    Column("CPU slots", spare=1),
    Column("jobs", least=6),
    Column("heard of", right=True, spare=3),
)
_STATES = {"ready": "green", "draining": "yellow", "warming up": "cyan", "silent": "red"}


def jobs_view(jobs: Sequence[Json]) -> RenderableType:
    """A row per job; below them, why one waits that nobody who is there could run."""
    if not jobs:
        return Text("No jobs.", style="dim")
    timed = any(job["eta_seconds"] is not None for job in jobs)
    columns = [column for column in _JOBS if timed or column is not _TO_GO]
    waiting = [Text(f"! job {job['id']}: {reason}", style="yellow") for job in jobs for reason in job["waits_for"]]
    return Group(listing(columns, (_job(job, timed) for job in jobs)), *waiting)


def _job(job: Json, timed: bool) -> list[str | Text]:
    """Its row; `timed`: with the column of what is left of it."""
    left = "" if job["eta_seconds"] is None else lasted(job["eta_seconds"])
    return [
        str(job["id"]),
        job["name"] or "",
        Text(job["state"], style=STATE_STYLES.get(job["state"], "")),
        progress_text(job),
        *([left] if timed else []),
        figure(_best(job)),
        job["spec"]["model"]["name"],
        ago(job["created_at"]),
    ]


def workers_view(answer: Json, now: datetime | None = None) -> RenderableType:
    """A row per worker, and what the queues hold."""
    queues = [Text(_queue(name, counts, answer["data"])) for name, counts in sorted(answer["queues"].items())]
    if not answer["data"]:
        return Group(Text("No workers: jobs wait until one comes.", style="dim"), *queues)
    rows = []
    for worker in answer["data"]:
        state, devices = _state(worker), worker["devices"]
        rows.append(
            (
                worker["name"],
                Text(state, style=_STATES[state]),
                ", ".join(worker["queues"]),
                _free(devices.get("gpus_free"), len(devices.get("gpus", ()))),
                _free(devices.get("cpu_free"), devices.get("cpu_slots", 0)),
                ", ".join(map(str, worker["running"])),
                ago(worker["seen_at"], now),
            )
        )
    return Group(listing(_WORKERS, rows), *queues)


def _best(job: Json) -> float | str | None:
    """What its best checkpoint is the best by."""
    best, metric = job["best"] or {}, job["spec"].get("checkpoint", {}).get("metric")
    return next((best[name] for name in (metric, "top1", "mAP", "mae") if name in best), None)


def _state(worker: Json) -> str:
    if not worker["alive"]:
        return "silent"
    if worker["draining"]:
        return "draining"
    return "ready" if worker["devices"].get("ready") else "warming up"


def _free(free: int | None, total: int) -> str:
    return "none" if not total else f"{free} of {total} free"


def _queue(name: str, counts: Mapping[str, int], workers: Sequence[Json]) -> str:
    """`Queue default: 3 queued, 1 running`."""
    served = any(worker["alive"] and not worker["draining"] and name in worker["queues"] for worker in workers)
    held = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"Queue {name}: {held}" + ("" if served else "; no worker serves it")
