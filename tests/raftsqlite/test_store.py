import gc
import os
import sqlite3
import sys
from contextlib import closing
from zlib import crc32

import pytest
import sqlite_utils

from raft.errors import (
    DiskFullError,
    LogNotFoundError,
    StoreClosedError,
    StoreError,
    StoreVersionError,
)
from raft.interfaces import (
    CommitTrackingLogStore,
    LogStore,
    MaintainedStore,
    MonotonicLogStore,
    RangeLogStore,
    ReopenableStore,
    StableStore,
    SuffixReplacingLogStore,
)
from raft.testing.contracts import (
    CommitTrackingContract,
    LogStoreContract,
    RangeContract,
    StableStoreContract,
    SuffixReplacingContract,
    entries,
    stored,
)
from raft.types import Log
from raftsqlite import SQLiteStore, schema
from raftsqlite import store as store_module


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raft.db"


@pytest.fixture
def store(path):
    with SQLiteStore(path) as store:
        yield store


class TestSQLiteStore(
    LogStoreContract,
    SuffixReplacingContract,
    RangeContract,
    CommitTrackingContract,
    StableStoreContract,
):
    """BLT-05, BLT-06, BLT-07, BLT-08, BLT-09, BLT-10, BLT-11, BLT-12: contracts of all our stores.

    First and last index (05, 06): of an empty store, and after storing and deleting. An entry that
    is absent, one stored alone, several in one call (07 to 09), a range deleted (10). Keys that
    are absent, values and numbers that come back (11, 12). Absence is an error and not a text.
    """

    @pytest.fixture
    def store(self, path):
        self.path = path
        self.opened = [SQLiteStore(path)]
        yield self.opened[0]
        self.opened[-1].close()

    def restarted(self, store):
        store.close()
        self.opened.append(SQLiteStore(self.path))
        return self.opened[-1]


def test_it_offers_its_contracts(store):
    """BLT-01"""
    logs: LogStore = store
    stable: StableStore = store

    for contract in (
        SuffixReplacingLogStore,
        RangeLogStore,
        CommitTrackingLogStore,
        MaintainedStore,
        ReopenableStore,
    ):
        assert isinstance(store, contract)
    assert not isinstance(store, MonotonicLogStore)
    assert logs is stable


def test_rows_are_plain_columns_for_any_sqlite_tool(path):
    log = Log(7, 3, data=b"command", extensions=b"more", appended_at=12345).sealed()
    with SQLiteStore(path) as store:
        store.store_log(log)
        store.set(b"key", b"value")
        store.set_uint64(b"number", 99)

    database = sqlite_utils.Database(path)

    assert list(database["log"].rows) == [
        {
            "idx": 7,
            "term": 3,
            "type": 0,
            "data": b"command",
            "extensions": b"more",
            "appended_at": 12345,
            "checksum": log.checksum,
        }
    ]
    assert list(database["stable"].rows) == [
        {
            "kind": "bytes",
            "key": b"key",
            "value": b"value",
            "checksum": crc32(b"bytes 3 key value"),
        },
        {"kind": "store", "key": b"sequence", "value": 2, "checksum": crc32(b"store 8 sequence 2")},
        {"kind": "uint64", "key": b"number", "value": 99, "checksum": crc32(b"uint64 6 number 99")},
    ]
    database.close()


def test_a_new_file_has_both_tables(path):
    """BLT-04"""
    SQLiteStore(path).close()

    database = sqlite_utils.Database(path)
    assert database.table_names() == ["log", "stable"]
    database.close()


def test_missing_directories_are_made(tmp_path):
    with SQLiteStore(tmp_path / "a" / "b" / "raft.db") as store:
        store.set(b"key", b"value")

    assert (tmp_path / "a/b/raft.db").is_file()


def test_commits_wait_for_the_disk_unless_told_otherwise(path, tmp_path):
    def synchronous(store):
        return store._database.read_row("PRAGMA synchronous")[0]

    with SQLiteStore(path) as store:
        assert synchronous(store) == 2
        store.reopen()
        assert synchronous(store) == 2
    with SQLiteStore(tmp_path / "unsafe.db", unsafe_no_sync=True) as store:
        assert synchronous(store) == 0


def test_a_batch_with_a_fault_stores_nothing(store):
    store.store_logs(entries(1, 2))
    for size in (3, 100):  # in one statement, and in several
        batch = entries(3, 2 + size)
        batch[-1] = Log(2**63, 1)

        with pytest.raises(ValueError, match="63 bits"):
            store.store_logs(batch)
        with pytest.raises(ValueError, match="63 bits"):
            store.replace_suffix(2, batch)

        assert stored(store) == [(1, 1), (2, 1)]
    store.store_logs(entries(3, 3))


def test_a_range_stops_before_a_gap(store):
    store.store_logs(entries(1, 2) + entries(4, 5))

    assert store.get_range(1, 5, 1 << 20) == entries(1, 2)
    with pytest.raises(LogNotFoundError):
        store.get_range(3, 5, 1 << 20)


