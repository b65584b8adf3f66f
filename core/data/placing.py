"""Which tier holds a split, by its bytes: decided here for the plan and for the job, and made here for the job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core.data import image_cache
from core.data.image_cache import Entry, Stored
from core.data.images import Images, Part
from core.data.tiers import Bounds, Cached, Decoder, Piece, Resident, Source, Streaming, TierName, processes
from core.errors import DataError
from core.places import Places

OnCorrupt = Literal["fail", "skip"]
_HELD = 4 << 30
"""Bytes that are held decoded where neither a setting nor a GPU says how many."""
_SHARE = 0.5
"""Of what is free on a GPU when the model is there; activations, gradients and the optimizer's state need the rest."""
_CHUNK = 32 << 20
_MOST_IN_CHUNK = 256
_TOLD_EACH = 5.0
_LISTED = 20
_MEND = (
    'Mend or remove the file that is named, or leave out what cannot be read with dataset.corrupt "skip"; then submit it again.'
)


@dataclass(frozen=True)
class Room:
    """Bytes that decoded images may have on the device, and who says so."""

    bytes: int
    says: str

    def less(self, tier: Tier) -> Room:
        """What is left of it once a split has its tier."""
        return Room(self.bytes - tier.bytes, self.says) if tier.name == "resident" else self


@dataclass(frozen=True)
class Tier:
    """Where a split is held. `bytes`: of the split, decoded."""

    name: TierName
    bytes: int
    why: str


class Placed(NamedTuple):
    """A split ready to be read. `corrupt`: what cannot be read of it, by its index, as far as that is known."""

    source: Source
    corrupt: dict[int, str]


def room_on(device: torch.device | None, places: Places) -> Room:
    """What the setting says, else half of what is free on a GPU, else 4 GiB. `device`: None where it is not known yet."""
    if places.resident_bytes is not None:
        return Room(places.resident_bytes, "GRAFT_RESIDENT_BYTES")
    if device is not None and device.type == "cuda":
        return Room(int(torch.cuda.mem_get_info(device)[0] * _SHARE), "half of what is free on the GPU")
    return Room(_HELD, "a GPU may hold half of what is free on it" if device is None else "without GRAFT_RESIDENT_BYTES")


def choose(images: Images, size: int, channels: int, places: Places, room: Room) -> Tier:
    """The tier of a split at `size` px. Reads no image; asks for the state of each file where it does not fit the device."""
    wanted = len(images) * channels * size**2
    fits = f"{_bytes(wanted)} of the {_bytes(max(0, room.bytes))} that may be held in memory ({room.says})"
    if wanted <= room.bytes:
        return Tier("resident", wanted, fits)
    more = fits.replace(" of ", ", more than ", 1)
    if (kept := _kept_as(images, size, channels, places)) is None:
        return Tier("streaming", wanted, f"{more}; not image files, so not kept decoded on disk")
    entry = kept.entry
    if not (places.images_cache / entry.name).exists() and entry.size > (
        free := image_cache.room(places.images_cache, places.image_cache_bytes)
    ):
        return Tier("streaming", wanted, f"{more}, and than the {_bytes(max(0, free))} for decoded images on disk")
    return Tier("cached", wanted, f"{more}: decoded once, to disk")


def place(
    images: Images, size: int, channels: int, tier: Tier, *,
    workers: int | None, corrupt: OnCorrupt, device: torch.device, places: Places, say: Callable[[str], None] = print,
) -> Placed:  # fmt: skip
    """Make the tier: decode what is held, unless the disk has it already. Where the disk has no room for it, it streams.

    What cannot be read is found here, but by a streaming split whose job fails by it: that finds it in its turn. `say` hears
    how far it is, each few seconds. Raises DataError, which names a file, where `corrupt` is "fail".
    """
    at = _Making(workers, corrupt, places, say)
    decoder = Decoder(images, size, channels)
    kept = at.stored(images, size, channels) if tier.name != "streaming" else None
    if kept is not None:
        stored, rows = kept
        source: Source
        if tier.name == "cached":
            source = Cached(stored.pixels, torch.arange(len(images)) if rows is None else rows, device)
        else:
            source = Resident(_gathered(stored.pixels, rows, device))
        return Placed(source, at.unreadable(images, stored.sound if rows is None else stored.sound[rows]))
    if tier.name == "resident":
        pixels, lost = at.decoded(decoder)
        return Placed(Resident(pixels.to(device)), lost)
    lost = at.checked(images, channels) if corrupt == "skip" else {}
    return Placed(Streaming(decoder, processes(workers, images), device), lost)


class _Kept(NamedTuple):
    """As what a split is kept on disk: these images, of which `rows` are the split's (None: all)."""

    images: Images
    rows: Tensor | None
    entry: Entry


