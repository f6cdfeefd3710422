"""What keeps anybody else away from a live store: the lock file, and the rules after a fork.

SQLite's own lock is not enough. It is a POSIX lock, which a process loses as soon as any code in
it opens and closes the file, be it to copy it; a second process then writes to the same file. And
a forked child that closes the connection it inherited, if only by exiting, deletes the parent's
write-ahead log with the rows acknowledged since.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raft.errors import DiskFullError, StoreError, StoreLockedError
from raft.files import open_file
from raft.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator


_log = get_logger(__name__)

REBUILD = (
    "rebuild this node from its peers. First have the leader remove the server, then empty its"
    " directory, start it and add it again: until it is removed, an empty one could vote away what"
    " it had acknowledged"
)
"""What to do about a store that has forgotten something; ends a message."""


class LockFile:
    """An exclusive `flock` on a file beside the store, held until `release`.

    The file stays: removing it would let two processes lock two files of the same name.
    Who only reads, and may not write here, does without it if there is none: no node has run here.
    """

    def __init__(
        self, path: str, store_path: str, *, read_only: bool = False, timeout: float = 0.0
    ) -> None:
        self._descriptor = -1
        try:
            self._descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            if not read_only or exc.errno not in _MAY_NOT_WRITE:
                raise
            is_for_reading = True
            try:
                self._descriptor = open_file(path)
            except FileNotFoundError:
                return
        else:
            is_for_reading = False
        try:
            self._lock(timeout)
        except BlockingIOError as exc:
            owner = os.pread(self._descriptor, 100, 0).decode(errors="replace").strip()
            self.abandon()
            raise locked_error(store_path, owner, timeout) from exc
        except OSError as exc:
            self.abandon()
            raise StoreError(
                f"cannot lock {path}: {exc}. The store needs a local file system with flock"
            ) from exc
        if is_for_reading:
            return
        try:  # for people: no reason to stay locked, and closed, on a full disk
            os.fchmod(self._descriptor, 0o600)  # who may read it may lock it
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, b"process %d\n" % os.getpid())
        except OSError as exc:
            _log.warning("cannot note who has the lock path=%s cause=%s", path, exc)

    def _lock(self, timeout: float) -> None:
        give_up = time.monotonic() + timeout
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
            time.sleep(_LOCK_PAUSE)  # `flock` has no wait with an end, and nothing tells of one

    def release(self) -> None:
        """Unlock, also for a child that holds a copy of the descriptor and is about to exec."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and no more: in a forked child unlocking would unlock the parent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)


class FilesInPlace:
    """Sees whether the files of an open store are still those that their names lead to.

    A file that was removed can be written to as before, and is gone when the process ends. To look
    takes some microseconds and lets the interpreter go, so not every write does.
    """

    period = 0.02  # seconds from one look to the next, at least

    def __init__(self, path: str) -> None:
        self._path = path
        self._due = 0.0  # when a write has to look
        self._found = {name: _identity(name) for name in (path, path + "-wal")}

    def log_is_removed(self) -> None:
        """Note that closing the store has taken the write-ahead log away."""
        del self._found[self._path + "-wal"]

    def look_soon(self) -> None:
        """Have the next write look."""
        self._due = 0.0

    def check_when_due(self) -> None:
        """Raise what `check` does, unless somebody has just looked."""
        if time.monotonic() >= self._due:
            self.check()

    def check(self) -> None:
        """Raise `StoreError` if one was removed or replaced."""
        self._due = time.monotonic() + self.period
        for name, identity in self._found.items():
            if identity is not None and _identity(name) != identity:
                self._due = 0.0
                raise StoreError(
                    f"{name} was removed or replaced while the store {self._path} is open: nothing"
                    " more is written, for it would be lost when this process ends. What was"
                    " written before can still be read: call backup(path) to save it, or put the"
                    f" files back; else {REBUILD}"
                )


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from others, None where none is."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_LOCK_PAUSE = 0.02  # seconds between two tries to lock
_RELOADERS = ("WERKZEUG_RUN_MAIN", "RUN_MAIN")  # set in the child of Flask's, and of Django's
_MAY_NOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


def locked_error(store_path: str, owner: str, waited: float = 0.0) -> StoreLockedError:
    """Return the error for a second opener; `waited` is how long it has tried, in seconds."""
    by = f" by {owner}" if owner else ""
    after = f", and stayed so for {waited:g} s" if waited else ""
    hint = ""
    if owner == f"process {os.getpid()}":
        hint = " This very process has it: close the other SQLiteStore first."
    elif owner == f"process {os.getppid()}" or any(map(os.environ.get, _RELOADERS)):
        hint = (
            " A reloader (flask --debug, runserver) runs a program twice, in a parent and a child:"
            " open the store in the child alone, where WERKZEUG_RUN_MAIN or RUN_MAIN is 'true', or"
            " switch the reloader off (use_reloader=False, --noreload)."
        )
    elif not waited:
        hint = " Where a new process takes over from an old one, give it time: lock_timeout=30."
    return StoreLockedError(
        f"{store_path} is open already{by}{after}: one node in one process owns it.{hint} Of a web"
        " server's worker processes only one may run the node (gunicorn: --workers 1 --threads 8)."
        " To copy or inspect a live store, call backup(path) on the SQLiteStore that has it open"
    )


def never_finalize(connection: sqlite3.Connection) -> None:
    """Add a reference that is never given back, so that only `close()` closes the connection.

    Neither a child nor the parent closes it by exiting; the next opener recovers what is in the
    write-ahead log. It happens when the connection is made and not after a fork, so that there is
    no moment in which a fork could find it without.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def close_for_good(connection: sqlite3.Connection) -> None:
    """Close a connection of `never_finalize` and give the reference back."""
    connection.close()
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(connection))


_FAULTS_OF_THE_CALLER = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
)


def leaves_doubt(error: BaseException) -> bool:
    """Tell whether it is uncertain, after a failed write, what reached the disk, or was noted.

    It is when the disk is at fault, or when what was raised may come from anywhere.
    """
    if isinstance(error, sqlite3.Error):
        return not isinstance(error, _FAULTS_OF_THE_CALLER)
    return isinstance(error, MemoryError) or not isinstance(error, Exception)


@contextmanager
def translated(what: str, path: str) -> Iterator[None]:
    """Turn whatever `sqlite3` raises into an error of ours."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _translate(exc, what, path) from exc
    except UnicodeDecodeError as exc:  # what SQLite says of a damaged schema quotes from it
        raise StoreError(f"{what}: the schema in {path}{_CURE}") from exc
    except OverflowError as exc:
        raise ValueError(f"{what}: a number does not fit into 63 bits") from exc


_CURE = f" is damaged or no database: {REBUILD}"


def _translate(error: sqlite3.Error, what: str, path: str) -> Exception:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the detail
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"{what}: no space left for {path}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return locked_error(path, "a program that does not use the lock file")
    name = getattr(error, "sqlite_errorname", "")
    cure = ""
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        cure = f". The file{_CURE}"
    return StoreError(f"{what}: {error} ({name or type(error).__name__}) in {path}{cure}")
