"""Make a tensor fit where its shape differs for a reason that is known: planned on shapes alone, done by a pure function.

A registry, by what an entry of the model is; the first that knows a pair of shapes takes it. Each is named in the report, with
both shapes and with what it does. What none of them knows is not made to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.events import Adapter
from core.transfer import windows
from core.transfer.entries import Entry

Grid = tuple[int, int]
"""Rows and columns of patches."""

_MOST_CHANNELS = 16
"""Of an image, Sentinel-2's 13 bands among them. A layer that takes more takes features."""
_MOST_PREFIX_TOKENS = 2
"""A class token, and DeiT's distillation token beside it."""
_POSITIONS = ("pos_embed", "pos_embedding", "position_embedding", "position_embeddings")


@dataclass(frozen=True)
class Adaptation:
    """How one tensor is made to fit: `apply` takes the source's and the model's own, and gives one of the latter's shape."""

    adapter: Adapter
    reason: str
    apply: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Known:
    """What is known of a tensor of the source beside its shape."""

    grid: Grid | None = None
    """That of its position embedding, where the spec says it."""
    pairs: int | None = None
    """Of a table of biases, how many pairs of tokens the index beside it has, where the source holds one."""


@dataclass(frozen=True)
class Place:
    """An entry of a model."""

    key: str
    entry: Entry
    modules: Mapping[str, nn.Module]
    """All of the model's, by their names."""

    @property
    def owners(self) -> Iterator[nn.Module]:
        """The modules that it lies in: its own first, then those around it, up to the model."""
        path = self.key.rpartition(".")[0]
        while path:
            if path in self.modules:
                yield self.modules[path]
            path = path.rpartition(".")[0]
        yield self.modules[""]

    @property
    def owner(self) -> nn.Module:
        """The module that it is of."""
        return next(self.owners)


Adapting = Callable[[Place, Entry, Known], Adaptation | None]


