"""Files and directories of a node: whose they are, and what is refused by their names."""

import os

import pytest

from raft.backup import write_backup
from raft.errors import StoreError
from raft.files import check_regular, make_directories, open_file, read_file, warn_of_others
from raft.snapshots import FileSnapshotStore
from raft.types import Configuration
from raftsqlite import SQLiteStore

NOT_REGULAR = r"regular file|symbolic links|a directory"


@pytest.fixture(autouse=True)
def generous_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return os.stat(path).st_mode & 0o777


def everything(folder):
    """Return the modes of all that is below a folder, by kind."""
    files, directories = {}, {}
    for parent, names, file_names in os.walk(folder):
        directories |= {name: mode(os.path.join(parent, name)) for name in names}
        files |= {name: mode(os.path.join(parent, name)) for name in file_names}
    return files, directories


def snapshot_in(folder):
    store = FileSnapshotStore(folder)
    sink = store.create(1, 5, 2, Configuration(), 0)
    sink.write(b"state")
    sink.close()
    return store, sink.id()


def test_nobody_else_reads_what_a_node_keeps(tmp_path):
    with SQLiteStore(tmp_path / "a" / "b" / "raft.db") as log:
        log.set(b"key", b"value")
        log.backup(tmp_path / "a" / "backup.db")
        store, snapshot_id = snapshot_in(tmp_path / "a" / "b")
        meta, reader = store.open(snapshot_id)
        with reader:
            write_backup(meta, reader, tmp_path / "a" / "backup.zip")

        files, directories = everything(tmp_path)

    assert {"raft.db", "raft.db-wal", "raft.db.lock", "raft.db.mark", "raft.db.reserve"} <= set(
        files
    )
    assert {"meta.json", "state.bin", "backup.db", "backup.zip"} <= set(files)
    assert set(files.values()) == {0o600}, files
    assert set(directories.values()) == {0o700}, directories


def test_what_others_could_read_before_is_warned_of(tmp_path, caplog):
    with SQLiteStore(tmp_path / "raft.db"):
        assert "others may" not in caplog.text
    os.chmod(tmp_path / "raft.db", 0o644)
    os.chmod(tmp_path / "raft.db.lock", 0o644)

    with SQLiteStore(tmp_path / "raft.db"):
        pass

    assert f"others may read the commands here: chmod 600 path={tmp_path}/raft.db" in caplog.text
    assert mode(tmp_path / "raft.db.lock") == 0o600  # who reads it could lock it


@pytest.mark.parametrize("open_store", [lambda p: SQLiteStore(p / "raft.db"), FileSnapshotStore])
def test_a_directory_that_anybody_may_write_to_is_warned_of(tmp_path, caplog, open_store):
    (tmp_path / "snapshots").mkdir()
    for folder in (tmp_path, tmp_path / "snapshots"):
        folder.chmod(0o777)

    store = open_store(tmp_path)

    assert "anybody may write to the directory" in caplog.text
    if isinstance(store, SQLiteStore):
        store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_file_of_another_user_is_not_written_to(tmp_path, monkeypatch):
    path = tmp_path / "raft.db.lock"
    path.write_bytes(b"")
    os.chown(path, 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(PermissionError, match="belongs to user 12345"):
        open_file(path, os.O_RDWR)
    os.close(open_file(path))


def make_fifo(path):
    os.mkfifo(path)


def make_directory(path):
    path.mkdir()


def make_link(path):
    (path.parent / "victim").write_bytes(b"precious")
    path.symlink_to(path.parent / "victim")


@pytest.mark.parametrize("make", [make_fifo, make_directory, make_link])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, make):
    path = tmp_path / "file"
    make(path)

    for use in (open_file, check_regular, lambda path: read_file(path, 10)):
        with pytest.raises(OSError, match=NOT_REGULAR):
            use(path)


@pytest.mark.parametrize("make", [make_fifo, make_directory, make_link])
@pytest.mark.parametrize("suffix", [".lock", ".mark", ".reserve", "-wal"])
def test_what_lies_beside_a_store_must_be_a_regular_file(tmp_path, make, suffix):
    with SQLiteStore(tmp_path / "raft.db", reserve_bytes=4096) as store:
        store.set(b"key", b"value")
    (tmp_path / f"raft.db{suffix}").unlink(missing_ok=True)
    make(tmp_path / f"raft.db{suffix}")

    if suffix == ".reserve":
        SQLiteStore(tmp_path / "raft.db").close()  # goes on without
    else:
        with pytest.raises((OSError, StoreError), match=NOT_REGULAR):
            SQLiteStore(tmp_path / "raft.db")

    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_bytes() == b"precious"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")

    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "file", 4)


def test_directories_that_are_there_stay_as_they_are(tmp_path, caplog):
    make_directories(tmp_path / "a" / "b")
    (tmp_path / "a").chmod(0o750)
    make_directories(tmp_path / "a" / "b")

    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o750, 0o700)
    warn_of_others(tmp_path / "gone", tmp_path / "a")
    assert not caplog.records


@pytest.mark.parametrize("name", ["meta.json", "state.bin"])
@pytest.mark.parametrize("make", [make_fifo, make_directory, make_link])
def test_a_snapshot_of_anything_else_than_files_holds_nobody_up(tmp_path, name, make):
    store, snapshot_id = snapshot_in(tmp_path)
    path = tmp_path / "snapshots" / snapshot_id / name
    path.unlink()
    make(path)

    listed = store.list()
    with pytest.raises(Exception, match=snapshot_id):
        store.open(snapshot_id)

    assert len(listed) == (0 if name == "meta.json" else 1)
    assert FileSnapshotStore(tmp_path).list() == listed
