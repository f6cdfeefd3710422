"""Space kept back for a full disk."""

import logging

import pytest

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
    return disk, Reserve(str(path), SIZE, LOW, free=disk)


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
