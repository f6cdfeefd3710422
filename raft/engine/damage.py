"""What the disk has spoiled, until it is covered again (departure 16).

The damaged entry and all behind it are given up and come again from a leader; so is a snapshot that
cannot be restored, and had taken the place of the whole log. Until the log, or a snapshot, reaches
as far as the old one did, or holds an entry of a term that this node had not been in, before which
lies all that was committed, it may lack what it once acknowledged: so it neither votes nor leads. A
mark in the stable store, written first, outlives a restart.
"""

from __future__ import annotations

from raft.engine.disk import Disk
from raft.engine.raft_log import RaftLog
from raft.engine.state import HardState
from raft.errors import KeyNotFoundError
from raft.interfaces import LogStore, StableStore
from raft.logs import get_logger
from raft.types import NO_ENTRY, NO_INDEX, NO_TERM, EntryID

_log = get_logger(__name__)

DAMAGE_KEY = b"DamagedUpto"
REPLACED_KEY = b"LogReplacedBy"


def note_replaced(stable: StableStore, snapshot: EntryID) -> None:
    """Remember, before the log is emptied, which durable snapshot stands for it; the disk thread.

    Should it be gone at a start (a volume that is not mounted, a directory removed by hand), that
    is a loss, and not a blank server.
    """
    stable.set(REPLACED_KEY, b"%d %d" % (snapshot.term, snapshot.index))


def replaced_by(stable: StableStore) -> EntryID:
    """Return which snapshot stood for the log when it was last emptied, or `NO_ENTRY`."""
    try:
        term, index = stable.get(REPLACED_KEY).split()
    except KeyNotFoundError:
        return NO_ENTRY
    return EntryID(int(term), int(index))


def damage_mark(stable: StableStore) -> tuple[int, int]:
    """Return `upto` and `after_term` of `Damage` as they were last stored."""
    try:
        numbers = [int(part) for part in stable.get(DAMAGE_KEY).split()]
    except KeyNotFoundError:
        numbers = []
    upto, after_term, *_ = *numbers, NO_INDEX, NO_TERM
    return upto, after_term


class Damage:
    """How far the log must reach before this node is whole again. Main thread, but `cut_off`."""

    def __init__(self, disk: Disk, logs: LogStore, stable: StableStore, raft_log: RaftLog) -> None:
        self._disk = disk
        self._logs = logs
        self._stable = stable
        self._raft_log = raft_log
        self.upto = NO_INDEX
        self.after_term = NO_TERM  # an entry of a later term makes it whole, too; 0 if none does

    def is_whole(self) -> bool:
        """Tell whether this node has everything that it has ever acknowledged."""
        return self.upto == NO_INDEX

    def load(self) -> None:
        """Read the mark; before the node runs."""
        self.upto, self.after_term = damage_mark(self._stable)

    def cut_off(self, index: int) -> None:
        """Give up a spoiled entry and all behind it; the disk thread, or before the node runs.

        An entry of a term that this node has not been in makes it whole again, however short the
        log: that leader had all that was committed, so it lies before.
        An entry that is whole after all, for it has come again meanwhile, stays.
        """
        last, term = self._logs.last_index(), HardState.load(self._stable).term
        if not self._logs.first_index() <= index <= last or self._logs.get_log(index).is_intact():
            return
        self._mark(max(self.upto, last), max(self.after_term, term))
        self._logs.delete_range(index, last)
        _log.error("log is damaged, waiting for a leader's entries first=%d last=%d", index, last)

    def went_back(self, restore: EntryID) -> None:
        """Note that a user restore gives way to an older snapshot; the disk thread, before it does.

        The restore stood for all that this node had acknowledged. What it held is whole again once
        a leader of a later term has sent it an entry: that leader's log has all that is committed.
        """
        if self.upto == NO_INDEX:
            self._mark(restore.index, restore.term)

    def fell_back(self, snapshot: EntryID) -> None:
        """Note that a snapshot is lost, and with it what it stood for; before the node runs."""
        if snapshot.index > self.upto:
            self._mark(snapshot.index, snapshot.term)
            _log.error("snapshot is lost, waiting for a leader's upto=%d", snapshot.index)

    def _mark(self, upto: int, after_term: int) -> None:
        """Remember it durably, then here, and only then let go of anything."""
        self._stable.set(DAMAGE_KEY, b"%d %d" % (upto, after_term))
        self.upto, self.after_term = upto, after_term

    def drop_covered(self, index: int) -> None:
        """Delete a spoiled entry that a snapshot covers, and what is before it."""
        self._disk.submit_background(lambda: self._raft_log.compact_step(index))

    def look(self) -> None:
        """See whether the log reaches far enough by now."""
        last = self._raft_log.last()
        is_later = self.after_term != NO_TERM and last.term > self.after_term
        if self.upto and (last.index >= self.upto or is_later):
            self.upto, self.after_term = NO_INDEX, NO_TERM
            self._disk.submit("damage covered", lambda: self._stable.set(DAMAGE_KEY, b"0"))
            _log.info("log is whole again index=%d", last.index)
