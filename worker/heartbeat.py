"""`python -m worker.heartbeat`: the health check of a worker. It imports little and asks nobody but the worker's own file.

The file is written after each heartbeat that reached the database, so a fresh one says that the worker lives and that the
database answers it; it holds whether the sandbox is warm. The broker is not asked: without it, work is found seconds later.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from store.settings import SILENT_SECONDS, Settings


def write(settings: Settings, *, ready: bool) -> None:
    """Say that the worker lives; `ready`: and that it takes jobs."""
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # the machine's clock since its start, which no one sets: writer and reader are on one machine
    part.write_text(json.dumps({"at": time.monotonic(), "ready": ready}))
    part.replace(path)


def forget(settings: Settings) -> None:
    """The worker stops."""
    with suppress(OSError):
        _path(settings).unlink()


def complaint(settings: Settings) -> str | None:
    """What is wrong with the worker of these settings; None where all is well."""
    name = settings.worker_name
    try:
        told = json.loads(_path(settings).read_text())
    except FileNotFoundError:
        return f"worker {name} has not begun, or it has stopped"
    age = time.monotonic() - told["at"]
    if not 0 <= age <= SILENT_SECONDS:  # below zero: from before the machine was started anew
        return f"worker {name} is silent, or the database does not answer it: no heartbeat within {SILENT_SECONDS:.0f} s"
    return None if told["ready"] else f"worker {name} is warming up"


def _path(settings: Settings) -> Path:
    return settings.data_dir / "workers" / f"{quote(settings.worker_name, safe='')}.json"


if __name__ == "__main__":
    sys.exit(complaint(Settings()))
