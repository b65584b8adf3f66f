"""The images of an uploaded dataset, looked at: which cannot be read, what their targets are, which are there more than once."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.data.archives import refused
from core.data.datasets import check, open_root
from core.data.images import FORMATS, Images, Opened
from core.data.layout import TABLE, Layout, is_image
from core.errors import SpecError
from core.spec import DatasetSpec, Task

LISTED = 1000
"""Of a long list, so many are told; the counts are of all."""
WANTED = (
    f"a dataset has a folder for each class, with images in it ({', '.join(IMG_EXTENSIONS)}), below train/ and val/ or not; or "
    f"images, and {TABLE} that says what they are"
)
"""What is said of an archive that is none."""
_NAMED = 20  # names of one file under many
_BATCH = 4096


@dataclass(frozen=True)
class File:
    """A file of the dataset, by its path below the root."""

    path: PurePosixPath
    size: int
    sha256: bytes

    @property
    def is_image(self) -> bool:
        """By its name."""
        return is_image(self.path.name)


@dataclass(frozen=True, order=True)
class Corrupt:
    """An image that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ClassCount:
    """How many images a class, a label or a number has in each split; `validation` is 0 where there is no split of its own."""

    name: str
    train: int
    validation: int


@dataclass(frozen=True)
class Same:
    """The same bytes under several names; `names` are the first of `count`."""

    sha256: str
    count: int
    names: list[str]


@dataclass
class Duplicates:
    """Files that are there more than once. Those in several classes and in both splits are in two of the lists."""

    repeated: list[Same] = field(default_factory=list)
    """In one class of one split, or with the same targets."""
    conflicting: list[Same] = field(default_factory=list)
    """In several classes, or with targets that differ: one of them at least is wrong."""
    leaking: list[Same] = field(default_factory=list)
    """In both splits: the validation is better than the model."""


@dataclass(frozen=True)
class Findings:
    """What the images turned out to be."""

    opened: Opened
    """As a job opens it."""
    task: Task | None
    """What the targets are; None where a CSV leaves it open."""
    classes: list[ClassCount]
    corrupt: list[Corrupt]
    duplicates: Duplicates
    same: dict[str, int]
    """How many duplicates there are of each kind."""
    notes: list[str]
    """What opening it had to say."""


def look_through(folder: Path, layout: Layout, images: list[File]) -> Findings:
    """Decode each of the `images` in `folder`, and open it as a job does. Raises SpecError where no job could train on it."""
    corrupt = _decode(images, folder)
    opened, task, notes = _opened(folder, layout)
    targets = _targets(opened)
    _check_readable(opened, task, targets, corrupt)
    duplicates, same = _duplicates(images, targets)
    return Findings(opened, task, _count(opened) if task else [], corrupt, duplicates, same, notes)


