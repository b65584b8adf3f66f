"""Selectors: which of a model's parameters are meant, by name, role, depth and type; and what to say where none is."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from core.errors import Fault, did_you_mean, pointer_of
from core.globs import near_glob
from core.optimizer.parameters import Parameter
from core.spec import GroupSpec, Selector

Match = Callable[[Parameter], bool]


class Rule(NamedTuple):
    """One value of a selector, where it stands in the spec, and the names of the parameters that it picks."""

    pointer: str
    shown: str
    hits: frozenset[str]


def select(
    selector: Selector | GroupSpec, parameters: Sequence[Parameter], pointer: str, faults: list[Fault]
) -> tuple[list[str], list[Rule]]:
    """The first names of the parameters that `selector` means, in the model's order, and the rules that say so.

    A rule holds what its value picks of what the selector's other keys leave. Adds to `faults`, below `pointer`, each value that
    picks nothing.
    """
    keys = {key: _rules(selector, key, parameters, pointer, faults) for key in selector.selectors}
    picked = {key: frozenset().union(*(rule.hits for rule in rules)) for key, rules in keys.items()}
    both = frozenset.intersection(*picked.values())
    if not both and all(picked.values()):
        said = " and ".join(f"{key} {_listed(selector.selectors[key])} ({len(hits)})" for key, hits in picked.items())
        faults.append(Fault(pointer, f"no parameter is all of this: {said}"))
    rules = [rule._replace(hits=rule.hits & both) for of_key in keys.values() for rule in of_key]
    for before, after in zip((rule for of_key in keys.values() for rule in of_key), rules, strict=True):
        if both and before.hits and not after.hits:
            faults.append(
                Fault(after.pointer, f"none of the {len(before.hits)} that {after.shown} matches is left by the other keys")
            )
    return [one.name for one in parameters if one.name in both], rules


def _rules(
    selector: Selector | GroupSpec, key: str, parameters: Sequence[Parameter], pointer: str, faults: list[Fault]
) -> list[Rule]:
    several = isinstance(getattr(selector, key), list)
    rules = []
    for position, value in enumerate(selector.selectors[key]):
        here = pointer + pointer_of(key, *([position] if several else []))
        shown = f"'{value}'" if key == "params" else f"{key} {value}"
        try:
            match = _MATCHERS[key](value, parameters)
        except re.error as error:
            faults.append(Fault(here, f"'{value}' is no regular expression: {error}"))
            continue
        hits = frozenset(one.name for one in parameters if match(one))
        if not hits:
            faults.append(Fault(here, f"{shown} matches no parameter.{_WAYS_OUT[key](value, parameters)}"))
        rules.append(Rule(here, shown, hits))
    return rules


def _by_name(pattern: str, _: Sequence[Parameter]) -> Match:
    if pattern.startswith("re:"):
        match: Callable[[str], object] = re.compile(pattern[3:]).fullmatch
    elif any(sign in pattern for sign in "*?["):
        match = re.compile(fnmatch.translate(pattern)).match
    else:
        return lambda one: pattern in one.names
    return lambda one: any(match(name) for name in one.names)


def _by_role(role: str, _: Sequence[Parameter]) -> Match:
    return lambda one: role in one.roles


def _by_depth(wanted: str, parameters: Sequence[Parameter]) -> Match:
    last = deepest(parameters)
    first, dots, end = wanted.partition("..")

    def place(text: str, default: int) -> int:
        number = int(text) if text else default
        return number + last + 1 if number < 0 else number

    low = place(first, 0)
    high = place(end, last) if dots else low
    return lambda one: low <= one.depth <= high


def _by_type(wanted: str, _: Sequence[Parameter]) -> Match:
    package, _dot, name = wanted.rpartition(".")

    def is_it(kind: type) -> bool:
        return kind.__name__ == name and (not package or f"{kind.__module__}.".startswith(f"{package}."))

    return lambda one: any(is_it(kind) for module in one.within for kind in type(module).__mro__)


_MATCHERS = {"params": _by_name, "role": _by_role, "depth": _by_depth, "type": _by_type}


def deepest(parameters: Iterable[Parameter]) -> int:
    """The depth of the head."""
    return max((one.depth for one in parameters), default=0)


def _near_name(pattern: str, parameters: Sequence[Parameter]) -> str:
    return near_glob(pattern, (name for one in parameters for name in one.names))


def _near_role(role: str, _: Sequence[Parameter]) -> str:
    if role == "head":
        return " The head is known where the model's constructor takes num_classes; name its parameters by params."
    return " The model has no norm with parameters." if role == "norm" else ""


def _near_depth(_: str, parameters: Sequence[Parameter]) -> str:
    last = deepest(parameters)
    ends = {depth: next((one.name for one in parameters if one.depth == depth), "") for depth in (0, last)}
    return f" The model's depths are 0 ('{ends[0]}') to {last} ('{ends[last]}')."


def _near_type(wanted: str, parameters: Sequence[Parameter]) -> str:
    owners = dict.fromkeys(one.type for one in parameters)
    others = dict.fromkeys(type(module).__name__ for one in parameters for module in one.within)
    return did_you_mean(wanted.rpartition(".")[2], {**owners, **others})


_WAYS_OUT = {"params": _near_name, "role": _near_role, "depth": _near_depth, "type": _near_type}


def _listed(values: list[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
