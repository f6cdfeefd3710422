"""Files written by older versions are read for ever; those of a version not known yet are refused.

`tests/vectors/store-v1` was made once, by version 1 of store and snapshots, and never changes: the
directory of a server whose log begins behind a compaction, and that was shut down in good order.
`store-v2` is the same as version 2 left it, whose keys have checksums.
"""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from raft import (
    Configuration,
    Raft,
    Server,
    ServerSuffrage,
    SnapshotVersionError,
    StoreVersionError,
    get_configuration,
    recover_cluster,
)
from raft.codec import encode_configuration
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import StoreError
from raft.snapshots import FileSnapshotStore
from raft.testing.cluster import fast_config
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport
from raft.types import Log, LogType, SnapshotMeta
from raftsqlite import SQLiteStore, schema

VECTORS = Path(__file__).parent.parent / "vectors"

FIRST = Configuration([Server("n1", "n1:1")])
LATEST = Configuration([*FIRST.servers, Server("n2", "n2:1", ServerSuffrage.NONVOTER)])
CLUSTER_ID = "0123456789abcdef0123456789abcdef"
STAMP = 1_700_000_000_000_000_000
LOG = [
    Log(3, 1, LogType.COMMAND, b"set a 1", b"", STAMP + 1, 0x37DA62EE),
    Log(4, 1, LogType.COMMAND, b"set b 2", b"extensions", STAMP + 2, 0x5BC96AD0),
    Log(5, 2, LogType.NOOP, b"", b"", STAMP + 3, 0x1EE5F9FD),
    Log(6, 2, LogType.CONFIGURATION, encode_configuration(LATEST), b"", STAMP + 4, 0x40A0952F),
    Log(7, 2, LogType.COMMAND, bytes(range(256)), b"\x00\xff", STAMP + 5, 0x6758FDEB),
    Log(8, 2, LogType.BARRIER, b"", b"", STAMP + 6, 0x39E0145E),
    Log(9, 2, LogType.COMMAND, b"", b"", -1, 0x5AA65A4D),
]
SNAPSHOTS = [
    SnapshotMeta("1-4-1795426301818", 4, 1, FIRST, 1, 23),
    SnapshotMeta("1-3-1795426301814", 3, 1, FIRST, 1, 12),
]
COMMANDS = [b"set a 1", b"set b 2", bytes(range(256)), b""]


@pytest.fixture(params=["store-v1", "store-v2"])
def folder(tmp_path, request):
    """A copy, for whoever opens it writes to it."""
    return Path(shutil.copytree(VECTORS / request.param, tmp_path / "n1"))


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_every_value_of_an_older_store_is_read(folder):
    with SQLiteStore(folder / "raft.db") as store:
        assert (store.first_index(), store.last_index(), store.get_commit_index()) == (3, 9, 8)
        assert store.get_range(3, 9, 1 << 20) == LOG
        assert all(log.is_intact() for log in LOG)
        assert HardState.load(store) == HardState(3, "n1", "n1:1")
        assert store.get(CLUSTER_ID_KEY).decode() == CLUSTER_ID
        assert store.get_uint64(b"number") == 2**64 - 1
        assert store.get(b"empty") == b""


def test_every_snapshot_of_an_older_version_is_read(folder):
    snapshots = FileSnapshotStore(folder)

    assert list(snapshots.list()) == SNAPSHOTS
    for meta, count in zip(SNAPSHOTS, (2, 1), strict=True):
        opened, reader = snapshots.open(meta.id)
        fsm = RecordingFSM()
        fsm.restore(reader)
        reader.close()
        assert (opened, fsm.commands()) == (meta, COMMANDS[:count])


def test_a_node_goes_on_over_an_older_store(folder):
    config = fast_config("n1")
    config.restore_committed_logs = True
    fsm = RecordingFSM()
    snapshots = FileSnapshotStore(folder)
    with SQLiteStore(folder / "raft.db") as store:
        assert get_configuration(config, fsm, store, store, snapshots) == LATEST
        with Raft(config, fsm, store, store, snapshots, InmemTransport("n1:1")) as node:
            assert fsm.commands()[:3] == COMMANDS[:3]
            assert node.applied_index() >= 8
            assert node.cluster_id() == CLUSTER_ID
            assert node.get_configuration().result(0) == LATEST
            node.wait_for_leader(10)
            assert node.current_term() >= 4
            assert node.apply(b"more").result(10) == 5
            assert fsm.commands() == [*COMMANDS, b"more"]
        assert store.get_range(3, 9, 1 << 20) == LOG


