"""Replacing the state of the whole cluster by a snapshot of the user's (departure 19).

The snapshot takes an index that no entry has, behind the leader's log and behind its own, and the
term of the leader. It is like an entry that is appended and not committed: it may be lost with its
leader, and until a commit index at or above it is known it carries a mark. A no-op behind it is
what commits it, so the caller is answered when a majority has installed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raft.engine.core import Core
from raft.engine.disk import Write
from raft.engine.fsm_restores import Trial
from raft.engine.inbox import (
    Apply,
    LogReplaced,
    RestoreStored,
    RestoreTried,
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

E = TypeVar("E", bound=Exception)


@dataclass(slots=True)
class _Restore:
    """The restore under way."""

    message: UserRestore
    meta: SnapshotMeta  # as it will be stored, then as it is
    stopped: Event
    began: float
    trial: Trial | None = None  # while our own FSM tries it


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

    def _take_back(self, meta: SnapshotMeta, error: E) -> E | StorageFailedError:
        """Remove what is there of a snapshot that is not used: a restart would start from it.

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
                f"the snapshot given could not be used: {error!r}; it may be there all the same"
                f" and take hold after a restart: {exc!r}"
            )
        return error

    def stored(self, message: RestoreStored) -> bool:
        """Have our own FSM try a snapshot that is durable; False when it is not ours any more."""
        current, core, meta = self._current, self._core, message.meta
        if current is None or message.restore is not current:
            return False
        if meta is None:
            error = message.error
            self._refuse(
                current,
                error
                if isinstance(error, RaftError)
                else SnapshotError(f"the snapshot given could not be stored: {error!r}"),
            )
            return True
        current.meta = meta
        current.trial = Trial(meta, lambda error: self._tried(current, error))
        core.fsm.restores.try_out(current.trial)
        return True

    def _refuse(self, restore: _Restore, error: RaftError) -> None:
        """Tell the caller that nothing was changed; or leave, if that is not certain."""
        if isinstance(error, StorageFailedError):
            # Behind entries of this term a restart would take it for what came after them.
            self._core.inbox.post(TailWriteFailed(error))
            return
        self._current = None
        restore.message.fail(error)
        self._core.log.warning("snapshot given by hand is not used error=%s", error)

    def _tried(self, restore: _Restore, error: RaftError | None) -> None:
        """On the FSM thread."""
        if error is not None:
            error = self._take_back(restore.meta, error)
        self._core.inbox.post(RestoreTried(self._term, restore, error))

    def tried(self, message: RestoreTried) -> None:
        """Take a snapshot over that our own FSM holds by now; one that it refused never was.

        Only now anything is recorded or sent: whatever is wrong with a backup costs its caller an
        error, and no server its state.
        """
        current, core = self._current, self._core
        if current is None or message.restore is not current or current.trial is None:
            return
        meta, trial, current.trial = current.meta, current.trial, None
        if message.error is not None:
            self._refuse(current, message.error)
            return
        last = EntryID(meta.term, meta.index)
        # The FSM goes on first: entries that it still wanted may be gone in a moment.
        core.fsm.accept(trial)
        core.raft_log.set_boundary(last)
        core.unsettled.meta = meta
        core.state.set_last_snapshot(last)
        core.disk.submit(
            "replace log",
            timed(core.metrics, "raft.removeOldLogs", lambda: core.raft_log.drop_all(last)),
            lambda write: self._log_replaced(current, write),
        )

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
        if current is None:
            return
        current.stopped.set()
        if current.trial is not None:
            self._core.fsm.restores.give_up(current.trial)
            self._core.unsettled.forget(current.meta)
        current.message.fail(loss)
