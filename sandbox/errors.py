"""What can go wrong with a child, each with a name. The names say what happened, so they need no suffix."""

from __future__ import annotations

import signal


class SandboxError(RuntimeError):
    """Something went wrong with the sandbox or a child of it."""


class SandboxLost(SandboxError):  # noqa: N818
    """The forkserver died (or could not start); the next call starts a new one."""


class CallRefused(SandboxError):  # noqa: N818
    """The function refused its input: it raised an exception that has `.faults`.

    `faults` are `{"pointer", "message"}` objects.
    """

    def __init__(self, faults: list[dict[str, str]]) -> None:
        super().__init__("; ".join(f"{fault['pointer']}: {fault['message']}" for fault in faults))
        self.faults = faults


class CallFailed(SandboxError):  # noqa: N818
    """The function raised any other exception.

    `type` is its class, `message` its text; `kind` and `hint` are set where the exception has them; `lines` are the last lines
    of its traceback and of what the child printed.
    """

    def __init__(
        self, name: str, message: str, *, kind: str | None = None, hint: str | None = None, lines: list[str] | None = None
    ) -> None:
        super().__init__(f"{name}: {message}")
        self.type, self.message, self.kind, self.hint, self.lines = name, message, kind, hint, lines or []


class CallTimeout(SandboxError):  # noqa: N818
    """The child was killed since it took longer than its limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it took longer than {seconds:g} s and was stopped")
        self.seconds = seconds


class CallKilled(SandboxError):  # noqa: N818
    """The child died before it answered: by `signal`, or (None) by leaving with `code`. `lines` are the last it printed."""

    def __init__(self, signal: int | None, code: int | None = None, lines: list[str] | None = None) -> None:
        how = f"was killed by {signal_name(signal)}" if signal else f"left with exit code {code}"
        last = f"; it printed last: {lines[-1]}" if lines else ""
        super().__init__(f"the process {how} before it answered{last}")
        self.signal, self.code, self.lines = signal, code, lines or []


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11; `signal 40` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
