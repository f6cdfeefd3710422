"""Space kept back for a full disk."""

import errno
import logging

import pytest

import raftsqlite.database
from raftsqlite import SQLiteStore
from raftsqlite.reserve import Reserve, free_bytes

SIZE, LOW = 1 << 20, 4 << 20


class Disk:
    """How much the file system has left, as the test says."""

    def __init__(self, left):
        self.left = left

    def __call__(self, path):
        return self.left


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raft.db.reserve"


def make(path, left):
    disk = Disk(left)
    reserve = Reserve(str(path), SIZE, LOW, free=disk)
    reserve.hold()
    return disk, reserve


def test_space_is_kept_back_in_a_file(path):
    _, reserve = make(path, 10 * LOW)

    assert not reserve.is_full()
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 >= SIZE


def test_below_the_mark_the_file_is_given_up(path, caplog):
    disk, reserve = make(path, 10 * LOW)

    disk.left = LOW - 1

    assert reserve.is_full()
    assert not path.exists()
    assert reserve.is_full()
    assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1


def test_it_is_over_when_there_is_room_for_the_file_too(path):
    disk, reserve = make(path, LOW - 1)
    assert reserve.is_full()

    disk.left = LOW + SIZE - 1
    assert reserve.is_full()
    disk.left = LOW + SIZE
    assert not reserve.is_full()
    assert path.stat().st_size == SIZE


def test_a_disk_that_is_full_at_start_is_told_at_once(path):
    _, reserve = make(path, 0)

    assert reserve.is_full()
    assert not path.exists()


def test_a_file_that_cannot_be_made_is_reported_and_does_without(path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fail)

    _, reserve = make(path, 10 * LOW)

    assert not reserve.is_full()
    assert not path.exists()
    assert "cannot keep space back" in caplog.text


def test_it_can_be_turned_off(tmp_path):
    with SQLiteStore(tmp_path / "raft.db", low_water_bytes=0) as store:
        assert not store.is_full()
        assert not (tmp_path / "raft.db.reserve").exists()


def test_a_store_says_when_its_disk_is_almost_full(tmp_path):
    left = free_bytes(str(tmp_path / "raft.db"))

    with SQLiteStore(tmp_path / "raft.db", low_water_bytes=2 * left) as store:
        assert store.is_full()
    with SQLiteStore(tmp_path / "raft.db") as store:
        assert not store.is_full()
        assert (tmp_path / "raft.db.reserve").stat().st_size == 8 << 20


def test_on_a_full_disk_the_reserve_is_given_up_before_the_file_is_opened(tmp_path, monkeypatch):
    """Opening writes: what a crash left in the write-ahead log goes into the file."""
    path, reserve = tmp_path / "raft.db", tmp_path / "raft.db.reserve"
    SQLiteStore(path).close()
    assert reserve.exists()
    seen = []
    real = raftsqlite.database.open_database

    def noting(*args, **options):
        seen.append(reserve.exists())
        return real(*args, **options)

    monkeypatch.setattr("raftsqlite.database.open_database", noting)

    with SQLiteStore(path, low_water_bytes=1 << 60) as store:
        assert store.is_full()
    assert seen == [False]


def test_what_is_in_the_reserve_s_way_is_reported_and_the_store_does_without(tmp_path, caplog):
    (tmp_path / "raft.db.reserve").mkdir()

    with SQLiteStore(tmp_path / "raft.db") as store:
        assert not store.is_full()
    assert "cannot keep space back" in caplog.text


def test_a_lock_file_that_cannot_say_who_has_it_locks_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raftsqlite.guard.os.write", full)

    SQLiteStore(tmp_path / "raft.db").close()
    SQLiteStore(tmp_path / "raft.db").close()