def test_a_staged_commit_index_is_lost_with_the_append_that_failed(store):
    store.store_logs(entries(1, 5))
    store.stage_commit_index(4)

    with pytest.raises(ValueError, match="63 bits"):
        store.store_logs([Log(6, 2**63)])

    assert store.get_commit_index() == 0


def test_a_replaced_suffix_takes_its_commit_index_along(store):
    store.stage_commit_index(5)
    store.store_logs(entries(1, 5))

    store.replace_suffix(3, [])

    assert store.get_commit_index() == 2


@pytest.mark.parametrize(
    "damage",
    [
        "term = 'x'",
        "term = -1",
        "type = 77",
        "type = 'x'",
        "data = 'text'",
        "extensions = 5",
        "checksum = 0.5",
    ],
)
def test_a_damaged_row_is_an_entry_that_is_not_intact(store, damage):
    store.store_logs(entries(1, 3))
    with store._database.writing("damage") as connection:
        connection.execute(f"UPDATE log SET {damage} WHERE idx = 2")

    assert [log.is_intact() for log in store.get_range(1, 3, 1000)] == [True, False, True]
    assert store.get_log(2).index == 2


def test_a_flipped_bit_shows_in_the_checksum(store):
    store.store_logs(entries(1, 1))
    with store._database.writing("damage") as connection:
        connection.execute("UPDATE log SET data = x'ff'")

    assert not store.get_log(1).is_intact()


def test_a_closed_store_refuses_everything(path):
    store = SQLiteStore(path)
    store.close()
    store.close()

    for call in (store.first_index, lambda: store.set(b"key", b"value"), store.reopen):
        with pytest.raises(StoreClosedError):
            call()


# ---- versions ----


def test_a_newer_version_is_refused_and_nothing_changed(path):
    SQLiteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()

    for _ in range(2):  # and the file is not left locked
        with pytest.raises(StoreVersionError, match="upgrade"):
            SQLiteStore(path)

    assert path.read_bytes() == before


def test_an_older_version_is_brought_up_to_date(path, monkeypatch):
    """BLT-13: in place and in one transaction, where the original copies to another file."""
    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 3))

    def add_column(connection):
        connection.execute("ALTER TABLE log ADD COLUMN colour TEXT")

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_column))
    with SQLiteStore(path) as store:
        version = store._database.read_row("PRAGMA user_version")
        assert version == (len(schema.MIGRATIONS),)
        assert store._database.read_row("SELECT colour FROM log") == (None,)
        assert stored(store) == [(1, 1), (2, 1), (3, 1)]


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    SQLiteStore(path).close()

    def fail(connection):
        connection.execute("DROP TABLE log")
        connection.execute("nonsense")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fail))
        with pytest.raises(StoreError, match="nonsense"):
            SQLiteStore(path)

    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 1))


def test_a_file_that_is_no_store_is_refused(path):
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="no database"):
        SQLiteStore(path)

    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        sqlite_utils.Database(connection)["dogs"].insert({"name": "Cleo"})
    with pytest.raises(StoreError, match="no log of this library"):
        SQLiteStore(path)

    path.write_bytes(b"")
    with pytest.raises(StoreError, match="no log of this library"):
        SQLiteStore(path)


def test_a_lost_file_is_not_replaced_while_its_write_ahead_log_is_there(path):
    (path.parent / "raft.db-wal").write_bytes(b"acknowledged entries")

    with pytest.raises(StoreError, match="write-ahead log"):
        SQLiteStore(path)

    assert not path.exists()


def test_what_a_crash_during_creation_left_does_not_matter(path):
    for suffix in ("", "-wal", "-journal"):
        (path.parent / f"raft.db.new{suffix}").write_bytes(b"half a file")

    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 1))

    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["raft.db", "raft.db.lock", "raft.db.mark", "raft.db.reserve"]


def test_the_file_appears_only_when_it_is_complete(path, monkeypatch):
    def fail(*_):
        raise OSError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "publish", fail)
        with pytest.raises(OSError, match="crash"):
            SQLiteStore(path)
    assert not path.exists()

    SQLiteStore(path).close()


# ---- upkeep ----


def test_a_commit_never_checkpoints_but_upkeep_does(path):
    with SQLiteStore(path, unsafe_no_sync=True) as store:
        empty = path.stat().st_size
        for first in range(1, 601, 50):
            store.store_logs(entries(first, first + 49, size=10_000))
        assert path.stat().st_size == empty
        assert store.stats()["wal_bytes"] > 6_000_000

        store.maintain()

        assert path.stat().st_size > 6_000_000


def test_the_write_ahead_log_stays_small_under_upkeep(path):
    with SQLiteStore(path, unsafe_no_sync=True) as store:
        for first in range(1, 3001, 50):
            store.store_logs(entries(first, first + 49, size=10_000))
            store.maintain()

        assert path.stat().st_size > 25_000_000
        assert store.stats()["wal_bytes"] < 6_000_000


