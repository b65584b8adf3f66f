"""Lists that fit the terminal: a row stays a line, and where that is narrow columns are shortened, then left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from client.tables import plain_table

_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of a listing."""

    name: str
    right: bool = False
    least: int | None = None
    """It may be shortened to so many characters; None: it stays whole."""
    spare: int = 0
    """Where the rest does not fit all the same, the column that has most of it is left out first; 0: it never is."""


@dataclass(frozen=True)
class Listing:
    """Rows below named columns, each a line of the terminal, however narrow that is."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    title: str | None = None
    caption: str | None = None
    tells: bool = False
    """Whether it says below which columns there was no room for."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._fitting(options.max_width)
        roomy = self._width(shown) <= options.max_width
        left_out = [column.name for index, column in enumerate(self.columns) if index not in shown]
        told = f"no room for: {', '.join(left_out)} (--json has them)" if left_out and self.tells else None
        table = plain_table(title=self.title, caption="\n".join(line for line in (self.caption, told) if line) or None)
        for index in shown:
            column = self.columns[index]
            justify, fixed = "right" if column.right else "left", column.least is None
            least = self._least(index) if roomy else None
            table.add_column(column.name, justify=justify, no_wrap=fixed, overflow="ellipsis", min_width=least)  # type: ignore[arg-type]  # a str
        for row in self.rows:
            table.add_row(*(row[index] for index in shown))
        yield table

    def _fitting(self, width: int) -> list[int]:
        """The columns that there is room for."""
        shown = list(range(len(self.columns)))
        while self._width(shown) > width:
            index = max(shown, key=lambda index: self.columns[index].spare)
            if not self.columns[index].spare:
                break
            shown.remove(index)
        return shown

    def _width(self, shown: Sequence[int]) -> int:
        """What these columns need at least."""
        return sum(self._least(index) + _GAP for index in shown) - _GAP

    def _least(self, index: int) -> int:
        """The width below which a column says too little."""
        column = self.columns[index]
        whole = max(len(column.name), *(row[index].cell_len for row in self.rows), 0)
        return whole if column.least is None else min(whole, max(column.least, len(column.name)))


def listing(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    caption: str | None = None,
    tells: bool = False,
) -> Listing:
    """A listing of cells as they are: no markup is read in them."""
    return Listing(columns, [[_line(cell) for cell in row] for row in rows], title, caption, tells)


def _line(cell: str | Text) -> Text:
    """The cell on one line: what it has no room for is cut off at its end, not put below."""
    line = Text(" ".join(cell.splitlines())) if isinstance(cell, str) else cell.copy()
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
