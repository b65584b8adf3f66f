"""Freezing: what is frozen does not move by a bit, whatever the training code does.

Two things would move it. A gradient: frozen parameters have `requires_grad` False, so there is none; they stay in the optimizer,
which skips them and keeps no state for them, and to thaw them is a flag. And the forward pass of a module in training mode:
a norm's running statistics follow the batches (pytorch #86590), and an eval() set once is undone by the next train(). So the
modules in frozen ground that have such buffers, and all norms there, get a `train` of their own that leaves them in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol

from torch import nn

from core.optimizer.parameters import Parameter, is_norm


class Freezes(Protocol):
    """What is frozen together: `core.optimizer.assignment.Group` is one."""

    @property
    def members(self) -> list[Parameter]:
        """Its parameters."""
        ...

    def frozen_in(self, epoch: int) -> bool:
        """Whether it is frozen in that epoch, from 0."""
        ...


def freeze(model: nn.Module, groups: Iterable[Freezes], epoch: int) -> None:
    """Freeze what is frozen in `epoch` (from 0), and thaw what is not.

    A function of the groups and the epoch alone: called again it changes nothing, and a job that goes on from a checkpoint is
    as one that never stopped. What the model's own code has frozen stays so. What thaws returns to the mode of `model`.
    """
    for group in groups:
        frozen = group.frozen_in(epoch)
        for one in group.members:
            one.tensor.requires_grad_(one.trainable and not frozen)
            if frozen:
                one.tensor.grad = None  # one from before would move it
    for module, frozen in _ground(model, dict(_trains(model)), inherited=False):
        if frozen and (is_norm(module) or next(module.buffers(recurse=False), None) is not None):
            module.__dict__["train"] = partial(_stay_in_eval, module)
            module.training = False
        elif _is_held(module):
            del module.__dict__["train"]
            module.training = model.training


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """`Module.train` of a module in frozen ground: its children follow, as far as they are free to; it does not."""
    type(module).train(module, mode)
    module.training = False
    return module


def _is_held(module: nn.Module) -> bool:
    held = module.__dict__.get("train")
    return isinstance(held, partial) and held.func is _stay_in_eval


def _ground(module: nn.Module, trains: Mapping[nn.Module, bool | None], *, inherited: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Each module below, with whether it stands in frozen ground.

    Its own parameters say so; where it has none, those of the modules in it; where these have none either (a norm without an
    affine part), the module around it.
    """
    own = [one.requires_grad for one in module.parameters(recurse=False)]
    below = any(own) if own else trains[module]
    frozen = inherited if below is None else not below
    yield module, frozen
    for child in module.children():
        yield from _ground(child, trains, inherited=frozen)


def _trains(module: nn.Module) -> Iterator[tuple[nn.Module, bool | None]]:
    """Each module, the innermost first, with whether a parameter of it, or below it, trains; None: it has none."""
    known = [one.requires_grad for one in module.parameters(recurse=False)]
    for child in module.children():
        found = None
        for found in _trains(child):
            yield found
        if found is not None and found[1] is not None:
            known.append(found[1])
    yield module, any(known) if known else None