def test_an_older_store_is_recovered(folder):
    config = fast_config("n1")
    snapshots = FileSnapshotStore(folder, retain=1)
    survivors = Configuration([*FIRST.servers, Server("n3", "n3:1")])

    with SQLiteStore(folder / "raft.db") as store:
        recover_cluster(config, RecordingFSM(), store, store, snapshots, survivors)

    with SQLiteStore(folder / "raft.db", read_only=True) as store:
        (meta,) = snapshots.list()
        assert (meta.index, meta.term, meta.configuration) == (9, 2, survivors)
        assert (store.first_index(), store.last_index()) == (0, 0)
        assert HardState.load(store) == HardState(3, "n1", "n1:1")
        assert store.get(CLUSTER_ID_KEY).decode() not in ("", CLUSTER_ID)
        assert get_configuration(config, RecordingFSM(), store, store, snapshots) == survivors
    fsm = RecordingFSM()
    _, reader = snapshots.open(meta.id)
    fsm.restore(reader)
    reader.close()
    assert fsm.commands() == COMMANDS


@pytest.mark.parametrize("damage", ["kind = x'6279'", "key = 'text'", "value = 'text'"])
def test_a_damaged_key_of_version_1_is_refused_and_stays_as_it_is(tmp_path, damage):
    path = shutil.copytree(VECTORS / "store-v1", tmp_path / "n1") / "raft.db"
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE stable SET {damage} WHERE rowid = 1")
    connection.commit()
    connection.close()

    for _ in range(2):
        with pytest.raises(StoreError, match=r"key .* is damaged: rebuild this node"):
            SQLiteStore(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


# ---- versions not known yet ----


@pytest.fixture
def newer_database(folder):
    connection = sqlite3.connect(folder / "raft.db")
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    return folder


@pytest.fixture
def newer_snapshot(folder):
    path = folder / "snapshots" / SNAPSHOTS[0].id / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"Version": 2}))
    return folder


def test_a_newer_database_is_refused_and_stays_as_it_is(newer_database):
    before = contents(newer_database)

    with pytest.raises(StoreVersionError, match="version 3, this library knows up to 2: upgrade"):
        SQLiteStore(newer_database / "raft.db")

    assert contents(newer_database) == before


def crashed_after(folder, statement):
    """Return a copy of the files while a change is in the write-ahead log alone."""
    other = sqlite3.connect(folder / "raft.db")
    other.execute("PRAGMA wal_autocheckpoint = 0")
    other.execute(statement)
    other.commit()
    crashed = folder.parent / "crashed"
    crashed.mkdir()
    for name in ("raft.db", "raft.db-wal"):
        shutil.copy(folder / name, crashed / name)
    other.close()
    return crashed


def test_a_newer_database_stays_as_it_is_although_it_was_not_closed(newer_database):
    """Opened and closed by SQLite, its write-ahead log would be gone."""
    crashed = crashed_after(
        newer_database, "INSERT INTO stable (kind, key, value) VALUES ('bytes', x'00', x'01')"
    )
    before = contents(crashed)
    assert len(before) == 2

    with pytest.raises(StoreVersionError, match="upgrade"):
        SQLiteStore(crashed / "raft.db")

    assert contents(crashed) == before


def test_a_version_that_only_the_write_ahead_log_has_is_seen(folder):
    crashed = crashed_after(folder, f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")

    with pytest.raises(StoreVersionError, match="upgrade"):
        SQLiteStore(crashed / "raft.db")


def test_a_newer_snapshot_is_refused_and_stays_as_it_is(newer_snapshot):
    """Passed over, it would make the node forget what it had acknowledged."""
    SQLiteStore(newer_snapshot / "raft.db", low_water_bytes=0).close()  # brings it up to date
    before = contents(newer_snapshot)
    snapshots = FileSnapshotStore(newer_snapshot)
    config, fsm = fast_config("n1"), RecordingFSM()

    with SQLiteStore(newer_snapshot / "raft.db", low_water_bytes=0) as store:
        stores = (store, store, snapshots)
        for use in (
            lambda: Raft(config, fsm, *stores, InmemTransport("n1:1")),
            lambda: recover_cluster(config, fsm, *stores, FIRST),
            lambda: get_configuration(config, fsm, *stores),
            lambda: snapshots.open(SNAPSHOTS[0].id),
        ):
            with pytest.raises(SnapshotVersionError, match=r"version 2.*up to 1: upgrade"):
                use()

    assert fsm.commands() == []
    assert contents(newer_snapshot) == before