def _kept_as(images: Images, size: int, channels: int, places: Places) -> _Kept | None:
    """None where they have no files. A part that is most of its whole is kept as the whole.

    So other seeds, which hold out other images, find theirs in it, and so does the validation split once it is there.
    """
    if isinstance(images, Part):
        entry = image_cache.entry_of(images.images, size, channels)
        if entry and (2 * len(images) > len(images.images) or (places.images_cache / entry.name).exists()):
            return _Kept(images.images, torch.tensor(images.indices), entry)
    entry = image_cache.entry_of(images, size, channels)
    return None if entry is None else _Kept(images, None, entry)


@dataclass(frozen=True)
class _Making:
    workers: int | None
    corrupt: OnCorrupt
    places: Places
    say: Callable[[str], None]

    def stored(self, images: Images, size: int, channels: int) -> tuple[Stored, Tensor | None] | None:
        """The entry of the cache, made where it is not there, and which of its rows are the split's (None: all).

        None where it cannot be kept on disk.
        """
        try:
            if (kept := _kept_as(images, size, channels, self.places)) is None:
                return None
            return self._found_or_made(kept.images, kept.entry), kept.rows
        except OSError as error:
            self.say(f"the decoded images are not kept on disk: {error.strerror or error}")
            return None

    def _found_or_made(self, images: Images, entry: Entry) -> Stored:
        folder, (_, channels, size, _) = self.places.images_cache, entry.shape
        if (found := image_cache.find(folder, entry, self.say)) is not None:
            return found
        return image_cache.make(
            folder,
            entry,
            limit=self.places.image_cache_bytes,
            pieces=lambda: self._pieces(Decoder(images, size, channels)),
            unchanged=lambda: image_cache.entry_of(images, size, channels, again=True) == entry,
            say=self.say,
        )

    def decoded(self, decoder: Decoder) -> tuple[Tensor, dict[int, str]]:
        """Every image, in order, uint8 [N, C, S, S], in memory; and what cannot be read."""
        pixels = torch.empty((len(decoder), decoder.channels, decoder.size, decoder.size), dtype=torch.uint8)
        corrupt: dict[int, str] = {}
        first = 0
        for piece, lost in self._pieces(decoder):
            pixels[first : first + len(piece)] = piece
            corrupt |= {first + position: message for position, message in lost.items()}
            first += len(piece)
        return pixels, corrupt

    def checked(self, images: Images, channels: int) -> dict[int, str]:
        """What cannot be read, known before the first epoch as on every other tier; the disk keeps that, if it keeps no more."""
        if (kept := self.stored(images, 0, channels)) is not None:
            stored, rows = kept
            return self.unreadable(images, stored.sound if rows is None else stored.sound[rows])
        return self.decoded(Decoder(images, 0, channels))[1]

    def unreadable(self, images: Images, sound: Tensor) -> dict[int, str]:
        """What an entry has no pixels of; why, the first of the files are asked again."""
        corrupt: dict[int, str] = {}
        for index in (~sound).nonzero().flatten().tolist():
            corrupt[index] = f"the image {images.name(index)} cannot be read"
            if len(corrupt) <= _LISTED:
                try:
                    images.read(index)
                except DataError as error:
                    corrupt[index] = str(error)
            self._check(corrupt)
        return corrupt

    def _check(self, lost: dict[int, str]) -> None:
        if lost and self.corrupt == "fail":
            raise unreadable(next(iter(lost.values())))

    def _pieces(self, decoder: Decoder) -> Iterator[Piece]:
        """All images, in order, some at a time. Raises DataError."""
        total, size = len(decoder), decoder.bytes // len(decoder)
        each = min(_MOST_IN_CHUNK, max(1, _CHUNK // max(1, size)))
        bounds: Bounds = [(first, min(first + each, total)) for first in range(0, total, each)]
        workers = min(processes(self.workers, decoder.images), len(bounds))
        begun = told = time.monotonic()
        with closing(Streaming(decoder, workers, torch.device("cpu"))) as reader:
            for (_, done), piece in zip(bounds, reader.batches(torch.arange(total), bounds), strict=True):
                self._check(piece.lost)
                yield piece
                if (now := time.monotonic()) - told >= _TOLD_EACH:
                    told = now
                    rate = done / (now - begun)
                    self.say(f"decoding images: {done:,} of {total:,} ({done / total:.0%}), {rate:,.0f} images/s")


def unreadable(message: str) -> DataError:
    """An image that a job cannot go on without."""
    return DataError(message, _MEND)


def _gathered(pixels: Tensor, rows: Tensor | None, device: torch.device) -> Tensor:
    """`rows` of a mapped file, on the device; a piece at a time, for there may be more of them than the host has memory."""
    total = len(pixels) if rows is None else len(rows)
    held = torch.empty((total, *pixels.shape[1:]), dtype=torch.uint8, device=device)
    each = max(1, _CHUNK // max(1, pixels[0].numel()))
    for first in range(0, total, each):
        piece = slice(first, min(first + each, total))
        held[piece] = (pixels[piece] if rows is None else pixels.index_select(0, rows[piece])).to(device)
    return held


def _bytes(count: int) -> str:
    """As people say it: `1.5 GB`."""
    thousands = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**thousands:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[thousands]}"
