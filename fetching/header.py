"""The header of a safetensors file elsewhere: names, shapes and dtypes, without fetching the tensors.

The format: the header's length as a little-endian uint64, the header as JSON, then the tensors
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

from pathlib import Path

import httpx

from fetching.client import Client
from fetching.policy import RefusedError

MOST = 10 << 20
"""Bytes of a header that are read: the largest models have some hundred kB."""
_FIRST = 64 << 10


def stand_in(url: str, path: Path, client: Client) -> bool:
    """Write a file that is the one at `url` up to its tensors, and a hole from there on; False where that cannot be had.

    Only what reads names and shapes may use it. Raises RefusedError, OSError.
    """
    try:
        start, total = _range(url, 0, _FIRST, client)
        length = int.from_bytes(start[:8], "little")
        if total is None or len(start) < 8 or not 2 <= length <= min(MOST, total - 8):
            return False
        client.policy.check_size(total)
        rest = b""
        if len(start) < 8 + length:
            rest, _ = _range(url, len(start), 8 + length - len(start), client)
    except httpx.HTTPError:
        return False
    header = (start + rest)[: 8 + length]
    if len(header) < 8 + length:
        return False
    with path.open("wb") as file:
        file.write(header)
        file.truncate(total)
    return True


def _range(url: str, first: int, count: int, client: Client) -> tuple[bytes, int | None]:
    """So many bytes of it, and how many it has in all; the whole is never read from a server that does not know ranges."""
    with client.get(url, Range=f"bytes={first}-{first + count - 1}") as answer:
        if answer.status_code in {401, 403, 404, 410}:
            raise RefusedError(f"{answer.url.host} answered {answer.status_code} {answer.reason_phrase}")
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            return b"", None
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        body = bytearray()
        for piece in answer.iter_raw():
            body += piece
            if len(body) >= count:
                break
        return bytes(body[:count]), int(total) if total.isdecimal() else None
