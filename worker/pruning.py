"""Which checkpoint directories may go. Only the supervisor deletes, and only what the log no longer keeps."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path


def prune(folder: Path, keep: Collection[Path], *, attempt: int, committed: int | None) -> list[Path]:
    """Delete below a job's `folder` (`ATTEMPT/STEP`) what is not in `keep`; the paths that went.

    Earlier attempts are over: whatever they left goes. Of `attempt` itself only the steps up to `committed` go, the newest step
    in the log (a later one may be on its way into it), or with None, when it is over, everything. A later attempt is not ours.
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


def _is_up_to(checkpoint: Path, step: int) -> bool:
    return checkpoint.name.isdecimal() and int(checkpoint.name) <= step


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
