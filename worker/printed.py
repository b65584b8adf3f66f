"""What training code prints and warns, as lines of the job's log, in order with its losses."""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from typing import BinaryIO, TextIO

from worker.link import Level, Link

_LONGEST = 4000
"""Characters without a line end after which a line ends by itself."""


class Printed(io.TextIOBase):
    """A text stream whose lines are sent. A carriage return ends a line too, so that progress bars are seen."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, link: Link, level: Level, below: TextIO) -> None:
        self._link, self._level, self._below = link, level, below
        self._lock = threading.RLock()
        self._rest = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Of the stream below: what a subprocess prints goes there."""
        return self._below.fileno()

    @property
    def buffer(self) -> BinaryIO:
        """Of the stream below, for code that writes bytes."""
        return self._below.buffer

    def write(self, text: str) -> int:
        """Send the lines that `text` ends."""
        with self._lock:
            *lines, self._rest = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
            if len(self._rest) > _LONGEST:
                lines, self._rest = [*lines, self._rest], ""
            for line in lines:
                self._say(line)
        return len(text)

    def reconfigure(self, **_: object) -> None:
        """Some code sets its encoding or buffering; both are ours."""

    def finish(self) -> None:
        """Send what was printed without a line end."""
        with self._lock:
            rest, self._rest = self._rest, ""
            self._say(rest)

    def _say(self, line: str) -> None:
        if line.strip():
            self._link.line(self._level, line)


class Capture:
    """`print` and `warnings.warn` of this process go to the link until `finish`; those of processes that it forks do not."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._below = sys.stdout, sys.stderr
        self._places: set[tuple[type[Warning], str, int]] = set()
        self._streams = Printed(link, "info", sys.stdout), Printed(link, "warning", sys.stderr)
        sys.stdout, sys.stderr = self._streams
        warnings.showwarning = self._warned
        os.register_at_fork(after_in_child=self._restore)

    def finish(self) -> None:
        """Send unended lines, and put the streams back."""
        for stream in self._streams:
            stream.finish()
        self._restore()

    def _restore(self) -> None:
        sys.stdout, sys.stderr = self._below
        warnings.showwarning = _shown

    def _warned(  # noqa: PLR0917  (the language's own signature)
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        del file, line
        if (place := (category, filename, lineno)) not in self._places:  # once per place, though its text may differ each time
            self._places.add(place)
            self._link.line("warning", f"{category.__name__}: {message} ({filename}:{lineno})")


_shown = warnings.showwarning