def stem_of(modules: Mapping[str, nn.Module]) -> str | None:
    """The key of the first convolution's weight: what images come to."""
    first = next((name for name, module in modules.items() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else f"{first}.weight".removeprefix(".")


def adapters_of(key: str, stem: str | None) -> tuple[Adapting, ...]:
    """What may make a tensor fit the entry of that key; nothing, for most of a model's."""
    return _OF_STEM if key == stem else _BY_NAME.get(key.rpartition(".")[2], ())


def adapt(adapters: Iterable[Adapting], place: Place, there: Entry, known: Known) -> Adaptation | None:
    """How the source's tensor comes to fit this entry of the model; None: none of the adapters knows how."""
    return next((found for adapter in adapters if (found := adapter(place, there, known)) is not None), None)


def in_channels(place: Place, there: Entry, known: Known) -> Adaptation | None:  # noqa: ARG001  (one signature for all)
    """The first convolution, [out, in, h, w], for images of another number of channels.

    To one channel the kernels are summed: grey is what all channels see. To more or fewer they are repeated in turn and scaled
    by n/m, so that a bias and a norm behind it meet activations of the same size. Of a convolution in groups `in` is no number
    of channels.
    """
    here = place.entry.shape
    if getattr(place.owner, "groups", 1) != 1 or len(there.shape) != 4:
        return None
    many, wanted = there.shape[1], here[1]
    rest_fits = there.shape[:1] + there.shape[2:] == here[:1] + here[2:]
    if not rest_fits or many == wanted or max(many, wanted) > _MOST_CHANNELS:
        return None
    if wanted == 1:
        reason = f"its {many} input channels summed"
        return Adaptation("in_channels", reason, lambda theirs, _: _wide(theirs).sum(1, keepdim=True))
    reason = f"its {many} input channel{'s' * (many > 1)} repeated to {wanted}, times {many}/{wanted}"
    return Adaptation("in_channels", reason, lambda theirs, _: repeat_channels(theirs, wanted))


def repeat_channels(kernels: Tensor, wanted: int) -> Tensor:
    """[out, n, h, w] to [out, wanted, h, w], float32: the n in turn, times n/wanted."""
    many = kernels.shape[1]
    return _wide(kernels)[:, torch.arange(wanted) % many] * (many / wanted)


def position_embedding(place: Place, there: Entry, known: Known) -> Adaptation | None:
    """Learned positions, [1, tokens, width], for another grid of patches or with another number of tokens before them.

    The model's own grid is asked for, not guessed. Grids are compared, not token counts, which agree for (2, 8) and (4, 4).
    """
    here = place.entry.shape
    if len(here) != 3 or len(there.shape) != 3:
        return None
    if (here[0], there.shape[0]) != (1, 1) or here[2] != there.shape[2]:
        return None
    ours = _layout(here[1], _grid_of(place))
    if ours is None:
        return None
    theirs = _layout(there.shape[1], known.grid or (ours[0] if there.shape == here else None))
    if theirs is None or theirs == ours:
        return None
    (old, old_tokens), (new, new_tokens) = theirs, ours
    parts = [] if old == new else [f"resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches"]
    if old_tokens > new_tokens:
        parts.append(f"{old_tokens - new_tokens} class token(s) left out")
    if old_tokens < new_tokens:
        parts.append(f"{new_tokens - old_tokens} class token(s) as the model begins")

    def apply(source: Tensor, own: Tensor) -> Tensor:
        tokens = torch.cat([source[:, : min(old_tokens, new_tokens)], own[:, old_tokens:new_tokens].to(source.dtype)], dim=1)
        return torch.cat([_wide(tokens), resize_positions(source[:, old_tokens:], old, new)], dim=1)

    return Adaptation("position_embedding", ", ".join(parts), apply)


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """[1, rows * columns, width] of grid `old` to grid `new`, float32: bicubic, antialiased, as timm resamples them.

    (timm/layers/pos_embed.py, `resample_abs_pos_embed`.) By the new size and never by a factor, which rounds to wrong grids.
    """
    width = positions.shape[-1]
    image = _wide(positions).reshape(1, *old, width).permute(0, 3, 1, 2)
    if old != new:
        image = interpolate(image, size=new, mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], width)


def patch_embedding(place: Place, there: Entry, known: Known) -> Adaptation | None:  # noqa: ARG001  (one signature for all)
    """The convolution that cuts images into patches, [width, channels, h, w], for patches of another size."""
    here, owner = place.entry.shape, place.owner
    if not isinstance(owner, nn.Conv2d) or owner.stride != owner.kernel_size or len(there.shape) != 4:
        return None
    old, new = (there.shape[2], there.shape[3]), (here[2], here[3])
    if there.shape[:2] != here[:2] or old == new or min(old + new) < 2:
        return None
    reason = f"patches of {old[0]} x {old[1]} resampled to {new[0]} x {new[1]} by the pseudo-inverse"
    return Adaptation("patch_embedding", reason, lambda theirs, _: resize_patches(theirs, new))


def resize_patches(kernels: Tensor, new: Grid) -> Tensor:
    """[width, channels, h, w] to [width, channels, *new], float32, so that a resized patch embeds as the patch itself did.

    With B the matrix that resizes a patch, the weights are pinv(B^T) w: exact for larger patches, the least squares for smaller
    ones (Beyer et al., FlexiViT: One Model for All Patch Sizes, https://arxiv.org/abs/2212.08013, section 3.4).
    """
    old = (kernels.shape[2], kernels.shape[3])
    unit = torch.eye(math.prod(old)).reshape(-1, 1, *old)
    matrix = interpolate(unit, size=new, mode="bicubic", antialias=True, align_corners=False).reshape(math.prod(old), -1)
    # Row i of `matrix` is the resized i-th pixel: it is B^T.
    inverse = torch.linalg.pinv(matrix.double())
    resized: Tensor = kernels.flatten(2).double() @ inverse.T
    return resized.float().reshape(*kernels.shape[:2], *new)


def relative_bias(place: Place, there: Entry, known: Known) -> Adaptation | None:
    """Learned biases by the offset of two patches of a window, [offsets, heads] or [heads, rows, columns], for another window.

    The model's own window is asked for. The source's is known by the index beside its biases; where there is none, it is taken
    for square, or for the model's where as many biases say so.
    """
    here = place.entry.shape
    if len(here) == len(there.shape) == 3 and here[0] == there.shape[0]:
        old, new = windows.of_sides(*there.shape[1:]), windows.of_sides(*here[1:])
    elif len(here) == len(there.shape) == 2 and here[1] == there.shape[1]:
        old, new = _windows(place, there, known.pairs)
    else:
        return None
    if old is None or new is None or old == new:
        return None
    reason = f"resized from windows of {old[0]} x {old[1]} to {new[0]} x {new[1]} patches"
    return Adaptation("relative_bias", reason, lambda theirs, _: windows.resize_biases(theirs, old, new))


_OF_STEM: tuple[Adapting, ...] = (in_channels, patch_embedding)
_BY_NAME: dict[str, tuple[Adapting, ...]] = {
    **dict.fromkeys(_POSITIONS, (position_embedding,)),
    windows.BIASES: (relative_bias,),
}
"""By the last part of an entry's name."""


def _wide(tensor: Tensor) -> Tensor:
    """float32, in which all of this is computed."""
    return tensor.float()


def _grid_of(place: Place) -> Grid | None:
    """The model's own grid: `grid_size`, as timm's `patch_embed` has it, or torchvision's `image_size // patch_size`."""
    for owner in place.owners:
        for holder in (owner, getattr(owner, "patch_embed", None)):
            size = getattr(holder, "grid_size", None)
            if isinstance(size, Sequence) and len(size) == 2:
                return int(size[0]), int(size[1])
        image, patch = getattr(owner, "image_size", None), getattr(owner, "patch_size", None)
        if isinstance(image, int) and isinstance(patch, int) and patch:
            return image // patch, image // patch
    return None


def _windows(place: Place, there: Entry, pairs: int | None) -> tuple[windows.Window | None, windows.Window | None]:
    """The source's window and the model's own, where they are known, of tables of biases [offsets, heads]."""
    new = _window_of(place)
    more = None if new is None else windows.class_token_rows(place.entry.shape[0], new)
    if new is None or more is None:
        return None, None
    count = there.shape[0] - more
    if pairs is None:
        return new if there.shape == place.entry.shape else windows.square(count), new
    found = windows.of_pairs(count, pairs, class_token=more > 0)
    if found == tuple(sorted(new)):  # which of its sides is the longer one only the model's can tell
        return new, new
    return found if found == windows.square(count) else None, new


def _window_of(place: Place) -> windows.Window | None:
    """The model's own window: `window_size`, as torchvision's and timm's attention has it, else a square one."""
    size = getattr(place.owner, "window_size", None)
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    return windows.square(place.entry.shape[0])


def _layout(tokens: int, grid: Grid | None) -> tuple[Grid, int] | None:
    """(grid, tokens before it). Without a known grid it is square, and only a perfect square tells how many come before it."""
    for before in range(_MOST_PREFIX_TOKENS + 1):
        patches = tokens - before
        side = math.isqrt(max(patches, 0))
        shape = grid or (side, side)
        if patches > 0 and math.prod(shape) == patches:
            return shape, before
    return None
