"""SQLiteStore: log and stable store in one SQLite file, for one node.

The store expects to be read rarely and in large pieces: nothing runs beside a commit.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from raft.errors import ForkedProcessError, KeyNotFoundError, LogNotFoundError
from raft.types import NO_INDEX, NO_TERM, Log, LogType, check_entries, check_type
from raftsqlite.database import Database
from raftsqlite.mark import Mark, Position
from raftsqlite.reserve import Reserve
from raftsqlite.schema import SEQUENCE, check_key, key_checksum, position_of

_COLUMNS = "idx, term, type, data, extensions, appended_at, checksum"
_ROW = "(?, ?, ?, ?, ?, ?, ?)"
_BATCH = 64  # rows in one statement; the interpreter's lock is taken anew after each statement
# A statement for each number of rows, so that they stay prepared. Index 0 is not used.
_INSERT = [
    f"INSERT OR REPLACE INTO log ({_COLUMNS}) VALUES {', '.join([_ROW] * count)}"
    for count in range(_BATCH + 1)
]
# Asked for apart, because SQLite would look at all rows to find both.
_ENDS = "SELECT (SELECT min(idx) FROM log), (SELECT max(idx) FROM log)"
# A statement for one key and for two, which is a transaction of its own.
_SET, _SET_TWO = (
    f"INSERT INTO stable (kind, key, value, checksum) VALUES {rows} ON CONFLICT (kind, key)"
    " DO UPDATE SET value = excluded.value, checksum = excluded.checksum"
    for rows in ("(?, ?, ?, ?)", "(?, ?, ?, ?), (?, ?, ?, ?)")
)
_GET = "SELECT value, checksum FROM stable WHERE kind = ? AND key = ?"
_BYTES, _UINT64 = "bytes", "uint64"  # kinds of keys
_COMMIT_INDEX = ("store", b"commit_index")

_LONGEST_WAIT = 86400.0  # seconds

_LOG_TYPES = {kind.value: kind for kind in LogType}

_FRAME = 4096 + 24  # bytes a page takes in the WAL
_CHECKPOINT_AT = 4 << 20  # bytes of WAL
_VACUUM_PAGES = 128  # returned to the file system in one step
_SPARE_PAGES = 4096  # free pages kept for the entries to come


class SQLiteStore:
    """A durable `LogStore` and `StableStore`; safe from any thread, not usable after a fork.

    One process has the file open at a time: a second opener gets `StoreLockedError`. Nobody else
    may open the file meanwhile, not even to copy it: see `backup`. Use it as a context manager or
    call `close`; without either it stays locked until the process ends, and loses nothing.

    After a write that failed for the disk's sake, or was interrupted, all writes are refused until
    `reopen`.

    Args:
        path: the file; it and its directories are made if need be.
        unsafe_no_sync: do not wait for the disk. The loss of power then loses acknowledged
            entries and votes, which can cost the cluster data: for tests only.
        read_only: look at the store of a stopped node; it must be there. What would write raises
            `StoreReadOnlyError`, and the file and its write-ahead log stay as they are. It is
            locked all the same. What would keep a node from starting over it, entries that
            were lost, is a warning here.
        reserve_bytes: kept back in a file `<path>.reserve`, so that votes and compaction go on
            when the disk is full.
        low_water_bytes: with less space left than this `is_full` is True; 0 turns both off.
        lock_timeout: seconds to wait for another process to close the file, as in a restart of a
            web server that starts the new process before the old one has ended.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        unsafe_no_sync: bool = False,
        read_only: bool = False,
        reserve_bytes: int = 8 << 20,
        low_water_bytes: int = 16 << 20,
        lock_timeout: float = 0.0,
    ) -> None:
        if not 0.0 <= lock_timeout <= _LONGEST_WAIT:
            raise ValueError(f"lock_timeout is from 0 to {_LONGEST_WAIT:g} s, not {lock_timeout}")
        low_water = 0 if read_only else low_water_bytes

        def look_for_room(path: str) -> None:  # a full disk's reserve lets the file be opened
            self._reserve = Reserve(path + ".reserve", reserve_bytes, low_water)

        self._database = Database(
            path,
            unsafe_no_sync=unsafe_no_sync,
            read_only=read_only,
            lock_timeout=lock_timeout,
            on_locked=look_for_room,
        )
        try:
            self._reserve.hold()
        except BaseException:  # as Ctrl-C: nobody has a store yet that could be closed
            self._database.close()
            raise
        # Guarded by the database's lock:
        self._staged_commit_index = NO_INDEX
        self._wal_bytes = 0  # written since the last checkpoint, about
        self._may_have_spare_space = True  # pages were freed since we last looked

    # ---- LogStore ----

    def first_index(self) -> int:
        """Return the first index stored, 0 when empty."""
        return int(self._database.read_row("SELECT min(idx) FROM log")[0] or NO_INDEX)

    def last_index(self) -> int:
        """Return the last index stored, 0 when empty."""
        return int(self._database.read_row("SELECT max(idx) FROM log")[0] or NO_INDEX)

    def get_log(self, index: int) -> Log:
        """Return one entry, or raise `LogNotFoundError`."""
        return self.get_range(index, index, 0)[0]

    def get_range(self, first: int, last: int, max_bytes: int) -> list[Log]:
        """Return entries from `first` on, cut at `last` and `max_bytes`, always at least one.

        An entry that the disk has damaged is not intact. Raises `LogNotFoundError` when `first` is
        absent; stops before a gap.
        """
        found: list[Log] = []
        size = 0
        ends = (_within_63_bits(first), _within_63_bits(last))
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM log WHERE idx BETWEEN ? AND ? ORDER BY idx", ends
            )
            try:
                for row in rows:
                    log = _log_from_row(row)
                    size += log.size()
                    if log.index != first + len(found) or (found and size > max_bytes):
                        break
                    found.append(log)
            finally:
                rows.close()  # before the lock is released
        if not found:
            raise LogNotFoundError(f"log entry {first} not found")
        return found

    def store_log(self, log: Log) -> None:
        """Store one entry durably."""
        self.store_logs([log])

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries durably, all or none; entries of the same index are replaced."""
        if not logs:
            return
        check_entries(logs)
        with self._database.writing("cannot store log entries") as connection:
            if len(logs) <= _BATCH and not self._staged_commit_index:
                _insert(connection, logs)  # one statement is a transaction of its own
            else:
                connection.execute("BEGIN IMMEDIATE")
                _append(connection, logs, self._staged_commit_index)
                connection.execute("COMMIT")
            self._count_appended(logs)
            sequence, last = self._database.mark.position
            self._database.mark.advance(Position(sequence, max(last, logs[-1].index)))

    def delete_range(self, first: int, last: int) -> None:
        """Delete the entries from `first` to `last`, both included, in one transaction.

        Other threads wait meanwhile: delete a long prefix in several calls, from the front.
        """
        first, last = _within_63_bits(first), _within_63_bits(last)
        if first > last:
            return
        with self._database.writing("cannot delete log entries") as connection:
            lowest, highest = connection.execute(_ENDS).fetchone()
            if lowest is None or last < lowest or first > highest:
                return
            if last < highest:
                connection.execute("DELETE FROM log WHERE idx BETWEEN ? AND ?", (first, last))
            else:
                with _sequenced(connection, self._database.mark):
                    if first <= lowest:
                        connection.execute("DELETE FROM log")  # without a look at each row
                    else:
                        connection.execute("DELETE FROM log WHERE idx >= ?", (first,))
            self._may_have_spare_space = True
            self._wal_bytes += _deletion_bytes(min(last, highest) - max(first, lowest) + 1)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Delete all entries from `first` on and store `logs`, in one durable transaction."""
        check_entries(logs)
        first = _within_63_bits(first)
        with self._database.writing("cannot replace log entries") as connection:
            with _sequenced(connection, self._database.mark):
                deleted = connection.execute("DELETE FROM log WHERE idx >= ?", (first,)).rowcount
                _append(connection, logs, self._staged_commit_index)
            self._may_have_spare_space = True
            self._wal_bytes += _deletion_bytes(deleted)
            self._count_appended(logs)

    def _count_appended(self, logs: Sequence[Log]) -> None:
        self._staged_commit_index = NO_INDEX
        # The pages filled, and those at the edge of the tree that are written anew.
        payload = sum(log.size() for log in logs)
        self._wal_bytes += payload + payload // 16 + 2 * _FRAME

    # ---- CommitTrackingLogStore ----

    def stage_commit_index(self, index: int) -> None:
        """Remember the commit index; the next append writes it, no higher than its last entry."""
        with self._database.reading():
            self._staged_commit_index = index

    def get_commit_index(self) -> int:
        """Return the durable commit index, 0 for none; never above the last index."""
        try:
            index = int(self._get(*_COMMIT_INDEX))
        except KeyNotFoundError:
            return NO_INDEX
        return min(index, self.last_index())

    # ---- StableStore ----

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value durably."""
        check_type("a value", value, bytes)
        self._set(_BYTES, key, value)

    def get(self, key: bytes) -> bytes:
        """Return a value, or raise `KeyNotFoundError`."""
        return bytes(self._get(_BYTES, key))

    def set_uint64(self, key: bytes, value: int) -> None:
        """Store a number from 0 to 2**64-1 durably; numbers have keys of their own."""
        check_type("a number", value, int)
        if not 0 <= value < 2**64:
            raise ValueError(f"{value} is not an unsigned 64-bit number")
        self._set(_UINT64, key, value if value < 2**63 else value - 2**64)

    def get_uint64(self, key: bytes) -> int:
        """Return a number, or raise `KeyNotFoundError`."""
        return int(self._get(_UINT64, key)) % 2**64

    def _set(self, kind: str, key: bytes, value: bytes | int) -> None:
        check_type("a key", key, bytes)
        with self._database.writing(f"cannot store the key {key!r}") as connection:
            position = self._database.mark.position
            position = position._replace(sequence=position.sequence + 1)
            rows = (*_key_row(kind, key, value), *_key_row(*SEQUENCE, position.sequence))
            connection.execute(_SET_TWO, rows)
            self._database.mark.advance(position)
            self._wal_bytes += 2 * _FRAME

    def _get(self, kind: str, key: bytes) -> Any:
        row = self._database.read_row(_GET, (kind, key))
        if row is None:
            raise KeyNotFoundError(f"no value for the key {key!r}")
        value, checksum = row
        check_key(kind, key, value, checksum, self._database.path)
        return value

    # ---- upkeep ----

    def maintain(self) -> None:
        """Do what is due: a checkpoint, or a step of returning free space to the file system."""
        is_due = self._wal_bytes >= _CHECKPOINT_AT or self._may_have_spare_space
        if self._database.is_read_only or not is_due:
            return
        with self._database.writing("cannot maintain the store") as connection:
            if self._wal_bytes >= _CHECKPOINT_AT:
                # Passive leaves the WAL's size alone: overwriting it costs less than growing it.
                _, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._wal_bytes = (frames - copied) * _FRAME
                return
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            spare = min(free - _SPARE_PAGES, _VACUUM_PAGES)
            if spare <= 0:
                self._may_have_spare_space = False
                return
            # As a script, because `execute` stops after the first step, which frees one page.
            connection.executescript(f"PRAGMA incremental_vacuum({spare})")
            self._wal_bytes += 2 * spare * _FRAME

    def is_full(self) -> bool:
        """Tell whether the disk is almost full; for the one thread that writes."""
        self._database.check_process()
        try:
            return self._reserve.is_full()
        except FileNotFoundError:
            self._database.look_soon()  # the folder is gone, and the next write says so
            return False

    def stats(self) -> dict[str, int]:
        """Return gauges: bytes in use and free in the file, and bytes of the write-ahead log."""
        with self._database.reading() as connection:
            (page_size,) = connection.execute("PRAGMA page_size").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        try:
            wal_bytes = os.stat(self._database.path + "-wal").st_size
        except FileNotFoundError:
            wal_bytes = 0
        return {
            "live_bytes": (pages - free) * page_size,
            "free_bytes": free * page_size,
            "wal_bytes": wal_bytes,
        }

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the live store to a new file, in small steps between which others get through.

        The copy is what the store holds at the end. It is for inspection and for the recovery of a
        lost cluster: a node that starts from it has forgotten votes and entries it acknowledged.

        Raises:
            FileExistsError: there is a file of this name.
            StoreClosedError: the store was closed or opened anew meanwhile.
        """
        self._database.backup(path)

    def reopen(self) -> None:
        """Start over after a failed write: open the file anew and make all of it durable.

        What the failed write held may be there or not. When this fails, call it again later.
        """
        self._database.reopen()
        with self._database.reading():
            self._staged_commit_index = NO_INDEX
            self._wal_bytes = 0

    def close(self) -> None:
        """Close the file and unlock it; may be called twice."""
        self._database.close()

    def __enter__(self) -> SQLiteStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except ForkedProcessError:
            pass  # a child that leaves the block it was forked in has nothing to close


