"""The C library's heap, which holds the tensors of a CPU."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_MAP = 32 << 20  # the most that mallopt takes on 64 bits
_NEVER = (1 << 31) - 1


@contextmanager
def kept() -> Iterator[None]:
    """What a training step frees stays with the process for the next one, while it lasts.

    Else glibc gives large blocks back at once, and the kernel brings and clears each page of them anew, thousands in each step
    (`benchmarks/heap.py`). The most that the process holds is the same. Afterwards what is free is given back, and the
    thresholds are where glibc itself moves them in a process that frees large blocks (mallopt(3)). Other C libraries are left
    alone.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MAP, _LARGEST_MAP)
    libc.mallopt(_TRIM, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_TRIM, 2 * _LARGEST_MAP)
        libc.malloc_trim(0)
