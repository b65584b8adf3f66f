"""An uploaded archive as a dataset: unpack it, see what is in it, and say so."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.data.archives import Bounds, Member, members, refused
from core.data.datasets import check, open_root
from core.data.images import FORMATS, Images, Opened
from core.data.layout import TABLE, Layout, dataset_root, is_image, is_litter, layout_of
from core.data.readings import listed
from core.errors import DiskFullError, SpecError, is_no_room
from core.spec import DatasetSpec, Task

LISTED = 1000
"""Of a long list, so many are told; the counts are of all."""
_NAMED = 20  # names of one file under many
_BATCH = 4096
_libc = ctypes.CDLL(None, use_errno=True)


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


@dataclass
class Report:
    """What an archive turned out to hold. Names are paths below the dataset's root."""

    sha256: str
    """Over the sorted names and the SHA-256 of each file: the same pictures packed otherwise are the same dataset."""
    images: int
    bytes: int
    task: Task | None
    """What the targets are; None where a CSV leaves it open."""
    classes: list[ClassCount]
    corrupt: list[Corrupt]
    empty_classes: list[str]
    duplicates: Duplicates
    counts: dict[str, int]
    """Of all; lists have the first `LISTED`: classes, train, validation, corrupt, repeated, conflicting, leaking, left_out."""
    warnings: list[str]


@dataclass(frozen=True)
class _File:
    path: PurePosixPath
    size: int
    sha256: bytes

    @property
    def is_image(self) -> bool:
        return is_image(self.path.name)


@dataclass
class _Contents:
    """What was unpacked, by the paths below the root."""

    files: list[_File] = field(default_factory=list)
    folders: set[PurePosixPath] = field(default_factory=set)
    left_out: list[PurePosixPath] = field(default_factory=list)
    """What no dataset has: other kinds of files, and images in no class."""


def unpack_request(payload: dict[str, Any]) -> dict[str, Any]:
    """`{"archive", "folder", "bounds"}`: unpack the one into the other, which is not there yet; the Report, as JSON has it.

    Raises SpecError at the whole where it cannot be unpacked or cannot train, DiskFullError.
    """
    folder = Path(payload["folder"])
    try:
        found = _unpack(members(Path(payload["archive"]), Bounds(**payload["bounds"])), folder)
        with _of_the_whole(folder):
            _strip(found, folder)
            report = _examine(found, folder)
        _make_durable(folder)
    except OSError as error:
        if is_no_room(error):
            raise DiskFullError(
                "there is no room to unpack it", "Free space below the data directory, then send it again."
            ) from None
        raise
    return asdict(report)


def _unpack(packed: Iterable[Member], folder: Path) -> _Contents:
    """Write images and tables below `folder`, and no other file, link or device."""
    found = _Contents()
    folder.mkdir()
    for member in packed:
        if any(map(is_litter, member.path.parts)):
            continue
        found.folders.update(member.path.parents)
        if member.folder:
            found.folders.add(member.path)
        elif is_image(member.path.name) or member.path.suffix.lower() == ".csv":
            found.files.append(_write(member, folder))
        else:
            found.left_out.append(member.path)
    return found


def _write(member: Member, folder: Path) -> _File:
    path, sha, size = folder / member.path, hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise refused(f"'{member.path}' is in it twice, or as a file and a folder; pack it once") from None
    with file:
        for piece in member.pieces():
            file.write(piece)
            sha.update(piece)
            size += len(piece)
    return _File(member.path, size, sha.digest())


def _strip(found: _Contents, folder: Path) -> None:
    """Take away the folders that all lies in."""
    inner = dataset_root(folder)
    if inner == folder:
        return
    top = PurePosixPath(inner.relative_to(folder))
    inside = [file for file in found.files if file.path.is_relative_to(top)]
    found.left_out += [file.path for file in found.files if not file.path.is_relative_to(top)]
    outer = folder.with_name(f"{folder.name}.outer")
    folder.rename(outer)
    (outer / top).rename(folder)
    shutil.rmtree(outer)
    found.folders = {path.relative_to(top) for path in found.folders if path.is_relative_to(top)}
    found.files = [_File(file.path.relative_to(top), file.size, file.sha256) for file in inside]


def _examine(found: _Contents, folder: Path) -> Report:
    """Keep what a job would read, decode each image, and put together what there is to say. Raises SpecError."""
    layout = layout_of(folder)
    images = _keep(found, folder, layout)
    if not images:
        raise refused(f"there is no image in a class folder in it{_seen(found)}; {_WANTED}")
    corrupt = _decode(images, folder)
    opened, task, notes = _opened(folder, layout)
    targets = _targets(opened)
    _check_readable(opened, task, targets, corrupt)
    duplicates, same = _duplicates(images, targets)
    classes = _count(opened) if task else []
    bases = [base.relative_to(folder) for base in (layout.train, layout.held) if base is not None]
    report = Report(
        sha256=_identity(found.files),
        images=len(images),
        bytes=sum(file.size for file in found.files),
        task=task,
        classes=classes,
        corrupt=corrupt[:LISTED],
        empty_classes=[] if layout.table else _empty(found.folders, [PurePosixPath(base) for base in bases], layout.classes),
        duplicates=duplicates,
        counts={
            "classes": len(classes), "train": len(opened.train), "validation": len(opened.validation or ()),
            "corrupt": len(corrupt), **same, "left_out": len(found.left_out),
        },
        warnings=notes,
    )  # fmt: skip
    report.warnings += _warn(report, found, own_split=opened.validation is not None)
    return report


