"""What a child prints, as lines."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

_READ = 1 << 16
_LONGEST = 4000
"""Characters of one line; a longer one goes on in the next."""
_NOISE = b"Extension modules: "
"""faulthandler lists every loaded extension after a crash: kilobytes that help nobody."""


class Lines:
    """The lines of one non-blocking descriptor. A carriage return ends a line too, so that progress bars are seen."""

    def __init__(self, descriptor: int, keep: int = 20) -> None:
        self.descriptor = descriptor
        self._rest = b""
        self._last: deque[str] = deque(maxlen=keep)

    def read(self) -> list[str] | None:
        """The lines that one read ends, without waiting; None at the end of the stream."""
        try:
            got = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return []
        whole, self._rest = _split(self._rest + got.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
        if not got:
            whole, self._rest = [*whole, self._rest], b""
        lines = [line.decode(errors="replace") for line in whole if line.strip()]
        self._last += lines
        return lines if got or lines else None

    def last(self, count: int) -> Sequence[str]:
        """The last lines that were read, at most `count` of them."""
        return list(self._last)[-count:]


def _split(text: bytes) -> tuple[list[bytes], bytes]:
    *whole, rest = text.split(b"\n")
    whole = [line for line in whole if not line.startswith(_NOISE)]
    cut = [line[start : start + _LONGEST] for line in whole for start in range(0, max(len(line), 1), _LONGEST)]
    while len(rest) > _LONGEST:
        cut.append(rest[:_LONGEST])
        rest = rest[_LONGEST:]
    return cut, rest
