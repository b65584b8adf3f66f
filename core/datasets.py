"""Open a dataset: its classes, its splits, its fingerprint."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from core.errors import SpecError, did_you_mean
from core.images import POINTER, ArrayImages, FileImages, Images, Opened, Part
from core.places import Places
from core.randomness import generator
from core.spec import DatasetSpec, Task
from core.torchvision_data import open_torchvision
from core.torchvision_sets import RECIPES

__all__ = ["Dataset", "Images", "dataset_sources", "open_dataset"]

VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""Beside `train/`, the first of these that is there validates."""
_HOLD_OUT = 1  # keys the draw of the held-out samples apart from those of the epochs' orders


@dataclass(frozen=True)
class Dataset:
    """Labelled images in two splits."""

    source: str
    classes: tuple[str, ...]
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

    Raises SpecError at /dataset/source where the source is unknown, is not there, is damaged, or cannot train a classifier.
    """
    kind, _, name = spec.source.partition(":")
    if kind not in _OPENERS:
        raise SpecError.at(POINTER, f"'{spec.source}' is no dataset source.{_meant(spec.source, kind, name)}")
    opened = _OPENERS[kind](name, places)
    notes: list[str] = []
    train, validation = opened.train, opened.validation
    _check_labels(opened.classes, train, "training")
    if validation is None or not len(validation):
        train, validation = _hold_out(train, len(opened.classes), spec.validation, seed, notes)
    else:
        _check_labels(opened.classes, validation, "validation")
    sha = hashlib.sha256("\0".join(opened.classes).encode(errors="surrogateescape") + train.digest() + validation.digest())
    shape = train.shape()
    return Dataset(
        source=spec.source,
        classes=tuple(opened.classes),
        channels=opened.channels,
        size=shape if shape == validation.shape() else None,
        train=train,
        validation=validation,
        fingerprint=sha.hexdigest(),
        notes=tuple(notes),
    )


def dataset_sources() -> dict[str, list[str]]:
    """The kinds of source, and the names that each knows (a folder may have any, an upload has a number)."""
    return {"torchvision": sorted(RECIPES), "sklearn": ["digits"], "folder": [], "upload": []}


def _open_sklearn(name: str, places: Places) -> Opened:  # noqa: ARG001
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


def _open_folder(name: str, places: Places) -> Opened:
    root = places.input(name, POINTER)
    if not root.is_dir():
        raise SpecError.at(POINTER, f"'{name}' is a file; folder:PATH needs a folder with one folder per class")
    train_folder = root / "train"
    if not train_folder.is_dir():
        classes, images = _class_folders(root, root)
        return Opened(classes, images, None, 3)
    classes, train = _class_folders(train_folder, root)
    held = next((root / part for part in VALIDATION_FOLDERS if (root / part).is_dir()), None)
    if held is None:
        return Opened(classes, train, None, 3)
    held_classes, validation = _class_folders(held, root)
    if classes != held_classes:
        odd = sorted(set(classes) ^ set(held_classes))
        raise SpecError.at(POINTER, f"'{name}': train and {held.name} have different class folders ({_some(odd)} in one alone)")
    return Opened(classes, train, validation, 3)


def _open_upload(name: str, places: Places) -> Opened:
    """What was uploaded under this number: a folder like any, in a place of its own."""
    known = places.uploads is not None and re.fullmatch(r"[1-9][0-9]{0,18}", name) and (places.uploads / name).is_dir()
    if places.uploads is None or not known:
        raise SpecError.at(POINTER, f"there is no uploaded dataset '{name}'; GET /datasets lists them, POST /datasets takes one")
    return _open_folder(name, places.model_copy(update={"inputs": places.uploads}))


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


_OPENERS: dict[str, Callable[[str, Places], Opened]] = {
    "torchvision": open_torchvision,
    "sklearn": _open_sklearn,
    "folder": _open_folder,
    "upload": _open_upload,
}


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


def _check_labels(classes: Sequence[str], images: Images, split: str) -> None:
    if not len(images):
        raise SpecError.at(POINTER, f"its {split} split has no images")
    if len(classes) < 2:
        raise SpecError.at(POINTER, f"it has one class ('{classes[0]}'); a classifier needs two or more")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(classes):
        raise SpecError.at(POINTER, f"its {split} split has labels from {low} to {high}, but there are {len(classes)} classes")


def _hold_out(images: Images, classes: int, share: float, seed: int, notes: list[str]) -> tuple[Images, Images]:
    """(train, validation): each class by its share, and none loses its last training sample where another can spare one."""
    total = len(images)
    if total < 2:
        raise SpecError.at(POINTER, "it has one image; training needs at least one, and validation another")
    wanted = max(1, round(total * share))
    counts = torch.bincount(images.labels, minlength=classes)
    chosen = _per_class(counts, share, wanted)
    if not int(chosen.sum()):
        chosen[int(counts.argmax())] = 1
    if int(chosen.sum()) != round(total * share):
        notes.append(
            f"of {total} images {int(chosen.sum())} validate{'s' if int(chosen.sum()) == 1 else ''}, not {share:g} of them: "
            "each class keeps one to train on, and one at least must validate"
        )
    order = torch.randperm(total, generator=generator(seed, _HOLD_OUT))
    held = torch.zeros(total, dtype=torch.bool)
    for label in chosen.nonzero().flatten().tolist():
        held[order[images.labels[order] == label][: int(chosen[label])]] = True
    return Part(images, (~held).nonzero().flatten()), Part(images, held.nonzero().flatten())


def _per_class(counts: Tensor, share: float, wanted: int) -> Tensor:
    """How many of each class to hold out: its share, what is left over by largest remainder, always leaving one."""
    spare = (counts - 1).clamp(min=0)
    exact = counts.double() * share
    chosen = torch.minimum(exact.floor().to(torch.int64), spare)
    by_remainder = torch.argsort(exact - exact.floor(), descending=True, stable=True).tolist()
    for label in by_remainder * 2:  # twice: where some classes can spare none, others give once more
        if int(chosen.sum()) >= wanted:
            break
        if chosen[label] < spare[label]:
            chosen[label] += 1
    return chosen


def _some(names: list[str], shown: int = 5) -> str:
    return ", ".join(f"'{name}'" for name in names[:shown]) + (" …" if len(names) > shown else "")
