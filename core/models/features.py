"""A frozen backbone is run once: an image's features are the same each epoch, so an epoch costs what trains, and no more.

It is done where nothing is lost by it: the images are not augmented, the frozen part is frozen for two epochs or more, and what
it makes of all images fits in memory. The losses are those of the plain run, within the rounding of another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from core.data.batches import Loader
from core.data.placing import room_on
from core.models.cut import Cut, close, cut, is_sound
from core.models.folding import folded
from core.optimizer.freezing import Freezes
from core.places import Places
from core.spec import JobSpec

Runner = Callable[[Tensor, Callable[[Tensor], Any]], Any]
"""Calls a part of a model on images, as they are to be run: in their precision and layout."""
_WIDEST = 4
"""Numbers of features for each number of an image: beyond that they take more room than the work they save is worth."""
_FEW = 3  # real images on which a graph is tried before it is trusted
_PIXELS = {"cpu": 3 << 18, "cuda": 3 << 20}  # that go through the frozen part together; `together` says why


@dataclass(frozen=True)
class Features:
    """What the frozen part of a model makes of a batch, in the place of its images: tensors [B, …]."""

    tensors: list[Tensor]
    images: Callable[[], Tensor]
    """Reads the images themselves: the frozen part may thaw between the batch and its step."""


class FeatureFacts(BaseModel):
    """Whether the frozen part is run once over the dataset, and its outputs are kept. `bytes`: of both splits."""

    once: bool
    reason: str
    shapes: list[list[int]] = []
    """Of one image's features."""
    bytes: int = 0


def together(size: int, device: torch.device) -> int:
    """How many square images of `size` px go through the frozen part at once: as many pixels, whatever their size.

    On a CPU more do not stay in its caches, and fewer cost calls (`benchmarks/features.py`, beside 64 for any size).
    """
    return max(1, _PIXELS.get(device.type, _PIXELS["cpu"]) // size**2)


class Backbone:
    """The frozen part of a model that trains, and the rest: `core.training.recipe.Recipe` runs it in the model's place."""

    def __init__(self, made: Cut, model: nn.Module, runs: Runner, together: int) -> None:
        """`together`: how many images go through the frozen part at once, whatever the batch size: each has the same bits."""
        self._cut = made
        self._together = together
        self._model = model
        self._runs = runs
        self._forgotten = False
        self._quick: fx.GraphModule | None = None
        self._frozen = list(made.before.parameters())
        # One without parameters stands still with what is around it, which may be of the rest.
        self._norms = [one for one in made.before.modules() if isinstance(one, _NormBase)]

    @property
    def holds(self) -> bool:
        """Whether the frozen part is still as it was. Once it is not, features are no longer used, even if it freezes again."""
        if not self._forgotten and (any(one.requires_grad for one in self._frozen) or any(one.training for one in self._norms)):
            self._forgotten = True
        return not self._forgotten

    @property
    def validates(self) -> bool:
        """Whether features do for eval mode, too."""
        return self._cut.after_eval is not None

    def changed(self, parameters: Iterable[Tensor]) -> None:
        """These were frozen or thawed by hand. If any is of the frozen part, the model is run whole from here on.

        For good, also where it freezes again: a job that goes on later, or in mid-epoch, must do to the bit what this one does.
        """
        ours = {id(one) for one in self._frozen}
        self._forgotten |= any(id(one) in ours for one in parameters)

    def recall(self) -> None:
        """The job stands at a checkpoint again, as a new one would: whether it holds is seen anew."""
        self._forgotten = False
        self._quick = None

    @torch.no_grad()
    def of(self, loader: Loader) -> list[Tensor]:
        """The features of a whole split, in the order of its samples: tensors [N, …] on the device."""
        made: list[Tensor] = []
        first = 0
        for images in loader.straight(self._together):
            parts = self._features(images)
            if not made:
                made = [one.new_empty([loader.split, *one.shape[1:]]) for one in parts]
            for whole, part in zip(made, parts, strict=True):
                whole[first : first + len(part)] = part
            first += len(images)
        return made

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        """By the frozen part without its norms, if it does the same on the first few."""
        part = self._quick or folded(self._cut.before)
        made: Sequence[Tensor] = self._runs(images, part)
        if self._quick is None:
            plain = self._cut.before
            same = zip(made, self._runs(images[:_FEW], plain), strict=True)
            self._quick = part if all(close(one[:_FEW], other) for one, other in same) else plain
            if self._quick is plain:
                made = self._runs(images, plain)
        return made

    def __call__(self, features: Features) -> Any:
        """What the model makes of a batch, from its features."""
        after = self._cut.after if self._model.training else self._cut.after_eval
        if after is None:
            raise RuntimeError("there is no way from features to outputs in eval mode")
        return after(*features.tensors)


class Featured:
    """A loader whose batches are (Features, targets), for as long as the frozen part is as it was; then those of the loader."""

    def __init__(self, loader: Loader, backbone: Backbone) -> None:
        self.tier = loader.tier
        self._loader = loader
        self._backbone = backbone
        self._made: list[Tensor] = []

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._loader)

    @property
    def samples(self) -> int:
        """Of an epoch, as the loader has it."""
        return self._loader.samples

    @property
    def corrupt(self) -> dict[int, str]:
        """What the loader leaves out."""
        return self._loader.corrupt

    @property
    def may_lose(self) -> bool:
        """Whether the loader does in mid-epoch."""
        return self._loader.may_lose

    def leave_out(self, corrupt: Mapping[int, str]) -> None:
        """More of it, from the next epoch on."""
        self._loader.leave_out(corrupt)

    def sizes(self, epoch: int = 0) -> list[int]:
        """The samples of each batch, over all ranks."""
        return self._loader.sizes(epoch)

    def kept(self, epoch: int) -> Tensor:
        """The indices of the samples in the order of that epoch, without what cannot be read."""
        return self._loader.kept(epoch)

    def batches(
        self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Any, Tensor]]:
        """As the loader's, with features for images; they are made at the first call."""
        shares = {"step": step, "rank": rank, "ranks": ranks}
        if self._backbone.holds:  # before it is asked what is in which batch: an image may prove to be unreadable only now
            self._made = self._made or self._backbone.of(self._loader)
        for number, indices in enumerate(self._loader.indices(epoch, start, **shares)):
            if not self._backbone.holds:
                self._made = []
                yield from self._loader.batches(epoch, start + number * step, **shares)
                return
            made = [one.index_select(0, indices) for one in self._made]
            yield Features(made, partial(self._loader.images, indices)), self._loader.labels.index_select(0, indices)

    def close(self) -> None:
        """End the loader's reading processes, and let go of the features."""
        self._made = []
        self._loader.close()


