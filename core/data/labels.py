"""Labels in a CSV file: for each image of a folder its class, its labels, or its numbers."""

from __future__ import annotations

import os.path
import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.data.images import POINTER, FileImages, Opened
from core.data.layout import images_below
from core.data.readings import TASKS, Columns, quoted, read_targets, reading_of
from core.data.table import Cells, Table, TableFaults, read_table
from core.spec import DatasetSpec

LABELS = "/dataset/labels"
_FILE = ("file", "filename", "image", "path")
_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip


def read_labels(root: Path, spec: DatasetSpec, name: str) -> Opened:
    """The images below `root` that the CSV file `name` in it names, with their targets and splits.

    One column names the files, relative to `root`: that called file, filename, image or path, else the first. One called
    `split` may say train, validation or test. The others are targets, and `spec.task`, else they themselves, say of what kind:
    `label` has a class, `labels` has labels with `;` between them, several columns of 0 and 1 are a label each, and other
    numbers are to be learnt as such. Where that leaves two readings, `spec.task` has to be given.

    Raises SpecError at /dataset/labels (/dataset/source where the file was found by itself) with the lines of its first faults,
    and at /dataset/task where the columns are not of that task, or where it cannot be told.
    """
    faults = TableFaults(name, LABELS if spec.labels else POINTER)
    table = read_table(_inside(root, name, faults), faults)
    notes = [] if spec.labels else [f"{name} was found in the folder, and says the targets"]
    header = _header(table, root, faults, notes)
    columns = Columns([table.header[one] for one in header.targets], [table.columns[one] for one in header.targets], table.lines)
    reading = reading_of(columns, spec.task)
    files = _files(root, table.columns[header.file], table.lines, faults)
    splits = None if header.split is None else _splits(table.columns[header.split], table.lines, faults)
    rows = _once(files, [*columns.cells, *([splits] if splits else [])], table.lines, faults, notes)
    classes, targets = read_targets(columns, reading, faults)
    faults.check()
    if unnamed := sorted(set(images_below(root)).difference(files)):
        are = "1 image is" if len(unnamed) == 1 else f"{len(unnamed)} images are"
        notes.append(f"{are} not used, for no row of {name} names them: {quoted(unnamed)}")
    rows.sort(key=files.__getitem__)  # the order of the rows says nothing

    def part(split: str | None) -> FileImages:
        chosen = [row for row in rows if splits is None or splits[row] == split]
        return FileImages(root, [files[row] for row in chosen], targets[torch.tensor(chosen, dtype=torch.int64)])

    there = {splits[row] for row in rows} if splits else {None}
    if splits and "train" not in there:
        faults.refuse("no row is of the split 'train'")
    if {"validation", "test"} <= there:
        notes.append(f"of {name} the rows of the split 'test' are left out, for those of 'validation' validate")
    held = next((split for split in ("validation", "test") if split in there), None)
    return Opened(
        classes, part("train" if splits else None), part(held) if held else None, 3, task=TASKS[reading], notes=tuple(notes)
    )


@dataclass(frozen=True)
class _Header:
    """Which column is what."""

    file: int
    split: int | None
    targets: list[int]


def _inside(root: Path, name: str, faults: TableFaults) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        faults.refuse("it leaves the dataset's folder; give a path below it")
    if not path.is_file():
        others = sorted(one.name for one in root.glob("*.csv"))
        faults.refuse(f"there is no such file in the dataset's folder{f'; there is {others[0]}' if others else ''}")
    return path


def _header(table: Table, root: Path, faults: TableFaults, notes: list[str]) -> _Header:
    """By the names of the columns. Raises SpecError where it is none, or leaves no targets."""
    folded = [name.casefold() for name in table.header]
    file = next((index for index, name in enumerate(folded) if name in _FILE), 0)
    first = table.header[file]
    if first.lower().endswith(IMG_EXTENSIONS) or (first and os.path.isfile(root / first)):  # noqa: PTH113
        faults.refuse(f"'{first}' is a file; a line above it must name the columns, as in file,label", 1)
    if not first:
        faults.refuse("the first column has no name; call the one with the files 'file'", 1)
    split = folded.index("split") if "split" in folded else None
    others = [index for index in range(len(folded)) if index not in (file, split)]
    named = [index for index in others if folded[index] in ("label", "labels")]
    if len(named) > 1:
        faults.refuse("it has a column 'label' and a column 'labels'; leave one of them out", 1)
    targets = named or [index for index in others if folded[index]]
    if not targets:
        faults.refuse(f"beside '{first}' there is no column with labels or numbers", 1)
    if left := [table.header[index] or f"number {index + 1}" for index in others if index not in targets]:
        notes.append(f"of {faults.name} {quoted(left)} {'is' if len(left) == 1 else 'are'} not used")
    return _Header(file, split, targets)


def _files(root: Path, cells: Cells, lines: Sequence[int], faults: TableFaults) -> list[str]:
    """The paths of the images, relative to `root`."""
    names = []
    for line, cell in zip(lines, cells, strict=True):
        name = _as_stored(root, posixpath.normpath(cell))
        names.append(name)
        if not cell:
            faults.add(line, "it names no file")
        elif name.startswith(("/", "../")) or name in (".", ".."):
            faults.add(line, f"'{cell}' does not lie below the dataset's folder")
        elif not os.path.isfile(f"{root}/{name}"):  # noqa: PTH113  (a Path for each of a million rows takes seconds)
            faults.add(line, lambda cell=cell, name=name: f"there is no file '{cell}'{_with_ending(root, name)}")  # type: ignore[misc]
    return names


def _as_stored(root: Path, name: str) -> str:
    """The name as it is, or in the form of Unicode in which there is such a file: macOS writes another one than the rest."""
    if name.isascii() or os.path.isfile(f"{root}/{name}"):  # noqa: PTH113
        return name
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.isfile(f"{root}/{form}")), name)  # noqa: PTH113


def _with_ending(root: Path, name: str) -> str:
    """What may have been meant: names without their ending are common."""
    return next((f"; there is '{name}{ending}'" for ending in IMG_EXTENSIONS if (root / f"{name}{ending}").is_file()), "")


def _splits(cells: Cells, lines: Sequence[int], faults: TableFaults) -> list[str]:
    splits = [_SPLITS.get(cell.lower(), "") for cell in cells]
    for line, cell, split in zip(lines, cells, splits, strict=True):
        if not split:
            faults.add(line, f"its split is '{cell}'; write train, validation or test")
    return splits


def _once(files: Sequence[str], told: Sequence[Cells], lines: Sequence[int], faults: TableFaults, notes: list[str]) -> list[int]:
    """The rows, each file's first. Another row of it must say the same."""
    first: dict[str, int] = {}
    repeated = 0
    for row, file in enumerate(files):
        other = first.setdefault(file, row)
        if other == row:
            continue
        repeated += 1
        if any(cells[row] != cells[other] for cells in told):
            faults.add(lines[row], f"'{file}' has other targets, or another split, on line {lines[other]}")
    if repeated:
        notes.append(f"{repeated} rows of {faults.name} repeat another one, and count once")
    return list(first.values())
