"""An uploaded archive as a dataset: unpack it, see what is in it, and say so."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from core.data.archives import Bounds, Member, members, refused
from core.data.inspection import LISTED, WANTED, ClassCount, Corrupt, Duplicates, File, look_through, number
from core.data.layout import Layout, dataset_root, is_image, is_litter, layout_of
from core.data.readings import quoted
from core.errors import DiskFullError, SpecError, is_no_room
from core.spec import Task

_libc = ctypes.CDLL(None, use_errno=True)


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


@dataclass
class _Contents:
    """What was unpacked, by the paths below the root."""

    files: list[File] = field(default_factory=list)
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


def _write(member: Member, folder: Path) -> File:
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
    return File(member.path, size, sha.digest())


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
    found.files = [File(file.path.relative_to(top), file.size, file.sha256) for file in inside]


def _examine(found: _Contents, folder: Path) -> Report:
    """Keep what a job would read, decode each image, and put together what there is to say. Raises SpecError."""
    layout = layout_of(folder)
    images = _keep(found, folder, layout)
    if not images:
        raise refused(f"there is no image in a class folder in it{_seen(found)}; {WANTED}")
    seen = look_through(folder, layout, images)
    opened = seen.opened
    bases = [base.relative_to(folder) for base in (layout.train, layout.held) if base is not None]
    report = Report(
        sha256=_identity(found.files),
        images=len(images),
        bytes=sum(file.size for file in found.files),
        task=seen.task,
        classes=seen.classes,
        corrupt=seen.corrupt[:LISTED],
        empty_classes=[] if layout.table else _empty(found.folders, [PurePosixPath(base) for base in bases], layout.classes),
        duplicates=seen.duplicates,
        counts={
            "classes": len(seen.classes), "train": len(opened.train), "validation": len(opened.validation or ()),
            "corrupt": len(seen.corrupt), **seen.same, "left_out": len(found.left_out),
        },
        warnings=seen.notes,
    )  # fmt: skip
    report.warnings += _warn(report, found, own_split=opened.validation is not None)
    return report


def _keep(found: _Contents, folder: Path, layout: Layout) -> list[File]:
    """Delete what no job would read; the images that stay."""
    bases = [base.relative_to(folder).parts for base in (layout.train, layout.held) if base is not None]
    kept: list[File] = []
    gone: list[File] = []
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


@contextmanager
def _of_the_whole(folder: Path) -> Iterator[None]:
    """Faults of a dataset as those of the archive: whoever sends one has no spec to mend, and did not name the folder."""
    try:
        yield
    except SpecError as error:
        said = "; ".join(fault.message for fault in error.faults)
        raise refused(said.replace(f"'{folder.name}': ", "").replace(f"'{folder.name}'", "it")) from None


def _empty(folders: set[PurePosixPath], bases: list[PurePosixPath], classes: tuple[str, ...]) -> list[str]:
    """Folders where classes are, without an image."""
    there = {base / name for base in bases for name in classes}
    return sorted(str(path) for path in folders - there if path.parent in bases and path not in bases)[:LISTED]


def _warn(report: Report, found: _Contents, *, own_split: bool) -> Iterator[str]:
    """What a person should know before a job trains on it."""
    counts = report.counts
    if count := counts["corrupt"]:
        yield (
            f"{number(count, 'image')} cannot be read (`corrupt`): mend them and send the archive again, or let a job leave "
            "them out with `dataset.corrupt: skip`"
        )
    if report.empty_classes:
        yield f"no image is in {quoted(report.empty_classes)}: the classes are those that have images"
    if count := counts["conflicting"]:
        where = "in several classes" if report.task == "multiclass" else "with targets that differ"
        yield f"{number(count, 'picture')} {where} (`duplicates.conflicting`): one of them is wrong"
    if count := counts["leaking"]:
        yield f"{number(count, 'picture')} in both splits (`duplicates.leaking`): the validation will look better than it is"
    if count := counts["repeated"]:
        more = "" if own_split else "; of such twins one may be held out for validation while the other trains"
        where = "in a class" if report.task == "multiclass" else "with the same targets"
        yield f"{number(count, 'picture')} more than once {where} (`duplicates.repeated`){more}"
    if found.left_out:
        some = quoted([str(path) for path in sorted(found.left_out)])
        yield f"{number(counts['left_out'], 'file')} in no class folder, or of another kind, left out: {some}"


def _identity(files: list[File]) -> str:
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


def _seen(found: _Contents) -> str:
    if not found.left_out:
        return ", and nothing else" if not found.folders - {PurePosixPath()} else ", only empty folders"
    return f", but {number(len(found.left_out), 'file')}: {quoted([str(path) for path in sorted(found.left_out)])}"