def _keep(found: _Contents, folder: Path, layout: Layout) -> list[_File]:
    """Delete what no job would read; the images that stay."""
    bases = [base.relative_to(folder).parts for base in (layout.train, layout.held) if base is not None]
    kept: list[_File] = []
    gone: list[_File] = []
    for file in found.files:
        parts = file.path.parts
        in_class = any(parts[: len(base)] == base and len(parts) > len(base) + 1 for base in bases)
        stays = (in_class or layout.table is not None) if file.is_image else len(parts) == 1
        (kept if stays else gone).append(file)
    for file in gone:
        (folder / file.path).unlink()
    _prune(folder)
    found.files = kept
    found.left_out += [file.path for file in gone]
    return [file for file in kept if file.is_image]


def _decode(images: list[_File], folder: Path) -> list[Corrupt]:
    """Those that cannot be read, by decoding each as training does, on every core."""

    def reason(file: _File) -> str | None:
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
                count = _number(len(opened.train) + len(opened.validation or ()), "image")
                raise refused(f"it has one class, '{opened.classes[0]}', of {count}; {_WANTED}, two of them at least")
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


@contextmanager
def _of_the_whole(folder: Path) -> Iterator[None]:
    """Faults of a dataset as those of the archive: whoever sends one has no spec to mend, and did not name the folder."""
    try:
        yield
    except SpecError as error:
        said = "; ".join(fault.message for fault in error.faults)
        raise refused(said.replace(f"'{folder.name}': ", "").replace(f"'{folder.name}'", "it")) from None


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
        left = _number(len(classes), "class", "classes")
        raise refused(f"{lost.format(f' in {len(opened.classes)} classes')}{left} to train on {first}")
    splits = Counter(split for split, _ in whole)
    if opened.validation is None and splits["train"] < 2:
        raise refused(f"{lost.format('')}{_number(splits['train'], 'image')} to train and to validate on {first}")
    if not splits["train"] or (opened.validation is not None and not splits["validation"]):
        raise refused(f"{lost.format('')}none to {'validate' if splits['train'] else 'train'} on {first}")


def _duplicates(images: list[_File], targets: dict[str, tuple[str, int | bytes]]) -> tuple[Duplicates, dict[str, int]]:
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


def _empty(folders: set[PurePosixPath], bases: list[PurePosixPath], classes: tuple[str, ...]) -> list[str]:
    """Folders where classes are, without an image."""
    there = {base / name for base in bases for name in classes}
    return sorted(str(path) for path in folders - there if path.parent in bases and path not in bases)[:LISTED]


def _warn(report: Report, found: _Contents, *, own_split: bool) -> Iterator[str]:
    """What a person should know before a job trains on it."""
    counts = report.counts
    if number := counts["corrupt"]:
        yield (
            f"{_number(number, 'image')} cannot be read (`corrupt`): mend them and send the archive again, or let a job leave "
            "them out with `dataset.corrupt: skip`"
        )
    if report.empty_classes:
        yield f"no image is in {listed(report.empty_classes)}: the classes are those that have images"
    if number := counts["conflicting"]:
        where = "in several classes" if report.task == "multiclass" else "with targets that differ"
        yield f"{_number(number, 'picture')} {where} (`duplicates.conflicting`): one of them is wrong"
    if number := counts["leaking"]:
        yield f"{_number(number, 'picture')} in both splits (`duplicates.leaking`): the validation will look better than it is"
    if number := counts["repeated"]:
        more = "" if own_split else "; of such twins one may be held out for validation while the other trains"
        where = "in a class" if report.task == "multiclass" else "with the same targets"
        yield f"{_number(number, 'picture')} more than once {where} (`duplicates.repeated`){more}"
    if found.left_out:
        some = listed([str(path) for path in sorted(found.left_out)])
        yield f"{_number(counts['left_out'], 'file')} in no class folder, or of another kind, left out: {some}"


def _identity(files: list[_File]) -> str:
    sha = hashlib.sha256()
    for file in sorted(files, key=lambda file: str(file.path)):
        sha.update(f"{file.path}\0{file.sha256.hex()}\n".encode())
    return sha.hexdigest()


def _prune(folder: Path) -> None:
    """Remove the folders that hold nothing, itself among them."""
    for path, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(path):  # noqa: PTH208 - as os.walk names it
            Path(path).rmdir()


def _make_durable(folder: Path) -> None:
    """Everything of this file system to its disk, by one call: a row that is committed has its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


_WANTED = (
    f"a dataset has a folder for each class, with images in it ({', '.join(IMG_EXTENSIONS)}), below train/ and val/ or not; or "
    f"images, and {TABLE} that says what they are"
)


def _seen(found: _Contents) -> str:
    if not found.left_out:
        return ", and nothing else" if not found.folders - {PurePosixPath()} else ", only empty folders"
    return f", but {_number(len(found.left_out), 'file')}: {listed([str(path) for path in sorted(found.left_out)])}"


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _plain(text: str) -> str:
    """What Pillow says of a file may quote bytes of it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[:300]
