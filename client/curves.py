"""The curves of a plan drawn on a terminal, in dots of Braille: two columns and four rows of them to a character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

from client.http import Json

_WIDTH, _HEIGHT = 56, 4
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Of a Braille character, left column and right, from the bottom up (Unicode 17, chapter 21.1)."""
_MOST = 4

Points = Sequence[Sequence[float]]


def curves_view(plan: Json) -> list[Text]:
    """A picture of each curve that is not flat, lr first, then momentum; those that differ in height alone are one."""
    of = {row["name"]: row["of"] for row in plan["groups"]["groups"]}
    schedules = {
        row["name"]: row["schedule"]
        for row in plan["groups"]["groups"]
        if not row["frozen"] or row.get("until_epoch") is not None
    }
    alike: dict[tuple[object, ...], list[tuple[str, Points]]] = {}
    for kind in ("lr", "momentum"):
        for group, points in plan[kind].items():
            top = max(value for _, value in points)
            if group in schedules and any(value != top for _, value in points):
                shape = tuple((step, round(value / top, 6)) for step, value in points)
                alike.setdefault((kind, _name(schedules[group]), shape), []).append((group, points))
    pictures = [_picture(str(kind), str(name), _families(groups, of)) for (kind, name, _), groups in alike.items()]
    more = [Text(f"and {len(pictures) - _MOST} more curves: --json", style="dim")] if len(pictures) > _MOST else []
    return [*pictures[:_MOST], *more]


def braille(values: Sequence[float], height: int) -> list[str]:
    """The line through `values`, which lie evenly, as rows of so many characters; the lowest and the highest touch the edges."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    levels = [round((value - low) / span * (4 * height - 1)) for value in values]
    cells = [[0x2800] * ((len(values) + 1) // 2) for _ in range(height)]
    for column, level in enumerate(levels):
        before = levels[max(0, column - 1)]
        for dot in {level, *range(level, before, 1 if before > level else -1)}:
            cells[height - 1 - dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
    return ["".join(map(chr, row)) for row in cells]


def _families(groups: Sequence[tuple[str, Points]], of: Mapping[str, str]) -> dict[str, list[Points]]:
    """The curves by the group of the spec that each belongs to: its parts are many."""
    families: dict[str, list[Points]] = {}
    for group, points in groups:
        families.setdefault(of[group], []).append(points)
    return families


def _picture(kind: str, name: str, families: Mapping[str, Sequence[Points]]) -> Text:
    points = next(iter(families.values()))[0]
    last = points[-1][0]
    values = [_at(points, last * column / (2 * _WIDTH - 1)) for column in range(2 * _WIDTH)]
    heights = [value for _, value in points]
    labels = [f"{max(heights):.3g}", *[""] * (_HEIGHT - 2), f"{min(heights):.3g}"]
    told = ", ".join(
        f"{group} {_span([max(value for _, value in each) for each in curves])}" for group, curves in families.items()
    )
    text = Text.assemble((kind, "bold"), f" of {told}", (f"   {name}", "dim"))
    for label, row in zip(labels, braille(values, _HEIGHT), strict=True):
        text.append(f"\n{label:>9} ", style="dim").append(row, style="cyan")
    return text.append(f"\n{'':10}{'step 0':<{_WIDTH // 2}}{f'step {last:.0f}':>{_WIDTH // 2}}", style="dim")


def _span(tops: Sequence[float]) -> str:
    low, high = f"{min(tops):.3g}", f"{max(tops):.3g}"
    return low if low == high else f"{low} … {high}"


def _at(points: Points, step: float) -> float:
    """The curve at that step, on the line between the points beside it."""
    for (start, low), (end, high) in pairwise(points):
        if step <= end:
            return low + (high - low) * (step - start) / (end - start)
    return points[-1][1]


def _name(schedule: Json | None) -> str:
    return (schedule or {}).get("name") or "warmup"
