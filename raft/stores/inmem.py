"""A log and stable store in memory.

For tests and for trying things out: a node that restarts on a fresh one has forgotten its vote, so
it must never be given to a node that comes back under its old id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from raft.errors import KeyNotFoundError, LogNotFoundError
from raft.runtime import THREADS, Runtime
from raft.types import NO_INDEX, Log, check_entries, check_type

T = TypeVar("T")


class InmemStore:
    """A `LogStore` and `StableStore` in dictionaries; safe from any thread.

    Keeps references to the entries it is given, which never change. Gaps are allowed.
    """

    def __init__(self, *, runtime: Runtime = THREADS) -> None:
        self._lock = runtime.lock()  # guards all fields below
        self._logs: dict[int, Log] = {}
        # Invariant: the lowest and highest key of _logs, NO_INDEX when it is empty.
        self._first = NO_INDEX
        self._last = NO_INDEX
        self._commit_index = NO_INDEX
        self._staged_commit_index = NO_INDEX
        self._values: dict[bytes, bytes] = {}
        self._numbers: dict[bytes, int] = {}

    # ---- LogStore ----

    def first_index(self) -> int:
        """Return the first index stored, 0 when empty."""
        with self._lock:
            return self._first

    def last_index(self) -> int:
        """Return the last index stored, 0 when empty."""
        with self._lock:
            return self._last

    def get_log(self, index: int) -> Log:
        """Return one entry, or raise `LogNotFoundError`."""
        with self._lock:
            return self._get(index)

    def get_range(self, first: int, last: int, max_bytes: int) -> list[Log]:
        """Return entries from `first` on, cut at `last` and `max_bytes`, always at least one."""
        with self._lock:
            found = [self._get(first)]
            size = found[0].size()
            for index in range(first + 1, min(last, self._last) + 1):
                log = self._logs.get(index)
                if log is None or size + log.size() > max_bytes:
                    break
                size += log.size()
                found.append(log)
            return found

    def store_log(self, log: Log) -> None:
        """Store one entry."""
        self.store_logs([log])

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries, all or none; entries of the same index are replaced."""
        with self._lock:
            self._store(logs)

    def delete_range(self, first: int, last: int) -> None:
        """Delete the entries from `first` to `last`, both included."""
        with self._lock:
            self._delete(first, last)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Delete all entries from `first` on and store `logs`, in one step."""
        check_entries(logs)
        with self._lock:
            self._delete(first, self._last)
            self._store(logs)

    def _get(self, index: int) -> Log:
        try:
            return self._logs[index]
        except KeyError:
            raise LogNotFoundError(f"log entry {index} not found") from None

    def _store(self, logs: Sequence[Log]) -> None:
        if not logs:
            return
        check_entries(logs)
        self._logs.update((log.index, log) for log in logs)
        indexes = [log.index for log in logs]
        self._first = min(self._first or indexes[0], *indexes)
        self._last = max(self._last, *indexes)
        if self._staged_commit_index:
            self._commit_index = min(self._staged_commit_index, max(indexes))
            self._staged_commit_index = NO_INDEX

    def _delete(self, first: int, last: int) -> None:
        first, last = max(first, self._first), min(last, self._last)
        if first > last or not self._logs:
            return
        if last - first < len(self._logs):
            for index in range(first, last + 1):
                self._logs.pop(index, None)
        else:  # few entries, far apart
            for index in [index for index in self._logs if first <= index <= last]:
                del self._logs[index]
        # The neighbour, if it is there; else there was a gap and all keys have to be looked at.
        if first == self._first:
            self._first = last + 1 if last + 1 in self._logs else min(self._logs, default=NO_INDEX)
        if last == self._last:
            self._last = first - 1 if first - 1 in self._logs else max(self._logs, default=NO_INDEX)

    # ---- CommitTrackingLogStore ----

    def stage_commit_index(self, index: int) -> None:
        """Remember the commit index; the next append stores it, no higher than its last entry."""
        with self._lock:
            self._staged_commit_index = index

    def get_commit_index(self) -> int:
        """Return the commit index stored, 0 for none; never above the last index."""
        with self._lock:
            return min(self._commit_index, self._last)

    # ---- StableStore ----

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""
        check_type("a key", key, bytes)
        check_type("a value", value, bytes)
        with self._lock:
            self._values[key] = value

    def get(self, key: bytes) -> bytes:
        """Return a value, or raise `KeyNotFoundError`."""
        with self._lock:
            return _look_up(self._values, key)

    def set_uint64(self, key: bytes, value: int) -> None:
        """Store a number from 0 to 2**64-1; numbers have keys of their own."""
        check_type("a key", key, bytes)
        check_type("a number", value, int)
        if not 0 <= value < 2**64:
            raise ValueError(f"{value} is not an unsigned 64-bit number")
        with self._lock:
            self._numbers[key] = value

    def get_uint64(self, key: bytes) -> int:
        """Return a number, or raise `KeyNotFoundError`."""
        with self._lock:
            return _look_up(self._numbers, key)


def _look_up(values: dict[bytes, T], key: bytes) -> T:
    try:
        return values[key]
    except KeyError:
        raise KeyNotFoundError(f"no value for the key {key!r}") from None
