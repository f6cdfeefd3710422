"""The log as the engine sees it: a durable store, and before it the newest entries in memory.

Entries are immutable and pass through here in order. What a leader has appended but its disk has
not stored yet is the *tail*: readable at once for sending, terms and applying (laws of the parallel
write, docs/architecture.md). The store knows only what is durable. The log has no holes: it begins
at index 1, or at most right behind the newest snapshot, the *boundary*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft.errors import (
    IncompatibleLogStoreError,
    LogCompactedError,
    LogCorruptError,
    LogGapError,
    LogNotFoundError,
    RaftInternalError,
)
from raft.interfaces import (
    CommitTrackingLogStore,
    LogStore,
    RangeLogStore,
    SuffixReplacingLogStore,
)
from raft.runtime import Runtime
from raft.types import NO_ENTRY, NO_INDEX, NO_TERM, EntryID, Log

_DELETE_STEP = 256  # entries deleted at once at first; a few ms on a slow disk
_DELETE_STEP_SECONDS = 0.004  # the step grows and shrinks towards this
_MOST_DELETE_STEP = 65_536


class RaftLog:
    """Reads from any thread; `append` on the main thread, what writes on the disk thread.

    Invariants: `durable_index <= last().index`; memory holds one unbroken run of entries that ends
    with the last one; the tail is never dropped from memory to save room.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: LogStore,
        memory_bytes: int,
        before_empty: Callable[[EntryID], None] = lambda snapshot: None,
    ) -> None:
        self._runtime = runtime
        self._store = store
        # Told which snapshot is to stand for the whole log, before its last entry is deleted.
        self._before_empty = before_empty
        self._replacing = store if isinstance(store, SuffixReplacingLogStore) else None
        self._ranged = store if isinstance(store, RangeLogStore) else None
        self._tracking: CommitTrackingLogStore | None = None
        self._memory_bytes = memory_bytes
        self._delete_step = _DELETE_STEP
        self._lock = runtime.lock()  # guards all below
        self._recent = RecentEntries()
        self._first_index = NO_INDEX  # of the store
        self._durable_index = NO_INDEX
        self._boundary = NO_ENTRY
        self._tail_open = False

    # ---- how far it was committed, as far as the store was told ----

    def track_commits(self) -> None:
        """Have the store keep a commit index beside the entries; before the node runs."""
        if not isinstance(self._store, CommitTrackingLogStore):
            raise IncompatibleLogStoreError(
                f"restore_committed_logs needs a log store that tracks commits, which"
                f" {type(self._store).__name__} does not: use another, or unset it"
            )
        self._tracking = self._store

    def tracked_commit_index(self) -> int:
        """Return how far the log was committed at least when it was last written; 0 if unknown."""
        if self._tracking is None:
            return NO_INDEX
        return min(self._tracking.get_commit_index(), self._durable_index)

    def _stage(self, commit_index: int, logs: Sequence[Log]) -> None:
        """Have the transaction that comes now write the commit index, too."""
        if self._tracking is not None and commit_index:
            self._tracking.stage_commit_index(min(commit_index, logs[-1].index))

    # ---- what is where ----

    def boundary(self) -> EntryID:
        """Return what the newest snapshot covers."""
        return self._boundary

    def last(self) -> EntryID:
        """Return the last entry, or the boundary when the log ends before it."""
        with self._lock:
            last = self._recent.last
            return last if last.index > self._boundary.index else self._boundary

    def last_index(self) -> int:
        """Return the index of the last entry or of the boundary, whichever is higher."""
        return self.last().index

    def durable_index(self) -> int:
        """Return the last index that is on disk."""
        return self._durable_index

    def first_index(self) -> int:
        """Return the first index in the store, 0 when it is empty."""
        return self._first_index

    def term_at(self, index: int) -> int:
        """Return the term of an entry; that of index 0 is 0.

        Raises:
            LogCompactedError: a snapshot took its place.
            LogNotFoundError: the log ends before it.
        """
        if index == NO_INDEX:
            return NO_TERM
        with self._lock:
            if index == self._boundary.index:
                return self._boundary.term
            log = self._recent.get(index)
        return log.term if log is not None else self._read(index, 1, 1)[0].term

    def entries(self, first: int, count: int, max_bytes: int) -> tuple[Log, ...]:
        """Return up to `count` entries from `first` on, cut at `max_bytes` but at least one.

        Stops before an entry that the disk has spoiled, or raises `LogCorruptError` if that is
        the first. Else raises as `term_at`.
        """
        with self._lock:
            if self._recent.get(first) is not None:
                return tuple(_cut(self._recent.run(first, count), max_bytes))
        return tuple(self._read(first, count, max_bytes))

    def _read(self, first: int, count: int, max_bytes: int) -> list[Log]:
        """Read from the store, without our lock: a store may be slow."""
        with self._lock:
            last = min(first + count - 1, self._durable_index)
            store_first = self._first_index
        if store_first == NO_INDEX or first < store_first:
            if first <= self._boundary.index:
                raise LogCompactedError(f"entry {first} was compacted, the log begins later")
            raise LogNotFoundError(f"log not found: entry {first}")
        if first > last:
            raise LogNotFoundError(f"log not found: entry {first}, the log ends before it")
        logs = self._read_store(first, last, max_bytes)
        for position, log in enumerate(logs):
            if not log.is_intact():
                if position == 0:
                    raise _corrupt(log)
                return logs[:position]
        return logs

    def _read_store(self, first: int, last: int, max_bytes: int) -> list[Log]:
        try:
            if self._ranged is not None:
                return self._ranged.get_range(first, last, max_bytes)
            logs: list[Log] = []
            size = 0
            for index in range(first, last + 1):
                log = self._store.get_log(index)
                size += log.size()
                if logs and size > max_bytes:
                    break
                logs.append(log)
            return logs
        except LogNotFoundError:
            if first < self._store.first_index() or first <= self._boundary.index:
                raise LogCompactedError(f"entry {first} was compacted meanwhile") from None
            raise

    # ---- the leader's parallel write ----

    def append(self, logs: Sequence[Log]) -> None:
        """Append to the tail; main thread of a leader. `store_tail` makes it durable."""
        with self._lock:
            last_index = max(self._recent.last.index, self._boundary.index)
            if logs[0].index != last_index + 1:
                raise RaftInternalError(
                    f"appending {logs[0].index} after {last_index}: the log would have a hole"
                )
            self._tail_open = True
            self._recent.append(logs)

    def store_tail(self, commit_index: int = NO_INDEX) -> int:
        """Store the tail in one transaction; disk thread. Return the last durable index.

        `commit_index` is what a quorum is known to have; it may be beyond the tail.
        """
        with self._lock:
            if not self._tail_open:
                return self._durable_index
            first = max(self._durable_index + 1, self._recent.first)
            tail = self._recent.run(first, self._recent.last.index)
        if tail:
            self._stage(commit_index, tail)
            self._store.store_logs(tail)
            with self._lock:
                self._durable_index = tail[-1].index
                self._first_index = self._first_index or tail[0].index
                self._recent.shrink(self._memory_bytes, self._durable_index)
        return self._durable_index

    def drop_tail(self) -> None:
        """Begin no further write of the tail; leadership is over. `reload` then forgets it."""
        with self._lock:
            self._tail_open = False

    # ---- the follower's write, compaction, snapshots: disk thread ----

    def replace_suffix(self, first: int, logs: Sequence[Log], commit_index: int = NO_INDEX) -> None:
        """Store entries from `first` on in place of all that was there; returns when durable.

        `commit_index` as for `store_tail`.
        """
        last_index = self._recent.last.index
        if first > self.last_index() + 1:
            raise RaftInternalError(
                f"storing {first} after {last_index}: the log would have a hole"
            )
        conflict = first <= last_index
        self._stage(commit_index, logs)
        if not conflict:
            self._store.store_logs(logs)
        elif self._replacing is not None:
            self._replacing.replace_suffix(first, logs)
        else:
            self._store.delete_range(first, last_index)
            self._store.store_logs(logs)
        with self._lock:
            if conflict:
                self._recent.drop_from(first)
            self._recent.append(logs)
            self._durable_index = logs[-1].index
            self._first_index = self._first_index or logs[0].index
            self._recent.shrink(self._memory_bytes, self._durable_index)

    def set_boundary(self, snapshot: EntryID) -> None:
        """Note a durable snapshot; an older one changes nothing. Before anything is deleted."""
        with self._lock:
            if snapshot.index > self._boundary.index:
                self._boundary = snapshot

    def compact_step(self, upto: int) -> bool:
        """Delete some of the entries up to `upto`, from the front; True when more remain."""
        first = self._first_index
        upto = min(upto, self._boundary.index)
        if first == NO_INDEX or first > upto:
            return False
        last = min(first + self._delete_step - 1, upto)
        if last >= self._durable_index:
            self._before_empty(self._boundary)
        begun = self._runtime.monotonic()
        self._store.delete_range(first, last)
        self._adapt_delete_step(self._runtime.monotonic() - begun)
        with self._lock:
            self._recent.drop_upto(last)
            is_empty = last >= self._durable_index
            self._first_index = NO_INDEX if is_empty else last + 1
        return last < upto

    def _adapt_delete_step(self, seconds: float) -> None:
        if seconds > _DELETE_STEP_SECONDS:
            self._delete_step = max(1, self._delete_step // 2)
        elif seconds < _DELETE_STEP_SECONDS / 4:
            self._delete_step = min(_MOST_DELETE_STEP, self._delete_step * 2)

    def drop_all(self, boundary: EntryID) -> None:
        """Delete the whole log, which a durable snapshot at `boundary` replaces (Figure 5.3).

        Only a snapshot that takes the place of an unsettled one may be older than that.
        """
        first, last = self._store.first_index(), self._store.last_index()
        self._before_empty(boundary)  # also where another one stood for it
        if last:
            self._store.delete_range(first, last)
        with self._lock:
            self._boundary = boundary
            self._tail_open = False
            self._first_index = NO_INDEX
            self._durable_index = NO_INDEX
            self._recent.reset(NO_ENTRY, self._boundary.index + 1)

    def reload(self) -> None:
        """Read the end of the log anew from the store; whatever is not durable is forgotten."""
        first, last = self._store.first_index(), self._store.last_index()
        last_log = self._store.get_log(last) if last else None
        if last_log is not None and not last_log.is_intact():
            raise _corrupt(last_log)
        with self._lock:
            self._tail_open = False
            self._first_index = first
            self._durable_index = last
            if last_log is None:
                self._recent.reset(NO_ENTRY, self._boundary.index + 1)
            else:
                self._recent.reset(EntryID(last_log.term, last), last + 1)

    def goes_on_behind(self, index: int) -> bool:
        """Tell whether a snapshot at an index and the log together leave no entry out."""
        with self._lock:
            if self._first_index == NO_INDEX:
                return index >= self._boundary.index
            return index + 1 >= self._first_index

    def ends_before_boundary(self) -> bool:
        """Tell whether there are entries, tail included, but none at the boundary or behind it."""
        with self._lock:
            return self._first_index != NO_INDEX and self._recent.last.index < self._boundary.index

    def must_drop(self) -> bool:
        """Tell whether a newer snapshot has made the log useless (law 4); at start.

        Keep the log if its entry at the boundary has the boundary's term, or if it begins right
        behind; a gap above the boundary raises `LogGapError`.
        """
        if self._first_index == NO_INDEX:
            return False
        boundary = self._boundary
        if self._first_index > boundary.index + 1:
            raise LogGapError(
                f"the log begins at {self._first_index} but the newest snapshot ends at"
                f" {boundary.index}: entries are missing. Restore the snapshot, or rebuild this"
                " node from its peers (docs/stores.md)"
            )
        if self._first_index == boundary.index + 1:
            return False
        if self.ends_before_boundary():
            return True
        log = self._store.get_log(boundary.index)
        if not log.is_intact():
            raise _corrupt(log)
        return log.term != boundary.term


class RecentEntries:
    """The newest entries in memory: one unbroken run that ends with the last one. Not locked."""

    def __init__(self) -> None:
        self._logs: dict[int, Log] = {}
        self._bytes = 0
        self.first = 1  # of the run, or where it will begin
        self.last = NO_ENTRY  # of the log, in memory or not

    def get(self, index: int) -> Log | None:
        """Return an entry, None when it is not in memory."""
        return self._logs.get(index)

    def run(self, first: int, count: int) -> list[Log]:
        """Return up to `count` entries from `first` on, which is in memory or behind the end."""
        last = min(first + count - 1, self.last.index)
        return [self._logs[index] for index in range(first, last + 1)]

    def append(self, logs: Sequence[Log]) -> None:
        """Add entries at the end."""
        if not self._logs:
            self.first = logs[0].index
        for log in logs:
            self._logs[log.index] = log
            self._bytes += log.size()
        self.last = EntryID(logs[-1].term, logs[-1].index)

    def shrink(self, max_bytes: int, durable_index: int) -> None:
        """Drop the oldest entries above the byte bound, durable ones only."""
        while self._bytes > max_bytes and self.first <= durable_index:
            self._bytes -= self._logs.pop(self.first).size()
            self.first += 1

    def drop_from(self, first: int) -> None:
        """Forget the entries from `first` to the end."""
        for index in range(max(first, self.first), self.last.index + 1):
            self._bytes -= self._logs.pop(index).size()
        self.first = min(self.first, first)

    def drop_upto(self, last: int) -> None:
        """Forget the entries up to `last`."""
        for index in range(self.first, min(last, self.last.index) + 1):
            self._bytes -= self._logs.pop(index).size()
        self.first = max(self.first, last + 1)

    def reset(self, last: EntryID, first: int) -> None:
        """Hold nothing; the log ends with `last`, the run will begin at `first`."""
        self._logs.clear()
        self._bytes = 0
        self.first = first
        self.last = last


def _corrupt(log: Log) -> LogCorruptError:
    return LogCorruptError(
        f"entry {log.index} does not match its checksum: the disk has changed it", log.index
    )


def _cut(logs: list[Log], max_bytes: int) -> list[Log]:
    """Return the first entries that fit into `max_bytes`, at least one."""
    size = 0
    for position, log in enumerate(logs):
        size += log.size()
        if size > max_bytes and position:
            return logs[:position]
    return logs
