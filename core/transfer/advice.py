"""What to say where too little would be loaded: the rename rules that would help, tried out before they are named."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from core.errors import SpecError
from core.spec import PretrainedSpec
from core.transfer.entries import Entry, elements
from core.transfer.names import Names
from core.transfer.renaming import rename

Rule = tuple[str, str]
_ROUNDS = 4
"""Rules that are advised at a time; more would be a guess."""
_TRIED = 12
_HITS = 8
_NEAREST = 3


def advice(
    entries: Mapping[str, Entry], spec: PretrainedSpec, targets: Mapping[str, Entry], names: Names, body: Iterable[str]
) -> str:
    """The rename rules that would bring most of the missing, with what they would bring; else the nearest names of both sides.

    `body` are the keys of the model that count: those outside its head. Rules are named only if half of what could fit then does.
    """
    wanted = {key: targets[key].shape for key in body}
    found = {name: entries[key].shape for name, key in names.source_of.items()}
    rules = [*_prefix_rule(names), *_rules(found, wanted)]
    total = sum(map(elements, wanted.values()))
    if rules and total:
        try:
            after = rename(entries, spec.model_copy(update={"rename": [*spec.rename, *rules]}), targets)
        except SpecError:
            return _nearest(found, wanted)
        fits = _fits({name: entries[key].shape for name, key in after.source_of.items()}, wanted)
        brought = sum(elements(wanted[key]) for key in fits)
        could = min(total, sum(map(elements, found.values())))
        if 2 * brought >= could and brought > sum(elements(wanted[key]) for key in _fits(found, wanted)):
            share = brought / total
            written = ", ".join(json.dumps(rule) for rule in rules)
            return f'"rename": [{written}] would bring {len(fits)} tensors together, {share:.1%} of the elements outside the head'
    return _nearest(found, wanted)


def _prefix_rule(names: Names) -> list[Rule]:
    """The prefix that was found by itself, as a rule: others are then written for the names behind it."""
    found = [step.detail for step in names.steps if step.kind == "prefix"]
    return [("^", one[1:]) if one[0] == "+" else (f"^{re.escape(one[1:])}", "") for one in found]


def _rules(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """Rules by which more fits, the best first, each found among the names that those before it left."""
    rules: list[Rule] = []
    best = sum(elements(wanted[key]) for key in _fits(found, wanted))
    while len(rules) < _ROUNDS:
        fits = set(_fits(found, wanted))
        here = {key: shape for key, shape in wanted.items() if key not in fits}
        there = {name: shape for name, shape in found.items() if name not in fits}
        tried = [(rule, _applied(rule, found)) for rule, _ in _candidates(there, here).most_common(_TRIED)]
        scores = [(sum(elements(wanted[key]) for key in _fits(names, wanted)), rule, names) for rule, names in tried if names]
        score, rule, names = max(scores, key=lambda one: one[0], default=(0, ("", ""), found))
        if score <= best:
            break
        best, found = score, names
        rules.append(rule)
    return rules


def _fits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [name for name, shape in found.items() if wanted.get(name) == shape]


def _applied(rule: Rule, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The names after a rule; empty where two would become one."""
    expression = re.compile(rule[0])
    names = {expression.sub(rule[1], name): shape for name, shape in found.items()}
    return names if len(names) == len(found) else {}


def _candidates(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> Counter[Rule]:
    """Rules that would turn a name of the source into one of the model that has its shape, by the elements they would bring."""
    ends: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    gaps: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, shape in here.items():
        parts = name.split(".")
        for cut in range(len(parts)):
            ends[".".join(parts[cut:]), shape].append(name)
            gaps[_gap(parts, cut), shape].append(parts[cut])
    rules: Counter[Rule] = Counter()
    for name, shape in there.items():
        parts = name.split(".")
        for cut in range(len(parts)):
            if hits := ends.get((end := ".".join(parts[cut:]), shape)):
                start = f"^{re.escape(name.removesuffix(end))}"
                rules.update({(start, hit.removesuffix(end)): elements(shape) for hit in hits[:_HITS]})
                break
        for cut, part in enumerate(parts):
            others = gaps.get((_gap(parts, cut), shape), [])[:_HITS]
            if not part.isdigit():
                rules.update({(rf"\b{re.escape(part)}\b", other): elements(shape) for other in others if not other.isdigit()})
    return rules


def _gap(parts: list[str], at: int) -> str:
    return ".".join([*parts[:at], "*", *parts[at + 1 :]])


def _nearest(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The largest tensors that are missing, and the names of the source that come close; where none does, what that means."""
    fits = set(_fits(found, wanted))
    missing = sorted((key for key in wanted if key not in fits), key=lambda key: -elements(wanted[key]))
    free = [name for name in found if name not in fits]
    pairs = [(key, near) for key in missing[:_NEAREST] if (near := _closest(key, wanted[key], free, found))]
    if not pairs:
        return (
            "no name comes close whose tensor would fit: these are most likely the weights of another architecture; "
            "name weights of this one, or the model that they are of"
        )
    shown = ", ".join(f"'{key}' here and '{name}' there" for key, name in pairs)
    return f"the nearest names are {shown}; rename rules can map the second on to the first"


def _closest(key: str, shape: tuple[int, ...], free: list[str], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name that is most like `key`, of its shape; one of another shape would not fit even if it were renamed."""
    return next(iter(difflib.get_close_matches(key, [name for name in free if found[name] == shape], n=1)), None)