def number(count: int, one: str, many: str | None = None) -> str:
    """`1 class`, `2 classes`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _decode(images: list[File], folder: Path) -> list[Corrupt]:
    """Those that cannot be read, by decoding each as training does, on every core."""

    def reason(file: File) -> str | None:
        try:
            with Image.open(folder / file.path, formats=FORMATS) as image:
                image.convert("RGB")
        except MemoryError:
            return "it takes more memory to decode than there is"
        except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
            return _plain(str(error).replace(str(folder / file.path), file.path.name) or type(error).__name__)
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # more pixels than any photograph has
        found: list[Corrupt] = []
        for start in range(0, len(images), _BATCH):  # a pool is given all that it is to do at once
            some = images[start : start + _BATCH]
            reasons = zip(some, pool.map(reason, some), strict=True)
            found += [Corrupt(str(file.path), why) for file, why in reasons if why is not None]
        return sorted(found)


def _opened(folder: Path, layout: Layout) -> tuple[Opened, Task | None, list[str]]:
    """The dataset, opened by the very functions that a job opens it with; its task, where it says one; what to know of it.

    What a table leaves open (are these whole numbers classes?) is for the job's `dataset.task` to say. It is then read as
    whatever it can be: which rows differ, and which validate, is the same in each reading. Raises SpecError where no job could.
    """
    asked, tasks = "", list[Task | None]([None, "multiclass", "regression"])
    for task in tasks:
        try:
            opened = open_root(folder, DatasetSpec(source="folder:.", labels=layout.table, task=task))
            if layout.table is None and len(opened.classes) < 2:
                count = number(len(opened.train) + len(opened.validation or ()), "image")
                raise refused(f"it has one class, '{opened.classes[0]}', of {count}; {WANTED}, two of them at least")
            notes = check(opened)
        except SpecError as error:
            if task is None and all(fault.pointer == "/dataset/task" for fault in error.faults):
                asked = error.faults[0].message
            elif not asked or task is tasks[-1]:
                raise
            continue
        if asked:
            return opened, None, [*opened.notes, f"a job must set `dataset.task`: {asked}"]
        return opened, opened.task, [*opened.notes, *notes]
    raise AssertionError("the last of the tasks returns or raises")


def _targets(opened: Opened) -> dict[str, tuple[str, int | bytes]]:
    """Of each image, by its name: its split, and a number or bytes that are the same where its targets are."""
    found: dict[str, tuple[str, int | bytes]] = {}
    for split, images in (("train", opened.train), ("validation", opened.validation)):
        if images is not None:
            labels = images.labels
            told = labels.tolist() if labels.ndim == 1 else [row.tobytes() for row in labels.numpy()]
            found.update({images.name(index): (split, target) for index, target in enumerate(told)})
    return found


def _check_readable(
    opened: Opened, task: Task | None, targets: dict[str, tuple[str, int | bytes]], corrupt: list[Corrupt]
) -> None:
    """Raises SpecError where the images that can be read are too few: two classes, two images, one in each split."""
    if not corrupt:
        return
    bad = {one.name for one in corrupt}
    whole = [target for name, target in targets.items() if name not in bad]
    lost = f"of its {len(targets)} images{{}} {len(targets) - len(whole)} cannot be read, which leaves "
    first = f"({'; '.join(f'{one.name}: {one.reason}' for one in corrupt[:3])}); mend them"
    classes = {target for _, target in whole}
    if task == "multiclass" and len(classes) < 2:
        left = number(len(classes), "class", "classes")
        raise refused(f"{lost.format(f' in {len(opened.classes)} classes')}{left} to train on {first}")
    splits = Counter(split for split, _ in whole)
    if opened.validation is None and splits["train"] < 2:
        raise refused(f"{lost.format('')}{number(splits['train'], 'image')} to train and to validate on {first}")
    if not splits["train"] or (opened.validation is not None and not splits["validation"]):
        raise refused(f"{lost.format('')}none to {'validate' if splits['train'] else 'train'} on {first}")


def _duplicates(images: list[File], targets: dict[str, tuple[str, int | bytes]]) -> tuple[Duplicates, dict[str, int]]:
    by_hash: defaultdict[bytes, list[str]] = defaultdict(list)
    for image in images:
        if (name := str(image.path)) in targets:
            by_hash[image.sha256].append(name)
    found, counts = Duplicates(), Counter(repeated=0, conflicting=0, leaking=0)
    for sha256, names in by_hash.items():
        if len(names) == 1:
            continue
        splits, labels = ({targets[name][part] for name in names} for part in (0, 1))
        same = Same(sha256.hex(), len(names), sorted(names)[:_NAMED])
        kinds = [*(["conflicting"] if len(labels) > 1 else []), *(["leaking"] if len(splits) > 1 else [])]
        for kind in kinds or ["repeated"]:
            counts[kind] += 1
            if len(listing := getattr(found, kind)) < LISTED:
                listing.append(same)
    return found, dict(counts)


def _count(opened: Opened) -> list[ClassCount]:
    """How many images each class or label has; a number to be learnt, all have."""

    def of(images: Images | None) -> list[int]:
        if images is None:
            return [0] * len(opened.classes)
        if opened.task == "regression":
            return [len(images)] * len(opened.classes)
        counts: list[int] = (
            torch.bincount(images.labels, minlength=len(opened.classes))
            if images.labels.ndim == 1
            else images.labels.sum(0).int()
        ).tolist()
        return counts

    rows = zip(opened.classes, of(opened.train), of(opened.validation), strict=True)
    return [ClassCount(name, train, validation) for name, train, validation in rows]


def _plain(text: str) -> str:
    """What Pillow says of a file may quote bytes of it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[:300]
