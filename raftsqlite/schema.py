"""The file: how it is created, opened, recognised and brought up to date.

Everything is a plain column, so that any SQLite tool shows it once the node is down:

    sqlite-utils rows raft.db log --limit 5
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable
from urllib.parse import quote

import sqlite_utils

from raft.errors import StoreError, StoreVersionError
from raft.files import check_regular, make_directories, open_file, sync_directory
from raft.logs import get_logger
from raft.types import NO_INDEX
from raftsqlite.guard import REBUILD, close_for_good, never_finalize
from raftsqlite.mark import Position, begin_mark

_log = get_logger(__name__)

APPLICATION_ID = 0x72616674  # "raft"; what tells our files from others

_HEADER_BYTES, _VERSION_AT, _APPLICATION_AT = 100, 60, 68  # of any SQLite file

_WAL_LIMIT = 16 << 20  # bytes; a WAL that once grew beyond is cut back when it starts over


def _create_tables(connection: sqlite3.Connection) -> None:
    database = sqlite_utils.Database(connection, execute_plugins=False)
    # `idx` is the rowid: deleting and reading ranges are scans of one tree, without an index.
    log = {
        "idx": int,
        "term": int,
        "type": int,
        "data": bytes,
        "extensions": bytes,
        "appended_at": int,
        "checksum": int,
    }
    database.table("log").create(log, pk="idx", not_null=set(log) - {"idx"})
    # `kind` is "bytes" or "uint64", which have keys of their own, or "store" for what is ours.
    # A number of 2**63 or more is stored as the negative number with the same 64 bits.
    stable = {"kind": str, "key": bytes, "value": bytes}
    database.table("stable").create(stable, pk=("kind", "key"), not_null={"value"})


def _add_checksums(connection: sqlite3.Connection) -> None:
    """Version 2: each key has a checksum, as each entry had from the beginning."""
    connection.execute("ALTER TABLE stable ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0")
    rows = connection.execute("SELECT kind, key, value FROM stable").fetchall()
    for kind, key, value in rows:
        if not _has_types_of_a_key(kind, key, value):
            raise _damaged_key(key, "the store")
        connection.execute(
            "UPDATE stable SET checksum = ? WHERE kind = ? AND key = ?",
            (key_checksum(kind, key, value), kind, key),
        )


# What leads from each version of the schema to the next, inside a transaction. Never change one
# that was released; add another.
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create_tables, _add_checksums)


def open_database(path: str, *, unsafe_no_sync: bool) -> sqlite3.Connection:
    """Open the file, create it if need be, and make durable whatever is in it.

    The caller holds the lock file, and has no other connection to it.
    """
    _check_files(path)
    if not os.path.exists(path):
        _create_database(path)
    _check_access(path)
    _check_header(path)
    connection = _connect(path)
    never_finalize(connection)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_version(connection, path)
        _check_schema(connection, path)
        _set_up(connection, "OFF" if unsafe_no_sync else "FULL")
        _migrate(connection, path)
        _checkpoint_all(connection, path)
    except BaseException:
        close_for_good(connection)
        raise
    sync_directory(os.path.dirname(path))  # the name of the WAL
    return connection


def open_read_only(path: str) -> sqlite3.Connection:
    """Open a file that is there, without writing to it or to its write-ahead log.

    The caller holds the lock file. Where a crash has left a write-ahead log SQLite makes an index
    of it beside, which the next owner removes. Where it may not, as on a file system mounted
    read-only, both files are copied to a temporary directory, and read there.
    """
    _check_files(path)
    _check_header(path)
    wal = path + "-wal"
    if not os.path.exists(wal) or not os.path.getsize(wal):
        return _checked(_connect(f"file:{quote(path)}?mode=ro&immutable=1"), path)
    if os.access(os.path.dirname(path), os.W_OK):
        return _checked(_connect(f"file:{quote(path)}?mode=ro"), path)
    with tempfile.TemporaryDirectory(prefix="raft-") as directory:
        copy = os.path.join(directory, "copy.db")
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, copy + "-wal")
        # Open with all its files once it was read from; their names are not needed any more.
        return _checked(_connect(f"file:{quote(copy)}?mode=ro"), path)


def _checked(connection: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """Return a connection for reading whose file has the version of this library."""
    never_finalize(connection)
    try:
        _check_version(connection, path)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < len(MIGRATIONS):
            raise StoreError(
                f"{path} has version {version}, this library reads {len(MIGRATIONS)}: open it once"
                " without read_only, which brings it up to date"
            )
        _check_schema(connection, path)
    except BaseException:
        close_for_good(connection)
        raise
    return connection


def key_checksum(kind: str, key: bytes, value: bytes | int) -> int:
    """Return the CRC32 of a row of `stable`."""
    data = b"%d" % value if isinstance(value, int) else value
    return zlib.crc32(data, zlib.crc32(b"%s %d %s " % (kind.encode(), len(key), key)))


def check_key(kind: str, key: bytes, value: bytes | int, checksum: int, path: str) -> None:
    """Raise `StoreError` if a row of `stable` is not what was written."""
    is_typed = _has_types_of_a_key(kind, key, value)
    if not is_typed or checksum != key_checksum(kind, key, value):
        raise _damaged_key(key, path)


def _has_types_of_a_key(kind: object, key: object, value: object) -> bool:
    """Tell whether a row has the types of one: SQLite keeps any type in any column."""
    return tuple(map(type, (kind, key, value))) in ((str, bytes, bytes), (str, bytes, int))


def _damaged_key(key: object, where: str) -> StoreError:
    return StoreError(f"the key {key!r} in {where} is damaged: {REBUILD}")


def check_content(connection: sqlite3.Connection, path: str) -> None:
    """Raise `StoreError` if tables or keys are damaged; entries show it when they are read.

    Reads the whole file, at some hundred megabytes a second or what the disk can do.
    """
    (fault,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if fault != "ok":
        what = fault.splitlines()[-1]  # below a heading
        raise StoreError(f"{path} is damaged ({what}): {REBUILD}")
    rows = connection.execute("SELECT kind, key, value, checksum FROM stable").fetchall()
    for kind, key, value, checksum in rows:
        check_key(kind, key, value, checksum, path)


SEQUENCE = ("store", b"sequence")
"""The key that counts the changes which are no appends; see `raftsqlite.mark`."""


def position_of(connection: sqlite3.Connection) -> Position:
    """Return how far the store has come."""
    sequence, last_index = connection.execute(
        "SELECT (SELECT value FROM stable WHERE kind = ? AND key = ?), (SELECT max(idx) FROM log)",
        SEQUENCE,
    ).fetchone()
    return Position(sequence or 0, last_index or NO_INDEX)


class OwnConnection(sqlite3.Connection):
    """A connection that is one, whatever instruments `sqlite3.connect`.

    What OpenTelemetry puts in its place cannot be the target of a backup, nor be kept from being
    finalized in a forked child.
    """


def _connect(path: str) -> sqlite3.Connection:
    connection = OwnConnection(
        path,
        uri=path.startswith("file:"),  # ours are absolute, so no path of a user's begins so
        timeout=0,  # nobody is worth waiting for
        isolation_level=None,  # transactions begin and end where we say so
        check_same_thread=False,  # the store's lock sees to that
        cached_statements=256,
    )
    # Nothing that a file brings along runs while it is looked at.
    connection.execute("PRAGMA trusted_schema = OFF")
    # One bit makes a text of bytes. Whoever reads them sees that; it must not be an error here.
    connection.text_factory = lambda text: text.decode(errors="replace")
    return connection


def _set_up(connection: sqlite3.Connection, synchronous: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"the file system does not allow a write-ahead log, only {mode}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA fullfsync = ON")  # macOS, whose fsync does not reach the disk
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # never inside a commit: see maintain()
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    connection.execute("PRAGMA secure_delete = OFF")  # else freed pages are overwritten
    # Else a large transaction is written to the system's temporary directory, too, and fails there.
    connection.execute("PRAGMA temp_store = MEMORY")


def _check_version(connection: sqlite3.Connection, path: str) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a database, but no log of this library")
    _refuse_newer(version, path)


def _check_schema(connection: sqlite3.Connection, path: str) -> None:
    """Raise `StoreError` unless the file has our tables and nothing else: no trigger, no view.

    Before anything in it is read: a view by the name of a table may run for ever, and a trigger
    changes what is written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    expected = connect_in_memory()
    try:
        for step in MIGRATIONS[:version]:
            step(expected)
        wanted = _schema_of(expected)
    finally:
        expected.close()
    found = _schema_of(connection)
    if found != wanted:
        names = sorted({name for _, name, _ in found ^ wanted})
        raise StoreError(
            f"{path} has another schema than this library makes, at {', '.join(names)}: it may come"
            f" from somebody else. Nothing of it was used; {REBUILD}"
        )


