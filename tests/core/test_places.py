"""Places: a path of a spec lies below the inputs, or is refused with what lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import SpecError
from core.places import FETCHED, READ, PinnedWeights, Places


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "inputs" / "pets").mkdir(parents=True)
    (tmp_path / "inputs" / "pets" / "cat.png").touch()
    (tmp_path / "secret").touch()
    return tmp_path / "inputs"


def refusal(inputs: Path, path: str) -> str:
    with pytest.raises(SpecError) as refused:
        Places(inputs=inputs).input(path, "/dataset/source")
    assert refused.value.faults[0].pointer == "/dataset/source"
    return refused.value.faults[0].message


def test_what_lies_below_the_inputs_is_found(inputs: Path) -> None:
    assert Places(inputs=inputs).input("pets/../pets/cat.png", "/x") == inputs / "pets" / "cat.png"


@pytest.mark.parametrize("path", ["../secret", "pets/../../secret", "/etc/passwd"])
def test_a_path_that_leaves_the_inputs_is_refused(path: str, inputs: Path) -> None:
    assert "leaves the inputs directory" in refusal(inputs, path)


def test_a_link_does_not_lead_out(inputs: Path) -> None:
    (inputs / "link").symlink_to(inputs.parent)
    assert "leaves the inputs directory" in refusal(inputs, "link/secret")


def test_a_path_that_is_not_there_says_what_is(inputs: Path) -> None:
    assert refusal(inputs, "pets/dog.png").endswith("; there is: cat.png")
    assert "is: pets" in refusal(inputs, "petz")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_what_no_file_system_takes_is_refused(path: str, inputs: Path) -> None:
    assert "is no usable path" in refusal(inputs, path)


@pytest.mark.parametrize("ending", [*FETCHED, ".pth.tar"])
def test_whatever_is_fetched_is_kept_under_an_ending_that_is_read(ending: str) -> None:
    (name,) = PinnedWeights(file=f"w{ending}", sha256="ab" * 32).cache_names
    assert name.endswith(ending if ending in READ else (".pt", ".pth"))
