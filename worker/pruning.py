"""Which checkpoint directories may go: only what the log no longer keeps, and no job is pinned to.

While a job is not over its supervisor deletes; after that the reaper, once the last job that was pinned to it has ended. What a
job leaves that was itself deleted goes whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from core.training.checkpoint_names import order_of
from store import deletion, events, jobs, pins
from store.database import Database
from store.errors import NotFound
from store.states import FINAL

NOTHING = "0"
"""As the name of the newest checkpoint that the log tells of: it tells of none."""


def prune(folder: Path, keep: Collection[Path], *, attempt: int, committed: str | None) -> list[Path]:
    """Delete below a job's `folder` (`ATTEMPT/STEP`) what is not in `keep`; the paths that went.

    Earlier attempts are over: whatever they left goes. Of `attempt` itself only what was written up to `committed`, the name of
    the newest that the log tells of (what came after it may be on its way there), or with None, when it is over, everything.
    A later attempt is not ours.
    """
    gone = []
    for run in _folders(folder):
        if not run.name.isdecimal() or int(run.name) > attempt:
            continue
        over = int(run.name) < attempt or committed is None
        for checkpoint in _folders(run):
            if checkpoint not in keep and (over or _is_up_to(checkpoint.name, committed or NOTHING)):
                shutil.rmtree(checkpoint, ignore_errors=True)
                gone.append(checkpoint)
        if over:
            with contextlib.suppress(OSError):  # it is not empty; or the job was deleted, and its folder goes right now
                run.rmdir()
    return gone


def tidy(database: Database, data_dir: Path) -> list[Path]:
    """Delete what nobody needs any more: what ended jobs were pinned to alone, and what deleted ones left. The paths that went.

    A job that has not ended prunes for itself, with its next checkpoint or attempt. Of an ended one, what is not kept can be
    pinned no more, so it may go after the look; pins and leftovers are forgotten last, for a worker that dies on the way. Any
    number of workers may do it at once.
    """
    with database.read() as session:
        found = sorted({*pins.over(session), *deletion.leftovers(session)})
    return [path for job_id in found for path in _tidy(database, data_dir, job_id)]


def _tidy(database: Database, data_dir: Path, job_id: int) -> list[Path]:
    folder = data_dir / "jobs" / str(job_id)
    with database.write() as session:
        try:
            job = jobs.locked(session, job_id)
        except NotFound:
            job = None
        if job is not None and job.state not in FINAL:
            return []
        ended = pins.ended(session, job_id)
        kept = [] if job is None else [data_dir / checkpoint["path"] for checkpoint in events.checkpoints(session, job_id)]
    if job is not None:
        gone = prune(folder, kept, attempt=job.attempt, committed=None)
    else:
        gone = [folder] if folder.exists() else []
        shutil.rmtree(folder, ignore_errors=True)
    with database.write() as session:
        pins.let_go(session, ended)
        if job is not None or not folder.exists():
            deletion.cleared(session, job_id)
    return gone


def _is_up_to(name: str, newest: str) -> bool:
    ours, theirs = order_of(name), order_of(newest)
    return ours is not None and theirs is not None and ours <= theirs


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
