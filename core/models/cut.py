"""Cut a model in two: what is frozen and without chance, which gives the same for an image each time, and the rest.

The cut is made in the graph of the model (torch.fx), by what each operation depends on: it belongs to the rest where its module
trains, drops out, follows the batches (a norm that is not frozen), or takes what the rest made. The tensors that cross the cut
are the features. Both parts share the model's own modules: to train the rest is to train the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

_CHANCE = ("dropout", "bernoulli", "rand", "normal_", "uniform_", "multinomial", "stochastic_depth", "drop_path", "drop_block")
"""Parts of the names of functions that draw random numbers."""


@dataclass(frozen=True)
class Cut:
    """`before` makes the features of a batch of images, a tuple; `after` what the model makes of them, as it trains.

    `after_eval` is the same in eval mode, or None where the graph of that mode cannot be cut in the same place.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    after_eval: fx.GraphModule | None
    names: tuple[str, ...]
    """Of the operations whose results are the features."""
    frozen: frozenset[str]
    """The parameters that `before` needs as they are."""


def cut(model: nn.Module) -> Cut | str:
    """The cut that lies as late as it can; or why there is none.

    What is frozen is so by `requires_grad`; the model is left in training mode.
    """
    traced = _trace(model.train())
    if traced is None:
        return "no graph can be made of this model: what it does depends on data"
    modules = dict(model.named_modules())
    moving = _moving(traced, modules)
    images = _descendants([node for node in traced.nodes if node.op == "placeholder"])  # the rest is constant: either part has it
    frontier = [node for node in traced.nodes if node in images - moving and any(user in moving for user in node.users)]
    if not frontier or any(node.op == "placeholder" for node in frontier):
        first = next((node for node in traced.nodes if node in moving), None)
        return "nothing trains" if first is None else f"{first.target} comes first, and {_why(first, modules)}"
    names = tuple(node.name for node in frontier)
    before = _before(model, traced, frontier)
    in_eval = _trace(model.eval())
    model.train()
    return Cut(
        before=before,
        after=_after(model, traced, names),
        after_eval=_after(model, in_eval, names) if in_eval is not None and _separates(in_eval, names) else None,
        names=names,
        frozen=frozenset(name for name, _ in before.named_parameters()),
    )


class _Tracer(fx.Tracer):
    """Modules of torch are one operation each, and so are norms and drops of others'."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or isinstance(module, _NormBase | _DropoutNd | StochasticDepth)


def _trace(model: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer().trace(model)
    except Exception:  # control flow that depends on data, and whatever else a person's own code does
        return None


def _moving(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """The operations whose results may differ from one step to the next for the same images."""
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        if any(one in moving for one in node.all_input_nodes) or _moves(node, modules):
            moving.add(node)
    return moving


def _moves(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return any(one.requires_grad for one in module.parameters()) or any(_lives(one) for one in module.modules())
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        found = getattr(modules[owner], name, None)
        return isinstance(found, Tensor) and found.requires_grad
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in {"call_function", "call_method"} and any(part in name for part in _CHANCE)


def _lives(module: nn.Module) -> bool:
    """Whether a module is in training mode, and does there what it does not in eval mode."""
    chances = [getattr(module, name, 0.0) for name in ("p", "dropout", "drop_prob")]
    chance = any(isinstance(one, float) and one > 0 for one in chances)
    return module.training and (isinstance(module, _NormBase) or chance)


def _why(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    module = modules.get(str(node.target))
    trains = module is not None and any(one.requires_grad for one in module.parameters())
    return "it trains" if trains or node.op == "get_attr" else "it is not the same each time"


def _before(model: nn.Module, graph: fx.Graph, frontier: Sequence[fx.Node]) -> fx.GraphModule:
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    needed = _ancestors(frontier)
    for node in graph.nodes:
        if node in needed:
            copied[node] = part.node_copy(node, copied.__getitem__)
    part.output(tuple(copied[node] for node in frontier))
    return fx.GraphModule(model, part)


def _after(model: nn.Module, graph: fx.Graph, names: Sequence[str]) -> fx.GraphModule:
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    frontier = {node.name: node for node in graph.nodes if node.name in names}
    for name in names:
        copied[frontier[name]] = part.placeholder(f"features_{name}")
    needed = _ancestors([node for node in graph.nodes if node.op == "output"], stop=set(frontier.values()))
    for node in graph.nodes:
        if node in needed and node not in copied:
            copied[node] = part.node_copy(node, copied.__getitem__)
    return fx.GraphModule(model, part)


def _ancestors(nodes: Sequence[fx.Node], stop: set[fx.Node] | None = None) -> set[fx.Node]:
    """These operations and all that they depend on; nothing beyond those of `stop`."""
    return _reached(nodes, lambda node: () if stop and node in stop else node.all_input_nodes)


def _descendants(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """These operations and all that depend on them."""
    return _reached(nodes, lambda node: node.users)


def _reached(nodes: Sequence[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += following(node)
    return found


def _separates(graph: fx.Graph, names: Sequence[str]) -> bool:
    """Whether the output of this graph depends on its input through those operations alone."""
    frontier = {node for node in graph.nodes if node.name in names}
    needed = _ancestors([node for node in graph.nodes if node.op == "output"], stop=frontier)
    return len(frontier) == len(names) and not any(node.op == "placeholder" for node in needed - frontier)


def is_sound(made: Cut, model: nn.Module, images: Tensor, runs: Callable[[Tensor, Any], Any] = lambda x, f: f(x)) -> bool:
    """Whether the parts do what the model does, on a few real images: the graph is trusted no further than this.

    The features must be the same each time, draw no random number, and be those of each image by itself; and what is made of them
    must be what the model makes, in eval mode. `images`: float32 [B, 3, S, S], B at least 2; `runs` calls a part or the model on
    some, as they are to be run. The model is left in training mode.
    """
    model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        before = _random_state(images)
        features, again = runs(images, made.before), runs(images, made.before)
        alone = runs(images[:1], made.before)
        if not all(torch.equal(one, other) for one, other in zip(before, _random_state(images), strict=True)):
            return False
        tensors = all(isinstance(one, Tensor) and one.ndim and len(one) == len(images) for one in features)
        if not tensors or not all(torch.equal(one, other) for one, other in zip(features, again, strict=True)):
            return False
        if not all(close(one[:1], other) for one, other in zip(features, alone, strict=True)):
            return False
        if made.after_eval is None:
            return True
        model.eval()
        try:
            return close(_tensor(runs(images, lambda _: made.after_eval(*features))), _tensor(runs(images, model)))
        finally:
            model.train()


def _random_state(images: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(images.device)] if images.is_cuda else [])]


def close(one: Tensor, other: Tensor) -> bool:
    """Within what another batch size may change in the rounding; 16 bits have three digits."""
    rough = one.dtype in (torch.float16, torch.bfloat16)
    scale = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(
        one.float(), other.float(), rtol=0.05 if rough else 1e-3, atol=(0.05 if rough else 1e-4) * max(scale, 1e-6)
    )


def _tensor(outputs: Any) -> Tensor:
    found: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return found
