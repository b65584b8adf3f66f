"""The heap while a job trains: what a step frees is there for the next one."""

from __future__ import annotations

import resource

import torch
from torch import nn

from core.heap import kept

STEPS = 20


def faults(model: nn.Module, images: torch.Tensor) -> float:
    """Pages that the kernel brought, for each of some steps, once the first ones have found their memory."""

    def step() -> None:
        model.zero_grad()
        model(images).sum().backward()

    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS


def test_no_page_is_brought_anew_in_each_step() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8)))  # 4 MB each: without `kept` some 5,000 pages a step
    images = torch.ones(16, 1024)  # few: it is the gradients that are freed
    with kept():
        assert faults(model, images) < 100
