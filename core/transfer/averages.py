"""Averages of weights: known by their names, or by the count beside them, and never taken unless they are asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from core.errors import SpecError
from core.transfer.entries import Entry

_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "teacher"}
"""Words that say that weights are an average of others; a teacher mostly is that of its student."""
_COUNT = "n_averaged"
"""Of how many models it is the mean: what `torch.optim.swa_utils.AveragedModel` counts beside its `module`."""


def is_average(name: str) -> bool:
    """Whether a word of the name says that what it names is an average: `params_ema`, `swaModel`, but not `schema`."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return any(word.lower() in _AVERAGES for word in words)


def counted_averages(names: Iterable[str]) -> Iterator[str]:
    """What the names of an AveragedModel's tensors begin with."""
    ends = (name for name in names if name.rpartition(".")[2] == _COUNT)
    return (f"{name.removesuffix(_COUNT)}module." for name in ends)


def check_averages(
    by_rules: Mapping[str, str], averages: Iterable[str], left: Mapping[str, str], targets: Mapping[str, Entry], pointer: str
) -> None:
    """No tensor of an AveragedModel may fit unless the rules took it out of there. Raises SpecError at `pointer`.

    Its `module` may be what the model calls a part of itself, too. A model that has the count itself holds an average.
    """
    key_of = {name: key for key, name in by_rules.items()}
    for average in averages:
        counter = left[key_of[average.removesuffix("module.") + _COUNT]]
        if counter not in targets and any(name.startswith(average) and left[key] in targets for key, name in by_rules.items()):
            raise _refused(average, pointer, f"the {_COUNT} beside it")


def check_named(prefix: str, pointer: str) -> None:
    """A prefix that comes off by itself may not name an average. Raises SpecError at `pointer`."""
    if is_average(prefix):
        raise _refused(prefix, pointer, "its name")


def _refused(prefix: str, pointer: str, sign: str) -> SpecError:
    """Nobody's average is taken because it fits: what leads to it has to be said."""
    rule = json.dumps([f"^{re.escape(prefix)}", ""])
    return SpecError.at(
        pointer,
        f"what would fit lies below '{prefix}', by {sign} an average, which is taken only if asked for: "
        f'by "select": "{prefix.removesuffix(".")}", or add to \'rename\' {rule}',
    )
