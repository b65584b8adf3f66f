"""Where a batch's uint8 images come from: the device's memory, a file of decoded images, or files decoded as their turn comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms.v2 import functional as transforms

from core.data.images import Images
from core.errors import DataError
from core.randomness import generator

Bounds = list[tuple[int, int]]
TierName = Literal["resident", "cached", "streaming"]
_AHEAD = 2
"""Batches that are gathered from disk before their turn."""
_MOST_WORKERS = 16
_FEW = 256
"""Images that are decoded sooner than processes for it are started."""


class Piece(NamedTuple):
    """Images that were asked for together. Those that could not be read are black, and in `lost` by their position in it."""

    pixels: Tensor
    """uint8 [B, C, S, S]."""
    lost: dict[int, str]
    """Why, with the file's name."""


class Source(Protocol):
    """The images of a split, in any order."""

    tier: TierName
    bytes: int
    """Of the split, decoded."""

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Piece]:
        """For each of `bounds` the images of that part of `order` (int64, indices into the split), on the device."""
        ...

    def close(self) -> None:
        """End what reads ahead."""
        ...


def fit(image: Tensor, size: int) -> Tensor:
    """uint8 [..., C, H, W] to [..., C, size, size]: the central square, its side resized with antialias.

    torchvision's presets resize the shorter side, then crop; cropping first gives the same square, and a panorama costs no
    more than it shows.
    """
    height, width = image.shape[-2:]
    if height != width:
        image = transforms.center_crop(image, [min(height, width)] * 2)
    if image.shape[-1] == size:
        return image
    resized: Tensor = transforms.resize(image, [size, size], antialias=True)
    return resized


class Resident:
    """The whole split on the device, uint8 [N, C, S, S]: a batch is one gather."""

    tier: TierName = "resident"

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self.bytes = pixels.numel()

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Piece]:
        """Nothing is lost here: what could not be read was known before."""
        order = order.to(self._pixels.device)
        for first, last in bounds:
            yield Piece(self._pixels.index_select(0, order[first:last]), {})

    def close(self) -> None:
        """Nothing to end."""


class Cached:
    """The split in a mapped file of decoded images, uint8 [M, C, S, S], of which `rows` (int64 [N]) are its own.

    A thread gathers the next batches, into pinned memory where they go to a GPU, so that a slow disk is not waited for.
    """

    tier: TierName = "cached"

    def __init__(self, pixels: Tensor, rows: Tensor, device: torch.device) -> None:
        self._pixels = pixels
        self._rows = rows
        self._device = device
        self.bytes = len(rows) * pixels[0].numel()

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Piece]:
        """As above; the thread ends with the epoch."""
        rows = self._rows[order]
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, "gather") as reader:
            for first, last in bounds:
                ahead.append(reader.submit(self._gather, rows[first:last]))
                if len(ahead) > _AHEAD:
                    yield self._arrived(ahead.popleft())
            while ahead:
                yield self._arrived(ahead.popleft())

    def close(self) -> None:
        """Nothing to end: the file is let go with the last reference to it."""

    def _gather(self, rows: Tensor) -> Tensor:
        # Pinned memory comes from torch's own pool, which gives it out again only once its copy is done.
        shape = (len(rows), *self._pixels.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return torch.index_select(self._pixels, 0, rows, out=batch)

    def _arrived(self, batch: Future[Tensor]) -> Piece:
        return Piece(batch.result().to(self._device, non_blocking=True), {})


class Streaming:
    """Each batch decoded when its turn comes, by `workers` processes ahead of it, or here where there are none."""

    tier: TierName = "streaming"

    def __init__(self, decoder: Decoder, workers: int, device: torch.device) -> None:
        self.bytes = decoder.bytes
        self._device = device
        self._sampler = _Pieces()
        self._loader: DataLoader[Piece] | None = DataLoader(
            decoder,
            batch_sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=generator(0),  # else each epoch, validation's too, would draw a seed from the global generator
        )

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Piece]:
        """As above; what cannot be read is found here."""
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        self._sampler.pieces = [order[first:last].tolist() for first, last in bounds]
        for pixels, lost in self._loader:
            yield Piece(pixels.to(self._device, non_blocking=True), lost)

    def close(self) -> None:
        """End the processes: they live as long as the DataLoader."""
        self._loader = None


class Decoder(torch.utils.data.Dataset[Piece]):
    """Images of a split as uint8 [B, C, S, S]; with `size` 0 they are read, and nothing of them is kept.

    What cannot be read goes as a value: an error that is raised becomes the text of a traceback in DataLoader.
    """

    def __init__(self, images: Images, size: int, channels: int) -> None:
        self.images = images
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Of all images, decoded."""
        return len(self.images) * self.channels * self.size**2

    def __getitems__(self, indices: Sequence[int]) -> Piece:
        """The images at `indices`; there may be none, as a rank may have no share of a batch."""
        lost: dict[int, str] = {}
        read: list[Tensor] = []
        fitted = torch.zeros((len(indices), self.channels, self.size, self.size), dtype=torch.uint8)
        alike = self.size and self.images.shape() is not None
        for position, index in enumerate(indices):
            try:
                image = self.images.read(index)
            except DataError as error:
                lost[position] = str(error)
                continue
            if alike:
                read.append(image)
            elif self.size:
                fitted[position] = fit(image, self.size)
        if read:
            there = [position for position in range(len(indices)) if position not in lost]
            fitted[there] = fit(torch.stack(read), self.size)
        return Piece(fitted, lost)


class _Pieces(Sampler[list[int]]):
    """The batches of the epoch that comes next; the processes of a DataLoader outlive an epoch, its order does not."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def processes(wanted: int | None, images: Images) -> int:
    """How many to read a split with. Where the spec leaves it open: one for each core of this process, if that is worth it."""
    if wanted is not None:
        return wanted
    cores = torch.get_num_threads()
    if images.stamp() is None or len(images) < _FEW or cores == 1:
        return 0
    return min(cores, _MOST_WORKERS)


def _as_it_is(batch: Any) -> Any:
    return batch
