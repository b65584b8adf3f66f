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


def test_a_step_finds_its_memory_again() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8)))  # 4 MiB each
    images = torch.ones(16, 1024)  # few: it is the gradients that are freed
    pages = sum(weight.nbytes for weight in model.parameters()) / resource.getpagesize()
    with kept():
        assert faults(model, images) < pages / 10  # what other threads of the process bring; without `kept` it is most of them
