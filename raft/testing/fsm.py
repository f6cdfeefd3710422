"""State machines that remember what they were told, for tests of nodes and clusters.

Their whole state is the list of commands applied, so that two replicas can be compared entry by
entry, and a snapshot can be told from what should be in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raft.codec import dumps, loads
from raft.interfaces import FSMSnapshot, SnapshotSink
from raft.messages import SnapshotReader
from raft.types import Configuration, Log, LogType

_READ_BYTES = 64 * 1024


def _see_nothing(_: Log) -> None:
    """Stand in for a watch that nobody asked for."""


class RecordingFSM:
    """Records every command; answers each with how many there are by then.

    `on_apply` and `on_restore` are called on the FSM thread with every command that enters the
    state, one by one; what they raise is what the FSM raises. Reading is safe from any thread.
    """

    def __init__(
        self,
        on_apply: Callable[[Log], None] = _see_nothing,
        on_restore: Callable[[Log], None] = _see_nothing,
    ) -> None:
        self._on_apply = on_apply
        self._on_restore = on_restore
        self._logs: list[Log] = []  # appended to or replaced as a whole, so readers need no lock
        self.restores = 0

    def logs(self) -> list[Log]:
        """Return a copy of the commands applied, in order; what a snapshot held included."""
        return list(self._logs)

    def commands(self) -> list[bytes]:
        """Return the data of the commands applied, in order."""
        return [log.data for log in list(self._logs)]

    def apply(self, log: Log) -> int:
        """Record a command."""
        self._on_apply(log)
        self._logs.append(log)
        return len(self._logs)

    def snapshot(self) -> FSMSnapshot:
        """Return the list as of now."""
        return RecordedSnapshot(list(self._logs))

    def restore(self, reader: SnapshotReader) -> None:
        """Replace the list by a snapshot's."""
        pieces = []
        while piece := reader.read(_READ_BYTES):
            pieces.append(piece)
        logs = [Log(index, term, data=data) for index, term, data in loads(b"".join(pieces))]
        for log in logs:
            self._on_restore(log)
        self._logs = logs
        self.restores += 1


class BatchingRecordingFSM(RecordingFSM):
    """Takes commands in batches; remembers how they were cut, and the configurations among them."""

    def __init__(
        self,
        on_apply: Callable[[Log], None] = _see_nothing,
        on_restore: Callable[[Log], None] = _see_nothing,
    ) -> None:
        super().__init__(on_apply, on_restore)
        self.batches: list[tuple[int, ...]] = []
        self.configurations: list[Log] = []

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Record a batch; a configuration is answered by None."""
        self.batches.append(tuple(log.index for log in logs))
        answers: list[Any] = []
        for log in logs:
            if log.type is LogType.COMMAND:
                answers.append(self.apply(log))
            else:
                self.configurations.append(log)
                answers.append(None)
        return answers


class ConfigurationRecordingFSM(RecordingFSM):
    """Records the committed configurations, too, as a `ConfigurationStore`."""

    def __init__(
        self,
        on_apply: Callable[[Log], None] = _see_nothing,
        on_restore: Callable[[Log], None] = _see_nothing,
    ) -> None:
        super().__init__(on_apply, on_restore)
        self.configurations: list[tuple[int, Configuration]] = []

    def store_configuration(self, index: int, configuration: Configuration) -> None:
        """Record a configuration."""
        self.configurations.append((index, configuration))


class RecordedSnapshot:
    """The commands as of one moment."""

    def __init__(self, logs: list[Log]) -> None:
        self._logs = logs
        self.released = False

    def persist(self, sink: SnapshotSink) -> None:
        """Write index, term and data of every command."""
        sink.write(dumps([[log.index, log.term, log.data] for log in self._logs]))

    def release(self) -> None:
        """Note that nobody needs the view any more."""
        self.released = True
