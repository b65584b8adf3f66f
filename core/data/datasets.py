"""Open a dataset: its classes, its splits, its fingerprint."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import find_classes, make_dataset

from core.data import idx
from core.data.images import POINTER, ArrayImages, FileImages, Images, Opened
from core.data.labels import LABELS, read_labels
from core.data.layout import TABLE, dataset_root, is_image, is_litter, layout_of
from core.data.readings import TASK, quoted
from core.data.splits import hold_out
from core.data.torchvision_data import open_torchvision
from core.data.torchvision_sets import IDX_FILES, RECIPES
from core.errors import SpecError, did_you_mean
from core.places import Places
from core.spec import DatasetSpec, Task

__all__ = ["Dataset", "Images", "check", "dataset_sources", "open_dataset", "open_root"]


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
    if opened.validation is not None and not len(opened.validation):
        opened = replace(opened, validation=None)
    notes = [*opened.notes, *check(opened)]
    train, validation = opened.train, opened.validation
    if validation is None:
        train, validation, more = hold_out(train, opened.task, len(opened.classes), spec.validation, seed)
        notes += more
    notes += _unreadable(spec, places, train, validation)
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

    By the latter where `spec` names one, or where one lies there and no class folders do (`core.data.layout`). Folders around
    everything do not count.
    """
    if spec.labels is not None:
        return read_labels(root, spec, spec.labels)
    try:
        inner = dataset_root(root)
        layout = layout_of(inner)
    except OSError as error:
        raise SpecError.at(POINTER, f"'{root.name}' cannot be read: {error.strerror or error}") from None
    notes = [] if inner == root else [f"it begins in '{inner.relative_to(root)}', the one folder that has images"]
    if layout.table is not None:
        opened = read_labels(inner, spec, layout.table)
        return replace(opened, notes=(*notes, *opened.notes))
    notes += layout.notes
    classes, train = _class_folders(layout.train, inner)
    if layout.held is None:
        return Opened(classes, train, None, 3, notes=tuple(notes))
    held_classes, validation = _class_folders(layout.held, inner)
    if classes != held_classes:
        odd = quoted(sorted(set(classes) ^ set(held_classes)))
        raise SpecError.at(
            POINTER, f"'{root.name}': train and {layout.held.name} have different class folders ({odd} in one alone)"
        )
    return Opened(classes, train, validation, 3, notes=tuple(notes))


def check(opened: Opened) -> list[str]:
    """See that its targets can be trained on; what a person should know of them. Raises SpecError at /dataset/source."""
    notes: list[str] = []
    _check_labels(opened, opened.train, "training", notes)
    if opened.validation is not None:
        _check_labels(opened, opened.validation, "validation", notes)
    return notes


def _open_upload(name: str, places: Places, spec: DatasetSpec) -> Opened:
    """What was uploaded under this number: a folder like any, in a place of its own."""
    known = places.uploads is not None and re.fullmatch(r"[1-9][0-9]{0,18}", name) and (places.uploads / name).is_dir()
    if places.uploads is None or not known:
        raise SpecError.at(POINTER, f"there is no uploaded dataset '{name}'; GET /datasets lists them, POST /datasets takes one")
    return open_root(places.uploads / name, spec)


def _class_folders(folder: Path, root: Path) -> tuple[list[str], Images]:
    """The classes and images below `folder`, by torchvision's ImageFolder rules, without litter; names are relative to `root`."""
    try:
        classes = [name for name in find_classes(folder)[0] if not is_litter(name)]
    except FileNotFoundError:
        classes = []
    if not classes:
        raise SpecError.at(POINTER, _no_dataset(folder))
    index, below = {name: number for number, name in enumerate(classes)}, len(str(folder))
    samples = make_dataset(folder, index, is_valid_file=lambda path: _is_data(path[below:]), allow_empty=True)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    if empty := (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten().tolist():
        bare = quoted([classes[number] for number in empty])
        raise SpecError.at(POINTER, f"'{folder.name}': no image is in its class folders {bare}; put some there, or remove them")
    return classes, FileImages(root, [str(Path(path).relative_to(root)) for path, _ in samples], labels)


def _is_data(path: str) -> bool:
    return is_image(path) and not any(is_litter(part) for part in path.split("/"))


def _no_dataset(folder: Path) -> str:
    """What was looked for in a folder that has none of it, and what may be meant."""
    wanted = (
        f"'{folder.name}' has no class folders: a dataset is a folder for each class with its images in it, or images and {TABLE}"
    )
    alike = [name for name, (train, _) in IDX_FILES.items() if idx.find(folder, f"{train}-images-idx3-ubyte")]
    if alike:
        plain = folder.name.replace("-", "").replace("_", "").lower()
        alike.sort(key=lambda name: difflib.SequenceMatcher(None, name.lower(), plain).ratio(), reverse=True)
        return f"{wanted}; its idx files look like those of torchvision:{alike[0]}"
    return wanted


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
        there = torch.bincount(labels, minlength=count)
        if int((there > 0).sum()) == 1:
            notes.append(f"every image of the {split} split is of the class '{classes[low]}'")
        else:
            _note_bare(there, opened, split, notes)
        return
    good = labels.isfinite() if opened.task == "regression" else (labels == 0) | (labels == 1)
    if not good.all():
        row, column = (~good).nonzero()[0].tolist()
        wanted = "no number" if opened.task == "regression" else "neither 0 nor 1"
        place = f"'{classes[column]}' of {images.name(row)}"
        raise SpecError.at(POINTER, f"in its {split} split {place} is {labels[row, column].item():g}, which is {wanted}")
    if opened.task == "multilabel":
        _note_bare(labels.sum(dim=0), opened, split, notes)


def _note_bare(counts: Tensor, opened: Opened, split: str, notes: list[str]) -> None:
    if bare := (counts == 0).nonzero().flatten().tolist():
        notes.append(f"no image of the {split} split has {quoted([opened.classes[index] for index in bare])}")


def _unreadable(spec: DatasetSpec, places: Places, *splits: Images) -> Iterator[str]:
    """What is known already not to be readable: a note, or SpecError at /dataset/corrupt where it would end the job."""
    if not places.unreadable:
        return
    there = {images.name(index) for images in splits for index in range(len(images))}
    if not (found := [name for name in places.unreadable if name in there]):
        return
    known = f"when {spec.source} was uploaded, {quoted(found)} could not be read"
    if spec.corrupt == "fail":
        raise SpecError.at("/dataset/corrupt", f"{known}; set skip to leave such images out, or mend them and upload it again")
    yield f"{known}; what cannot be read is left out of every batch"