@contextmanager
def _sequenced(connection: sqlite3.Connection, mark: Mark) -> Iterator[None]:
    """Make one transaction of what changes the end of the log, with a new sequence number."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute(_SET, _key_row(*SEQUENCE, mark.position.sequence + 1))
    position = position_of(connection)
    connection.execute("COMMIT")
    mark.advance(position)


def _within_63_bits(index: int) -> int:
    """Return the nearest index that SQLite can have; none is stored at the ends."""
    return min(max(index, -1), 2**63 - 1)


def _key_row(kind: str, key: bytes, value: bytes | int) -> tuple[str, bytes, bytes | int, int]:
    return kind, key, value, key_checksum(kind, key, value)


def _append(connection: sqlite3.Connection, logs: Sequence[Log], commit_index: int) -> None:
    """Insert entries, and the commit index with them, no higher than the last of them."""
    for start in range(0, len(logs), _BATCH):
        _insert(connection, logs[start : start + _BATCH])
    if commit_index and logs:
        index = min(commit_index, max(log.index for log in logs))
        connection.execute(_SET, _key_row(*_COMMIT_INDEX, index))


def _insert(connection: sqlite3.Connection, logs: Sequence[Log]) -> None:
    values: list[int | bytes] = []
    for log in logs:
        values += (
            log.index,
            log.term,
            log.type.value,
            log.data,
            log.extensions,
            log.appended_at,
            log.checksum,
        )
    connection.execute(_INSERT[len(logs)], values)


def _deletion_bytes(entries: int) -> int:
    """Estimate what a deletion writes: pages that are freed are not written themselves."""
    return (4 + entries // 16) * _FRAME


_ROW_TYPES = (int, int, int, bytes, bytes, int, int)


def _log_from_row(row: tuple[Any, ...]) -> Log:
    index, term, kind, data, extensions, appended_at, checksum = row
    log_type = _LOG_TYPES.get(kind)
    # SQLite keeps any type in any column: a damaged file must not surprise the reader.
    if log_type is None or tuple(map(type, row)) != _ROW_TYPES:
        return Log(index, NO_TERM)  # without a checksum it is not intact
    return Log(index, term, log_type, data, extensions, appended_at, checksum)
