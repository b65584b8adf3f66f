"""One question to a child, one answer."""

from __future__ import annotations

import select
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from sandbox.children import Child, ExitStatus
from sandbox.errors import CallFailed, CallKilled, CallRefused, CallTimeout, SandboxLost
from sandbox.limits import Limits
from sandbox.lines import Lines


def converse(child: Child, question: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Ask, read what it prints meanwhile, and give the answer or raise what came instead."""
    with suppress(BrokenPipeError, ConnectionResetError):  # it died already; its status says how
        child.channel.send(question)
    printed = [Lines(child.output), Lines(child.errors)]
    answer = _listen(child, printed)
    lines = [line for stream in printed for line in stream.last(20)]
    if isinstance(answer, ExitStatus):
        if answer.timed_out:
            raise CallTimeout(limits.seconds or 0.0)
        if answer.lost:
            raise SandboxLost("the forkserver died, and the call with it; try again")
        raise CallKilled(answer.signal, answer.code, lines)
    if "refused" in answer:
        raise CallRefused(answer["refused"])
    if "failed" in answer:
        failed = answer["failed"]
        raise CallFailed(**{**failed, "lines": [*lines, *failed["lines"]][-20:]})
    return cast("dict[str, Any]", answer["result"])


def _listen(child: Child, printed: Sequence[Lines]) -> dict[str, Any] | ExitStatus:
    """The first object that it sends, or how it ended without one."""
    poll = select.poll()
    streams = {stream.descriptor: stream for stream in printed}
    channel, status = child.channel.fileno(), child.status_fileno()
    for descriptor in channel, status, *streams:
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        ended = {descriptor for descriptor in ready if descriptor in streams and streams[descriptor].read() is None}
        answers = child.channel.rest() if status in ready else child.channel.drain()
        if answers:
            return cast("dict[str, Any]", answers[0])
        if status in ready:
            for stream in printed:
                while stream.read():
                    continue
            return child.wait()
        if child.channel.ended and channel in ready:
            ended.add(channel)
        for descriptor in ended:
            poll.unregister(descriptor)
