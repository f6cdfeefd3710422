"""A ring of the newest entries before a log store on disk.

So that sending and applying what was just written reads no disk. It knows only what the store
below has confirmed (law 2 of the parallel write, docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from raft.interfaces import (
    CommitTrackingLogStore,
    LogStore,
    MaintainedStore,
    MeasuredStore,
    MonotonicLogStore,
    RangeLogStore,
    ReopenableStore,
    ReservingStore,
    SuffixReplacingLogStore,
)
from raft.runtime import THREADS, Runtime
from raft.types import Log


class LogCache:
    """A `LogStore` that keeps the last `capacity` entries written in memory; safe from any thread.

    Reads never fill it. It offers exactly those optional contracts that the store below offers, so
    that asking it with `isinstance` tells the truth. It is not a `StableStore`: give the node the
    store itself for that.
    """

    # Only there when the store below has them; see __init__.
    replace_suffix: Callable[[int, Sequence[Log]], None]
    get_range: Callable[[int, int, int], list[Log]]
    is_monotonic: Callable[[], bool]
    stage_commit_index: Callable[[int], None]
    get_commit_index: Callable[[], int]
    maintain: Callable[[], None]
    reopen: Callable[[], None]
    is_full: Callable[[], bool]
    stats: Callable[[], Mapping[str, int]]

    def __init__(self, capacity: int, store: LogStore, *, runtime: Runtime = THREADS) -> None:
        if capacity <= 0:
            raise ValueError("capacity must be positive")
        self._store = store
        self._lock = runtime.lock()  # guards _ring; never held while the store works
        # Invariant: slot i holds an entry that the store has, of an index equal to i modulo the
        # length, or None.
        self._ring: list[Log | None] = [None] * capacity
        if isinstance(store, SuffixReplacingLogStore):
            self._replace_suffix_below = store.replace_suffix
            self.replace_suffix = self._replace_suffix
        if isinstance(store, RangeLogStore):
            self._get_range_below = store.get_range
            self.get_range = self._get_range
        if isinstance(store, MonotonicLogStore):
            self.is_monotonic = store.is_monotonic
        if isinstance(store, CommitTrackingLogStore):
            self.stage_commit_index = store.stage_commit_index
            self.get_commit_index = store.get_commit_index
        if isinstance(store, MaintainedStore):
            self.maintain = store.maintain
        if isinstance(store, MeasuredStore):
            self.stats = store.stats
        if isinstance(store, ReservingStore):
            self.is_full = store.is_full
        if isinstance(store, ReopenableStore):
            self._reopen_below = store.reopen
            self.reopen = self._reopen

    def store_below(self) -> LogStore:
        """Return the store whose entries are kept here."""
        return self._store

    def first_index(self) -> int:
        """Return the first index stored, 0 when empty."""
        return self._store.first_index()

    def last_index(self) -> int:
        """Return the last index stored, 0 when empty."""
        return self._store.last_index()

    def get_log(self, index: int) -> Log:
        """Return one entry, or raise `LogNotFoundError`."""
        log = self._cached(index, index, 0)
        return log[0] if log else self._store.get_log(index)

    def store_log(self, log: Log) -> None:
        """Store one entry."""
        self.store_logs([log])

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries in the store, then keep them here; nothing is kept when that fails."""
        # Out first: a write that failed may have replaced them or not.
        self._forget([log.index for log in logs])
        self._store.store_logs(logs)
        self._keep(logs)

    def delete_range(self, first: int, last: int) -> None:
        """Delete entries from the store, and forget all that is kept here."""
        self._forget()
        self._store.delete_range(first, last)

    def _replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        self._forget()
        self._replace_suffix_below(first, logs)
        self._keep(logs)

    def _get_range(self, first: int, last: int, max_bytes: int) -> list[Log]:
        return self._cached(first, last, max_bytes) or self._get_range_below(first, last, max_bytes)

    def _reopen(self) -> None:
        self._forget()
        self._reopen_below()

    def _cached(self, first: int, last: int, max_bytes: int) -> list[Log]:
        """Return the entries asked for if all of them are here, cut at `max_bytes`, else none."""
        found: list[Log] = []
        size = 0
        with self._lock:
            for index in range(first, last + 1):
                log = self._ring[index % len(self._ring)]
                if log is None or log.index != index:
                    return []  # perhaps the store has more of them
                size += log.size()
                if found and size > max_bytes:
                    break
                found.append(log)
        return found

    def _keep(self, logs: Sequence[Log]) -> None:
        with self._lock:
            for log in logs:
                self._ring[log.index % len(self._ring)] = log

    def _forget(self, indexes: Iterable[int] | None = None) -> None:
        """Empty the slots of these indexes, or all."""
        with self._lock:
            if indexes is None:
                self._ring = [None] * len(self._ring)
                return
            for index in indexes:
                log = self._ring[index % len(self._ring)]
                if log is not None and log.index == index:
                    self._ring[index % len(self._ring)] = None
