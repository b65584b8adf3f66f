"""`load_state_dict`, all or nothing: where it fails, every tensor of the model is bit for bit what it was.

PyTorch copies module by module, and what raises half-way leaves the modules before it changed
(https://github.com/pytorch/pytorch/issues/40859 and others).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from core.errors import TransferError

_TRUSTED = ("torch.", "torchvision.", "timm.")


def load_all_or_nothing(
    model: nn.Module, own: Mapping[str, Any], tensors: Mapping[str, Tensor], versions: Mapping[str, dict[str, object]]
) -> None:
    """Copy `tensors`, whose shapes are those of the model's entries, into it; what is not among them keeps its values.

    Copies go into the tensors that are there: ties, devices, dtypes and an optimizer's references last. `own` is the model's
    state dict with `keep_vars`, so that what keeps its values is not copied on to itself. `versions` are those that the source
    saved its modules by, for a module's own loading to mend older tensors. Raises TransferError.
    """
    state: Any = OrderedDict(own)
    for key in tensors:
        if any(stride == 0 and side > 1 for stride, side in zip(state[key].stride(), state[key].shape, strict=True)):
            raise TransferError(
                f"'{key}' of the model cannot be written to: its elements share their memory",
                "Make it by .clone() after .expand() in the model's constructor.",
            )
    metadata = cast("Any", own)._metadata  # noqa: SLF001  (load_state_dict reads it there, and there alone)
    state.update(tensors)
    state._metadata = {**metadata, **{name: found for name, found in versions.items() if name in metadata}}  # noqa: SLF001
    saved = [] if _cannot_fail(model, own) else list(_saved(model))
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:  # a model's own hooks may raise anything
        with torch.no_grad():
            for one in saved:
                one.holder[one.name] = one.tensor
                one.tensor.copy_(one.value)
        raise TransferError(f"the model refused the weights while loading them: {error}") from error


class _Saved(NamedTuple):
    """A tensor, where it hangs, and what is in it."""

    holder: dict[str, Any]
    name: str
    tensor: Tensor
    value: Tensor


def _saved(model: nn.Module) -> Iterator[_Saved]:
    """A copy of every parameter and buffer."""
    for module in model.modules():
        for holder in (module._parameters, module._buffers):  # noqa: SLF001  (a hook may put others there)
            for name, tensor in holder.items():
                if tensor is not None:
                    yield _Saved(holder, name, tensor, tensor.detach().clone())


def _cannot_fail(model: nn.Module, own: Mapping[str, Any]) -> bool:
    """Whether nothing but PyTorch's own copying takes part, into tensors that can be copied into: then a copy is spared.

    Names and shapes are right by then, and nothing else makes it raise.
    """
    return all(_is_plain(module) for module in model.modules()) and all(
        one.is_contiguous() and not one.is_inference() for one in own.values() if isinstance(one, Tensor)
    )


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    return (
        kind.load_state_dict is nn.Module.load_state_dict
        and kind.set_extra_state is nn.Module.set_extra_state
        and kind._load_from_state_dict.__module__.startswith(_TRUSTED)  # noqa: SLF001  (documented for overriding)
        and not module._load_state_dict_pre_hooks  # noqa: SLF001  (there is no public way to ask)
        and not module._load_state_dict_post_hooks  # noqa: SLF001
    )
