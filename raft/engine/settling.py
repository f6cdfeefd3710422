"""A user restore that is not committed yet, and what becomes of its snapshot (departure 19).

Like an entry that is appended and not committed, it may turn out never to have happened. Its mark
in the snapshot store outlives a restart, and is taken off when a commit index at or above it is
known.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.engine.disk import Disk
from raft.interfaces import SnapshotStore
from raft.logs import get_logger
from raft.types import SnapshotMeta

_log = get_logger(__name__)


class Unsettled:
    """The unsettled snapshot that this node starts its log from, if any. Main thread only.

    Invariant: while there is one, the log holds nothing before it, and whatever this node knew to
    be committed before it may have to come from a leader once more.
    """

    def __init__(self, disk: Disk, snapshots: SnapshotStore) -> None:
        self._disk = disk
        self._snapshots = snapshots
        self.meta: SnapshotMeta | None = None

    def committed(self, upto: int) -> None:
        """Note a commit index: once it has got to the restore, that has happened for good."""
        meta = self.meta
        if meta is not None and upto >= meta.index:
            self.meta = None
            self._tidy(lambda: self._snapshots.settle(meta.id))
            _log.info("restored snapshot is committed id=%s index=%d", meta.id, meta.index)

    def replace(self, meta: SnapshotMeta) -> bool:
        """Start from a leader's snapshot instead; tell whether an unsettled one gave way."""
        older, self.meta = self.meta, meta if meta.unsettled else None
        if older is None:
            return False
        self.forget(older)
        _log.warning("restored snapshot never took hold id=%s index=%d", older.id, older.index)
        return True

    def forget(self, meta: SnapshotMeta) -> None:
        """Remove a snapshot that is stored here and is not to be used."""
        self._tidy(lambda: self._snapshots.remove(meta.id))

    def _tidy(self, action: Callable[[], None]) -> None:
        """Have the disk thread do it; should it fail, the next start decides anew."""

        def step() -> bool:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - a store is foreign code
                _log.warning("cannot tidy up snapshots error=%s", error)
            return False

        self._disk.submit_background(step)
