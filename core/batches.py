"""Batches: the order of samples as a function of (seed, epoch), images decoded once where they fit, normalised on the device.

Images travel and are held as uint8, at the model's size and with their own number of channels; only a batch becomes float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.errors import SpecError
from core.images import Images
from core.places import Places
from core.randomness import generator
from core.spec import JobSpec, LoaderSpec
from core.tiers import Bounds, Decoder, Resident, Streaming, decode_all

Triple = tuple[float, float, float]
_ORDER = 0  # keys the draw of an epoch's order apart from that of the held-out samples


@dataclass(frozen=True)
class Preprocessing:
    """How images reach the model: float32 [B, 3, size, size], (x / 255 - mean) / std."""

    size: int
    mean: Triple
    std: Triple

    @classmethod
    def of(cls, size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """As libraries and files say it: of grey images one value, which is for all three channels."""
        return cls(int(size), _triple(mean), _triple(std))


class Loader:
    """One split as batches of (images float32 [B, 3, S, S], labels int64 [B]), both on the device.

    `tier`: `resident` (decoded once, held as uint8 on the device) or `streaming` (decoded each epoch). `bytes`: of the split,
    decoded.
    """

    def __init__(
        self, source: Resident | Streaming, labels: Tensor, preprocessing: Preprocessing, *,
        bounds: Bounds, shuffle_seed: int | None,
    ) -> None:  # fmt: skip
        self.tier: Literal["resident", "streaming"] = source.tier
        self.bytes = source.bytes
        self.samples = bounds[-1][1]
        """Samples per epoch: fewer than the split has where the ragged batch is left out."""
        self.split = len(labels)
        """Samples of the split."""
        self.labels = labels
        """Of all of them, on the device."""
        self._source = source
        self._bounds = bounds
        self._shuffle_seed = shuffle_seed
        self._normalise = Normalise(preprocessing, labels.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._bounds)

    def sizes(self) -> list[int]:
        """The samples of each batch, over all ranks."""
        return [last - first for first, last in self._bounds]

    def batches(
        self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, each `step`th from number `start` on: a slice, nothing before it is read.

        With `ranks` only the share of `rank` in each is read, which is empty where there are fewer samples than ranks; the order
        is the same for any number of them. Draws nothing from the global random state.
        """
        order = self.order(epoch)
        on_device = order.to(self.labels.device)
        bounds = [_share(first, last, rank, ranks) for first, last in self._bounds[start::step]]
        pixels = self._source.batches(order, bounds)
        for (first, last), images in zip(bounds, pixels, strict=True):
            yield self._normalise(images), self.labels.index_select(0, on_device[first:last])

    def indices(self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
        """The numbers of the samples of the batches that `batches` gives with the same arguments, int64 [B] on the device."""
        order = self.order(epoch).to(self.labels.device)
        for bounds in self._bounds[start::step]:
            first, last = _share(*bounds, rank, ranks)
            yield order[first:last]

    def images(self, indices: Tensor) -> Tensor:
        """The images of these samples, as the model takes them."""
        (pixels,) = self._source.batches(indices.cpu(), [(0, len(indices))])
        return self._normalise(pixels)

    def straight(self, size: int) -> Iterator[Tensor]:
        """The images of the whole split in the order of its samples, `size` together, as the model takes them."""
        total = len(self.labels)
        bounds = [(first, min(first + size, total)) for first in range(0, total, size)]
        for pixels in self._source.batches(torch.arange(total), bounds):
            yield self._normalise(pixels)

    def order(self, epoch: int) -> Tensor:
        """The indices of the samples in the order of that epoch, int64 [N]: a function of (seed, epoch) alone."""
        if self._shuffle_seed is None:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=generator(self._shuffle_seed, _ORDER, epoch))

    def close(self) -> None:
        """End the reading processes, if there are any."""
        self._source.close()


def make_loader(
    images: Images, spec: LoaderSpec, preprocessing: Preprocessing, *,
    channels: int, seed: int, train: bool, device: torch.device, places: Places,
) -> Loader:  # fmt: skip
    """The batches of a split. Where its decoded bytes fit `places.resident_bytes` they are decoded here, once.

    Only a training split is shuffled, and loses its last, ragged batch with `drop_last`. Raises SpecError where that leaves
    nothing, and DataError, which names the file, where an image cannot be read.
    """
    if not train:
        spec = spec.model_copy(update={"drop_last": False})
    bounds = batch_bounds(len(images), spec)
    if not bounds:
        raise SpecError.at(
            "/loader/drop_last",
            f"{len(images)} training images are less than one batch of {spec.batch_size}: nothing is left; lower batch_size",
        )
    decoder = Decoder(images, preprocessing.size)
    size = estimate(images, preprocessing, channels)
    source: Resident | Streaming
    if size <= places.resident_bytes:
        source = Resident(decode_all(decoder, channels, spec.workers).to(device))
    else:
        source = Streaming(decoder, size, spec.workers, device)
    shuffle_seed = seed if train and spec.shuffle else None
    return Loader(source, images.labels.to(device), preprocessing, bounds=bounds, shuffle_seed=shuffle_seed)


def estimate(images: Images, preprocessing: Preprocessing, channels: int) -> int:
    """Bytes of the split when decoded; nothing is read."""
    return len(images) * channels * preprocessing.size**2


def steps_per_epoch(samples: int, spec: JobSpec) -> int:
    """Optimizer steps of a training epoch, the last one of fewer batches where they do not divide; 0 where there is no batch."""
    return -(-len(batch_bounds(samples, spec.loader)) // spec.training.accumulate)


def batch_bounds(samples: int, spec: LoaderSpec) -> Bounds:
    """Where each batch begins and ends in the epoch's order.

    The last, ragged one is kept unless `drop_last`; a lone last sample joins the batch before it, for BatchNorm cannot train
    on one.
    """
    size = spec.batch_size
    bounds = [(first, min(first + size, samples)) for first in range(0, samples, size)]
    ragged = samples % size
    if ragged and spec.drop_last:
        bounds.pop()
    elif ragged == 1 and len(bounds) > 1:
        bounds[-2:] = [(bounds[-2][0], samples)]
    return bounds


def _share(first: int, last: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which part of a batch is a rank's: consecutive samples, their numbers alike to one."""
    samples = last - first
    return first + samples * rank // ranks, first + samples * (rank + 1) // ranks


class Normalise:
    """uint8 [B, 1 or 3, S, S] to float32 [B, 3, S, S], in one fused multiply-add; grey becomes three equal channels."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(torch.float32).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(torch.float32).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """A new tensor."""
        return torch.addcmul(self._shift, pixels.to(torch.float32), self._scale)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) for value in ([*values] * 3 if len(values) == 1 else values))
    return red, green, blue
