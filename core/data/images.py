"""Labelled images, wherever they lie: in arrays, in files, or behind a torchvision dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import hashes
from core.errors import DataError
from core.spec import Task

POINTER = "/dataset/source"
"""Where a spec names its dataset: errors of opening one point there."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF")
"""What an image file is read as, whatever its name ends in. Pillow knows more, and gives some of them to other programs."""


class Images(Protocol):
    """The labelled images of one split. They may be read in any order, and from several processes."""

    labels: Tensor
    """int64 [N], each below the number of classes; or float32 [N, K]: of labels 0 or 1, or numbers to be learnt."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> Tensor:
        """One image as uint8 [C, H, W] at its native size. Raises DataError, which names the file."""
        ...

    def name(self, index: int) -> str:
        """Its file name, or the like of `train[17]`."""
        ...

    def shape(self) -> tuple[int, int] | None:
        """(H, W) where all have the same, known without reading; else None."""
        ...

    def digest(self) -> bytes:
        """SHA-256 of what tells this split from another: the pixels of arrays, else names, sizes and labels."""
        ...

    def stamp(self, *, again: bool = False) -> bytes | None:
        """SHA-256 of the state of its files: while it is the same, so are the pixels. None where it has none.

        It is that of the first time it is asked for, and of now with `again`.
        """
        ...


class ArrayImages:
    """Images in one uint8 tensor [N, C, H, W]."""

    def __init__(self, pixels: Tensor, labels: Tensor, split: str) -> None:
        self.pixels = pixels
        self.labels = labels
        self.split = split

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        """One image, a view."""
        return self.pixels[index]

    def name(self, index: int) -> str:
        """`train[17]`."""
        return f"{self.split}[{index}]"

    def shape(self) -> tuple[int, int] | None:
        """(H, W) of all."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def digest(self) -> bytes:
        """Over the pixels and the labels."""
        sha = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        sha.update(self.pixels.contiguous().numpy().data)
        sha.update(self.labels.numpy().data)
        return sha.digest()

    def stamp(self, *, again: bool = False) -> None:
        """They are decoded already."""


class FileImages:
    """Image files, decoded by Pillow to RGB each time they are read."""

    def __init__(self, root: Path, names: Sequence[str], labels: Tensor) -> None:
        self.root = root
        self.names = list(names)
        self.labels = labels
        self._stamp: bytes | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Tensor:
        """One image as uint8 [3, H, W]."""
        # At its whole size: libjpeg's reduced decoding (Image.draft) is three to five times as fast on large photographs, but
        # what is resized from it differs by up to 13 of 255 at the 99th percentile, and images are decoded once.
        try:
            with Image.open(self.root / self.names[index], formats=FORMATS) as image:
                return to_tensor(image, 3)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
            raise _unreadable(self.root, self.names[index], error) from None

    def name(self, index: int) -> str:
        """The path below the dataset's root."""
        return self.names[index]

    def shape(self) -> tuple[int, int] | None:
        """Unknown: files differ."""
        return None

    def digest(self) -> bytes:
        """Over names, sizes and labels; no file is read."""
        return _digest_of_files(self.root, self.names, self.labels)

    def stamp(self, *, again: bool = False) -> bytes:
        """Over paths, sizes, inodes and times of change; a file that is rewritten in place has another one."""
        if self._stamp is not None and not again:
            return self._stamp
        sha = hashlib.sha256(f"{self.root.resolve()}\n".encode(errors="surrogateescape"))
        for name in self.names:
            sha.update(f"{name}\0{_stamp_of(self.root / name)}\n".encode(errors="surrogateescape"))
        self._stamp = sha.digest()
        return self._stamp


class DatasetImages:
    """The samples of a torchvision dataset that yields (PIL image, target) pairs."""

    def __init__(self, dataset: Any, labels: Tensor, root: Path, names: Sequence[str], channels: int) -> None:
        self.dataset = dataset
        self.labels = labels
        self.root = root
        self.names = list(names)
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        """One image as uint8 [C, H, W]."""
        try:
            return to_tensor(self.dataset[index][0], self.channels)
        except MemoryError:
            raise
        except Exception as error:  # as above, and HDF5's
            raise _unreadable(self.root, self.names[index], error) from None

    def name(self, index: int) -> str:
        """The path below the dataset's root, or the like of `train[17]`."""
        return self.names[index]

    def shape(self) -> tuple[int, int] | None:
        """Unknown until read."""
        return None

    def digest(self) -> bytes:
        """Over names, sizes where they are files, and labels."""
        return _digest_of_files(self.root, self.names, self.labels)

    def stamp(self, *, again: bool = False) -> None:
        """Unknown: only torchvision's reader knows in which files they lie."""


class Part:
    """Some of another split's images, by index."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images = images
        self.indices: list[int] = indices.tolist()
        self.labels = images.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        """As the whole reads it."""
        return self.images.read(self.indices[index])

    def name(self, index: int) -> str:
        """As the whole names it."""
        return self.images.name(self.indices[index])

    def shape(self) -> tuple[int, int] | None:
        """As the whole."""
        return self.images.shape()

    def digest(self) -> bytes:
        """Over the whole and the choice."""
        return hashlib.sha256(self.images.digest() + np.asarray(self.indices, dtype=np.int64).tobytes()).digest()

    def stamp(self, *, again: bool = False) -> bytes | None:
        """Over the whole's and the choice."""
        whole = self.images.stamp(again=again)
        return whole and hashlib.sha256(whole + np.asarray(self.indices, dtype=np.int64).tobytes()).digest()


@dataclass(frozen=True)
class Opened:
    """A source as it was found. `validation` is None where it has no split of its own."""

    classes: Sequence[str]
    """The names of the model's outputs: of classes, of labels, or of numbers."""
    train: Images
    validation: Images | None
    channels: int
    task: Task = "multiclass"
    notes: tuple[str, ...] = ()


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A PIL image as uint8 [channels, H, W]; transparency and palettes are converted as ImageFolder does."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"))  # a copy: Pillow's buffer is read-only
    tensor = torch.from_numpy(array)
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1)


def sendable(name: str) -> str:
    """The name of an image as JSON can carry it: that of a file may be no Unicode."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _unreadable(root: Path, name: str, error: Exception) -> DataError:
    return DataError(f"the image {name} cannot be read: {str(error).replace(str(root / name), name) or type(error).__name__}")


def _digest_of_files(root: Path, names: Sequence[str], labels: Tensor) -> bytes:
    sha = hashlib.sha256()
    rows = labels.tolist() if labels.ndim == 1 else [row.tobytes().hex() for row in labels.numpy()]
    for name, label in zip(names, rows, strict=True):
        sha.update(f"{name}\0{_size_of(f'{root}/{name}')}\0{label}\n".encode(errors="surrogateescape"))
    return sha.digest()


def _stamp_of(path: Path) -> str:
    try:
        return hashes.stamp_of(path)
    except OSError:
        return ""


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  (a Path for each of a million files takes seconds)
    except OSError:
        return -1
