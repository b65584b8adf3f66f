"""An uploaded archive as a dataset: unpack it, see what is in it, and say so."""

from __future__ import annotations

import ctypes
import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from core.data.archives import Bounds, Member, members, refused
from core.data.datasets import VALIDATION_FOLDERS, open_dataset
from core.data.images import FORMATS
from core.errors import DiskFullError, SpecError, is_no_room
from core.places import Places
from core.spec import DatasetSpec

LISTED = 1000
"""Of a long list, so many are told; the counts are of all."""
_NAMED = 20  # names of one file under many
_BATCH = 4096
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_TABLE = "labels.csv"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, order=True)
class Corrupt:
    """An image that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ClassCount:
    """How many images a class has in each split; `validation` is 0 where the dataset has no split of its own."""

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
    """In one class of one split."""
    conflicting: list[Same] = field(default_factory=list)
    """In several classes: one of their labels at least is wrong."""
    leaking: list[Same] = field(default_factory=list)
    """In both splits: the validation is better than the model."""


@dataclass
class Report:
    """What an archive turned out to hold. Names are paths below the dataset's root."""

    sha256: str
    """Over the sorted names and the SHA-256 of each file: the same pictures packed otherwise are the same dataset."""
    images: int
    bytes: int
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
        return self.path.name.lower().endswith(IMG_EXTENSIONS)


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
        if any(part in _LITTER or part.startswith(".") for part in member.path.parts):
            continue
        found.folders.update(member.path.parents)
        if member.folder:
            found.folders.add(member.path)
        elif member.path.name.lower().endswith((*IMG_EXTENSIONS, ".csv")):
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
    """Take away the one folder that all lies in, unless it is a class by itself."""
    tops = {file.path.parts[0] for file in found.files}
    deep = any(file.is_image and len(file.path.parts) > 2 for file in found.files)
    if len(tops) != 1 or not (deep or any(file.path.parts[1:] == (_TABLE,) for file in found.files)):
        return
    (top,) = tops
    outer = folder.with_name(f"{folder.name}.outer")
    folder.rename(outer)
    (outer / top).rename(folder)
    _prune(outer)
    below = [path for path in found.folders if path.parts[:1] == (top,) and len(path.parts) > 1]
    found.folders = {path.relative_to(top) for path in below}
    found.files = [_File(file.path.relative_to(top), file.size, file.sha256) for file in found.files]


def _examine(found: _Contents, folder: Path) -> Report:
    """Keep what a job would read, decode each image, and put together what there is to say. Raises SpecError."""
    table = any(file.path == PurePosixPath(_TABLE) for file in found.files)
    splits = [""] if table else _splits([file.path for file in found.files if file.is_image])
    images = _keep(found, folder, splits, table=table)
    if not images:
        raise refused(f"there is no image in a class folder in it{_seen(found)}; {_WANTED}")
    labels = {image.path: _label(image.path, splits, table=table) for image in images}
    corrupt = _decode(images, folder)
    if not table:
        _check_classes(labels, corrupt)
    _check_opens(folder)
    duplicates, same = _duplicates(images, labels)
    train = sum(split == splits[0] for split, _ in labels.values())
    classes = [] if table else _count(labels, splits)
    report = Report(
        sha256=_identity(found.files),
        images=len(images),
        bytes=sum(file.size for file in found.files),
        classes=classes,
        corrupt=corrupt[:LISTED],
        empty_classes=[] if table else _empty(found.folders, labels, splits),
        duplicates=duplicates,
        counts={
            "classes": len(classes),
            "train": train, "validation": len(images) - train, "corrupt": len(corrupt), **same, "left_out": len(found.left_out),
        },
        warnings=[],
    )  # fmt: skip
    report.warnings += _warn(report, found, own_split=len(splits) > 1)
    return report


def _splits(images: list[PurePosixPath]) -> list[str]:
    """The folders that classes lie in: `train` and the one that validates, or (`""`) the root itself."""
    if not any(path.parts[0] == "train" and len(path.parts) > 1 for path in images):
        return [""]
    tops = {path.parts[0] for path in images if len(path.parts) > 2}
    return ["train", *[name for name in VALIDATION_FOLDERS if name in tops][:1]]


def _keep(found: _Contents, folder: Path, splits: list[str], *, table: bool) -> list[_File]:
    """Delete what no job would read; the images that stay."""
    kept: list[_File] = []
    gone: list[_File] = []
    for file in found.files:
        parts = file.path.parts
        deep = 2 if splits == [""] else 3
        in_class = len(parts) >= deep and (splits == [""] or parts[0] in splits)
        stays = (in_class or table) if file.is_image else len(parts) == 1
        (kept if stays else gone).append(file)
    for file in gone:
        (folder / file.path).unlink()
    _prune(folder)
    found.files = kept
    found.left_out += [file.path for file in gone]
    return [file for file in kept if file.is_image]


def _label(path: PurePosixPath, splits: list[str], *, table: bool) -> tuple[str, str]:
    """(split, class) of an image."""
    if table:
        return "", ""
    return ("", path.parts[0]) if splits == [""] else (path.parts[0], path.parts[1])


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


