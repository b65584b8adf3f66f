"""Randomness: draws that are a function of their key, and the global generators saved and put back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator of its own, seeded by all of `key`: a draw from it neither reads nor moves the global state.

    The key goes through NumPy's SeedSequence because torch's CPU engine looks at the low 32 bits of a seed alone.
    """
    state = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def reseed(*key: int) -> None:
    """Seed every global generator, the device's too, by all of `key`."""
    words = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[1]))


@contextmanager
def deterministic() -> Iterator[None]:
    """Only algorithms that give the same bits each time, while it lasts; an operation that has none raises RuntimeError.

    cuBLAS reads its own variable when it is first used: before that this must begin, in the process.
    """
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic  # its type stubs do not know the flag
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # a model that reads memory that nobody wrote is broken anyway; to fill it costs each step
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = flags


@contextmanager
def tuned() -> Iterator[None]:
    """The fastest algorithms, while it lasts: cuDNN tries those it has, once for each shape. They may differ from run to run."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def capture(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every global generator: tensors (torch, the device's, NumPy's words) and what JSON can hold of the rest."""
    name, words, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words).astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    rest = {"numpy": [name, position, has_gauss, gauss], "python": [version, gauss_next]}
    return tensors, rest


def restore(tensors: dict[str, Tensor], rest: dict[str, Any], device: torch.device) -> None:
    """Put back what `capture` took. A state that was taken on another kind of device leaves this device's as it is."""
    torch.set_rng_state(tensors["torch"])
    name, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, gauss_next = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
