"""What a disk has spoiled or lost of a stopped store is noticed when it is opened, or before use.

`tests/crash/flips.py` flips bits everywhere; here is one test for each guard.
"""

import os
import shutil
import sqlite3

import pytest

from raft import Configuration, Raft, Server, bootstrap_cluster
from raft.errors import StoreError
from raft.snapshots import InmemSnapshotStore
from raft.testing.cluster import fast_config
from raft.testing.contracts import entries
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport
from raftsqlite import SQLiteStore
from raftsqlite.mark import Mark, Position
from raftsqlite.wal import check_write_ahead_log

FRAME = 4096 + 24
HEADER = 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "n1" / "raft.db"


@pytest.fixture
def store(path):
    with SQLiteStore(path, low_water_bytes=0) as store:
        yield store


def killed(store, path):
    """Return the store's path in a copy of its files, as its process's death would leave them."""
    target = path.parent.parent / "killed"
    shutil.copytree(path.parent, target)
    return target / path.name


def wal_of(path):
    return path.with_name(path.name + "-wal")


def mark_of(path):
    return path.with_name(path.name + ".mark")


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def refuses(path, message):
    """Tell whether a store is refused with a message, and would be again."""
    for _ in range(2):
        with pytest.raises(StoreError, match=message):
            SQLiteStore(path, low_water_bytes=0)
    return True


# ---- the mark ----


def test_acknowledged_entries_that_are_gone_are_noticed(store, path):
    store.store_logs(entries(1, 5))
    store.store_logs(entries(6, 7))
    copy = killed(store, path)
    os.truncate(wal_of(copy), HEADER + FRAME)  # as SQLite takes it when the second frame is bad

    assert refuses(
        copy, r"ends at entry 5 .* had come to entry 7.*rebuild this node from its peers"
    )


def test_what_has_forgotten_something_must_be_removed_before_it_starts_empty(store, path):
    """Empty under its old id it votes for whoever lacks what it had acknowledged."""
    store.store_logs(entries(1, 5))
    store.close()
    path.unlink()

    assert refuses(path, "First have the leader remove the server, then empty its directory")


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set(b"key", b"other"),
        lambda store: store.set_uint64(b"key", 7),
        lambda store: store.replace_suffix(4, entries(4, 9, term=2)),
        lambda store: store.delete_range(4, 5),
        lambda store: store.delete_range(1, 5),
    ],
)
def test_any_other_change_that_is_gone_is_noticed(store, path, change):
    store.store_logs(entries(1, 5))
    before = killed(store, path)
    change(store)
    shutil.copy(mark_of(path), mark_of(before))

    assert refuses(before, "has lost acknowledged entries or votes")


def test_a_log_that_was_shortened_on_purpose_is_no_loss(store, path):
    store.store_logs(entries(1, 9))
    older = mark_of(path).read_bytes()
    store.delete_range(8, 9)
    store.replace_suffix(3, entries(3, 4, term=2))
    store.delete_range(1, 4)
    copy = killed(store, path)

    for mark in (older, mark_of(path).read_bytes()):  # the mark is not synced
        mark_of(copy).write_bytes(mark)
        with SQLiteStore(copy, low_water_bytes=0) as again:
            assert again.last_index() == 0


def test_a_write_ahead_log_that_is_lost_is_noticed(store, path):
    store.store_logs(entries(1, 5))
    copy = killed(store, path)
    wal_of(copy).unlink()

    assert refuses(copy, "has lost acknowledged entries or votes")


def test_a_file_that_is_lost_is_not_replaced_by_an_empty_one(store, path):
    store.store_logs(entries(1, 5))
    store.close()
    path.unlink()

    assert refuses(path, "has lost acknowledged entries or votes")


def test_an_older_copy_is_refused_until_the_mark_is_removed(store, path):
    store.store_logs(entries(1, 5))
    store.backup(path.with_name("copy.db"))
    store.store_logs(entries(6, 7))
    store.close()
    path.with_name("copy.db").rename(path)

    assert refuses(path, "older copy")
    mark_of(path).unlink()
    with SQLiteStore(path, low_water_bytes=0) as again:
        assert again.last_index() == 5


def test_a_store_that_fell_back_is_noticed_when_it_is_reopened(store, path):
    store.store_logs(entries(1, 5))
    with store._database.reading() as connection:
        connection.execute("DELETE FROM log WHERE idx = 5")

    with pytest.raises(StoreError, match="ends at entry 4"):
        store.reopen()


