"""How the death of a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.events import Failure
from sandbox import ExitStatus
from sandbox.errors import signal_name

_CAUSES = {
    "SIGKILL": "Nobody says who killed it; most often it is the kernel, out of memory: look at the host's kernel log, and take "
    "a smaller loader.batch_size or dataset.image_size.",
    "SIGSEGV": "Native code crashed: an extension, a plug-in or the driver. The last lines say in which call.",
    "SIGBUS": "Shared memory ran out: take fewer loader.workers, or give the host more /dev/shm.",
    "SIGABRT": "Native code gave up. The last lines say why.",
    "SIGXFSZ": "A file grew beyond its limit.",
}
_STARVED = (
    "Take a smaller dataset.image_size, or fewer loader.workers; or give the worker more memory, or fewer jobs at a time "
    "(GRAFT_CPU_SLOTS)."
)
_ELSE = "Read the last lines of the log."


def oom_kills(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes of this worker's container or unit the kernel has killed for want of memory, by cgroup v2.

    0 where it does not tell; what runs outside of any limit is not counted.
    """
    try:
        own = next(line for line in cgroup.read_text().splitlines() if line.startswith("0::")).removeprefix("0::/")
        told = dict(line.split() for line in (root / own / "memory.events").read_text().splitlines())
        return int(told["oom_kill"])
    except (OSError, StopIteration, ValueError, KeyError):
        return 0


def crash(status: ExitStatus, lines: Sequence[str], *, starved: bool = False) -> Failure:
    """The failure of a trainer that died without a last word; `starved`: the kernel has killed for want of memory meanwhile."""
    if status.lost:
        hint = "The process that starts trainers died, and all of them with it; look at the worker's own log."
        return Failure(type="worker_lost", message="the worker's sandbox died", hint=hint, lines=list(lines))
    if status.signal is None:
        message, hint = f"the training process left with exit code {status.code}", _ELSE
    else:
        name = signal_name(status.signal)
        message, hint = f"the training process was killed by {name}", _CAUSES.get(name, _ELSE)
        if starved and name == "SIGKILL":
            message = "the kernel killed the training process: the memory that this worker may have was used up"
            return Failure(type="out_of_memory", message=message, hint=_STARVED, lines=list(lines))
    return Failure(type="crashed", message=message, hint=hint, lines=list(lines))
