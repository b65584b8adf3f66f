"""What to say where a part of a model that could have been loaded is not: it trains from random values."""

from __future__ import annotations

from collections import defaultdict

from core.errors import listed
from core.events import TransferData
from core.transfer.entries import elements
from core.transfer.matching import TAKEN, UNCOUNTED

_MOSTLY = 0.95
"""Of the elements outside the head; less is rarely meant where the source is of the same model."""


def shortfall(report: TransferData, model: str) -> str | None:
    """Which modules of `model`, as the spec names it, would start at random; None where most of it is loaded."""
    if report.source is None or report.loaded_share >= _MOSTLY:
        return None
    total: defaultdict[str, int] = defaultdict(int)
    taken: defaultdict[str, int] = defaultdict(int)
    for one in report.targets:
        if one.status not in UNCOUNTED and one.key.rpartition(".")[0] not in report.head:
            module = one.key.partition(".")[0]
            total[module] += elements(one.shape)
            taken[module] += elements(one.shape) if one.status in TAKEN else 0
    short = sorted((module for module in total if taken[module] < total[module]), key=lambda one: taken[one] - total[one])
    shares = listed(f"{module} ({1 - taken[module] / total[module]:.0%} of it)" for module in short)
    return (
        f"only {report.loaded_share:.1%} of the model outside its head would be loaded{_of_another(report, model)}; "
        f"the rest starts at random: {shares}"
    )


def _of_another(report: TransferData, model: str) -> str:
    """`, for job:1 is a torchvision:resnet18 and this is torchvision:resnet34`, where the source knows and they differ."""
    known = report.model is not None and report.model != model
    return f", for {report.source} is a {report.model} and this is {model}" if known else ""