@pytest.mark.parametrize("content", [b"", b"short", bytes(20), b"x" * 20])
def test_a_mark_that_says_nothing_for_certain_is_passed_over(store, path, content):
    store.store_logs(entries(1, 5))
    store.close()
    mark_of(path).write_bytes(content)

    with SQLiteStore(path, low_water_bytes=0) as again:
        assert again.last_index() == 5
    assert mark_of(path).read_bytes() not in (content, b"")


def test_a_mark_that_cannot_be_read_is_an_error_that_says_so(store, path):
    store.store_logs(entries(1, 3))
    store.close()
    mark_of(path).unlink()
    mark_of(path).mkdir()

    with pytest.raises(StoreError, match=r"cannot read .*raft\.db\.mark.*Let this process"):
        SQLiteStore(path)

    mark_of(path).rmdir()
    with SQLiteStore(path) as again:
        assert again.last_index() == 3


def test_a_mark_that_cannot_be_written_stops_no_commit(store, path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        store.store_logs(entries(1, 5))
        store.store_logs(entries(6, 7))

    assert [record.message[:20] for record in caplog.records] == ["cannot keep the mark"]
    store.close()
    with SQLiteStore(path, low_water_bytes=0) as again:
        assert again.last_index() == 7


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_a_change_interrupted_before_it_was_marked_is_no_loss(
    store, path, monkeypatch, interruption
):
    """Reckoned from the mark in memory, what comes next would be marked as further than it is."""

    def interrupted(*_):
        raise interruption

    store.store_logs(entries(1, 9))
    with monkeypatch.context() as patch:
        patch.setattr(Mark, "advance", interrupted)
        with pytest.raises(interruption):
            store.delete_range(5, 9)
    with pytest.raises(StoreError, match=r"until reopen\(\)"):
        store.set(b"key", b"value")
    store.reopen()
    store.set(b"key", b"value")
    store.close()

    with SQLiteStore(path, low_water_bytes=0) as again:
        assert (again.last_index(), again.get(b"key")) == (4, b"value")


@pytest.mark.parametrize("option", ["unsafe_no_sync", "read_only"])
def test_a_store_that_syncs_or_writes_nothing_keeps_no_mark(store, path, option):
    store.store_logs(entries(1, 5))
    store.close()
    before = mark_of(path).read_bytes()

    with SQLiteStore(path, low_water_bytes=0, **{option: True}) as other:
        if option != "read_only":
            other.store_logs(entries(6, 7))

    assert mark_of(path).read_bytes() == before


def test_marks_are_ordered_by_changes_and_then_by_the_last_entry(tmp_path):
    mark = Mark(str(tmp_path / "store"), is_kept=True)
    mark.check(Position(3, 7))

    for fine in (Position(3, 7), Position(3, 8), Position(4, 1)):
        mark.check(fine)
        mark.advance(Position(3, 7))
    for lost in (Position(3, 6), Position(2, 9)):
        with pytest.raises(StoreError):
            mark.check(lost)
    mark.close()


# ---- the write-ahead log, whose mark was lost with the power ----


@pytest.fixture
def unmarked(store, path):
    """A killed store with three commits in its write-ahead log, the last one of two frames."""
    store.store_logs(entries(1, 5))
    store.store_logs(entries(6, 7, size=3000))
    store.set(b"key", b"value")
    copy = killed(store, path)
    mark_of(copy).unlink()
    return copy


def test_a_whole_write_ahead_log_is_taken_over(unmarked):
    with SQLiteStore(unmarked, low_water_bytes=0) as again:
        assert again.last_index() == 7


@pytest.mark.parametrize(
    "position",
    [
        0,
        17,
        HEADER + 9,
        HEADER + 3000,
        HEADER + FRAME + 200,
        -3 * FRAME + 9,
        -3 * FRAME + 23,
    ],
)
def test_a_bit_flipped_before_the_last_transaction_is_noticed(unmarked, position):
    flip(wal_of(unmarked), position % wal_of(unmarked).stat().st_size)
    before = wal_of(unmarked).read_bytes()

    assert refuses(unmarked, "write-ahead log .* is damaged at byte .*rebuild")
    assert wal_of(unmarked).read_bytes() == before


def test_a_torn_last_transaction_never_happened(unmarked):
    frames = (wal_of(unmarked).stat().st_size - HEADER) // FRAME
    flip(wal_of(unmarked), HEADER + (frames - 1) * FRAME + 100)

    with SQLiteStore(unmarked, low_water_bytes=0) as again:
        assert again.last_index() == 7


def test_what_an_earlier_round_left_in_the_write_ahead_log_does_not_matter(store, path):
    store.store_logs(entries(1, 50, size=1000))
    with store._database.writing("checkpoint") as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    store.store_logs(entries(51, 51))  # over the beginning of it
    copy = killed(store, path)

    check_write_ahead_log(str(wal_of(copy)))
    flip(wal_of(copy), wal_of(copy).stat().st_size - 100)
    check_write_ahead_log(str(wal_of(copy)))


def test_what_a_transaction_rolled_back_left_in_the_write_ahead_log_is_no_proof(store, path):
    store.store_logs(entries(1, 5))
    with store._database.writing("spill") as connection:
        connection.execute("PRAGMA cache_size = 5")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE log SET data = zeroblob(30000)")
        connection.execute("ROLLBACK")
    assert wal_of(path).stat().st_size > HEADER + 20 * FRAME
    store.store_logs(entries(6, 6))  # over the first of its frames
    copy = killed(store, path)
    mark_of(copy).unlink()
    flip(wal_of(copy), HEADER + FRAME + 1000)  # as if the last commit had been torn

    with SQLiteStore(copy, low_water_bytes=0) as again:
        assert again.last_index() == 5


@pytest.mark.parametrize("content", [b"", bytes(HEADER), b"short"])
def test_a_write_ahead_log_without_frames_is_fine(tmp_path, content):
    (tmp_path / "wal").write_bytes(content)

    check_write_ahead_log(str(tmp_path / "wal"))
    check_write_ahead_log(str(tmp_path / "absent"))


# ---- the database ----


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE stable SET value = x'00' WHERE key = x'6b6579'",
        "UPDATE stable SET key = x'6b6578' WHERE key = x'6b6579'",
        "UPDATE stable SET kind = 'uint64' WHERE key = x'6b6579'",
        "UPDATE stable SET value = 'value' WHERE key = x'6b6579'",
        "UPDATE stable SET value = CAST(x'ff' AS TEXT) WHERE key = x'6b6579'",
        "UPDATE stable SET checksum = 5 WHERE key = x'6b6579'",
    ],
)
def test_a_key_that_is_damaged_is_noticed(store, path, damage):
    store.set(b"key", b"value")
    store.close()
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()

    assert refuses(path, "key .* is damaged: rebuild this node from its peers")


