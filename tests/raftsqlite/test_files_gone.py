"""A store whose files are taken away, or came without what belongs to them."""

import os
import shutil
import subprocess

import pytest

from raft.errors import StoreError
from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore
from raftsqlite.guard import FilesInPlace


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "raft.db"


@pytest.fixture
def store(path, monkeypatch):
    monkeypatch.setattr(FilesInPlace, "period", 0.0)  # look before each write
    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 3))
        yield store


WRITES = [
    lambda store: store.store_logs(entries(4, 4)),
    lambda store: store.set(b"k", b"v"),
    lambda store: store.delete_range(1, 1),
    lambda store: store.reopen(),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["", "raft.db", "raft.db-wal"])
def test_nothing_is_acknowledged_that_goes_into_removed_files(store, path, write, name):
    shutil.rmtree(path.parent) if not name else os.unlink(path.parent / name)

    for _ in range(2):
        with pytest.raises(StoreError, match="removed or replaced"):
            write(store)

    assert [index for index, _ in stored(store)][:3] == [1, 2, 3]
    assert not name or not (path.parent / name).exists()


def test_a_busy_store_notices_when_its_folder_is_gone(store, path, monkeypatch):
    monkeypatch.setattr(FilesInPlace, "period", 60.0)
    store.store_logs(entries(4, 4))
    shutil.rmtree(path.parent)

    store.is_full()

    with pytest.raises(StoreError, match="removed or replaced"):
        store.store_logs(entries(5, 5))


def test_a_busy_store_does_not_look_at_each_write(store, path, monkeypatch):
    monkeypatch.setattr(FilesInPlace, "period", 60.0)
    store.store_logs(entries(4, 4))
    os.unlink(path)

    store.store_logs(entries(5, 5))  # within the period: still acknowledged


def test_what_was_there_before_can_be_saved(store, path, tmp_path):
    shutil.rmtree(path.parent)

    store.backup(tmp_path / "saved.db")

    with SQLiteStore(tmp_path / "saved.db") as saved:
        assert stored(saved) == [(1, 1), (2, 1), (3, 1)]


def test_a_store_whose_files_come_back_goes_on(store, path):
    away = path.parent.with_name("away")
    path.parent.rename(away)
    with pytest.raises(StoreError, match="removed or replaced"):
        store.set(b"k", b"v")

    away.rename(path.parent)
    store.reopen()
    store.set(b"k", b"v")

    assert store.get(b"k") == b"v"


def test_closing_takes_nothing_from_who_has_the_names_now(store, path):
    shutil.rmtree(path.parent)
    with SQLiteStore(path) as other:
        other.store_logs(entries(1, 9))
        store.close()
        assert other.last_index() == 9
        other.store_logs(entries(10, 10))

    with SQLiteStore(path) as again:
        assert again.last_index() == 10


def test_a_bare_copy_of_a_live_store_is_refused(store, path, tmp_path):
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)

    with pytest.raises(StoreError, match="without its write-ahead log"):
        SQLiteStore(copy)


def test_a_copy_of_a_live_store_with_its_log_opens(store, path, tmp_path):
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")

    with SQLiteStore(copy) as copied:
        assert copied.last_index() == 3


@pytest.mark.parametrize("unsafe_no_sync", [False, True])
def test_a_blank_store_opens_again_and_so_does_its_backup(tmp_path, unsafe_no_sync):
    with SQLiteStore(tmp_path / "raft.db", unsafe_no_sync=unsafe_no_sync) as store:
        store.backup(tmp_path / "backup.db")

    for name in ("raft.db", "backup.db"):
        with SQLiteStore(tmp_path / name) as again:
            assert again.last_index() == 0


@pytest.fixture
def read_only(tmp_path):
    """Return a function that makes a folder of a file system mounted read-only."""
    mounted = []

    def mount(folder):
        for command in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            if subprocess.run(["mount", *command], capture_output=True, check=False).returncode:
                pytest.skip("may not mount")
            mounted.append(folder)

    yield mount
    for folder in mounted[:1]:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "names", [["raft.db"], ["raft.db", "raft.db-wal"], ["raft.db", "raft.db.lock"]]
)
def test_a_read_only_file_system_can_be_read(store, path, tmp_path, read_only, names):
    folder = tmp_path / "frozen"
    folder.mkdir()
    if "raft.db-wal" not in names:
        store.reopen()  # which puts everything into the file
    for name in names:
        shutil.copy(path.parent / name, folder)
    read_only(folder)

    with SQLiteStore(folder / "raft.db", read_only=True) as frozen:
        assert stored(frozen) == [(1, 1), (2, 1), (3, 1)]
        frozen.reopen()
        assert frozen.last_index() == 3
