"""What the ranks of a trainer say and print, on its way into the journal."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from core.events import CheckpointData, Failure, IterationsData, LogData
from core.training.checkpoint_names import order_of
from sandbox import ChannelError, Child, ExitStatus
from sandbox.lines import Lines
from worker.journal import Journal, MalformedEventError
from worker.link import LOST, NO_DEVICE, SEVERAL

LAST_WORDS = frozenset({"done", "failed", "cancelled", "paused", LOST, NO_DEVICE})


class Intake:
    """Reads every rank: its channel, its output and its errors. Rank 0 tells the events; of the others lines are taken.

    `urgent` says that something has come which should be committed at once. `folder` is where the checkpoints lie, relative to
    the data directory: the log takes no path from a trainer.
    """

    def __init__(self, children: Sequence[Child], journal: Journal, folder: str) -> None:
        self.urgent = False
        self._journal, self._folder = journal, folder
        self._saw_loss = False
        self._failed: dict[str, Any] | None = None
        self._fallen: ExitStatus | None = None
        self._selector = selectors.DefaultSelector()
        self._ranks = [_Rank(number, child) for number, child in enumerate(children)]
        for rank in self._ranks:
            self._watch(rank, rank.child.status_fileno(), partial(self._bury, rank))
            self._watch(rank, rank.child.channel.fileno(), partial(self._hear, rank))
            for level, stream in rank.streams.items():
                self._watch(rank, stream.descriptor, partial(self._read, rank, stream, level))

    def pump(self, seconds: float) -> bool:
        """Wait at most so long and take what came; False once every rank is dead and everything is taken."""
        for key, _ in self._selector.select(seconds):
            rank, take = key.data
            if rank.status is None and take():
                self._selector.unregister(key.fd)
        return any(rank.status is None for rank in self._ranks)

    @property
    def word(self) -> dict[str, Any] | None:
        """What the attempt came to: rank 0's last word, unless it failed; then that of the first to fail that knew why."""
        said = self._ranks[0].word
        return said if said is not None and said["kind"] not in ("failed", LOST, NO_DEVICE) else self._failed

    @property
    def status(self) -> ExitStatus:
        """How the first ended that did so without a word, else rank 0; once all are dead."""
        status = self._fallen or self._ranks[0].status
        if status is None:
            raise RuntimeError("rank 0 still runs")
        return status

    @property
    def over(self) -> bool:
        """Whether it is time for all to end: rank 0 has said its last word, or one has failed or died."""
        silent = self._fallen is not None or any(rank.word is not None and rank.word["kind"] == LOST for rank in self._ranks)
        return self.word is not None or silent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._selector.close()

    def _watch(self, rank: _Rank, descriptor: int, take: Callable[[], bool]) -> None:
        """`take` reads once, and says whether that was the end."""
        self._selector.register(descriptor, selectors.EVENT_READ, (rank, take))

    def _hear(self, rank: _Rank) -> bool:
        self._trust(rank, rank.child.channel.drain)
        return rank.child.channel.ended

    def _read(self, rank: _Rank, stream: Lines, level: str) -> bool:
        lines = stream.read()
        self._journal.lines(map(rank.mark, lines or []), level)
        return lines is None

    def _bury(self, rank: _Rank) -> bool:
        """It is dead, and all that it had started; take what it left."""
        self._trust(rank, rank.child.channel.rest)
        for level, stream in rank.streams.items():
            while lines := stream.read():
                self._journal.lines(map(rank.mark, lines), level)
        rank.status = rank.child.wait()
        if rank.word is None and self._fallen is None:
            self._fallen = rank.status
        if all(one.status is not None and one.lost is not None for one in self._ranks):  # nobody knows why
            self._journal.lines([one.mark(str(one.lost)) for one in self._ranks], "error")
        return True

    def _trust(self, rank: _Rank, hear: Callable[[], list[Any]]) -> None:
        """Take what the channel brings; a child that speaks nonsense is killed, and has failed."""
        try:
            for message in hear():
                self._take(rank, message)
        except (ChannelError, MalformedEventError) as error:
            hint = "Something in the training process writes into its descriptors; look at the plug-in that it runs."
            failure = Failure(type="crashed", message=str(error)[:1000], hint=hint)
            self._end(rank, {"kind": "failed", "failure": failure.model_dump()})
            rank.child.kill()

    def _take(self, rank: _Rank, message: Any) -> None:
        kind = message.get("kind") if isinstance(message, dict) else None
        if rank.word is not None:
            return
        if kind in LAST_WORDS:
            self._end(rank, message)
        elif rank.number == 0:
            self._add(message, kind)
        elif kind == LogData.kind and isinstance(message.get("data"), dict):
            self._journal.lines([rank.mark(str(message["data"].get("message")))], str(message["data"].get("level")))
        else:
            raise MalformedEventError(f"rank {rank.number} sent a '{kind}' event; events are rank 0's to tell")

    def _add(self, message: Any, kind: str | None) -> None:
        if kind == SEVERAL and isinstance(message.get("events"), list):
            for one in message["events"]:  # before anything is committed
                self._take(self._ranks[0], one)
            return
        if kind == CheckpointData.kind:
            with suppress(KeyError, TypeError):  # the journal says what is wrong with it
                message["data"]["path"] = f"{self._folder}/{_checkpoint(message['data']['path'])}"
        self._journal.add(message)
        if kind == IterationsData.kind and not self._saw_loss:
            self._saw_loss = self.urgent = True

    def _end(self, rank: _Rank, word: dict[str, Any]) -> None:
        rank.word = word
        if word["kind"] in ("failed", NO_DEVICE):
            self._failed = self._failed or word
        elif word["kind"] != LOST and rank.number == 0:
            for other in self._ranks[1:]:  # nothing that they do counts any more
                other.child.kill()


def _checkpoint(name: Any) -> str:
    """The name of a checkpoint's directory. Raises MalformedEventError."""
    if not isinstance(name, str) or order_of(name) is None:
        raise MalformedEventError(f"the trainer tells of a checkpoint in '{name}', which names none")
    return name


class _Rank:
    """One rank as it is heard. Its last word, and how it ended, once they are known."""

    def __init__(self, number: int, child: Child) -> None:
        self.number, self.child = number, child
        self.streams = {"info": Lines(child.output), "warning": Lines(child.errors)}
        self.word: dict[str, Any] | None = None
        self.status: ExitStatus | None = None

    @property
    def lost(self) -> str | None:
        """What NCCL or Gloo has told it, where it knows no more than that another one is gone."""
        return str(self.word.get("message")) if self.word is not None and self.word["kind"] == LOST else None

    def mark(self, line: str) -> str:
        """Who has printed it, unless it is rank 0."""
        return f"[rank {self.number}] {line}" if self.number else line