def test_a_key_damaged_since_the_start_is_noticed_when_it_is_read(store):
    store.set(b"key", b"value")
    with store._database.writing("damage") as connection:
        connection.execute("UPDATE stable SET value = x'00' WHERE kind = 'bytes'")

    with pytest.raises(StoreError, match="damaged"):
        store.get(b"key")


def test_a_damaged_schema_is_an_error_of_ours(store, path):
    """What SQLite says of it quotes from it, which may be no text."""
    store.close()
    content = path.read_bytes()
    at = content.index(b"tablelog") + len(b"table")
    path.write_bytes(content[:at] + b"\xac" + content[at + 1 :])

    assert refuses(path, "damaged or no database: rebuild this node from its peers")


def test_a_page_that_hides_its_rows_is_noticed(store, path):
    store.store_logs(entries(1, 5))
    store.close()
    mark_of(path).unlink()
    with sqlite3.connect(path) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'log'"
        ).fetchone()
    connection.close()
    flip(path, (root - 1) * 4096 + 4)  # how many rows there are: 5, then 4

    assert refuses(path, r"is damaged \(.*\): rebuild this node from its peers")


# ---- entries ----


@pytest.mark.parametrize(
    "damage",
    [
        "type = 77",
        "term = -1",
        "data = 'text'",
        "data = CAST(x'ff' AS TEXT)",
        "data = x'00'",
    ],
)
def test_a_node_gives_up_a_damaged_row_and_what_is_behind_it(store, damage):
    members = Configuration([Server(name, f"{name}:1") for name in ("n1", "n2", "n3")])
    config, snapshots = fast_config("n1"), InmemSnapshotStore()
    bootstrap_cluster(config, store, store, snapshots, members)
    store.store_logs(entries(2, 6))
    with store._database.writing("damage") as connection:
        connection.execute(f"UPDATE log SET {damage} WHERE idx = 4")

    with Raft(config, RecordingFSM(), store, store, snapshots, InmemTransport("n1:1")) as node:
        assert node.last_index() == 3
