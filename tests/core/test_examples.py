"""The example in examples/ does what it says."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest
import torch

from core.data import datasets
from core.data.images import Part

EXAMPLE = Path(__file__).parents[2] / "examples" / "by_hand.py"


@pytest.mark.slow  # a real EfficientNet at 64 px, forwards and backwards
def test_by_hand_prints_each_loss_and_each_mean(monkeypatch, capsys):
    whole = datasets.open_dataset

    def a_few(*arguments):
        dataset = whole(*arguments)
        return dataclasses.replace(
            dataset, train=Part(dataset.train, torch.arange(70)), validation=Part(dataset.validation, torch.arange(16))
        )

    monkeypatch.setattr(datasets, "open_dataset", a_few)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("294 tensors loaded")
    assert re.fullmatch(r"stem +928 parameters, frozen", lines[1])
    said = [line.partition(", loss = ")[0].partition(" was ")[0] for line in lines[4:] if "validation" not in line]
    expected = [(f"Epoch {e}, iteration : 1", f"Epoch {e}, iteration : 2", f"Epoch {e} : Mean Loss") for e in (1, 2)]
    assert said == [line for epoch in expected for line in epoch]
