"""What the columns of a table say of images: one class of several, any of several labels, or numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from core.data.table import Cells, TableFaults
from core.errors import SpecError
from core.spec import Task

TASK = "/dataset/task"
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_WITH_COMMA = re.compile(r"-?\d+(,\d+)?|")
_MOST_BYTES = 8 << 30

Reading = Literal["class", "labels", "flags", "one-hot", "numbers"]
"""How columns are read: one with a class, one with labels and `;` between them, several of 0 and 1, or of numbers."""
TASKS: dict[Reading, Task] = {
    "class": "multiclass", "one-hot": "multiclass", "labels": "multilabel", "flags": "multilabel", "numbers": "regression",
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns of targets: what they are called, their cells, and the lines of these in the file."""

    names: list[str]
    cells: list[Cells]
    lines: Sequence[int]


def reading_of(columns: Columns, task: Task | None) -> Reading:
    """How the columns are read: by `task`, else by what is in them. Raises SpecError at /dataset/task where it must be said."""
    cells = {cell for cells in columns.cells for cell in cells}
    values = {_number(cell) for cell in cells if cell}
    numeric = not any(np.isnan(value) for value in values)
    name = columns.names[0].casefold()
    if len(columns.cells) > 1:
        return _WITH_SEVERAL[task] if task else _of_several(columns, values if numeric else None)
    if task == "multilabel":
        return "flags" if numeric and values <= {0, 1} and name != "labels" else "labels"
    return _WITH_ONE[task] if task else "labels" if name == "labels" else _of_one(columns, cells, values if numeric else None)


_WITH_SEVERAL: dict[Task, Reading] = {"multiclass": "one-hot", "multilabel": "flags", "regression": "numbers"}
_WITH_ONE: dict[Task, Reading] = {"multiclass": "class", "regression": "numbers"}


def read_targets(columns: Columns, reading: Reading, faults: TableFaults) -> tuple[list[str], Tensor]:
    """The names of the K outputs, and the targets: int64 [N] of classes, else float32 [N, K]. Bad cells are added to `faults`."""
    return _READERS[reading](columns, faults)


def _of_several(columns: Columns, values: set[float] | None) -> Reading:
    """`values`: what is in them, where all are numbers."""
    shown = quoted(columns.names)
    if values is not None and values <= {-1, 1}:
        _ask(f"its columns {shown} have -1 and 1 alone", "write 0 for -1 and set multilabel, or set regression")
    if values is None or not values <= {0, 1}:
        return "numbers"
    if all(sum(map(_number, row)) == 1 for row in zip(*columns.cells, strict=True)):
        choice = "set multiclass (one of several classes), or multilabel (any of several labels)"
        _ask(f"its columns {shown} have a single 1 in each row", choice)
    return "flags"


def _of_one(columns: Columns, cells: set[str], values: set[float] | None) -> Reading:
    shown = f"its column '{columns.names[0]}'"
    if any(";" in cell for cell in cells):
        _ask(f"{shown} has cells with ';'", "set multilabel (labels with ; between them), or multiclass")
    label = columns.names[0].casefold() == "label"
    if values is None:
        if (comma := min(filter(_DECIMAL_COMMA.fullmatch, cells), default=None)) and all(map(_WITH_COMMA.fullmatch, cells)):
            point = comma.replace(",", ".")
            _ask(f"{shown} has numbers with a decimal comma, as '{comma}'", f"write {point} to learn numbers, or set multiclass")
        odd = {cell for cell in cells if cell and np.isnan(_number(cell))}
        if not label and odd | {""} < cells | {""}:
            choice = "set multiclass, or regression to be told of each cell that is no number"
            _ask(f"{shown} has numbers, and '{min(odd)}'", choice)
        return "class"
    whole = all(value == round(value) for value in values if np.isfinite(value))
    if label:
        if not whole:
            _ask(f"{shown} has fractions", "set regression, or multiclass")
        return "class"
    if values <= {0, 1}:
        _ask(f"{shown} has 0 and 1 alone", "set multilabel (yes or no), multiclass (two classes), or regression")
    if whole:
        _ask(f"{shown} has whole numbers alone", "set regression (quantities), or multiclass (numbers of classes)")
    return "numbers"


