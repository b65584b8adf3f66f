"""Open a dataset: its classes, its splits, its fingerprint."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from core.data.images import POINTER, ArrayImages, FileImages, Images, Opened
from core.data.labels import LABELS, read_labels
from core.data.labels import NAME as LABELS_FILE
from core.data.readings import TASK
from core.data.splits import hold_out
from core.data.torchvision_data import open_torchvision
from core.data.torchvision_sets import RECIPES
from core.errors import SpecError, did_you_mean
from core.places import Places
from core.spec import DatasetSpec, Task

__all__ = ["Dataset", "Images", "dataset_sources", "open_dataset", "open_root"]

VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""Beside `train/`, the first of these that is there validates."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images in two splits."""

    source: str
    classes: tuple[str, ...]
    """The names of the model's outputs: of classes, of labels, or of the numbers to be learnt."""
    channels: int
    """1 for grey images, else 3."""
    size: tuple[int, int] | None
    """(height, width) where all images are alike and that is known without reading them."""
    train: Images
    validation: Images
    fingerprint: str
    """SHA-256, in hex: the same for the same classes, samples and splits."""
    task: Task = "multiclass"
    notes: tuple[str, ...] = ()
    """What a person should know of how it was split."""


def open_dataset(spec: DatasetSpec, places: Places, seed: int) -> Dataset:
    """The dataset that `spec.source` names. Reads no image files; where it has no split, `seed` says which samples validate.

    Raises SpecError at /dataset/source where the source is unknown, is not there, is damaged, or has nothing to train on; at
    /dataset/labels and /dataset/task where these do not go with it.
    """
    kind, _, name = spec.source.partition(":")
    if kind not in _OPENERS:
        raise SpecError.at(POINTER, f"'{spec.source}' is no dataset source.{_meant(spec.source, kind, name)}")
    if spec.labels and kind not in _WITH_LABELS:
        raise SpecError.at(LABELS, f"'{spec.source}' says its own targets; a CSV goes with {' and '.join(_WITH_LABELS)}")
    opened = _OPENERS[kind](name, places, spec)
    if spec.task not in (None, opened.task):
        raise SpecError.at(TASK, f"its targets are {opened.task}, not {spec.task}{_WITH_LABELS.get(kind, '')}")
    notes = list(opened.notes)
    train, validation = opened.train, opened.validation
    _check_labels(opened, train, "training", notes)
    if validation is None or not len(validation):
        train, validation, more = hold_out(train, opened.task, len(opened.classes), spec.validation, seed)
        notes += more
    else:
        _check_labels(opened, validation, "validation", notes)
    names = "\0".join([*opened.classes, *([] if opened.task == "multiclass" else ["", opened.task])])
    sha = hashlib.sha256(names.encode(errors="surrogateescape") + train.digest() + validation.digest())
    shape = train.shape()
    return Dataset(
        source=spec.source,
        classes=tuple(opened.classes),
        channels=opened.channels,
        size=shape if shape == validation.shape() else None,
        train=train,
        validation=validation,
        fingerprint=sha.hexdigest(),
        task=opened.task,
        notes=tuple(notes),
    )


def dataset_sources() -> dict[str, list[str]]:
    """The kinds of source, and the names that each knows (a folder may have any, an upload has a number)."""
    return {"torchvision": sorted(RECIPES), "sklearn": ["digits"], "folder": [], "upload": []}


def _open_sklearn(name: str, places: Places, spec: DatasetSpec) -> Opened:  # noqa: ARG001
    if name != "digits":
        raise SpecError.at(POINTER, f"scikit-learn's '{name}' is not known here.{did_you_mean(name, ['digits'])}")
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError:
        raise SpecError.at(POINTER, "sklearn:digits needs scikit-learn; install graft with its extra 'demo'") from None
    digits = load_digits()
    # 0..16 becomes 0..255, as an image file would hold it.
    pixels = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Opened([str(label) for label in digits.target_names], ArrayImages(pixels, labels, "digits"), None, 1)


def _open_folder(name: str, places: Places, spec: DatasetSpec) -> Opened:
    root = places.input(name, POINTER)
    if not root.is_dir():
        raise SpecError.at(POINTER, f"'{name}' is a file; folder:PATH needs a folder of images")
    return open_root(root, spec)


