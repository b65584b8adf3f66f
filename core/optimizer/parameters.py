"""A model's parameters, and what can be said of each: names, role, depth, the modules that it is in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from core.optimizer.depths import depths

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_EMBEDDINGS = ("pos_embed", "position_embed", "pos_emb", "relative_position_bias", "rel_pos", "_token", "token_", "tokens")


@dataclass(frozen=True, eq=False)
class Parameter:
    """One parameter, however many names it has.

    `names` are all of a tied one, the first of which is the one it goes by. `roles` has `head` or `backbone`, then `norm` and
    `bias` where they hold. `within` are the modules that it is in, the innermost first.
    """

    names: tuple[str, ...]
    tensor: nn.Parameter
    roles: tuple[str, ...]
    depth: int
    within: tuple[nn.Module, ...]
    trainable: bool
    """Whether the model itself lets it train: what a model's own code froze, no group unfreezes."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def type(self) -> str:
        """The class of the module that owns it."""
        return type(self.within[0]).__name__


def parameters_of(model: nn.Module, head: Collection[str] = ()) -> list[Parameter]:
    """Each parameter once, in the model's own order. `head`: the names of the modules that are the head."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    deep = depths(model, head)
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for name, tensor in model.named_parameters():
        path = name.split(".")[:-1]
        within = tuple(modules[".".join(path[:length])] for length in range(len(path), -1, -1))
        roles = ["head" if ".".join(path) in head else "backbone"]
        roles += ["norm"] * is_norm(within[0]) + ["bias"] * _is_bias(name, tensor)
        found.append(Parameter(tuple(names[id(tensor)]), tensor, tuple(roles), deep[name], within, tensor.requires_grad))
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises: torch's classes and theirs, and a class of one's own with `norm` in its name and vectors alone."""
    if isinstance(module, _NORMS):
        return True
    called = any("norm" in kind.__name__.lower() for kind in type(module).__mro__)
    own = list(module.parameters(recurse=False))
    return called and bool(own or list(module.buffers(recurse=False))) and all(one.ndim < 2 for one in own)


def spared_decay(parameter: Parameter, exempt: frozenset[str] = frozenset()) -> bool:
    """Whether weight decay is commonly left out for it: `no_decay: true`.

    Norms, biases and other vectors; tokens, which are vectors with dimensions of one beside; embeddings of positions and tokens,
    by their names; and what the model's own `no_weight_decay()` names (`exempt`), as timm's have it.
    """
    tensor = parameter.tensor
    last = parameter.name.rpartition(".")[2]
    vector = tensor.ndim < 2 or (last != "weight" and sum(side > 1 for side in tensor.shape) < 2)
    if vector or "norm" in parameter.roles or not exempt.isdisjoint(parameter.names):
        return True
    return last != "weight" and any(part in last for part in _EMBEDDINGS)


def exempt_of(model: nn.Module) -> frozenset[str]:
    """What the model's own `no_weight_decay()` names, where it has one."""
    named: Callable[[], Collection[str]] | None = getattr(model, "no_weight_decay", None)
    return frozenset(named()) if callable(named) else frozenset()


def _is_bias(name: str, tensor: nn.Parameter) -> bool:
    return tensor.ndim < 2 and "bias" in name.rpartition(".")[2].split("_")