def _ask(what: str, choice: str) -> NoReturn:
    raise SpecError.at(TASK, f"the CSV can be read in two ways, for {what}: {choice}")


def _number(cell: str) -> float:
    """NaN where it is none, as is what Python alone takes for one (`1_000`). What pandas writes for a truth value is one."""
    try:
        return np.nan if "_" in cell else float(cell)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(cell.lower(), np.nan)


def _one_class(columns: Columns, faults: TableFaults) -> tuple[list[str], Tensor]:
    (cells,) = columns.cells
    for line, cell in zip(columns.lines, cells, strict=True):
        if not cell:
            faults.add(line, f"its cell of '{columns.names[0]}' is empty")
    classes = _sorted(set(cells))
    index = {name: number for number, name in enumerate(classes)}
    return classes, torch.tensor([index[cell] for cell in cells], dtype=torch.int64)


def _any_classes(columns: Columns, faults: TableFaults) -> tuple[list[str], Tensor]:
    (cells,) = columns.cells
    sets = {cell: {name.strip() for name in cell.split(";")} - {""} for cell in set(cells)}
    classes = _sorted(set[str]().union(*sets.values()))
    if not classes:
        faults.refuse(f"its column '{columns.names[0]}' names no label at all")
    if 4 * len(cells) * len(classes) > _MOST_BYTES:
        size = f"{_MOST_BYTES >> 30} GiB"
        faults.refuse(f"{len(cells)} images by {len(classes)} labels take more than {size}; leave rare labels out")
    index = {name: number for number, name in enumerate(classes)}
    rows = {cell: [index[name] for name in names] for cell, names in sets.items()}
    targets = torch.zeros(len(cells), len(classes))
    ones = [(row, number) for row, cell in enumerate(cells) for number in rows[cell]]
    targets[tuple(torch.tensor(ones, dtype=torch.int64).T)] = 1
    return classes, targets


def _flags(columns: Columns, faults: TableFaults) -> tuple[list[str], Tensor]:
    values = _matrix(columns)
    for row, column in np.argwhere((values != 0) & (values != 1)):
        cell = columns.cells[column][row]
        faults.add(columns.lines[row], f"'{cell}' in column '{columns.names[column]}' is neither 0 nor 1")
    return columns.names, torch.from_numpy(values)


def _one_hot(columns: Columns, faults: TableFaults) -> tuple[list[str], Tensor]:
    _, values = _flags(columns, faults)
    for row in (values.sum(dim=1) != 1).nonzero().flatten().tolist():
        faults.add(columns.lines[row], "of several classes it must have one: a single 1 in the row")
    return columns.names, values.argmax(dim=1)


def _numbers(columns: Columns, faults: TableFaults) -> tuple[list[str], Tensor]:
    values = _matrix(columns)
    for row, column in np.argwhere(~np.isfinite(values)):
        cell, name = columns.cells[column][row], columns.names[column]
        hint = "; decimals are written with a point" if "," in cell else ""
        said = f"'{cell}' in column '{name}' is no number{hint}" if cell else f"its cell of '{name}' is empty"
        faults.add(columns.lines[row], said)
    return columns.names, torch.from_numpy(values)


_READERS: dict[Reading, Callable[[Columns, TableFaults], tuple[list[str], Tensor]]] = {
    "class": _one_class, "labels": _any_classes, "flags": _flags, "one-hot": _one_hot, "numbers": _numbers,
}  # fmt: skip


def _matrix(columns: Columns) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """float32 [N, K]: NaN where a cell is no number, infinite where it is beyond float32."""
    with np.errstate(over="ignore"):
        return np.stack([np.array(_numeric(cells), dtype=np.float64) for cells in columns.cells], 1).astype(np.float32)


def _numeric(cells: Cells) -> list[float]:
    """As `_number` has each; at once, where nothing is odd."""
    try:
        if not any("_" in cell for cell in cells):
            return list(map(float, cells))
    except ValueError:
        pass
    return list(map(_number, cells))


def _sorted(names: set[str]) -> list[str]:
    """By name; whole numbers by their value."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def quoted(names: Sequence[str]) -> str:
    """The first few, quoted."""
    return ", ".join(f"'{name}'" for name in names[:5]) + (" …" if len(names) > 5 else "")
