"""Kombu's file system transport, made safe: no reader ever sees half a file.

Kombu opens a message under its final name and then writes it; a reader that lists the folder in between takes an empty file,
fails to parse it, and takes its worker down. The same holds for the table of a new exchange.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Writes under another name, then renames."""

    def _put(self, queue: str, message: Any, **_options: Any) -> None:  # type: ignore[override]  # kombu's own two disagree
        folder = Path(self.data_folder_out)
        number = uuid.uuid4()
        draft = folder / f"{number}.draft"
        draft.write_bytes(orjson.dumps(message))
        # the reader takes the names in order, and the queue's name from what follows the first dot
        draft.replace(folder / f"{time.monotonic_ns()}_{number}.{queue}.msg")

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        file = Path(self.control_folder) / f"{exchange}.exchange"
        if not file.exists():
            draft = file.with_name(f"{uuid.uuid4()}.draft")
            draft.write_bytes(orjson.dumps([[routing_key or "", pattern or "", queue or ""]]))
            try:
                os.link(draft, file)  # unlike a rename, it does not replace what another made meanwhile
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[no-untyped-call]  # kombu has no types here


class Transport(filesystem.Transport):
    """The file system transport over these channels."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # type: ignore[override]  # kombu has no types
        """Wait for a message, no longer than a fifth of a second: Celery looks whether to stop only between these waits."""
        super().drain_events(connection, timeout=0.2 if timeout is None else min(timeout, 0.2))  # type: ignore[no-untyped-call]
