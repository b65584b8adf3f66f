"""How deep in its model a parameter is: the stem is 0, each block is one more, the head is the deepest.

Any model has depths; no table of architectures is needed. Its modules are walked in the order in which it registers them, which
is the order in which it runs them in all of torchvision's and timm's. What is a block shows in the shape of the module tree:

- A *stack* is a container of two or more modules of one class, each with two or more weights (tensors of two dimensions or
  more): a stage of a ResNet, the encoder of a ViT. Whatever holds a stack is walked into, and so are plain containers.
- What is not walked into is a *block* where it has two or more weights, else a *layer* (one weight), or neither (a norm).
- All before the first block is the stem. From there each block, and each layer that stands between blocks, is one deeper than the
  one before it. What has no weight of its own (a norm, a token) is as deep as what is before it.
- A model without any block (VGG, a few layers in a row) counts its layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Unit(NamedTuple):
    names: list[str]
    weights: int
    block: bool


def depths(model: nn.Module, head: Collection[str] = ()) -> dict[str, int]:
    """The depth of each parameter, by its first name. `head`: the names of the modules that are the head."""
    found: dict[str, int] = {}
    outside = {name: one for name, one in model.named_parameters() if name.rpartition(".")[0] not in head}
    units = list(_Walk(outside).through(*_unwrapped(model, outside)))
    blocks = any(unit.block for unit in units)
    depth, occupied, past_stem = 0, False, not blocks
    for unit in units:
        past_stem = past_stem or unit.block
        begins = unit.weights > 0 and past_stem
        depth += begins and occupied
        occupied = occupied or begins or blocks
        found.update(dict.fromkeys(unit.names, depth))
    last = depth + 1 if outside else 0
    return {name: found.get(name, last) for name, _ in model.named_parameters()}


class _Walk:
    """A walk over the modules that have some of `parameters`, the model's without its head, in them."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = {id(one) for one in parameters.values() if one.ndim > 1}

    def through(self, module: nn.Module, prefix: str) -> Iterator[_Unit]:
        """What `module`, whose names begin with `prefix`, is made of."""
        if own := self._named(prefix, [key for key, _ in module.named_parameters(recurse=False)]):
            yield _Unit(own, 0, block=False)
        for key, child in module.named_children():
            names = self._named(f"{prefix}{key}.", [name for name, _ in child.named_parameters()])
            if names and self._is_open(child):
                yield from self.through(child, f"{prefix}{key}.")
            elif names:
                weights = self._count(child)
                yield _Unit(names, weights, block=weights > 1 and not _is_row_of_layers(child))

    def _named(self, prefix: str, keys: list[str]) -> list[str]:
        return [f"{prefix}{key}" for key in keys if f"{prefix}{key}" in self.parameters]

    def _count(self, module: nn.Module) -> int:
        return sum(id(one) in self.weights for one in module.parameters())

    def _is_open(self, module: nn.Module) -> bool:
        if type(module) in _CONTAINERS:
            items = [child for child in module.children() if self._count(child)]
            return len(items) > 1 or any(_is_composite(child) for child in items)
        return any(self._is_stack(one) for one in module.modules() if isinstance(one, _CONTAINERS))

    def _is_stack(self, container: nn.Module) -> bool:
        kinds = [type(child) for child in container.children() if _is_composite(child) and self._count(child) > 1]
        return len(kinds) > 1 and len(set(kinds)) == 1 and kinds[0] not in _CONTAINERS


def _unwrapped(model: nn.Module, parameters: Collection[str]) -> tuple[nn.Module, str]:
    """The innermost module that has all of these parameters, and the prefix of its names: a backbone without its wrapper."""
    module, prefix = model, ""
    while True:
        inner = [(child, f"{prefix}{key}.") for key, child in module.named_children() if _is_composite(child)]
        whole = next(((child, path) for child, path in inner if all(name.startswith(path) for name in parameters)), None)
        if whole is None or not parameters:
            return module, prefix
        module, prefix = whole


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_row_of_layers(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and not any(_is_composite(child) for child in module)