def foresee(
    model: nn.Module, groups: Sequence[Freezes], spec: JobSpec, places: Places, *, size: int, images: int
) -> tuple[Cut | None, FeatureFacts | None]:
    """Whether the frozen part will be run once, and the cut for it. (None, None) where nothing is frozen.

    `model` may be on the meta device, is frozen as in the first epoch, and is left in training mode; `images`: of both splits.
    """
    if not any(group.members and group.frozen_in(0) for group in groups):
        return None, None
    if (reason := _unfit(groups, spec)) is not None:
        return None, FeatureFacts(once=False, reason=reason)
    made = cut(model)
    if isinstance(made, str):
        return None, FeatureFacts(once=False, reason=made)
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        features = made.before(torch.zeros(_FEW, 3, size, size, device=device))
    if not all(isinstance(one, Tensor) and one.ndim and len(one) == _FEW for one in features):
        return None, FeatureFacts(once=False, reason="what the frozen part makes is not one row for each image")
    shapes = [list(one.shape[1:]) for one in features]
    each = sum(one[0].numel() for one in features)
    total = images * sum(one[0].numel() * one.element_size() for one in features)
    told = FeatureFacts(once=False, reason="", shapes=shapes, bytes=total)
    if each > _WIDEST * 3 * size * size:
        reason = f"of an image of {3 * size * size} numbers the frozen part makes {each}: it is too early in the model"
    elif total > (room := room_on(device, places).bytes):
        reason = f"the features of all images take {total} bytes, and {room} may be held"
    else:
        reason = f"the frozen part gives the same each epoch: what {', '.join(made.names)} gives is kept"
        return made, told.model_copy(update={"once": True, "reason": reason})
    return None, told.model_copy(update={"reason": reason})


def _unfit(groups: Sequence[Freezes], spec: JobSpec) -> str | None:
    """Why the frozen part must be run each time, as far as the spec says so."""
    if spec.dataset.augment not in ("none", []):
        return "the images are augmented: they are not the same each epoch"
    if spec.training.mixup is not None or spec.training.cutmix is not None:
        return "the images are mixed: they are not the same each epoch"
    if spec.training.epochs < 2 or not any(group.frozen_in(1) for group in groups):
        return "it is frozen for one epoch: there is nothing to be saved"
    return None


def run_once(
    made: Cut, model: nn.Module, loader: Loader, runs: Callable[[Tensor, Callable[[Tensor], Any]], Any]
) -> Backbone | None:
    """The backbone that gives features, if the graph does on a few real images what the model does; else None."""
    images = next(iter(loader.straight(_FEW)), None)
    if images is None or len(images) < 2 or not is_sound(made, model, images, runs):
        return None
    return Backbone(made, model, runs, together(images.shape[-1], images.device))
