"""State machines of the simulation: they know which restore of a user's their state goes back to.

A user restore replaces the state of the whole cluster, so what clients may conclude from their
commands depends on it. Each restore has a mark of its own, kept in the state and in its snapshots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from raft.codec import dumps, loads
from raft.errors import RaftError
from raft.interfaces import FSMSnapshot, SnapshotSink
from raft.messages import SnapshotReader
from raft.testing.fsm import BatchingRecordingFSM, RecordingFSM
from raft.types import NO_INDEX, Log

NO_MARK = b""
"""The mark of a state that no user has restored."""

_READ_BYTES = 4096
# The scenario's commands that the state machine answers with an exception: one in ten.
_REFUSED = re.compile(rb"[cd]\d+-\d*7")


class CommandRefusedError(Exception):
    """The answer to a command that this state machine takes in, and raises on."""


def pack_state(mark: bytes, logs: Sequence[Log]) -> bytes:
    """Return a state as a snapshot holds it."""
    return dumps([mark, [[log.index, log.term, log.data] for log in logs]])


def unpack_state(data: bytes) -> tuple[bytes, list[Log]]:
    """Return the mark and the commands of a state."""
    mark, logs = loads(data)
    return mark, [Log(index, term, data=content) for index, term, content in logs]


class MarkedFSM(RecordingFSM):
    """A `RecordingFSM` with the mark of the user restore that it goes back to.

    `on_mark` is told the mark of every state restored, before it counts. Invariants: indexes of
    commands ascend; a snapshot with the same mark is no older than the state, unless that is what
    a failed restore has left. `on_disorder` is told of what breaks them.
    """

    def __init__(
        self,
        on_apply: Callable[[Log], None],
        on_restore: Callable[[Log], None],
        on_mark: Callable[[bytes], None],
        on_disorder: Callable[[str], None],
    ) -> None:
        super().__init__(on_apply, on_restore)
        self.fails_to_restore = 0  # so many restores fail half way
        self._is_whole = True  # the latest restore did not
        self._on_mark = on_mark
        self._on_disorder = on_disorder
        self.mark = NO_MARK

    def last_index(self) -> int:
        """Return the index of the newest command, 0 without any."""
        return self._logs[-1].index if self._logs else NO_INDEX

    def count(self) -> int:
        """Return how many commands the state holds."""
        return len(self._logs)

    def apply(self, log: Log) -> int:
        """Record a command."""
        if log.index <= self.last_index():
            self._on_disorder(f"applied {log.index} after {self.last_index()}")
        count = super().apply(log)
        if _REFUSED.fullmatch(log.data):
            raise CommandRefusedError(f"command {log.data!r} is the {count}th")
        return count

    def snapshot(self) -> FSMSnapshot:
        """Return the state as of now."""
        return MarkedSnapshot(self.mark, list(self._logs))

    def restore(self, reader: SnapshotReader) -> None:
        """Replace the state by a snapshot's."""
        pieces = []
        while piece := reader.read(_READ_BYTES):
            pieces.append(piece)
        try:
            mark, logs = unpack_state(b"".join(pieces))
        except (ValueError, RaftError):
            self._logs, self._is_whole = [], False  # what it had is gone: the worst there is
            raise
        if self.fails_to_restore:
            self.fails_to_restore -= 1
            self._logs = logs[: len(logs) // 2]
            self._is_whole = False
            raise OSError("simulated failure of a restore")
        newest = logs[-1].index if logs else NO_INDEX
        if self._is_whole and mark == self.mark and newest < self.last_index():
            self._on_disorder(f"went back from {self.last_index()} to {newest}")
        self._is_whole = True
        self._on_mark(mark)
        for log in logs:
            self._on_restore(log)
        self._logs = logs
        self.mark = mark
        self.restores += 1


class MarkedBatchingFSM(MarkedFSM, BatchingRecordingFSM):
    """The same, which takes commands in batches."""

    def __init__(self, *hooks: Callable[[Any], None]) -> None:
        super().__init__(*hooks)
        self.batches: list[tuple[int, ...]] = []
        self.configurations: list[Log] = []

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Record a batch; what a command raises is its answer, as a batch must not raise."""
        answers: list[Any] = []
        for log in logs:
            try:
                answers += super().apply_batch([log])
            except CommandRefusedError as error:
                answers.append(error)
        return answers


class MarkedSnapshot:
    """A state as of one moment."""

    def __init__(self, mark: bytes, logs: list[Log]) -> None:
        self._mark = mark
        self._logs = logs

    def persist(self, sink: SnapshotSink) -> None:
        """Write mark and commands, in two pieces."""
        data = pack_state(self._mark, self._logs)
        sink.write(data[: len(data) // 2])
        sink.write(data[len(data) // 2 :])

    def release(self) -> None:
        """Do nothing."""
