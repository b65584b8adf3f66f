"""The figures of a validation: which each task has, which of them is its own, and which way is better. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from core.spec.values import Task

Better = Literal["min", "max"]

FIGURES: dict[Task, dict[str, Better]] = {
    "multiclass": {"loss": "min", "top1": "max", "top5": "max"},
    "multilabel": {"loss": "min", "mAP": "max"},
    "regression": {"loss": "min", "mae": "min", "rmse": "min", "r2": "max"},
}
"""Of each task its figures, and whether the lowest or the highest is the best."""
OWN: dict[Task, str] = {"multiclass": "top1", "multilabel": "mAP", "regression": "mae"}
"""What a task is judged by where a spec does not say."""
TOP = 5
"""top5 tells nothing of five classes or fewer: they do not have it."""

_BETTER = {name: better for figures in FIGURES.values() for name, better in figures.items()}


def figures_of(task: Task | None, classes: int) -> list[str]:
    """The names of what is measured on a dataset of so many classes; of any dataset where the task is not known."""
    names = list(_BETTER) if task is None else list(FIGURES[task])
    return [name for name in names if name != "top5" or task is None or classes > TOP]


def better(name: str) -> Better:
    """Whether the lowest or the highest is the best; of what is no figure of a validation the lowest."""
    return _BETTER.get(name, "min")


def own_of(figures: Collection[str]) -> str:
    """The name of the task's own among the figures of one validation."""
    return next((name for name in OWN.values() if name in figures), "loss")
