"""The windows of attention: how large they are, by the shapes of what belongs to them, and their biases for another size.

A window of h x w patches has a bias per head for each offset between two of its patches, (2h-1)(2w-1) of them, and an index
that says for each of its (hw)^2 pairs which offset theirs is. The biases are learned; the index is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, cat
from torch.nn.functional import interpolate

from core.transfer.entries import Entry

Window = tuple[int, int]
"""Rows and columns of patches."""

BIASES = "relative_position_bias_table"
_INDEX = "relative_position_index"
_COMPUTED = (_INDEX, "relative_coords_table", "attn_mask")
_CLASS_TOKEN = 3
"""BEiT's further biases: from its class token, to it, and from it to itself."""


def is_computed(key: str) -> bool:
    """Whether a buffer of that name follows from the model's windows: nothing in it is learned.

    Swin's own loader computes them anew too (https://github.com/microsoft/Swin-Transformer, utils.py, `load_pretrained`).
    """
    return key.rpartition(".")[2] in _COMPUTED


def beside(key: str, name: str) -> str:
    """The key of that last name in the module of `key`."""
    return f"{key.rpartition('.')[0]}.{name}".removeprefix(".")


def pairs_beside(key: str, entries: Mapping[str, Entry]) -> int | None:
    """How many pairs the index beside a table of biases has, where the source holds it."""
    index = entries.get(beside(key, _INDEX))
    return None if index is None else math.prod(index.shape)


def offsets(window: Window) -> int:
    """How many offsets there are between two patches of a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def class_token_rows(rows: int, window: Window) -> int | None:
    """How many of a table's rows are no offset of this window; None: it is not this window's table."""
    rest = rows - offsets(window)
    return rest if rest in {0, _CLASS_TOKEN} else None


def square(count: int) -> Window | None:
    """The square window that has so many offsets."""
    side = math.isqrt(count)
    return ((side + 1) // 2,) * 2 if side % 2 and side * side == count else None


def of_sides(rows: int, columns: int) -> Window | None:
    """The window whose offsets reach over so many rows and columns."""
    return ((rows + 1) // 2, (columns + 1) // 2) if rows % 2 and columns % 2 else None


def of_pairs(count: int, pairs: int, *, class_token: bool) -> Window | None:
    """The window that has so many offsets and so many pairs, the shorter side first: both tell it but for that.

    (2h-1)(2w-1) = 4hw - 2(h+w) + 1, so both hw and h+w are known. A class token is in the pairs, too.
    """
    area = math.isqrt(pairs) - class_token
    both = (4 * area + 1 - count) // 2
    root = math.isqrt(max(both * both - 4 * area, 0))
    window = (both - root) // 2, (both + root) // 2
    return window if math.prod(window) == area and offsets(window) == count else None


def resize_biases(table: Tensor, old: Window, new: Window) -> Tensor:
    """[offsets of `old` + more, heads] for the offsets of `new`, float32; the rows behind the offsets are kept.

    Or [heads, rows, columns] of offsets, as MaxViT has them in TensorFlow. Bicubic, as Swin has it for fine-tuning with another
    window (Liu et al., https://arxiv.org/abs/2103.14030, section 3.2) and as its own loader does it: not antialiased, and by
    the new size.
    """
    if table.ndim == 3:
        return _resized(table.float(), new)
    count, heads = offsets(old), table.shape[1]
    image = table[:count].float().T.reshape(heads, 2 * old[0] - 1, 2 * old[1] - 1)
    return cat([_resized(image, new).reshape(heads, -1).T, table[count:].float()])


def _resized(image: Tensor, new: Window) -> Tensor:
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    return interpolate(image[None], size=size, mode="bicubic", align_corners=False)[0]
