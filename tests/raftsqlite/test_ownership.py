"""One process, and only it, has the file; a child of it has not."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from raft.errors import ForkedProcessError, StoreError, StoreLockedError
from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore
from tests.raftsqlite.processes import opens, run, start


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raft.db"


@pytest.fixture
def store(path):
    with SQLiteStore(path) as store:
        yield store


def in_child(action):
    """Run a function in a forked child; return what it returned as a small number."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = action()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


# ---- permissions ----


@pytest.mark.parametrize("name", ["raft.db", "raft.db-wal"])
def test_a_file_that_another_user_has_left_is_an_error_that_says_so(name):
    """A script that was run as root, say: SQLite itself speaks of a disk that fails."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "raft.db"
        SQLiteStore(path).close()
        path.with_name("raft.db-wal").touch()
        for each in (path.parent, *path.parent.iterdir()):
            os.chown(each, *_somebody_else())
        path.with_name(name).chmod(0o444)

        assert in_child(lambda: _is_told_of(path, path.with_name(name))) == 0


def _somebody_else():
    """User and group of the one who tries: root may write everything."""
    return (os.getuid() or 65534), (os.getgid() or 65534)


def _is_told_of(path, name):
    user, group = _somebody_else()
    os.setgid(group)
    os.setuid(user)
    with pytest.raises(StoreError, match=f"may not read .*{name.name}: give the directory"):
        SQLiteStore(path)
    return 0


# ---- the lock ----


def test_a_second_opener_in_the_same_process_is_refused(store, path):
    """BLT-02; at once, because an owner does not go away by waiting."""
    with pytest.raises(StoreLockedError, match=r"process \d+.*--workers 1.*backup"):
        SQLiteStore(path)

    store.store_logs(entries(1, 1))


def test_a_second_process_is_refused_until_the_first_closes(path):
    store = SQLiteStore(path)
    assert not opens(path)

    store.close()

    assert opens(path)


def test_the_file_cannot_be_opened_by_another_name(store, path, tmp_path):
    (tmp_path / "other.db").symlink_to(path)

    assert not opens(tmp_path / "other.db")


def test_copying_the_live_file_does_not_let_a_second_process_in(store, path, tmp_path):
    store.store_logs(entries(1, 5))

    shutil.copy(path, tmp_path / "copy.db")  # drops the lock that SQLite has on the file

    assert not opens(path)
    store.store_logs(entries(6, 10))
    assert len(stored(store)) == 10


def test_a_failed_start_leaves_the_file_unlocked(path):
    path.write_bytes(b"no database" * 100)
    with pytest.raises(Exception, match="no database"):
        SQLiteStore(path)
    path.unlink()

    assert opens(path)


def test_a_start_that_fails_at_its_end_leaves_the_file_unlocked(path, monkeypatch):
    """Ctrl-C, say, while space is kept back."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupted)

    with pytest.raises(KeyboardInterrupt):
        SQLiteStore(path)

    assert opens(path)


# ---- kill -9 ----


def test_rows_acknowledged_by_a_killed_process_are_there(path):
    process = start(
        """
store = SQLiteStore(path)
first = 1
while True:
    store.store_logs(entries(first, first + 6))
    store.set_uint64(b"acknowledged", first + 6)
    first += 7
    print(first - 1, flush=True)
""",
        path,
    )
    lines = [process.stdout.readline() for _ in range(50)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    acknowledged = int(lines[-1])
    process.stdin.close()
    process.stdout.close()

    with SQLiteStore(path) as store:
        assert store.get_uint64(b"acknowledged") >= acknowledged
        assert store.first_index() == 1
        assert store.last_index() >= acknowledged
        assert all(store.get_log(index).is_intact() for index in range(1, acknowledged + 1))


def test_rows_of_a_process_that_exits_without_closing_are_there(path):
    status, _ = run("store = SQLiteStore(path); store.store_logs(entries(1, 9))", path)

    assert status == 0
    with SQLiteStore(path) as store:
        assert len(stored(store)) == 9


# ---- forks ----


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "del store; sys.exit(0)"])
def test_a_forked_child_that_exits_costs_the_parent_nothing(path, leave):
    status, output = run(
        f"""
store = SQLiteStore(path)
store.store_logs(entries(1, 50))
child = os.fork()
if child == 0:
    {leave}
print(os.waitpid(child, 0)[1])
store.store_logs(entries(51, 100))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
""",
        path,
    )

    assert (status, output) == (-signal.SIGKILL, "0\n")
    with SQLiteStore(path) as store:
        assert stored(store) == [(index, 1) for index in range(1, 101)]