def _schema_of(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Return what a file defines: kind, name and SQL, without the quotes and spaces of tools."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {(str(kind), str(name), _QUOTES.sub("", str(sql)).lower()) for kind, name, sql in rows}


_QUOTES = re.compile(r"[\s\[\]\"`;]")


def connect_in_memory() -> sqlite3.Connection:
    """Return a connection to a database of nobody else's."""
    return OwnConnection(":memory:", isolation_level=None)


def _check_access(path: str) -> None:
    """Refuse what is not ours to write, of which SQLite says that the disk has failed."""
    for name in (path, path + "-wal"):
        if os.path.exists(name) and not os.access(name, os.R_OK | os.W_OK):
            raise StoreError(
                f"this process may not read and write {name}: give the directory to the user that"
                " the node runs as, or see why its file system is mounted read-only"
            )


def _check_header(path: str) -> None:
    """Refuse a newer version before SQLite has opened the file, for closing it may write to it."""
    with open(open_file(path), "rb") as file:
        header = file.read(_HEADER_BYTES)
    if int.from_bytes(header[_APPLICATION_AT : _APPLICATION_AT + 4], "big") == APPLICATION_ID:
        _refuse_newer(int.from_bytes(header[_VERSION_AT : _VERSION_AT + 4], "big"), path)


def _refuse_newer(version: int, path: str) -> None:
    if version > len(MIGRATIONS):
        raise StoreVersionError(
            f"{path} has version {version}, this library knows up to {len(MIGRATIONS)}: upgrade"
            " the library; nothing was changed"
        )


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for step in range(version, len(MIGRATIONS)):
        _log.info("migrating store path=%s version=%d", path, step + 1)
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[step](connection)
            connection.execute(f"PRAGMA user_version = {step + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _checkpoint_all(connection: sqlite3.Connection, path: str) -> None:
    """Copy the whole WAL into the file, durably.

    The last owner may have died of a failed fsync, after which the kernel shows pages in the WAL
    that are not on disk. Written once more, elsewhere, they are, or there is an error.
    """
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreError(f"the write-ahead log of {path} cannot be checkpointed: it is in use")


def _create_database(path: str) -> None:
    """Make an empty store under a temporary name, and rename it when it is durable."""
    wal = path + "-wal"
    if os.path.exists(wal) and os.path.getsize(wal):
        raise StoreError(
            f"{path} is missing, but its write-ahead log {wal} is there: put the file back, or"
            " remove both if this node is to be rebuilt from its peers"
        )
    make_directories(os.path.dirname(path))
    unfinished = path + ".new"
    remove_all(unfinished)  # of a crash; the lock is ours, so they are
    make_blank(unfinished)
    connection = _connect(unfinished)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _migrate(connection, unfinished)
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    begin_mark(path)
    sync_directory(os.path.dirname(path))
    publish(unfinished, path)


def publish(unfinished: str, path: str) -> None:
    """Give a finished file its name, durably."""
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(unfinished, path)
    sync_directory(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


_SUFFIXES = ("", "-journal", "-wal", "-shm")
_JOURNAL = _SUFFIXES[1]


def remove_all(path: str) -> None:
    """Remove a database with all that SQLite may have beside it."""
    for suffix in _SUFFIXES:
        remove(path + suffix)


def make_blank(path: str) -> None:
    """Make an empty file of its owner's alone; what SQLite puts beside it is so, too."""
    os.close(open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def _check_files(path: str) -> None:
    """Refuse what others may have put here, before SQLite opens any of it.

    Ours has a write-ahead log and never a rollback journal: SQLite would carry out what is in one,
    and remove a file that it names.
    """
    for name in (path, path + "-wal", path + "-shm"):
        check_regular(name)
    if os.path.lexists(path + _JOURNAL):
        raise StoreError(
            f"{path + _JOURNAL} is there, and a store never has a rollback journal: another program"
            " made it. Nothing was opened. See where it comes from, and remove it"
        )
