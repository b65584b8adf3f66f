"""Images that a job goes on without, since they cannot be read (`dataset.corrupt: skip`): the same on all ranks, and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

from core.data.batches import Loader
from core.errors import DataError
from core.events import Data, LeftOutData, LogData

SplitName = Literal["training", "validation"]
_LISTED = 20
_MOST = 10_000
"""Samples that an event lists."""
_MEND = "Mend or remove the files that the log names, or take a larger loader.batch_size, then submit the job again."


class Split(Protocol):
    """A loader, or what stands in its place (`core.models.features.Featured`)."""

    @property
    def corrupt(self) -> dict[int, str]:
        """What cannot be read, by its index, and why."""
        ...

    def leave_out(self, corrupt: Mapping[int, str]) -> None:
        """From the next epoch on it is in no batch."""
        ...


Gather = Callable[[dict[int, str]], list[dict[int, str]]]
"""What each rank has, in order: `core.training.ranks.Ranks.gather`."""


def agree(loader: Split, gather: Gather) -> None:
    """Leave out what any rank cannot read: batches, and so the shares of each, are the same on all. Collective."""
    found: dict[int, str] = {}
    for one in gather(loader.corrupt):
        found |= one
    if found:
        loader.leave_out({index: loader.corrupt.get(index, found[index]) for index in sorted(found)})


def check(
    train: Loader, validation: Loader, epochs: int, on_one: Callable[[], bool], bare: Callable[[], str | None] = lambda: None
) -> None:
    """Refuse now what would fail in some later epoch: a batch with no image left, or with one, where a model needs two.

    `on_one`: whether the model trains on a batch of one. `bare` says which images there are that weigh nothing in the loss, where
    those that are left are all like that. Raises DataError.
    """
    if (train.corrupt or validation.corrupt) and (said := bare()) is not None:
        count = len(train.corrupt) + len(validation.corrupt)
        raise DataError(f"{count} {'image' if count == 1 else 'images'} cannot be read, and without them {said}", _MEND)
    if not sum(validation.sizes()):
        raise DataError(f"none of the {len(validation.corrupt)} validation images can be read", _MEND)
    planned = [last - first for first, last in train.bounds]
    if len(train.corrupt) < min(planned) - 1:
        return
    for epoch in range(epochs):
        sizes = train.sizes(epoch)
        for number, (left, size) in enumerate(zip(sizes, planned, strict=True)):
            if not left or (left == 1 < size and not on_one()):
                said = "one image, and this model cannot train on one alone" if left else "no image"
                raise DataError(
                    f"{len(train.corrupt)} training images cannot be read, which leaves batch {number + 1} of epoch {epoch + 1} "
                    f"with {said}",
                    _MEND,
                )


class Listing:
    """What a job's log says of them: each once, as far as that is bearable, and how many after each epoch."""

    def __init__(self, training: Split, validation: Split) -> None:
        self._splits: dict[SplitName, Split] = {"training": training, "validation": validation}
        self._told = dict.fromkeys(self._splits, 0)

    def new(self, since: int) -> Iterator[Data]:
        """Those that were not told yet; step `since` is the first that goes without them."""
        for split, loader in self._splits.items():
            told, self._told[split] = self._told[split], len(loader.corrupt)
            found = sorted(list(loader.corrupt.items())[told:])  # in one order on all ranks
            for first in range(0, len(found), _MOST):
                yield LeftOutData(split=split, since=since, samples=[index for index, _ in found[first : first + _MOST]])
            listed = found[: max(0, _LISTED - told)]
            yield from (_warning(f"{message}; it is left out ({split})") for _, message in listed)
            if more := len(found) - len(listed):
                yield _warning(f"and {more} more {split} images that cannot be read are left out")

    def again(self, since: int) -> Iterator[Data]:
        """All of them, but no line on any: the job goes on from an earlier step."""
        self._told = dict.fromkeys(self._splits, 0)
        return (data for data in self.new(since) if isinstance(data, LeftOutData))

    def total(self, epoch: int) -> Iterator[Data]:
        """What an epoch went without."""
        counts = [f"{len(loader.corrupt)} {split}" for split, loader in self._splits.items() if loader.corrupt]
        if counts:
            images = "image" if sum(len(loader.corrupt) for loader in self._splits.values()) == 1 else "images"
            yield _warning(f"epoch {epoch + 1} went without {' and '.join(counts)} {images} that cannot be read")


def _warning(line: str) -> LogData:
    return LogData(level="warning", message=line)
