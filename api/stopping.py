"""Open streams and the end of the process.

uvicorn waits for open responses before it runs the lifespan's shutdown, so a stream must learn of the signal itself: the present
handlers are wrapped, whoever put them there.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop(callback: Callable[[], object]) -> Iterator[None]:
    """Run `callback` on the running event loop when SIGTERM or SIGINT comes, then what handled it before."""
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set: a server in a test
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
