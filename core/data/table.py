"""A CSV file that a person wrote, as columns of text; what is wrong with it is told by its lines."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from core.errors import Fault, SpecError

_SEPARATORS = ",;\t"
_SHOWN = 5
Cells = Sequence[str]


@dataclass(frozen=True)
class Table:
    """The rows that have as many cells as the header, and the line on which each ends."""

    header: list[str]
    lines: list[int]
    columns: list[Cells]


class TableFaults:
    """What is wrong with a file: its first faults, with their lines, and how many there are."""

    def __init__(self, name: str, pointer: str) -> None:
        """`name` is that of the file; `pointer` is where the spec names it."""
        self.name = name
        self._pointer = pointer
        self._count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, line: int, message: str | Callable[[], str]) -> None:
        """One more. A message that costs something to make is made only where it is shown."""
        self._count += 1
        if len(self._first) < _SHOWN:
            self._first.append((line, message if isinstance(message, str) else message()))

    def check(self) -> None:
        """Raise SpecError where there are any."""
        if not self._count:
            return
        faults = [Fault(self._pointer, f"{self.name}, line {line}: {message}") for line, message in sorted(self._first)]
        if more := self._count - len(faults):
            faults.append(Fault(self._pointer, f"{self.name} has {more} more {'faults' if more > 1 else 'fault'} of this kind"))
        raise SpecError(*faults)

    def refuse(self, message: str, line: int | None = None) -> NoReturn:
        """Raise SpecError at once: with this, nothing more can be read."""
        raise SpecError.at(self._pointer, f"{self.name}{f', line {line}' if line else ''}: {message}")


def read_table(path: Path, faults: TableFaults) -> Table:
    """The file at `path`, in UTF-8, with a header.

    Cells are separated by whichever of comma, semicolon and tab the header has most of, and may be quoted; blanks around them
    and empty lines do not count. Rows of another length become faults, and are left out. Raises SpecError where nothing can be
    read.
    """
    text = _text(path, faults)
    head = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    separator = max(_SEPARATORS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        faults.refuse(str(error), reader.line_num)
    if not rows:
        faults.refuse("it is empty; its first line names the columns, as in file,label")
    header = [name.strip() for name in rows[0]]
    if len(header) < 2:
        faults.refuse(f"it has one column, '{header[0]}'; columns are separated by a comma, a semicolon or a tab", lines[0])
    if doubled := [name for name, count in Counter(name.casefold() for name in header if name).items() if count > 1]:
        faults.refuse(f"two columns are called '{doubled[0]}'", lines[0])
    if len(rows) == 1:
        faults.refuse("it has a header, and no row below it")
    odd = {index for index, row in enumerate(rows) if len(row) != len(header)}
    for index in sorted(odd):
        faults.add(lines[index], f"it has {len(rows[index])} cells, but there are {len(header)} columns")
    kept = [index for index in range(1, len(rows)) if index not in odd] if odd else range(1, len(rows))
    columns = [[rows[index][column].strip() for index in kept] for column in range(len(header))]
    return Table(header, [lines[index] for index in kept], list(columns))


def _text(path: Path, faults: TableFaults) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        faults.refuse(f"it cannot be read: {error.strerror}")
    if (zero := raw.find(b"\0")) >= 0:
        faults.refuse("a NUL byte is in it; save it as text in UTF-8", raw[:zero].count(b"\n") + 1)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.refuse(f"byte {error.object[error.start]:#x} is not UTF-8; save the file in that encoding", line)