def open_root(root: Path, spec: DatasetSpec) -> Opened:
    """The images in the folder `root`: by class folders, in `train/` and `val/` where there are such, or by a CSV of labels.

    By the latter where `spec` names one, or where `labels.csv` lies there and no class folders do.
    """
    if spec.labels is not None:
        return read_labels(root, spec)
    train_folder = root / "train"
    within = train_folder if train_folder.is_dir() else root
    found = (root / LABELS_FILE).is_file()
    if found and sum(one.is_dir() for one in within.iterdir()) < 2:
        return read_labels(root, spec)
    notes = [f"{LABELS_FILE} lies beside the class folders, and is not read: name it in {LABELS}"] if found else []
    classes, train = _class_folders(within, root)
    held = [root / part for part in VALIDATION_FOLDERS if (root / part).is_dir() and within != root]
    if not held:
        return Opened(classes, train, None, 3, notes=tuple(notes))
    held_classes, validation = _class_folders(held[0], root)
    if classes != held_classes:
        odd = sorted(set(classes) ^ set(held_classes))
        raise SpecError.at(
            POINTER, f"'{root.name}': train and {held[0].name} have different class folders ({_some(odd)} in one alone)"
        )
    if len(held) > 1:
        notes.append(f"{_some([one.name for one in held[1:]])} beside train is not used, for {held[0].name} validates")
    return Opened(classes, train, validation, 3, notes=tuple(notes))


def _open_upload(name: str, places: Places, spec: DatasetSpec) -> Opened:
    """What was uploaded under this number: a folder like any, in a place of its own."""
    known = places.uploads is not None and re.fullmatch(r"[1-9][0-9]{0,18}", name) and (places.uploads / name).is_dir()
    if places.uploads is None or not known:
        raise SpecError.at(POINTER, f"there is no uploaded dataset '{name}'; GET /datasets lists them, POST /datasets takes one")
    return open_root(places.uploads / name, spec)


def _class_folders(folder: Path, root: Path) -> tuple[list[str], Images]:
    """The classes and images below `folder`, by torchvision's ImageFolder rules; names are relative to `root`."""
    try:
        classes, index = find_classes(folder)
        samples = make_dataset(folder, index, IMG_EXTENSIONS)
    except OSError as error:
        message = str(error).replace(str(folder), f"'{folder.name}'")
        raise SpecError.at(POINTER, message.replace("Couldn't find", "there is not").rstrip(".")) from None
    names = [str(Path(path).relative_to(root)) for path, _ in samples]
    return classes, FileImages(root, names, torch.tensor([label for _, label in samples], dtype=torch.int64))


_OPENERS: dict[str, Callable[[str, Places, DatasetSpec], Opened]] = {
    "torchvision": open_torchvision,
    "sklearn": _open_sklearn,
    "folder": _open_folder,
    "upload": _open_upload,
}
_WITH_LABELS = dict.fromkeys(("folder", "upload"), f"; name a CSV of them in {LABELS}")
"""Sources that a CSV of labels may go with, and what to say where they have none."""


def _meant(source: str, kind: str, name: str) -> str:
    """What was likely meant: another kind, or a bare name with its kind before it."""
    if name:
        close = difflib.get_close_matches(kind.lower(), _OPENERS, n=1)
        return f" Did you mean '{close[0]}:{name}'?" if close else did_you_mean(kind, _OPENERS)
    known = {one.lower(): f"{each}:{one}" for each, names in dataset_sources().items() for one in names}
    close = difflib.get_close_matches(source.lower(), known, n=1)
    return (
        f" Did you mean '{known[close[0]]}'?" if close else " Write torchvision:NAME, folder:PATH, upload:ID or sklearn:digits."
    )


def _check_labels(opened: Opened, images: Images, split: str, notes: list[str]) -> None:
    if not len(images):
        raise SpecError.at(POINTER, f"its {split} split has no images")
    labels, classes = images.labels, opened.classes
    if opened.task == "multiclass":
        if len(classes) < 2:
            raise SpecError.at(POINTER, f"it has one class ('{classes[0]}'); a classifier needs two or more")
        low, high, count = int(labels.min()), int(labels.max()), len(classes)
        if low < 0 or high >= count:
            raise SpecError.at(POINTER, f"its {split} split has labels from {low} to {high}, but there are {count} classes")
        return
    good = labels.isfinite() if opened.task == "regression" else (labels == 0) | (labels == 1)
    if not good.all():
        row, column = (~good).nonzero()[0].tolist()
        wanted = "no number" if opened.task == "regression" else "neither 0 nor 1"
        place = f"'{classes[column]}' of {images.name(row)}"
        raise SpecError.at(POINTER, f"in its {split} split {place} is {labels[row, column].item():g}, which is {wanted}")
    if opened.task == "multilabel" and (bare := (labels.sum(dim=0) == 0).nonzero().flatten().tolist()):
        notes.append(f"no image of the {split} split has {_some([classes[index] for index in bare])}")


def _some(names: list[str], shown: int = 5) -> str:
    return ", ".join(f"'{name}'" for name in names[:shown]) + (" …" if len(names) > shown else "")
