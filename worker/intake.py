"""What a trainer says and prints, on its way into the journal."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from core.events import CheckpointData, Failure, IterationsData
from sandbox import ChannelError, Child
from sandbox.lines import Lines
from worker.journal import Journal, MalformedEventError

LAST_WORDS = frozenset({"done", "failed", "cancelled", "paused"})


class Intake:
    """Reads one child: its channel, its output and its errors.

    `word` is its last word, once it has said one; `urgent` that something has come which should be committed at once.
    `folder` is where its checkpoints lie, relative to the data directory: the log takes no path from a trainer.
    """

    def __init__(self, child: Child, journal: Journal, folder: str) -> None:
        self.word: dict[str, Any] | None = None
        self.urgent = False
        self._child, self._journal, self._folder = child, journal, folder
        self._saw_loss = False
        self._streams = {"info": Lines(child.output), "warning": Lines(child.errors)}
        self._selector = selectors.DefaultSelector()
        self._watch(child.status_fileno(), lambda: False)
        self._watch(child.channel.fileno(), self._hear)
        for level, stream in self._streams.items():
            self._watch(stream.descriptor, partial(self._read, stream, level))

    def pump(self, seconds: float) -> bool:
        """Wait at most so long and take what came; False once the child is dead and everything is taken."""
        for key, _ in self._selector.select(seconds):
            if key.fd == self._child.status_fileno():
                self._take_rest()
                return False
            if key.data():
                self._selector.unregister(key.fd)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._selector.close()

    def _watch(self, descriptor: int, take: Callable[[], bool]) -> None:
        """`take` reads once, and says whether that was the end."""
        self._selector.register(descriptor, selectors.EVENT_READ, take)

    def _hear(self) -> bool:
        self._trust(self._child.channel.drain)
        return self._child.channel.ended

    def _read(self, stream: Lines, level: str) -> bool:
        lines = stream.read()
        self._journal.lines(lines or [], level)
        return lines is None

    def _take_rest(self) -> None:
        self._trust(self._child.channel.rest)
        for level, stream in self._streams.items():
            while lines := stream.read():
                self._journal.lines(lines, level)

    def _trust(self, hear: Callable[[], list[Any]]) -> None:
        """Take what the channel brings; a child that speaks nonsense is killed, and has failed."""
        try:
            for message in hear():
                self._take(message)
        except (ChannelError, MalformedEventError) as error:
            hint = "Something in the training process writes into its descriptors; look at the plug-in that it runs."
            failure = Failure(type="crashed", message=str(error)[:1000], hint=hint)
            self.word = {"kind": "failed", "failure": failure.model_dump()}
            self._child.kill()

    def _take(self, message: Any) -> None:
        kind = message.get("kind") if isinstance(message, dict) else None
        if self.word is not None:
            return
        if kind in LAST_WORDS:
            self.word = message
            return
        if kind == CheckpointData.kind:
            with suppress(KeyError, TypeError, ValueError):  # the journal says what is wrong with it
                message["data"]["path"] = f"{self._folder}/{int(message['step'])}"
        self._journal.add(message)
        if kind == IterationsData.kind and not self._saw_loss:
            self._saw_loss = self.urgent = True
