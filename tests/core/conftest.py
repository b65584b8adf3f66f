"""What the tests of core share."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.places import Places

torch.set_num_threads(1)  # small tensors: threads cost more than they give, and other tests want the cores


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An inputs directory and a cache of the test's own."""
    (tmp_path / "inputs").mkdir()
    return Places(inputs=tmp_path / "inputs", cache=tmp_path / "cache")


@pytest.fixture
def draw(places: Places) -> Callable[[Mapping[str, int]], Path]:
    """Write images below the inputs: `{"train/cats": 3}` gives three small pictures in that folder."""

    def write(folders: Mapping[str, int]) -> Path:
        for number, (folder, count) in enumerate(folders.items()):
            (places.inputs / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image = Image.new("RGB", (12, 8), (number * 40 % 256, index * 30 % 256, 128))
                image.save(places.inputs / folder / f"{index}.png")
        return places.inputs

    return write