def _check_classes(labels: dict[PurePosixPath, tuple[str, str]], corrupt: list[Corrupt]) -> None:
    """Raises SpecError where there are not two classes with an image each that can be read."""
    names = sorted({name for _, name in labels.values()})
    if len(names) < 2:
        raise refused(f"it has one class, '{names[0]}', of {_number(len(labels), 'image')}; {_WANTED}, two of them at least")
    bad = {one.name for one in corrupt}
    whole = sorted({name for path, (_, name) in labels.items() if str(path) not in bad})
    if len(whole) < 2:
        first = "; ".join(f"{one.name}: {one.reason}" for one in corrupt[:3])
        raise refused(
            f"of its {len(labels)} images in {len(names)} classes {len(bad)} cannot be read, which leaves "
            f"{_number(len(whole), 'class', 'classes')} to train on ({first}); mend them"
        )


def _check_opens(folder: Path) -> None:
    """Raises SpecError where a job could not open it: by the very function that a job opens it with.

    What a table leaves open (are these whole numbers classes?) is for the job's `dataset.task` to say.
    """
    try:
        open_dataset(DatasetSpec(source=f"folder:{folder.name}"), Places(inputs=folder.parent), seed=0)
    except SpecError as error:
        if all(fault.pointer == "/dataset/task" for fault in error.faults):
            return
        raise refused("; ".join(fault.message.replace(f"'{folder.name}': ", "") for fault in error.faults)) from None


def _duplicates(images: list[_File], labels: dict[PurePosixPath, tuple[str, str]]) -> tuple[Duplicates, dict[str, int]]:
    by_hash: defaultdict[bytes, list[PurePosixPath]] = defaultdict(list)
    for image in images:
        by_hash[image.sha256].append(image.path)
    found, counts = Duplicates(), Counter(repeated=0, conflicting=0, leaking=0)
    for sha256, paths in by_hash.items():
        if len(paths) == 1:
            continue
        splits, names = ({labels[path][part] for path in paths} for part in (0, 1))
        same = Same(sha256.hex(), len(paths), [str(path) for path in sorted(paths)[:_NAMED]])
        kinds = [*(["conflicting"] if len(names) > 1 else []), *(["leaking"] if len(splits) > 1 else [])]
        for kind in kinds or ["repeated"]:
            counts[kind] += 1
            if len(listed := getattr(found, kind)) < LISTED:
                listed.append(same)
    return found, dict(counts)


def _count(labels: dict[PurePosixPath, tuple[str, str]], splits: list[str]) -> list[ClassCount]:
    counts = Counter(labels.values())
    held = splits[1] if len(splits) > 1 else None
    return [
        ClassCount(name, counts[splits[0], name], 0 if held is None else counts[held, name])
        for name in sorted({name for _, name in labels.values()})
    ]


def _empty(folders: set[PurePosixPath], labels: dict[PurePosixPath, tuple[str, str]], splits: list[str]) -> list[str]:
    """Folders where classes are, without an image."""
    there = {PurePosixPath(split, name) for split, name in labels.values()}
    roots = {PurePosixPath(split) for split in splits}
    return sorted(str(path) for path in folders - there if path.parent in roots and path not in roots)[:LISTED]


def _warn(report: Report, found: _Contents, *, own_split: bool) -> Iterator[str]:
    """What a person should know before a job trains on it."""
    counts = report.counts
    if number := counts["corrupt"]:
        yield (
            f"{_number(number, 'image')} cannot be read (`corrupt`): a job that comes upon one fails with its name, or "
            "leaves it out with `dataset.corrupt: skip`; mend them and send the archive again"
        )
    if report.empty_classes:
        yield f"no image is in {_some(report.empty_classes)}: the classes are those that have images"
    if number := counts["conflicting"]:
        yield f"{_number(number, 'picture')} in several classes (`duplicates.conflicting`): a label of each is wrong"
    if number := counts["leaking"]:
        yield f"{_number(number, 'picture')} in both splits (`duplicates.leaking`): the validation will look better than it is"
    if number := counts["repeated"]:
        more = "" if own_split else "; of such twins one may be held out for validation while the other trains"
        yield f"{_number(number, 'picture')} more than once in a class (`duplicates.repeated`){more}"
    if found.left_out:
        some = _some([str(path) for path in sorted(found.left_out)])
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


_WANTED = f"a dataset has a folder for each class, with images in it ({', '.join(IMG_EXTENSIONS)}), below train/ and val/ or not"


def _seen(found: _Contents) -> str:
    if not found.left_out:
        return ", and nothing else" if not found.folders - {PurePosixPath()} else ", only empty folders"
    return f", but {_number(len(found.left_out), 'file')}: {_some([str(path) for path in sorted(found.left_out)])}"


def _some(names: list[str], shown: int = 5) -> str:
    return ", ".join(f"'{name}'" for name in names[:shown]) + (" …" if len(names) > shown else "")


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _plain(text: str) -> str:
    """What Pillow says of a file may quote bytes of it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[:300]
