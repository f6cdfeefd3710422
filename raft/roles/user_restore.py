"""Replacing the state of the whole cluster by a snapshot of the user's (departure 19).

The snapshot takes an index that no entry has, behind the leader's log and behind its own, and the
term of the leader. It is like an entry that is appended and not committed: it may be lost with its
leader, and until a commit index at or above it is known it carries a mark. A no-op behind it is
what commits it, so the caller is answered when a majority has installed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raft.engine.core import Core
from raft.engine.disk import Write
from raft.engine.inbox import (
    Apply,
    LogReplaced,
    RestoreStored,
    TailWriteFailed,
    UserRestore,
)
from raft.engine.install_snapshot import store_snapshot
from raft.engine.plausible import LARGEST_INDEX
from raft.engine.progress import CountingReader
from raft.errors import RaftError, RestoreInProgressError, SnapshotError, StorageFailedError
from raft.metrics import timed
from raft.runtime import Event
from raft.types import SNAPSHOT_VERSION, EntryID, LogType, SnapshotMeta


@dataclass(slots=True)
class _Restore:
    """The restore under way."""

    message: UserRestore
    meta: SnapshotMeta  # as it will be stored
    stopped: Event
    began: float


class UserRestores:
    """The user restores of one leadership, one at a time. Main thread only, but for the copying.

    Nothing is appended from `begin` until the log has been replaced: the leader refuses.
    """

    def __init__(self, core: Core, term: int, dispatch: Callable[[Apply], int]) -> None:
        self._core = core
        self._term = term
        self._dispatch = dispatch
        self._current: _Restore | None = None

    def refusal(self) -> RestoreInProgressError | None:
        """Return what new entries are refused with while a restore is under way."""
        if self._current is None:
            return None
        return RestoreInProgressError("a snapshot is being restored")

    def check(self, message: UserRestore) -> None:
        """Raise if this snapshot cannot be restored now."""
        core = self._core
        if not 0 <= message.meta.version <= SNAPSHOT_VERSION:
            raise SnapshotError(f"unsupported snapshot version {message.meta.version}")
        index = message.meta.index
        if not 0 <= index <= LARGEST_INDEX // 2:
            # No other server would believe it, so it could never be committed.
            raise SnapshotError(f"no snapshot can end at index {index}")
        if core.unsettled.meta is not None:
            raise RestoreInProgressError("the snapshot restored before is not committed yet")
        members = core.membership
        if not members.is_stable():
            raise RestoreInProgressError(
                f"cannot restore now: the configuration at {members.latest_index} is not committed"
                f" yet, only that at {members.committed_index}. Try again"
            )

    def begin(self, message: UserRestore) -> None:
        """Give the snapshot its place, and have it copied on a thread of its own."""
        core, theirs = self._core, message.meta
        meta = SnapshotMeta(
            "",
            max(core.raft_log.last_index(), theirs.index) + 1,
            self._term,
            core.membership.latest,
            core.membership.latest_index,
            theirs.size,
            unsettled=True,
        )
        core.log.info("restoring snapshot given by hand index=%d size=%d", meta.index, meta.size)
        current = _Restore(message, meta, core.runtime.event(), core.runtime.monotonic())
        core.threads.spawn("restore", lambda: self._copy(current))
        self._current = current

    def _copy(self, restore: _Restore) -> None:
        core = self._core
        reader = CountingReader(core.runtime, restore.message.reader, stopped=restore.stopped)
        meta: SnapshotMeta | None = None
        error: Exception | None = None
        try:
            meta = store_snapshot(core.snapshots, restore.meta, reader)
        except Exception as exc:  # noqa: BLE001 - stores and the user's reader: the caller's answer
            error = self._take_back(restore.meta, exc)
        core.inbox.post(RestoreStored(self._term, restore, meta, error))

    def _take_back(self, meta: SnapshotMeta, error: Exception) -> Exception:
        """Remove what is there of a snapshot whose storing failed: a restart would start from it.

        Returns the caller's answer: should that fail, too, the outcome is unknown, and the leader
        must leave.
        """
        snapshots = self._core.snapshots
        try:
            for left in snapshots.list():
                if left.unsettled and (left.index, left.term) == (meta.index, meta.term):
                    snapshots.remove(left.id)
        except Exception as exc:  # noqa: BLE001 - a store is foreign code
            return StorageFailedError(
                f"the snapshot given could not be stored: {error!r}; it may be there all the same"
                f" and take hold after a restart: {exc!r}"
            )
        return error

    def stored(self, message: RestoreStored) -> bool:
        """Take over a snapshot that is durable; False when it is not ours to use any more."""
        current, core, meta = self._current, self._core, message.meta
        if current is None or message.restore is not current:
            return False
        if meta is None:
            error = message.error
            if isinstance(error, StorageFailedError):
                # Behind entries of this term a restart would take it for what came after them.
                core.inbox.post(TailWriteFailed(error))
                return True
            self._current = None
            current.message.fail(
                error
                if isinstance(error, RaftError)
                else SnapshotError(f"the snapshot given could not be stored: {error!r}")
            )
            return True
        last = EntryID(meta.term, meta.index)
        # The FSM is told first: entries that it still wanted may be gone in a moment.
        core.fsm.restore(meta)
        core.raft_log.set_boundary(last)
        core.unsettled.meta = meta
        core.state.set_last_snapshot(last)
        core.disk.submit(
            "replace log",
            timed(core.metrics, "raft.removeOldLogs", lambda: core.raft_log.drop_all(last)),
            lambda write: self._log_replaced(current, write),
        )
        return True

    def _log_replaced(self, restore: _Restore, write: Write) -> None:
        """On the disk thread."""
        if write.error is not None:
            self._core.inbox.post(TailWriteFailed(write.error))
        else:
            self._core.inbox.post(LogReplaced(self._term, restore))

    def replaced(self, message: LogReplaced) -> None:
        """Append what commits the restore; its caller is answered with it."""
        current = self._current
        if current is None or message.restore is not current:
            return
        self._current = None
        if self._core.metrics is not None:
            self._core.metrics.since("raft.restoreUserSnapshot", current.began)
        self._dispatch(Apply(LogType.NOOP, b"", b"", current.message.future))
        self._core.publish_log()

    def leave(self, loss: RaftError) -> None:
        """Answer the caller: leadership is over, and the restore may or may not take hold."""
        current, self._current = self._current, None
        if current is not None:
            current.stopped.set()
            current.message.fail(loss)
