"""Batches: in the order of their epoch, of images decoded once where they fit, changed on the device.

Images travel and are held as uint8, square, with their own number of channels; only a batch becomes float32. It is augmented
first, then normalised, then mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from core.augmentation.augment import Pipeline
from core.data.images import Images
from core.data.mixing import Batch, Mixing
from core.data.ordering import batch_bounds, epoch_order, share_of, with_partners
from core.data.placing import OnCorrupt, Tier, choose, place, room_on, unreadable
from core.data.preprocessing import Normalise, Preprocessing
from core.data.tiers import Bounds, Source, TierName
from core.errors import SpecError
from core.places import Places
from core.spec import LoaderSpec

_NOTHING_LEFT = "of a batch no image is left that can be read"


class Loader:
    """One split as batches of (images float32 [B, 3, S, S], labels int64 [B]), both on the device; mixed labels are float32.

    `tier`: `resident` (held as uint8 on the device), `cached` (decoded once, on disk) or `streaming` (decoded each epoch).
    `bytes`: of the split, decoded.
    """

    def __init__(
        self, source: Source, labels: Tensor, preprocessing: Preprocessing, *,
        bounds: Bounds, shuffle_seed: int | None, on_corrupt: OnCorrupt = "fail", train: bool = True,
        augment: Pipeline | None = None, mixing: Mixing | None = None,
    ) -> None:  # fmt: skip
        self.tier: TierName = source.tier
        self.bytes = source.bytes
        self.samples = bounds[-1][1]
        """Samples of the first epoch: fewer than the split has where the ragged batch, or what cannot be read, is left out."""
        self.corrupt: dict[int, str] = {}
        """What cannot be read, by its index, and why: it is in no batch. More of it may be found while files stream."""
        self.split = len(labels)
        """Samples of the split."""
        self.labels = labels
        """Of all of them, on the device."""
        self.may_lose = source.tier == "streaming" and on_corrupt == "skip"
        """Whether images may be left out in mid-epoch, since they can no longer be read; of several ranks, on any of them."""
        self._source = source
        self.bounds = bounds
        """Where each batch begins and ends in the epoch's order, whatever is left out."""
        self._shuffle_seed = shuffle_seed
        self._augment = augment
        self._mixing = mixing
        self._on_corrupt = on_corrupt
        self._train = train
        self._normalise = Normalise(preprocessing, labels.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.bounds)

    def sizes(self, epoch: int = 0) -> list[int]:
        """The samples of each batch, over all ranks; it depends on the epoch where some cannot be read."""
        return [last - first for first, last in self._readable(epoch)[1]]

    def leave_out(self, corrupt: Mapping[int, str]) -> None:
        """In what is asked for from here on they are in no batch: the one that they would be in is smaller, and not another."""
        self.corrupt |= corrupt
        self.samples = sum(self.sizes())

    def batches(
        self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, each `step`th from number `start` on: a slice, nothing before it is read.

        With `ranks` only the share of `rank` in each is read, which is empty where there are fewer samples than ranks; the order
        is the same for any number of them. Once `corrupt` has grown meanwhile, the others' shares are no longer what they were:
        the ranks agree on it, and ask anew from that batch on. Draws nothing from the global random state. Raises DataError,
        which names the file, where an image cannot be read and may not be left out. Of validation a batch of which nothing is
        left is none.
        """
        order, bounds, whole = self._shares(epoch, start, step, rank, ranks)
        if self._mixing and ranks > 1:
            order, bounds = with_partners(order, whole, bounds)
        on_device = order.to(self.labels.device)
        pieces = self._source.batches(order, bounds)
        for (first, last), (begin, end), (pixels, lost) in zip(bounds, whole, pieces, strict=True):
            if begin == end:
                raise unreadable(_NOTHING_LEFT)
            images, asked, samples = pixels, order[first:last], on_device[first:last]
            if lost:
                left = self._left(lost, asked, shared=ranks > 1)
                there = left.to(self.labels.device)
                images, asked, samples = pixels[there], asked[left], samples[there]
                if ranks > 1:  # it will be read anew, without them
                    yield self._normalise(images), self.labels.index_select(0, samples)
                    continue
                if not len(left):
                    continue
            changed = self._augment(images, epoch, asked) if self._augment else images
            batch = self._normalise(changed), self.labels.index_select(0, samples)
            yield _mixed(self._mixing, batch, epoch, samples, alone=ranks == 1) if self._mixing else batch

    def indices(self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
        """The numbers of the samples of the batches that `batches` gives with the same arguments, int64 [B] on the device."""
        order, bounds, whole = self._shares(epoch, start, step, rank, ranks)
        on_device = order.to(self.labels.device)
        for (first, last), (begin, end) in zip(bounds, whole, strict=True):
            if begin == end:
                raise unreadable(_NOTHING_LEFT)
            yield on_device[first:last]

    def images(self, indices: Tensor) -> Tensor:
        """The images of these samples, as the model takes them. Raises DataError where one of them cannot be read."""
        asked = indices.cpu()
        ((pixels, lost),) = self._source.batches(asked, [(0, len(asked))])
        for message in lost.values():
            raise unreadable(message)
        return self._normalise(pixels)

    def straight(self, size: int) -> Iterator[Tensor]:
        """The images of the whole split in the order of its samples, `size` together, as the model takes them.

        What is left out is among them, black; also what could not be read just now, from the next batch on that is asked for.
        """
        order = torch.arange(len(self.labels))
        bounds = [(first, min(first + size, len(order))) for first in range(0, len(order), size)]
        for (first, last), (pixels, lost) in zip(bounds, self._source.batches(order, bounds), strict=True):
            self._lose(lost, order[first:last])
            yield self._normalise(pixels)

    def order(self, epoch: int) -> Tensor:
        """The indices of the samples in the order of that epoch, int64 [N]: a function of (seed, epoch) alone."""
        return epoch_order(len(self.labels), self._shuffle_seed, epoch)

    def kept(self, epoch: int) -> Tensor:
        """The same, without what cannot be read."""
        return self._readable(epoch)[0]

    def close(self) -> None:
        """End the reading processes, if there are any."""
        self._source.close()

    def _readable(self, epoch: int) -> tuple[Tensor, Bounds]:
        """The order of an epoch without what cannot be read, and where each batch begins and ends in that."""
        order = self.order(epoch)
        if not self.corrupt:
            return order, self.bounds
        sound = torch.ones(len(order), dtype=torch.bool)
        sound[list(self.corrupt)] = False
        kept = sound[order]
        before = [0, *kept.cumsum(0).tolist()]
        return order[kept], [(before[first], before[last]) for first, last in self.bounds]

    def _shares(self, epoch: int, start: int, step: int, rank: int, ranks: int) -> tuple[Tensor, Bounds, Bounds]:
        """The order of an epoch, and where in it a rank's shares of its batches are, and these themselves."""
        order, bounds = self._readable(epoch)
        whole = [(first, last) for first, last in bounds[start::step] if self._train or first < last]
        return order, [share_of(first, last, rank, ranks) for first, last in whole], whole

    def _lose(self, lost: Mapping[int, str], asked: Tensor) -> None:
        """Take note of what was `asked` for and could not be read. Raises DataError where nothing may be left out."""
        if lost and self._on_corrupt == "fail":
            raise unreadable(next(iter(lost.values())))
        self.corrupt = {int(asked[position]): why for position, why in lost.items()} | self.corrupt

    def _left(self, lost: Mapping[int, str], asked: Tensor, *, shared: bool) -> Tensor:
        """Where in a batch that was `asked` for the others are, once some could not be read that nobody knew of."""
        self._lose(lost, asked)
        if len(lost) == len(asked) and self._train and not shared:
            raise unreadable(f"of a batch of {len(asked)} images none can be read; {next(iter(lost.values()))}")
        return torch.tensor([position for position in range(len(asked)) if position not in lost], dtype=torch.int64)


def make_loader(
    images: Images, spec: LoaderSpec, preprocessing: Preprocessing, *,
    channels: int, seed: int, train: bool, device: torch.device, places: Places,
    tier: Tier | None = None, on_corrupt: OnCorrupt = "fail", say: Callable[[str], None] = print,
    augment: Pipeline | None = None, mixing: Mixing | None = None,
) -> Loader:  # fmt: skip
    """The batches of a split, in its `tier` (`core.data.placing.choose`; left out, it is chosen here).

    They are decoded at the size that `augment` wants them at. Only a training split is shuffled, and loses its last, ragged
    batch with `drop_last`. Raises SpecError where that leaves nothing, and DataError, which names the file, where an image
    cannot be read and `on_corrupt` is "fail".
    """
    if not train:
        spec = spec.model_copy(update={"drop_last": False})
    bounds = batch_bounds(len(images), spec)
    if not bounds:
        raise SpecError.at(
            "/loader/drop_last",
            f"{len(images)} training images are less than one batch of {spec.batch_size}: nothing is left; lower batch_size",
        )
    size = augment.held if augment else preprocessing.size
    tier = tier or choose(images, size, channels, places, room_on(device, places))
    source, corrupt = place(
        images, size, channels, tier, workers=spec.workers, corrupt=on_corrupt, device=device, places=places, say=say
    )
    loader = Loader(
        source, images.labels.to(device), preprocessing,
        bounds=bounds, shuffle_seed=seed if train and spec.shuffle else None, on_corrupt=on_corrupt, train=train,
        augment=augment, mixing=mixing,
    )  # fmt: skip
    loader.leave_out(corrupt)
    return loader


def _mixed(mixing: Mixing, batch: Batch, epoch: int, samples: Tensor, *, alone: bool) -> Batch:
    """Of one rank of several a batch has the samples of its share first, then their partners."""
    images, labels = batch
    if alone:
        return mixing(batch, (images.flip(0), labels.flip(0)), epoch, samples)
    own = len(samples) // 2
    return mixing((images[:own], labels[:own]), (images[own:], labels[own:]), epoch, samples[:own])