def test_freed_space_returns_to_the_file_system_in_steps(path, monkeypatch):
    monkeypatch.setattr(store_module, "_SPARE_PAGES", 16)
    with SQLiteStore(path, unsafe_no_sync=True) as store:
        store.store_logs(entries(1, 500, size=10_000))
        store.delete_range(1, 490)
        freed = store.stats()["free_bytes"]
        assert freed > 4_000_000
        store.maintain()  # the checkpoint comes first
        store.maintain()
        assert 0 < freed - store.stats()["free_bytes"] <= 128 * 4096

        for _ in range(20):
            store.maintain()

        assert store.stats()["free_bytes"] <= 16 * 4096
        assert store.stats()["live_bytes"] < 300_000
        assert [index for index, _ in stored(store)] == list(range(491, 501))
    assert path.stat().st_size < 500_000


# ---- failures of the disk ----


def fill(store, pages):
    """Let the file grow no further."""
    with store._database.reading() as connection:
        connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()


def test_a_full_disk_is_said_so_and_nothing_is_stored(store):
    store.store_logs(entries(1, 3))
    fill(store, 10)

    with pytest.raises(DiskFullError, match="no space left"):
        store.store_logs(entries(4, 200, size=1000))

    assert stored(store) == [(1, 1), (2, 1), (3, 1)]


def test_after_a_failed_write_none_is_taken_before_the_store_is_reopened(store):
    store.store_logs(entries(1, 3))
    fill(store, 10)
    with pytest.raises(DiskFullError):
        store.replace_suffix(2, entries(2, 200, term=2, size=1000))

    for write in (
        lambda: store.store_logs(entries(4, 4)),
        lambda: store.set(b"key", b"value"),
        lambda: store.delete_range(1, 1),
    ):
        with pytest.raises(StoreError, match="reopen"):
            write()
    assert stored(store) == [(1, 1), (2, 1), (3, 1)]
    store.reopen()
    store.store_logs(entries(4, 200, size=1000))

    assert store.last_index() == 200


def test_an_error_of_the_file_system_is_a_store_error(store, path):
    resource = pytest.importorskip("resource")
    store.store_logs(entries(1, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100_000, hard))
    try:
        with pytest.raises(StoreError, match=r"SQLITE_IOERR_WRITE.*raft\.db"):
            store.store_logs(entries(4, 500, size=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    store.reopen()

    assert stored(store) == [(1, 1), (2, 1), (3, 1)]
    store.store_logs(entries(4, 500, size=1000))


def test_reopening_writes_the_whole_write_ahead_log_into_the_file(store, path):
    store.store_logs(entries(1, 100, size=1000))
    assert store.stats()["wal_bytes"] > 100_000

    store.reopen()

    assert store.stats()["wal_bytes"] == 0
    assert path.stat().st_size > 100_000
    assert len(stored(store)) == 100


def test_opening_writes_what_a_crash_left_in_the_write_ahead_log_into_the_file(path):
    from tests.raftsqlite.processes import run

    run("SQLiteStore(path).store_logs(entries(1, 100, size=1000)); os._exit(0)", path)
    assert (path.parent / "raft.db-wal").stat().st_size > 100_000

    with SQLiteStore(path) as store:
        assert store.stats()["wal_bytes"] == 0
        assert len(stored(store)) == 100


def test_a_store_that_cannot_be_reopened_can_be_tried_again(store, monkeypatch):
    from raftsqlite import database

    def fail(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    store.store_logs(entries(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(database, "open_database", fail)
        with pytest.raises(StoreError, match="disk I/O error"):
            store.reopen()
    with pytest.raises(StoreError, match=r"call reopen\(\) again"):
        store.last_index()

    store.reopen()

    assert store.last_index() == 1


def test_a_connection_is_only_closed_on_purpose(path):
    connection = SQLiteStore(path)._database._connection

    assert sys.getrefcount(connection) >= 4  # the store's, ours, the call's, and one for ever


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="wants /proc")
def test_nothing_is_written_outside_of_the_store_s_directory(store, path):
    """A full or missing /tmp looked like a full disk of the store."""
    store.store_logs(entries(1, 500, size=16_000))
    store.delete_range(1, 400)

    store.store_logs(entries(501, 800, size=16_000))  # several statements, over freed pages

    descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    files = [os.readlink(name) for name in descriptors if os.path.islink(name)]
    assert [name for name in files if "etilqs" in name] == []


def test_opening_anew_again_and_again_costs_no_memory(store):
    """As a node does for as long as its disk is broken."""

    def connections():
        gc.collect()
        return sum(isinstance(found, sqlite3.Connection) for found in gc.get_objects())

    store.reopen()
    before = connections()

    for _ in range(5):
        store.reopen()

    assert connections() == before
