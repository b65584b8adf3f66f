"""Where a batch's uint8 images come from: a tensor that holds the whole split, or files that are decoded as their turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms.v2 import functional as transforms

from core.errors import DataError
from core.images import Images
from core.randomness import generator

Bounds = list[tuple[int, int]]
_CHUNK = 256  # images that are decoded together for the resident tier


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

    tier: Literal["resident"] = "resident"

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self.bytes = pixels.numel()

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Tensor]:
        """uint8 [B, C, S, S] for each of `bounds`."""
        order = order.to(self._pixels.device)
        for first, last in bounds:
            yield self._pixels.index_select(0, order[first:last])

    def close(self) -> None:
        """Nothing to end."""


class Streaming:
    """Each batch decoded when its turn comes, by `workers` processes ahead of it, or here where there are none."""

    tier: Literal["streaming"] = "streaming"

    def __init__(self, decoder: Decoder, size: int, workers: int, device: torch.device) -> None:
        self.bytes = size
        self._device = device
        self._sampler = _Pieces()
        self._loader: DataLoader[Tensor | DataError] | None = DataLoader(
            decoder,
            batch_sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=generator(0),  # else each epoch, validation's too, would draw a seed from the global generator
        )

    def batches(self, order: Tensor, bounds: Bounds) -> Iterator[Tensor]:
        """uint8 [B, C, S, S] for each of `bounds`. Raises DataError where an image cannot be read."""
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        self._sampler.pieces = [order[first:last].tolist() for first, last in bounds]
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the processes: they live as long as the DataLoader."""
        self._loader = None


class Decoder(torch.utils.data.Dataset["Tensor | DataError"]):
    """Batches of images as uint8 [B, C, S, S]. An error goes as a value: raised, DataLoader makes it the text of a traceback."""

    def __init__(self, images: Images, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Tensor | DataError:
        if not indices:  # a rank that has no share of a batch; one channel stands for any number
            return torch.empty((0, 1, self.size, self.size), dtype=torch.uint8)
        try:
            if self.images.shape() is not None:
                return fit(torch.stack([self.images.read(index) for index in indices]), self.size)
            return torch.stack([fit(self.images.read(index), self.size) for index in indices])
        except DataError as error:
            return error


class _Pieces(Sampler[list[int]]):
    """The batches of the epoch that comes next; the processes of a DataLoader outlive an epoch, its order does not."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def _as_it_is(batch: Any) -> Any:
    return batch


def decode_all(decoder: Decoder, channels: int, workers: int) -> Tensor:
    """Every image, in order: uint8 [N, C, S, S]."""
    total = len(decoder)
    pixels = torch.empty((total, channels, decoder.size, decoder.size), dtype=torch.uint8)
    bounds = [(first, min(first + _CHUNK, total)) for first in range(0, total, _CHUNK)]
    with closing(Streaming(decoder, pixels.numel(), min(workers, len(bounds)), torch.device("cpu"))) as reader:
        for (first, last), batch in zip(bounds, reader.batches(torch.arange(total), bounds), strict=True):
            pixels[first:last] = batch
    return pixels
