"""A pickle's containers: the one state dict that a checkpoint holds among other things, and where in it that was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from core.errors import SpecError, did_you_mean
from core.transfer.averages import is_average
from core.transfer.entries import POINTER

CONTAINER = "/pretrained/container"
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
_DEPTH = 3


def check_container(file: str, container: str | None) -> None:
    """Only a pickle has containers, and a file's name says whether it is one. Raises SpecError at /pretrained/container."""
    if container is not None and file.endswith(".safetensors"):
        raise SpecError.at(CONTAINER, "a safetensors file has no containers; 'select' takes the names below one")


def open_container(found: object, shown: str, container: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """The state dict of a loaded pickle, and where in it it was: nowhere (""), or the name of the container.

    Raises SpecError at /pretrained/source, or at /pretrained/container.
    """
    if not isinstance(found, Mapping):
        raise SpecError.at(POINTER, f"'{shown}' holds a {type(found).__name__}, not a state dict")
    if container is not None:
        return container, _chosen(found, shown, container)
    state = _tensors(found)
    candidates = dict(_named(found, ""))
    if not state and all(map(is_average, candidates)):
        candidates = dict(_anywhere(found, ""))
    names = ", ".join(candidates)
    if len(candidates) > 1:
        raise SpecError.at(
            POINTER,
            f"'{shown}' holds more than one state dict ({names}); say which by 'container', as \"{next(iter(candidates))}\"",
        )
    if any(map(is_average, candidates)):
        raise SpecError.at(
            POINTER,
            f"'{shown}' holds weights alone that by their name are an average ({names}), which are taken only if asked for: "
            f'"container": "{names}"',
        )
    if candidates:
        return next(iter(candidates.items()))
    if not state:
        raise SpecError.at(POINTER, f"'{shown}' holds no tensors; its keys are {', '.join(map(str, list(found)[:8])) or 'none'}")
    return "", state


def _chosen(found: Mapping[Any, Any], shown: str, container: str) -> Mapping[str, Tensor]:
    here: object = found
    for part in container.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    state = _tensors(here) if isinstance(here, Mapping) else None
    if not state:
        known = dict(_anywhere(found, ""))
        hint = did_you_mean(container, known) or " It has no containers."
        raise SpecError.at(CONTAINER, f"'{shown}' holds no state dict '{container}'.{hint}")
    return state


def _named(found: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The state dicts in containers of the usual names, or of averages, one within another too: `model.state_dict`."""
    averages = [key for key in found if isinstance(key, str) and key not in _CONTAINERS and is_average(key)]
    for key in (*_CONTAINERS, *averages):
        inside = found.get(key)
        if isinstance(inside, Mapping):
            state = _tensors(inside)
            yield from [(path + key, state)] if state else _named(inside, f"{path}{key}.")


def _anywhere(found: Mapping[Any, Any], path: str, depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Whatever could be a state dict: text for keys and tensors for values. An optimizer's state goes by numbers."""
    for key, inside in found.items():
        if depth and isinstance(key, str) and isinstance(inside, Mapping):
            state = _tensors(inside)
            yield from [(path + key, state)] if state else _anywhere(inside, f"{path}{key}.", depth - 1)


def _tensors(found: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    """`found` itself where it holds nothing else, for it may carry the versions of its modules."""
    if found and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        return found
    return _Partial(found)


class _Partial(dict[str, Tensor]):
    """The tensors of a mapping that holds other things too, with the versions that it carries."""

    def __init__(self, found: Mapping[Any, Any]) -> None:
        super().__init__({key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)})
        self._metadata = getattr(found, "_metadata", None)
