"""What a child may use."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Limits of one child; None is no limit.

    seconds     wall time; the forkserver kills the child when it is over
    memory      bytes of private memory (heap, anonymous maps, stacks) above what the fork starts with; beyond it allocations
                fail, which Python sees as MemoryError. Address space that is only reserved, as CUDA does, does not count.
    file_bytes  the largest file it may write; beyond it a write fails with EFBIG
    cores       threads of each of its thread pools
    """

    seconds: float | None = None
    memory: int | None = None
    file_bytes: int | None = None
    cores: int | None = None


def apply(limits: Limits) -> None:
    """Put the limits on this process. `seconds` is the forkserver's to watch."""
    _lower(resource.RLIMIT_CORE, 0)
    if limits.memory is not None:
        _lower(resource.RLIMIT_DATA, _private_bytes() + limits.memory)
    if limits.file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    if limits.cores is not None:
        os.environ["OMP_NUM_THREADS"] = str(limits.cores)
        # The pools of what is loaded already have read that variable. Only a preloaded torch is asked: nothing is imported here.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(limits.cores)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    top = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (top, top))


def _private_bytes() -> int:
    """What RLIMIT_DATA counts (Linux ≥ 4.7: private writable maps), of this process, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmData")
