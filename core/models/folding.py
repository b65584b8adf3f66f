"""Fold batch norms into the convolutions before them: the same function of an image, for a model that only looks.

A norm in eval mode scales and shifts each channel by numbers that do not change, and so does a convolution: one does for both
(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2).
What they give differs in the rounding alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def folded(part: fx.GraphModule) -> fx.GraphModule:
    """`part`, of whose modules it shares all but the convolutions into which a norm was folded: those are copies, as of now."""
    graph = copy.deepcopy(part.graph)
    pairs = list(_pairs(part, graph))
    for pair in pairs:
        pair.after.replace_all_uses_with(pair.before)
        graph.erase_node(pair.after)
    found = fx.GraphModule(part, graph)
    for pair in pairs:
        found.set_submodule(str(pair.before.target), _joined(pair.convolution, pair.norm))
    return found


class _Pair(NamedTuple):
    before: fx.Node
    convolution: _ConvNd
    after: fx.Node
    norm: _BatchNorm


def _pairs(part: fx.GraphModule, graph: fx.Graph) -> Iterator[_Pair]:
    """Convolutions with the norm that alone takes what they give, where neither module is used elsewhere in the graph."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    for after in calls:
        before = after.args[0] if after.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = part.get_submodule(str(before.target)), part.get_submodule(str(after.target))
        plain = type(convolution) in _CONVOLUTIONS and type(norm) in _NORMS  # what derives from them may do anything
        alone = uses[before.target] == uses[after.target] == 1
        if plain and alone and isinstance(convolution, _ConvNd) and isinstance(norm, _BatchNorm) and _stands(norm):
            yield _Pair(before, convolution, after, norm)


def _stands(norm: _BatchNorm) -> bool:
    """Whether it goes by what it has learnt, and not by the batch."""
    return not norm.training and norm.running_mean is not None


def _joined(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm that keeps no statistics cannot be folded")
    joined = copy.copy(convolution)
    joined._parameters = {}  # noqa: SLF001 - a shallow copy shares the dict with the model's own
    joined.weight, joined.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return joined
