"""Responses that stay open: the log as it grows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import anyio
from fastapi.responses import StreamingResponse
from starlette.types import Send

log = logging.getLogger(__name__)

SEND_SECONDS = 30.0
"""A client that takes nothing for so long is given up; it can come back with its cursor."""
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


class LogStream(StreamingResponse):
    """Sends what an async generator yields, one chunk at a time, so that a slow client waits alone; closes it in any case."""

    def __init__(self, chunks: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(chunks, media_type=media_type, headers=HEADERS)

    async def stream_response(self, send: Send) -> None:
        """As Starlette's, with a time limit on each send."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        chunks = cast("AsyncGenerator[bytes, None]", self.body_iterator)
        async with contextlib.aclosing(chunks):
            with anyio.CancelScope() as scope:
                async for chunk in chunks:
                    scope.deadline = anyio.current_time() + SEND_SECONDS
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    scope.deadline = float("inf")
        if scope.cancelled_caught:
            log.warning("a reader of a stream took nothing for %g s and was given up", SEND_SECONDS)
            return  # without the last chunk: to the client the stream was cut
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_heartbeats(chunks: AsyncIterator[bytes], beat: bytes, first: bytes = b"") -> AsyncIterator[bytes]:
    """`first`, then the chunks, with `beat` in place of the empty ones."""
    if first:
        yield first
    async with contextlib.aclosing(cast("AsyncGenerator[bytes, None]", chunks)):
        async for chunk in chunks:
            if chunk or beat:
                yield chunk or beat
