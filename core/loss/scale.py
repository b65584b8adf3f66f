"""How large the numbers are that a regression learns. A head begins near 0, and its lr is meant for steps of about 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

_LARGE = 10.0
_SMALL = 0.1
_SHOWN = 5
_SCALED = ("HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss")
"""Losses of the distance itself: others take the numbers for counts, or for shares."""


def scale_notes(targets: Tensor, names: Sequence[str], loss: str) -> Iterator[str]:
    """The mean and the deviation of each of `targets`, float32 [N, K], and a warning where they are far from 1.

    They are learnt as they are, so that losses and errors are in the units of the data.
    """
    values = targets.double()
    means, deviations = values.mean(dim=0).tolist(), values.std(dim=0, correction=0).tolist()
    each = list(zip(names, means, deviations, strict=True))
    listed = [f"'{name}' has the mean {mean:.4g} and the deviation {deviation:.4g}" for name, mean, deviation in each]
    yield f"of the training targets {', '.join(listed[:_SHOWN])}{' …' if len(listed) > _SHOWN else ''}"
    if loss not in _SCALED:
        return
    if large := [name for name, mean, deviation in each if max(abs(mean), deviation) > _LARGE]:
        first = sum(mean**2 + deviation**2 for _, mean, deviation in each) / len(each)
        begins = f"the loss begins at about {first:.2g}, and " if loss == "MSELoss" else ""
        yield (
            f"{_named(large)} far from what a model gives at first: {begins}the first steps go to the mean alone; write other "
            "units into the CSV, or (value - mean) / deviation"
        )
    if small := [name for name, _, deviation in each if 0 < deviation < _SMALL]:
        yield f"{_named(small)} so close together that a small loss says little; write (value - mean) / deviation into the CSV"


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    return f"the numbers of {listed} are"
