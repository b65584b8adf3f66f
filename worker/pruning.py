"""Which checkpoint directories may go: only what the log no longer keeps, and no job is pinned to.

While a job is not over its supervisor deletes; after that the reaper, once the last job that was pinned to it has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from store import events, jobs, pins
from store.database import Database


def prune(folder: Path, keep: Collection[Path], *, attempt: int, committed: int | None) -> list[Path]:
    """Delete below a job's `folder` (`ATTEMPT/STEP`) what is not in `keep`; the paths that went.

    Earlier attempts are over: whatever they left goes. Of `attempt` itself only the steps up to `committed` go, the newest that
    the log keeps (a later one may be on its way into it), or with None, when it is over, everything. A later attempt is not ours.
    """
    gone = []
    for run in _folders(folder):
        if not run.name.isdecimal() or int(run.name) > attempt:
            continue
        over = int(run.name) < attempt or committed is None
        for checkpoint in _folders(run):
            if checkpoint not in keep and (over or _is_up_to(checkpoint, committed or 0)):
                shutil.rmtree(checkpoint, ignore_errors=True)
                gone.append(checkpoint)
        if over and not any(run.iterdir()):
            run.rmdir()
    return gone


def release_pins(database: Database, data_dir: Path) -> list[Path]:
    """Delete what ended jobs were pinned to and nobody keeps; the paths that went. Any number of workers may do it at once.

    A job that has not ended prunes for itself, with its next checkpoint or attempt. Of an ended one, what is not kept can be
    pinned no more, so it may go after the look; the pins are forgotten last, for a worker that dies on the way.
    """
    gone = []
    with database.read() as session:
        over = pins.over(session)
    for job_id in over:
        with database.write() as session:
            attempt = jobs.locked(session, job_id).attempt
            ended = pins.ended(session, job_id)
            kept = [data_dir / checkpoint["path"] for checkpoint in events.checkpoints(session, job_id)]
        gone += prune(data_dir / "jobs" / str(job_id), kept, attempt=attempt, committed=None)
        with database.write() as session:
            pins.let_go(session, ended)
    return gone


def _is_up_to(checkpoint: Path, step: int) -> bool:
    return checkpoint.name.isdecimal() and int(checkpoint.name) <= step


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
