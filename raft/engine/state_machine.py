"""The FSM and its place in the log: applying, capturing and restoring, without any waiting.

What an FSM raises is the application's answer to a command, unless it speaks of this machine: then
the node halts (`fsm_faults`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from raft.codec import decode_configuration
from raft.engine.fsm_faults import (
    RAISED,
    batch_failed,
    command_failed,
    configuration_failed,
    is_machine_fault,
    shown,
)
from raft.engine.progress import RestoreReader
from raft.errors import (
    FSMError,
    NothingNewToSnapshotError,
    RaftError,
    RaftInternalError,
    SnapshotError,
)
from raft.interfaces import FSM, BatchingFSM, ConfigurationStore, FSMSnapshot, SnapshotStore
from raft.logs import get_logger
from raft.metrics import Metrics, count, measure
from raft.runtime import THREADS, Runtime
from raft.types import (
    EMPTY_CONFIGURATION,
    NO_ENTRY,
    NO_INDEX,
    Configuration,
    EntryID,
    Log,
    LogType,
    SnapshotMeta,
)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Capture:
    """A view of the FSM's state and the place in the log it belongs to."""

    last: EntryID
    configuration: Configuration
    configuration_index: int
    snapshot: FSMSnapshot


def release_view(view: FSMSnapshot) -> None:
    """Have an FSM let go of a view; should that fail, what was written of it stands."""
    try:
        view.release()
    except Exception:  # noqa: BLE001 - user code: nobody's snapshot fails by this
        _log.exception("a view of the FSM could not be released")


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as the answer to a command."""

    error: BaseException


class _TimedFSM:
    """An FSM whose calls are measured; it has the optional abilities where the one inside has."""

    def __init__(self, fsm: Any, metrics: Metrics) -> None:
        self._fsm = fsm
        self._metrics = metrics

    def apply(self, log: Log) -> Any:
        with measure(self._metrics, "raft.fsm.apply"):
            return self._fsm.apply(log)

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        with measure(self._metrics, "raft.fsm.applyBatch"):
            answers: Sequence[Any] = self._fsm.apply_batch(logs)
        return answers

    def store_configuration(self, index: int, configuration: Configuration) -> None:
        with measure(self._metrics, "raft.fsm.store_config"):
            self._fsm.store_configuration(index, configuration)

    def snapshot(self) -> FSMSnapshot:
        with measure(self._metrics, "raft.fsm.snapshot"):
            snapshot: FSMSnapshot = self._fsm.snapshot()
        return snapshot

    def restore(self, reader: BinaryIO) -> None:
        began = self._metrics.now()
        self._fsm.restore(reader)
        self._metrics.since("raft.fsm.restore", began)
        milliseconds = (self._metrics.now() - began) * 1000.0
        self._metrics.set_gauge("raft.fsm.lastRestoreDuration", milliseconds)


class StateMachine:
    """Owns the FSM. The constructing thread until the node runs, then the FSM thread only.

    Invariant: `position` is the last entry applied or restored, of whatever type, and
    `configuration` the one in force there (departure 18).
    """

    def __init__(
        self,
        fsm: FSM,
        snapshots: SnapshotStore,
        halt_on: tuple[type[BaseException], ...] | None,
        metrics: Metrics | None = None,
    ) -> None:
        called: Any = fsm if metrics is None else _TimedFSM(fsm, metrics)
        self._fsm: FSM = called
        self._batching: BatchingFSM | None = called if isinstance(fsm, BatchingFSM) else None
        self._configuration_store: ConfigurationStore | None = (
            called if isinstance(fsm, ConfigurationStore) else None
        )
        self._metrics = metrics
        self._snapshots = snapshots
        self._halt_on = halt_on
        self._has_applied = False
        self._unsettled_index = NO_INDEX  # of a user restore, while nothing behind it is applied
        self.position = NO_ENTRY
        self.configuration = EMPTY_CONFIGURATION
        self.configuration_index = NO_INDEX
        self.failed_commands = 0

    def move_to(self, meta: SnapshotMeta) -> None:
        """Take a snapshot's position."""
        self.position = EntryID(meta.term, meta.index)
        self._unsettled_index = meta.index if meta.unsettled else NO_INDEX
        self.configuration = meta.configuration
        self.configuration_index = meta.configuration_index

    def forget(self) -> None:
        """Count as having applied nothing: a restore failed half way (departure 9)."""
        self.position = NO_ENTRY

    def restore(self, meta: SnapshotMeta, runtime: Runtime = THREADS) -> None:
        """Replace the FSM's state by a snapshot's; raises whatever user code does."""
        self.restore_from(meta, self.open(meta, runtime))

    def open(self, meta: SnapshotMeta, runtime: Runtime) -> RestoreReader:
        """Open a snapshot for the FSM, which sees nothing of it yet."""
        opened, inside = self._snapshots.open(meta.id)
        return RestoreReader(runtime, inside, opened)

    def restore_from(self, meta: SnapshotMeta, reader: RestoreReader) -> None:
        """Replace the FSM's state by what a reader holds, and close it."""
        try:
            self._fsm.restore(reader)
        finally:
            reader.close()
        if self._configuration_store is not None:
            # The entries that brought it lie before the snapshot: nothing else tells the FSM.
            self._configuration_store.store_configuration(
                meta.configuration_index, meta.configuration
            )
        self.move_to(meta)

    def capture(self) -> Capture:
        """Return a view of the state; raises what user code does, too."""
        if not self._has_applied:
            raise NothingNewToSnapshotError("nothing new to snapshot")
        if self.position.index == self._unsettled_index:
            raise SnapshotError("the snapshot restored by hand is not committed yet: try again")
        snapshot = self._fsm.snapshot()
        return Capture(self.position, self.configuration, self.configuration_index, snapshot)

    def apply(self, logs: Sequence[Log]) -> list[Any]:
        """Apply entries in order and return the answers; `Raised` for an exception."""
        if logs[0].index != self.position.index + 1:
            raise RaftInternalError(f"applying {logs[0].index} after {self.position.index}")
        answers = self._apply_batch(logs) if self._batching else self._apply_each(logs)
        self.position = EntryID(logs[-1].term, logs[-1].index)
        self._has_applied = True
        return answers

    def _apply_each(self, logs: Sequence[Log]) -> list[Any]:
        answers: list[Any] = []
        for log in logs:
            answer = None
            if log.type is LogType.COMMAND:
                answer = self._apply_command(log)
            elif log.type is LogType.CONFIGURATION:
                self._store_configuration(log)
            answers.append(answer)
        return answers

    def _apply_command(self, log: Log) -> Any:
        try:
            return self._fsm.apply(log)
        except RAISED as error:
            if is_machine_fault(error, self._halt_on):
                raise command_failed(log, error) from error
            self.failed_commands += 1
            count(self._metrics, "raft.fsm.failedCommands")
            if isinstance(error, RaftError) or not isinstance(error, Exception):
                wrapped = FSMError(f"the FSM raised {shown(error)}")
                wrapped.__cause__ = error
                return Raised(wrapped)
            return Raised(error)

    def _store_configuration(self, log: Log) -> None:
        self._note_configuration(log)
        if self._configuration_store is not None:
            try:
                self._configuration_store.store_configuration(log.index, self.configuration)
            except RAISED as error:
                raise configuration_failed(log, error) from error

    def _note_configuration(self, log: Log) -> None:
        self.configuration = decode_configuration(log.data)
        self.configuration_index = log.index

    def _apply_batch(self, logs: Sequence[Log]) -> list[Any]:
        """Hand commands and configurations to a batching FSM; other entries are answered None."""
        wanted = [log for log in logs if log.type in (LogType.COMMAND, LogType.CONFIGURATION)]
        given: list[Any] = []
        if wanted and self._batching is not None:
            try:
                given = list(self._batching.apply_batch(wanted))
            except RAISED as error:
                raise batch_failed(wanted[0], wanted[-1], f"raised {shown(error)}") from error
            if self._metrics is not None:
                self._metrics.add_sample("raft.fsm.applyBatchNum", len(logs))
            if len(given) != len(wanted):
                raise batch_failed(wanted[0], wanted[-1], f"returned {len(given)} answers")
        by_index = {log.index: answer for log, answer in zip(wanted, given, strict=True)}
        for log in wanted:
            if log.type is LogType.CONFIGURATION:
                self._note_configuration(log)
        return [by_index.get(log.index) if log.type is LogType.COMMAND else None for log in logs]