def test_a_fork_in_the_middle_of_a_commit_costs_nothing(path):
    status, output = run(
        """
import threading
store = SQLiteStore(path)
done = threading.Event()
def write():
    for index in range(1, 301):
        store.store_logs(entries(index, index))
    done.set()
writer = threading.Thread(target=write)
writer.start()
failed = 0
while not done.is_set():
    child = os.fork()
    if child == 0:
        sys.exit(0)
    failed += os.waitpid(child, 0)[1]
writer.join()
print(failed, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        path,
    )

    assert (status, output) == (-signal.SIGKILL, "0\n")
    with SQLiteStore(path) as store:
        assert len(stored(store)) == 300


def test_every_public_call_is_refused_in_a_forked_child(store, path):
    store.store_logs(entries(1, 5))
    arguments = {
        "get_log": (1,),
        "get_range": (1, 2, 100),
        "store_log": (entries(6, 6)[0],),
        "store_logs": (entries(6, 6),),
        "delete_range": (1, 2),
        "replace_suffix": (3, []),
        "stage_commit_index": (1,),
        "set": (b"key", b"value"),
        "get": (b"key",),
        "set_uint64": (b"key", 1),
        "get_uint64": (b"key",),
        "backup": (path.parent / "copy.db",),
    }
    names = [name for name in dir(SQLiteStore) if not name.startswith("_")]
    store._wal_bytes = 1 << 30  # so that there is some upkeep to do

    def call_all():
        refused = 0
        for name in names:
            try:
                getattr(store, name)(*arguments.get(name, ()))
            except ForkedProcessError:
                refused += 1
        return refused

    assert in_child(call_all) == len(names) == 20
    assert len(stored(store)) == 5


def test_a_child_that_leaves_the_block_it_was_forked_in_is_not_disturbed(path):
    status, output = run(
        """
with SQLiteStore(path) as store:
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1])
        store.store_logs(entries(1, 1))
""",
        path,
    )

    assert (status, output) == (0, "0\n")


def test_the_end_of_a_child_does_not_unlock_the_file(store, path, tmp_path):
    assert in_child(lambda: 0) == 0
    shutil.copy(path, tmp_path / "copy.db")  # so that only the lock file is left

    assert not opens(path)


def test_a_child_that_outlives_the_parent_does_not_keep_the_file_locked(path):
    parent = start(
        """
store = SQLiteStore(path)
store.store_logs(entries(1, 5))
forked, tell = os.pipe()
if os.fork() == 0:
    os.write(tell, b"!")  # the hooks of the fork have run
    sys.stdin.read()  # lives until the test lets go
    os._exit(0)
os.read(forked, 1)
print("forked", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        path,
    )
    assert parent.stdout.readline() == "forked\n"
    assert parent.wait() == -signal.SIGKILL

    with SQLiteStore(path) as store:
        assert len(stored(store)) == 5
    parent.stdin.close()
    parent.stdout.close()


def test_a_child_forked_while_the_file_is_being_opened_does_not_keep_it_locked(path):
    """Another thread may fork meanwhile: the checks of a large file take seconds."""
    SQLiteStore(path).close()
    parent = start(
        """
import raftsqlite.database
def forking(connection, path):
    forked, tell = os.pipe()
    if os.fork() == 0:
        os.write(tell, b"!")  # the hooks of the fork have run
        sys.stdin.read()  # lives until the test lets go
        os._exit(0)
    os.read(forked, 1)
    print("forked", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
raftsqlite.database.check_content = forking
SQLiteStore(path)
""",
        path,
    )
    assert parent.stdout.readline() == "forked\n"
    assert parent.wait() == -signal.SIGKILL

    SQLiteStore(path).close()
    parent.stdin.close()
    parent.stdout.close()
