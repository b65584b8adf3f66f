"""How the death of a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence

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
_ELSE = "Read the last lines of the log."


def crash(status: ExitStatus, lines: Sequence[str]) -> Failure:
    """The failure of a trainer that died without a last word."""
    if status.lost:
        hint = "The process that starts trainers died, and all of them with it; look at the worker's own log."
        return Failure(type="worker_lost", message="the worker's sandbox died", hint=hint, lines=list(lines))
    if status.signal is None:
        message, hint = f"the training process left with exit code {status.code}", _ELSE
    else:
        name = signal_name(status.signal)
        message, hint = f"the training process was killed by {name}", _CAUSES.get(name, _ELSE)
    return Failure(type="crashed", message=message, hint=hint, lines=list(lines))
