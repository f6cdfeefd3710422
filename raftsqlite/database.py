"""The open file: its one connection, behind one lock.

Law: the connection is used under that lock alone, fetches included. SQLite has a lock of its own,
but whoever waits for that one holds the interpreter's: a second thread that entered the connection
during a slow commit would stop every thread of the process for as long.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raft.errors import StoreClosedError, StoreError, StoreReadOnlyError
from raft.files import make_directories, warn_of_others
from raft.logs import get_logger
from raft.runtime import ForkGuard, after_fork_in_child
from raftsqlite.guard import FilesInPlace, LockFile, close_for_good, leaves_doubt, translated
from raftsqlite.mark import Mark, Position, begin_mark
from raftsqlite.schema import (
    OwnConnection,
    check_content,
    make_blank,
    open_database,
    open_read_only,
    position_of,
    publish,
    remove_all,
)
from raftsqlite.wal import check_write_ahead_log

_log = get_logger(__name__)

_BACKUP_PAGES = 256  # copied in one step
_BACKUP_PAUSE = 0.001  # seconds; without it the next step has the lock before any waiter wakes up


class Database:
    """The file of a store, locked against others; every method may be called from any thread.

    After a write that failed for the disk's sake, or was interrupted, all writes are refused until
    `reopen`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        unsafe_no_sync: bool,
        read_only: bool,
        lock_timeout: float = 0.0,
        on_locked: Callable[[str], None] = lambda path: None,
    ) -> None:
        self.path = os.path.realpath(os.fspath(path))
        self._unsafe_no_sync = unsafe_no_sync
        self.is_read_only = read_only
        self._fork_guard = ForkGuard(f"the SQLiteStore of {self.path}")
        self._lock = threading.Lock()  # guards the connection, the mark and all fields below
        self._backups_changed = threading.Condition(self._lock)  # one ended, or all are to end
        self._is_closed = False
        self._failure: BaseException | None = None  # of the write that made the file unusable
        self._backups = 0  # under way; nobody closes the connection under them
        self._interrupts_backups = False

        if not read_only:
            make_directories(os.path.dirname(self.path))
        elif not os.path.exists(self.path):
            raise StoreError(f"there is no store at {self.path}")
        self._lock_file = LockFile(
            self.path + ".lock", self.path, read_only=read_only, timeout=lock_timeout
        )
        self.mark = Mark(self.path, is_kept=not (unsafe_no_sync or read_only))
        after_fork_in_child(self._on_fork)  # from now on: opening a large file takes seconds
        try:
            on_locked(self.path)  # nobody else has it now, and nothing was written yet
            self._connection: sqlite3.Connection | None = self._open(check_content)
            self._files = FilesInPlace(self.path)
            warn_of_others(os.path.dirname(self.path), self.path, self.path + "-wal")
        except BaseException:
            self._is_closed = True
            self.mark.close()
            self._lock_file.release()
            raise

    def look_soon(self) -> None:
        """Have the next write see whether the names still lead to the files."""
        self._files.look_soon()

    def check_process(self) -> None:
        """Raise `ForkedProcessError` in a forked child."""
        self._fork_guard.check()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Hold the lock and hand out the connection; leave no cursor open behind."""
        self._fork_guard.check()
        with self._lock, translated("cannot read the store", self.path):
            yield self._usable_connection()

    @contextmanager
    def writing(self, what: str) -> Iterator[sqlite3.Connection]:
        """Hold the lock and hand out the connection; roll back and take note when it fails."""
        self._fork_guard.check()
        with self._lock, translated(what, self.path):
            connection = self._usable_connection()
            if self.is_read_only:
                raise StoreReadOnlyError(f"{what}: {self.path} was opened for reading only")
            if self._failure is not None:
                raise StoreError(
                    f"{what}: a write to {self.path} failed before ({self._failure!r}), and what is"
                    " on disk is in doubt until reopen()"
                )
            self._files.check_when_due()
            try:
                yield connection
            except BaseException as exc:
                if leaves_doubt(exc):
                    self._failure = exc
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def read_row(self, statement: str, values: Sequence[object] = ()) -> Any:
        """Return the first row, None when there is none."""
        with self.reading() as connection:
            rows = connection.execute(statement, values)
            try:
                return rows.fetchone()
            finally:
                rows.close()  # before the lock is released

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the live file to a new one; see `SQLiteStore.backup`."""
        self._fork_guard.check()
        target_path = os.path.realpath(os.fspath(path))
        if os.path.exists(target_path):
            raise FileExistsError(f"{target_path} exists; a backup never replaces a file")
        # A name of its own: of two backups to one path none may publish the other's half.
        unfinished = f"{target_path}.{os.getpid()}-{threading.get_native_id()}.new"
        remove_all(unfinished)
        try:
            with translated(f"cannot back up the store {self.path}", target_path):
                self._copy_to(unfinished)
            publish(unfinished, target_path)
            if self.mark.position == Position():
                begin_mark(target_path)  # or it would be taken for a copy that lacks everything
        except BaseException:
            remove_all(unfinished)
            raise

    def _copy_to(self, path: str) -> None:
        make_blank(path)
        target = OwnConnection(path, isolation_level=None)
        try:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")  # the whole file is synced at the end
            with self._lock:  # not `reading`: as a rule it is the copy that cannot be written
                connection = self._usable_connection()
                self._backups += 1
                try:
                    connection.backup(target, pages=_BACKUP_PAGES, progress=self._let_others_in)
                finally:
                    self._backups -= 1
                    self._backups_changed.notify_all()
        finally:
            target.close()

    def _let_others_in(self, _status: int, _remaining: int, _total: int) -> None:
        """Give up the lock for a moment between two steps of a backup."""
        self._backups_changed.wait_for(lambda: self._interrupts_backups, _BACKUP_PAUSE)
        if self._interrupts_backups:
            raise StoreClosedError(f"{self.path} was closed during the backup")

    def reopen(self) -> None:
        """Start over with a fresh connection, everything in the file made durable."""
        self._fork_guard.check()
        with self._lock:
            if not self._is_closed:
                self._files.check()  # or else a blank store would take its place
                self._close_connection()
            if self._is_closed:  # or meanwhile, and unlocked: it waits for a backup to end
                raise StoreClosedError(f"{self.path} was closed")
            self._connection = self._open()
            self._files = FilesInPlace(self.path)
            self._failure = None

    def close(self) -> None:
        """Close the file and unlock it; may be called twice."""
        self._fork_guard.check()
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._close_connection()
            finally:
                self.mark.close()
                self._lock_file.release()

    def _open(
        self, check: Callable[[sqlite3.Connection, str], None] = lambda connection, path: None
    ) -> sqlite3.Connection:
        """Open the file and see that nothing of it is lost; `check` looks further."""
        with translated("cannot open the store", self.path):
            if self.is_read_only:
                connection = open_read_only(self.path)
                self._warn_of_losses(connection)
                return connection
            check_write_ahead_log(self.path + "-wal")
            connection = open_database(self.path, unsafe_no_sync=self._unsafe_no_sync)
            try:
                check(connection, self.path)
                self.mark.check(position_of(connection))
            except BaseException:
                close_for_good(connection)
                raise
            return connection

    def _warn_of_losses(self, connection: sqlite3.Connection) -> None:
        """Say so if there was more in the file: whoever compares survivors must not be misled."""
        try:
            check_write_ahead_log(self.path + "-wal")
            self.mark.look(position_of(connection))
        except (StoreError, sqlite3.Error, OSError) as exc:
            _log.warning("what is read may not be all there was path=%s cause=%s", self.path, exc)

    def _close_connection(self) -> None:
        """Close the connection, which checkpoints; holding the lock. Never two at once."""
        self._interrupts_backups = True
        self._backups_changed.notify_all()
        while self._backups:  # each ends at its next step, which no thread but its own can hold up
            self._backups_changed.wait()
        self._interrupts_backups = False
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            _log.warning("rollback failed path=%s", self.path, exc_info=True)
        if not self.is_read_only:
            try:
                self._files.check()
            except StoreError as exc:
                # SQLite would remove the log of what is there by that name now.
                _log.error("not closed, its files are gone path=%s cause=%s", self.path, exc)
                return
            self._files.log_is_removed()
        close_for_good(connection)

    def _on_fork(self) -> None:
        """Let go of the lock in a child; the connection, never finalized, is left alone."""
        if not self._is_closed:
            self.mark.close()
            self._lock_file.abandon()

    def _usable_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._is_closed:
                raise StoreClosedError(f"{self.path} was closed")
            raise StoreError(f"{self.path} could not be opened anew: call reopen() again")
        return self._connection
