"""Looking at the store of a stopped node, without changing it."""

import os
import shutil
import sqlite3

import pytest

from raft import Config, get_configuration
from raft.errors import (
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreVersionError,
)
from raft.snapshots import InmemSnapshotStore
from raft.testing.contracts import entries, stored
from raft.testing.script import configuration_entry, servers
from raftsqlite import SQLiteStore, schema
from tests.raftsqlite.processes import opens, run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raft.db"


@pytest.fixture
def filled(path):
    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 100))
        store.set(b"key", b"value")
        store.set_uint64(b"number", 7)
    return path


@pytest.fixture
def crashed(path):
    """What was written is in the write-ahead log alone."""
    run("SQLiteStore(path).store_logs(entries(1, 100)); os._exit(0)", path)
    assert (path.parent / "raft.db-wal").stat().st_size > 0
    return path


def contents(path):
    names = [path.name, path.name + "-wal"]
    return {
        name: (path.parent / name).read_bytes() for name in names if (path.parent / name).exists()
    }


def test_everything_can_be_read(filled):
    """BLT-03"""
    with SQLiteStore(filled, read_only=True) as store:
        assert stored(store) == [(index, 1) for index in range(1, 101)]
        assert store.get_range(1, 100, 1 << 20) == entries(1, 100)
        assert (store.get(b"key"), store.get_uint64(b"number")) == (b"value", 7)
        assert store.stats()["live_bytes"] > 0


def test_nothing_can_be_written(filled):
    """BLT-03"""
    before = contents(filled)
    with SQLiteStore(filled, read_only=True) as store:
        for write in (
            lambda: store.store_log(entries(101, 101)[0]),
            lambda: store.store_logs(entries(101, 200)),
            lambda: store.replace_suffix(50, []),
            lambda: store.delete_range(1, 5),
            lambda: store.set(b"key", b"other"),
            lambda: store.set_uint64(b"number", 8),
        ):
            with pytest.raises(StoreReadOnlyError, match="reading only"):
                write()
        store.maintain()
        store.reopen()
        assert stored(store) == [(index, 1) for index in range(1, 101)]

    assert contents(filled) == before
    assert sorted(os.listdir(filled.parent)) == [
        "raft.db",
        "raft.db.lock",
        "raft.db.mark",
        "raft.db.reserve",
    ]


def warnings_of_losses(caplog):
    return [r for r in caplog.records if "may not be all there was" in r.getMessage()]


def test_who_reads_a_log_that_was_longer_is_told_so(crashed, caplog):
    """Else an operator who compares survivors takes a damaged one for one that lags."""
    with SQLiteStore(crashed, read_only=True):
        assert not warnings_of_losses(caplog)
    wal = crashed.parent / "raft.db-wal"
    with wal.open("r+b") as file:
        file.truncate(0)
    before = contents(crashed)

    with SQLiteStore(crashed, read_only=True) as store:
        assert store.last_index() == 0

    (warning,) = warnings_of_losses(caplog)
    assert "had come to entry 100" in warning.getMessage()
    assert contents(crashed) == before


def test_without_a_mark_a_damaged_write_ahead_log_is_told_of(path, caplog):
    run(
        "store = SQLiteStore(path); store.store_logs(entries(1, 100)); store.set(b'k', b'v');"
        " os._exit(0)",
        path,
    )
    (path.parent / "raft.db.mark").unlink()
    wal = path.parent / "raft.db-wal"
    spoiled = bytearray(wal.read_bytes())
    spoiled[100] ^= 1
    wal.write_bytes(spoiled)

    with SQLiteStore(path, read_only=True):
        pass

    assert "is damaged at byte" in warnings_of_losses(caplog)[0].getMessage()


def test_what_a_crash_left_in_the_write_ahead_log_is_read_and_left_there(crashed):
    before = contents(crashed)

    with SQLiteStore(crashed, read_only=True) as store:
        assert stored(store) == [(index, 1) for index in range(1, 101)]
        with pytest.raises(StoreReadOnlyError):
            store.store_logs(entries(101, 101))

    assert contents(crashed) == before
    with SQLiteStore(crashed) as store:
        assert stored(store) == [(index, 1) for index in range(1, 101)]


def test_a_live_store_cannot_be_looked_at_and_a_reader_keeps_others_out(filled):
    with SQLiteStore(filled), pytest.raises(StoreLockedError, match="backup"):
        SQLiteStore(filled, read_only=True)
    with SQLiteStore(filled, read_only=True):
        assert not opens(filled)

    assert opens(filled)


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        SQLiteStore(tmp_path / "a" / "raft.db", read_only=True)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a#b?c=d.db", "mit leerzeichen & ä%41.db"])
def test_any_name_can_be_opened(filled, name):
    shutil.copy(filled, filled.parent / name)

    with SQLiteStore(filled.parent / name, read_only=True) as store:
        assert store.last_index() == 100


def test_another_version_is_refused(filled, monkeypatch):
    connection = sqlite3.connect(filled)
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreVersionError, match="upgrade"):
        SQLiteStore(filled, read_only=True)

    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS * 3)
    with pytest.raises(StoreError, match="without read_only"):
        SQLiteStore(filled, read_only=True)


def test_a_live_copy_can_be_made_from_it(filled, tmp_path):
    with SQLiteStore(filled, read_only=True) as store:
        store.backup(tmp_path / "copy.db")

    with SQLiteStore(tmp_path / "copy.db", read_only=True) as copy:
        assert copy.last_index() == 100


def test_a_script_reads_the_configuration_of_a_stopped_node(path):
    members = servers("n1", "n2")
    with SQLiteStore(path) as store:
        store.store_logs([configuration_entry(1, 1, members)])

    with SQLiteStore(path, read_only=True) as store:
        found = get_configuration(Config(local_id="n1"), None, store, store, InmemSnapshotStore())

    assert found == members
