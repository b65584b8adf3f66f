"""What lies where in a folder of images: class folders, splits of them, or a CSV of labels beside the images.

By names alone; no file is read. An uploaded archive, once unpacked, is looked at by the same functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from core.data.images import POINTER
from core.data.readings import quoted
from core.errors import SpecError

TABLE = "labels.csv"
"""What is found by itself, in a folder without class folders."""
TRAINING_FOLDER = "train"
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""Beside `train/`, the first of these that has class folders validates."""
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_SPLIT_WORDS = {TRAINING_FOLDER, *VALIDATION_FOLDERS, "training", "testing", "dev", "eval"}


@dataclass(frozen=True)
class Layout:
    """Where a dataset's images and targets lie."""

    table: str | None
    """The CSV in the folder that says the targets; None where class folders do."""
    train: Path
    """What the class folders lie in: the folder itself, or `train` in it."""
    held: Path | None
    """What those of a split that validates lie in."""
    classes: tuple[str, ...]
    """The class folders that have images, by name."""
    notes: tuple[str, ...]
    """What a person should know: what is not used, or may not be meant."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden, or left by a file manager."""
    return name.startswith(".") or name in _LITTER


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by how its name ends."""
    return name.lower().endswith(IMG_EXTENSIONS)


def dataset_root(folder: Path) -> Path:
    """The folder that a dataset begins in: `folder`, or what all of it lies in, one within the other.

    A folder of images alone is a class, and one that has a CSV or a split is where a dataset begins.
    """
    here = folder
    while (inner := _only_folder(here)) is not None and (inner.tables or any(_with_images(inner.path))):
        here = inner.path
    return here


def layout_of(root: Path) -> Layout:
    """How the dataset in `root` is laid out.

    Raises SpecError where splits have no class folders, or where one of several CSV files would have to be chosen; OSError.
    """
    here = _look(root)
    split = _has_classes(root / TRAINING_FOLDER)
    train = root / TRAINING_FOLDER if split else root
    classes = tuple(_with_images(train))
    table, notes = _table(here, classes, split=split), []
    if table is not None:
        return Layout(table, train, None, (), ())
    if len(classes) < 2 and here.tables:
        which = f"call the one with the labels {TABLE}, or name it in /dataset/labels"
        raise SpecError.at(POINTER, f"'{root.name}': it has {quoted(here.tables)}, and not two class folders; {which}")
    if (found := _labels_among(here.tables)) is not None:
        notes.append(f"{found} lies beside the class folders, and is not read: name it in /dataset/labels")
    held = [root / name for name in VALIDATION_FOLDERS if split and _has_classes(root / name)]
    if len(held) > 1:
        notes.append(f"{quoted([one.name for one in held[1:]])} beside train is not used, for {held[0].name} validates")
    used = {train.name, *(one.name for one in held)}
    apart = [f"{name}/" for name in _with_images(root) if name not in used] if split else []
    if apart := [*apart, *here.images, *(_look(train).images if split else ())]:
        notes.append(f"images in no class folder are not used: {quoted(apart)}")
    if not split and len(classes) > 1 and _all_splits(classes):
        if TRAINING_FOLDER in classes:
            raise SpecError.at(
                POINTER,
                f"'{root.name}': its folders {quoted(list(classes))} have images, but no class folders; put those of each class "
                f"into a folder of its own, in both, or say their labels in {TABLE}",
            )
        notes.append(
            f"its folders {quoted(list(classes))} are taken for classes; if they are splits, call them 'train' and 'val', with a "
            "folder for each class in both"
        )
    return Layout(None, train, held[0] if held else None, classes, tuple(notes))


def images_below(root: Path) -> Iterator[str]:
    """The paths of all images, relative to `root`, in no order."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not is_litter(name)]
        below = os.path.relpath(folder, root)
        for name in files:
            if is_image(name) and not is_litter(name):
                yield name if below == "." else f"{below}/{name}"


@dataclass(frozen=True)
class _Look:
    """A folder's own entries, without litter, by name."""

    path: Path
    folders: tuple[str, ...]
    images: tuple[str, ...]
    tables: tuple[str, ...]


def _look(folder: Path) -> _Look:
    with os.scandir(folder) as entries:
        there = sorted((entry.name, _is_folder(entry)) for entry in entries if not is_litter(entry.name))
    files = [name for name, is_folder in there if not is_folder]
    return _Look(
        folder,
        tuple(name for name, is_folder in there if is_folder),
        tuple(name for name in files if is_image(name)),
        tuple(name for name in files if name.lower().endswith(".csv")),
    )


def _only_folder(folder: Path) -> _Look | None:
    """What lies in the one folder with images or a table, where there is nothing else beside it."""
    here = _look(folder)
    if here.images or here.tables or _has_classes(folder / TRAINING_FOLDER):
        return None
    found = [name for name in here.folders if _has_image(folder / name)]
    return _look(folder / found[0]) if len(found) == 1 else None


def _with_images(folder: Path) -> Iterator[str]:
    """The names of the folders in it that have an image, at any depth."""
    with os.scandir(folder) as entries:
        folders = sorted(entry.name for entry in entries if _is_folder(entry) and not is_litter(entry.name))
    return (name for name in folders if _has_image(folder / name))


def _has_classes(folder: Path) -> bool:
    """Whether it is there, and has folders with images. A folder of images alone is a class, whatever it is called."""
    return folder.is_dir() and any(_with_images(folder))


def _has_image(folder: Path | str) -> bool:
    deeper = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_litter(entry.name):
                continue
            if _is_folder(entry):
                deeper.append(entry.path)
            elif is_image(entry.name):
                return True
    return any(_has_image(path) for path in deeper)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _table(here: _Look, classes: tuple[str, ...], *, split: bool) -> str | None:
    """The CSV that says the targets: labels.csv, else the only one, where there are no class folders.

    Images of a CSV may lie in `train/` and `val/`: such folders alone are no classes.
    """
    if len(classes) > 1 and (split or not _all_splits(classes)):
        return None
    return _labels_among(here.tables) or (here.tables[0] if len(here.tables) == 1 else None)


def _labels_among(tables: tuple[str, ...]) -> str | None:
    if TABLE in tables:
        return TABLE
    return next((name for name in tables if name.casefold() == TABLE), None)


def _all_splits(names: tuple[str, ...]) -> bool:
    return all(name.casefold() in _SPLIT_WORDS for name in names)
