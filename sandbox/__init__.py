"""Warm child processes: limited, with a clean environment, spoken to in JSON over a pipe."""

from sandbox.channel import Channel, ChannelError
from sandbox.children import Child, ExitStatus
from sandbox.errors import CallFailed, CallKilled, CallRefused, CallTimeout, SandboxError, SandboxLost
from sandbox.limits import Limits
from sandbox.parent import DEFAULT_PRELOAD, Sandbox

__all__ = [
    "DEFAULT_PRELOAD",
    "CallFailed",
    "CallKilled",
    "CallRefused",
    "CallTimeout",
    "Channel",
    "ChannelError",
    "Child",
    "ExitStatus",
    "Limits",
    "Sandbox",
    "SandboxError",
    "SandboxLost",
]
