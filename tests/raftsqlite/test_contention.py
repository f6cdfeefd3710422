"""Nothing runs beside a commit on the connection, and everything else in the process does."""

import shutil
import subprocess
import sys
import threading
import time

import pytest

import raftsqlite.database
from raft.errors import StoreClosedError
from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore
from raftsqlite.database import Database

SLOW_INDEX = 1000
STEPS = 2_000_000  # of a loop inside SQLite: about a second


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raft.db"


@pytest.fixture
def store(path):
    with SQLiteStore(path) as store:
        yield store


@pytest.fixture
def slow_store(store):
    """A store that takes about a second, inside SQLite, for the entry of `SLOW_INDEX`."""
    store.store_logs(entries(1, 10))
    with store._database.writing("slow down") as connection:
        connection.execute(
            f"""
            CREATE TEMP TRIGGER slow AFTER INSERT ON log WHEN new.idx = {SLOW_INDEX}
            BEGIN
                SELECT (
                    WITH RECURSIVE counter(n) AS
                    (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < {STEPS})
                    SELECT max(n) FROM counter
                );
            END
            """
        )
    return store


class Ticker:
    """A thread that does nothing but notice how long it was kept from running."""

    def __init__(self):
        self.longest = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        last = time.monotonic()
        while not self._stopped.wait(0.001):
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()


def run_in_thread(action):
    """Start a function on a thread; return a function that waits for it and says when it ended."""
    ended = []

    def run():
        action()
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        return ended[0]

    return join


def test_a_slow_commit_stops_nobody_who_does_not_need_the_store(slow_store):
    inside = threading.Event()

    def write():
        inside.set()
        slow_store.store_logs(entries(SLOW_INDEX, SLOW_INDEX))

    def read():
        inside.wait()
        slow_store.get_log(1)

    with Ticker() as ticker:
        begun = time.monotonic()
        readers = [run_in_thread(read) for _ in range(4)]
        written = run_in_thread(write)()
        for reader in readers:
            reader()

    # Without the lock of ours a reader waits for SQLite's, with the interpreter's in its hand.
    assert ticker.longest < (written - begun) / 3


def test_whoever_needs_the_store_waits_for_the_end_of_a_commit(slow_store):
    entered = threading.Event()
    database = slow_store._database
    with database.reading() as connection:
        # SQLite calls this at the start of the slow statement, which goes on without us.
        connection.set_trace_callback(lambda statement: entered.set())
    writer = run_in_thread(lambda: slow_store.store_logs(entries(SLOW_INDEX, SLOW_INDEX)))
    assert entered.wait(5)

    last = slow_store.last_index()

    assert last == SLOW_INDEX
    assert not database._lock.locked()
    writer()


def test_a_backup_is_a_whole_store_and_lets_writers_in_meanwhile(store, tmp_path):
    store.store_logs(entries(1, 3000, size=2000))
    copied = run_in_thread(lambda: store.backup(tmp_path / "copy.db"))

    written = []
    for index in range(3001, 3011):
        store.store_logs(entries(index, index))
        written.append(time.monotonic())
    store.replace_suffix(2991, entries(2991, 3020, term=2))

    assert written[0] < copied()
    with SQLiteStore(tmp_path / "copy.db") as copy:
        assert copy.first_index() == 1
        assert copy.last_index() in (*range(3000, 3011), 3020)
        if copy.last_index() == 3020:
            assert copy.get_log(2991).term == 2
        assert all(log.is_intact() for log in copy.get_range(1, 4000, 1 << 30))


def test_a_backup_that_cannot_be_written_does_not_blame_the_store(store, path, tmp_path):
    store.store_logs(entries(1, 100, size=2000))
    (tmp_path / "copies").mkdir()
    code = """
import resource, signal, sys
from raft.errors import StoreError
from raftsqlite import SQLiteStore
with SQLiteStore(sys.argv[1], low_water_bytes=0) as store:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        store.backup(sys.argv[2])
    except StoreError as exc:
        print(exc)
"""
    store.close()

    told = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "copies" / "copy.db"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "cannot back up" in told
    assert f"in {tmp_path}/copies/copy.db" in told


def test_two_backups_to_one_path_publish_nothing_half_done(store, tmp_path, monkeypatch):
    """The first to end published what the second had just begun."""
    store.store_logs(entries(1, 2000, size=2000))
    target, begun, go_on = tmp_path / "copy.db", threading.Event(), threading.Event()
    let_others_in, publish = Database._let_others_in, raftsqlite.database.publish
    seconds = []

    def pausing(self, *args):
        if threading.current_thread() in seconds:
            begun.set()
            self._backups_changed.wait_for(go_on.is_set, 8.0)
        let_others_in(self, *args)

    def publishing(unfinished, path):
        if not seconds:
            seconds.append(threading.Thread(target=lambda: store.backup(target)))
            seconds[0].start()
            assert begun.wait(8.0)
        publish(unfinished, path)

    monkeypatch.setattr(Database, "_let_others_in", pausing)
    monkeypatch.setattr("raftsqlite.database.publish", publishing)
    store.backup(target)
    shutil.copy(target, tmp_path / "as it was.db")
    go_on.set()
    seconds[0].join()

    with SQLiteStore(tmp_path / "as it was.db") as copy:
        assert copy.last_index() == 2000


def test_a_backup_never_replaces_a_file(store, path, tmp_path):
    for target in (path, tmp_path / "raft.db.lock"):
        with pytest.raises(FileExistsError):
            store.backup(target)


@pytest.mark.parametrize("end", ["close", "reopen"])
def test_closing_and_reopening_interrupt_a_backup(store, tmp_path, monkeypatch, end):
    monkeypatch.setattr(raftsqlite.database, "_BACKUP_PAUSE", 3600)  # nobody waits for its end
    store.store_logs(entries(1, 3000, size=2000))
    faults = []

    def back_up():
        try:
            store.backup(tmp_path / "copy.db")
        except StoreClosedError as fault:
            faults.append(fault)

    pausing = threading.Event()
    let_others_in = store._database._let_others_in

    def watched(*progress):
        pausing.set()
        let_others_in(*progress)

    store._database._let_others_in = watched
    backup = run_in_thread(back_up)
    assert pausing.wait(5)

    getattr(store, end)()
    backup()

    assert len(faults) == 1
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("copy")]


def test_a_store_closed_while_its_reopening_waits_for_a_backup_stays_closed(store, path):
    """Else the file would be open without its lock."""
    database = store._database

    def wait():
        database._backups = 0
        database._lock.release()
        store.close()
        database._lock.acquire()

    database._backups, database._backups_changed.wait = 1, wait

    with pytest.raises(StoreClosedError):
        store.reopen()

    SQLiteStore(path).close()


def test_threads_that_write_at_once_lose_nothing(store):
    def write(start):
        for index in range(start, 200, 4):
            store.store_log(entries(index, index)[0])
            store.set_uint64(b"%d" % index, index)

    threads = [run_in_thread(lambda start=start: write(start)) for start in range(1, 5)]
    for join in threads:
        join()

    assert stored(store) == [(index, 1) for index in range(1, 200)]
    assert all(store.get_uint64(b"%d" % index) == index for index in range(1, 200))
