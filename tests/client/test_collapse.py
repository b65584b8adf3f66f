"""Names as patterns: few, and exactly those names."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.collapse import collapse


def expanded(pattern: str, every: list[str]) -> list[str]:
    """The names that a pattern stands for, as a person reads it."""
    parts = []
    for part in re.split(r"(\{[^}]*\}|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", pattern):
        if part.startswith("{"):
            parts.append([name for choice in part[1:-1].split(",") for name in expanded(choice, [])])
        elif part[:1].isdigit():
            runs = [run.partition("-") for run in part.split(",")]
            parts.append([str(n) for low, _, high in runs for n in range(int(low), int(high or low) + 1)])
        else:
            parts.append([part])
    names = ["".join(choice) for choice in itertools.product(*parts)]
    return [found for name in names for found in (one for one in every if one.startswith(name[:-1])) if name.endswith(".*")] + [
        name for name in names if not name.endswith(".*")
    ]


BLOCKS = [
    f"layer{i}.{j}.{name}.weight"
    for i, count in ((1, 2), (2, 2), (3, 4))
    for j in range(count)
    for name in ("conv1", "conv2", "bn")
]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["fc.weight"], ["fc.weight"]),
        (["fc.weight", "fc.bias"], ["fc.*"]),
        ([name for name in BLOCKS if "conv" in name], ["layer1-2.0-1.conv1-2.weight", "layer3.0-3.conv1-2.weight"]),
        ([name for name in BLOCKS if name.startswith("layer3")], ["layer3.*"]),
        ([name for name in BLOCKS if re.match(r"layer3\.[013]\.", name)], ["layer3.0-1,3.*"]),
        (["layer1.0.conv1.weight", "layer1.0.bn.weight"], ["layer1.0.conv1.weight", "layer1.0.bn.weight"]),
        (["norm.weight", "norm.bias"], ["norm.{weight,bias}"]),
    ],
)  # fmt: skip
def test_names_of_which_the_same_is_said_become_few_patterns(names: list[str], patterns: list[str]) -> None:
    every = [*BLOCKS, "fc.weight", *(["fc.bias"] if "fc.bias" in names else []), "norm.weight", "norm.bias", "norm.running_mean"]
    kinds = collapse(dict.fromkeys(names, "why"), every)
    assert [kind.pattern for kind in kinds] == patterns
    assert sum(kind.names for kind in kinds) == len(names)


def test_what_is_said_differently_stays_apart() -> None:
    kinds = collapse({"a1.w": "[8] -> [4]", "a2.w": "[8] -> [4]", "a3.w": "[16] -> [4]"}, ["a1.w", "a2.w", "a3.w", "b"])
    assert kinds == [("a1-2.w", "[8] -> [4]", 2), ("a3.w", "[16] -> [4]", 1)]


NAMES = st.lists(st.sampled_from(["a", "b1", "b2", "0", "1", "2", "12"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(NAMES, st.sampled_from([None, "new", "gone"]), min_size=1, max_size=40))
def test_patterns_stand_for_exactly_their_names(said: dict[str, str | None]) -> None:
    leaves = {name: what for name, what in said.items() if not any(other.startswith(f"{name}.") for other in said)}
    for what in ("new", "gone"):
        mine = {name: word for name, word in leaves.items() if word is not None}
        names = [
            name for kind in collapse(mine, list(leaves)) if kind.said == what for name in expanded(kind.pattern, list(leaves))
        ]
        assert sorted(names) == sorted(name for name, word in mine.items() if word == what)
