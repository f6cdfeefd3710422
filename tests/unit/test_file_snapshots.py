import errno
import io
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from raft.engine.install_snapshot import store_snapshot
from raft.errors import SnapshotCorruptError, SnapshotError
from raft.files import read_file
from raft.interfaces import SnapshotSink, SnapshotStore
from raft.runtime import ThreadRuntime
from raft.snapshots import FileSnapshotStore
from raft.snapshots.metadata import seal_metadata
from raft.testing.contracts import CONFIGURATION, begin_snapshot, read_all, take_snapshot
from raft.types import Configuration, EntryID, Server, ServerSuffrage, SnapshotMeta

VECTORS = Path(__file__).parent.parent / "vectors" / "file-snapshots"


class StoppedClock(ThreadRuntime):
    def wall_time_ns(self):
        return 1_700_000_000_123_456_789


@pytest.fixture
def store(tmp_path):
    return FileSnapshotStore(tmp_path, retain=3)


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "snapshots").iterdir())


def test_store_and_sink_offer_their_contracts(tmp_path):
    """SST-01"""
    store: SnapshotStore = FileSnapshotStore(tmp_path)
    sink: SnapshotSink = store.create(1, 10, 3, CONFIGURATION, 2)

    sink.cancel()
    for contract, found in ((SnapshotStore, store), (SnapshotSink, sink)):
        methods = {name for name in vars(contract) if not name.startswith("_")}
        assert methods <= set(dir(found))


def test_create_makes_missing_directories_anew(tmp_path):
    """SST-04"""
    parent = tmp_path / "parent"
    store = FileSnapshotStore(parent / "node", retain=3)
    shutil.rmtree(parent)
    assert store.list() == []

    snapshot_id = take_snapshot(store, 10, 3, [b"data"])

    assert read_all(store.open(snapshot_id)[1]) == b"data"


def test_a_snapshot_appears_when_it_is_closed_and_holds_what_was_written(store):
    """SST-05"""
    configuration = Configuration([Server("a", "over there")])
    assert store.list() == []

    sink = store.create(1, 10, 3, configuration, 2)
    assert store.list() == []
    sink.write(b"first\n")
    sink.write(b"second\n")
    sink.close()

    (meta,) = store.list()
    assert (meta.index, meta.term, meta.size) == (10, 3, 13)
    assert (meta.configuration, meta.configuration_index) == (configuration, 2)
    opened, reader = store.open(meta.id)
    assert opened == meta
    assert read_all(reader) == b"first\nsecond\n"


def test_a_cancelled_snapshot_leaves_nothing(store, tmp_path):
    """SST-06"""
    sink = begin_snapshot(store, 10, 3)

    sink.cancel()

    assert store.list() == []
    assert names(tmp_path) == []


def test_only_the_newest_snapshots_are_retained(tmp_path):
    """SST-07"""
    store = FileSnapshotStore(tmp_path, retain=2)

    for index in range(10, 15):
        take_snapshot(store, index, 3, [])

    assert [meta.index for meta in store.list()] == [14, 13]
    assert len(names(tmp_path)) == 2


def test_a_directory_without_permission_is_refused():
    """SST-08"""
    directory = tempfile.mkdtemp()  # not below tmp_path, which other users may not enter at all
    os.chmod(directory, 0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            FileSnapshotStore(directory)
        except SnapshotError as error:
            status = 0 if "permissions test failed" in str(error) else 2
        finally:
            os._exit(status)

    _, status = os.waitpid(child, 0)

    os.rmdir(directory)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "snapshots").touch()

    with pytest.raises(SnapshotError, match="permissions test failed"):
        FileSnapshotStore(tmp_path)


def test_opening_makes_missing_directories(tmp_path):
    """SST-09"""
    store = FileSnapshotStore(tmp_path / "not" / "there" / "yet")

    assert store.list() == []
    assert (tmp_path / "not/there/yet/snapshots").is_dir()


def test_snapshots_are_ordered_by_term_then_index(store):
    """SST-10"""
    take_snapshot(store, 130_350, 5, [])
    take_snapshot(store, 204_917, 36, [])
    take_snapshot(store, 9, 36, [])

    assert [(meta.term, meta.index) for meta in store.list()] == [
        (36, 204_917),
        (36, 9),
        (5, 130_350),
    ]


def test_the_originals_directory_is_read(tmp_path):
    shutil.copytree(VECTORS, tmp_path, dirs_exist_ok=True)
    expected = json.loads((VECTORS / "expected.json").read_text())["list_order_newest_first"]

    store = FileSnapshotStore(tmp_path, retain=3)

    assert [meta.id for meta in store.list()] == [entry["dir"] for entry in expected]
    for entry in expected:
        _, reader = store.open(entry["dir"])
        original = VECTORS / "snapshots" / entry["dir"] / "state.bin"
        assert read_all(reader) == original.read_bytes()


@pytest.mark.parametrize("name", ["2-10-1795405036528", "3-42-1795405036551"])
def test_the_originals_files_are_written(tmp_path, name):
    original = VECTORS / "snapshots" / name
    term, index, stamp = map(int, name.split("-"))
    runtime = StoppedClock()
    runtime.wall_time_ns = lambda: stamp * 1_000_000
    store = FileSnapshotStore(tmp_path, runtime=runtime)
    configuration = Configuration(
        [
            Server("node-a", "node-a:7000"),
            Server("node-b", "node-b:7000"),
            Server("node-c", "node-c:7000", ServerSuffrage.NONVOTER),
        ]
    )

    sink = store.create(1, index, term, configuration, 3)
    sink.write((original / "state.bin").read_bytes())
    sink.close()

    written = tmp_path / "snapshots" / name
    assert (written / "state.bin").read_bytes() == (original / "state.bin").read_bytes()
    metadata = (original / "meta.json").read_bytes()
    assert (written / "meta.json").read_bytes() == seal_metadata(metadata)  # one more key


def test_names_of_the_same_millisecond_differ(tmp_path):
    store = FileSnapshotStore(tmp_path, retain=5, runtime=StoppedClock())

    sinks = [begin_snapshot(store, 10, 3) for _ in range(3)]
    for sink in sinks:
        sink.close()
    later = begin_snapshot(store, 10, 3)
    later.close()

    stamps = range(1_700_000_000_123, 1_700_000_000_127)
    assert [sink.id() for sink in (*sinks, later)] == [f"3-10-{stamp}" for stamp in stamps]
    assert len(store.list()) == 4


def test_a_snapshot_is_newer_than_older_ones_although_the_clock_was_set_back(tmp_path):
    """As after a recovery, whose snapshot covers what the one before it covers."""
    clock = StoppedClock()
    store = FileSnapshotStore(tmp_path, 1, runtime=clock)
    begin_snapshot(store, 10, 3).close()
    clock.wall_time_ns = lambda: 1_600_000_000_000_000_000

    later = begin_snapshot(store, 10, 3)
    later.close()

    assert later.id() == "3-10-1700000000124"
    assert [meta.id for meta in store.list()] == names(tmp_path) == [later.id()]


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "absent"])
def test_a_damaged_snapshot_is_not_opened(store, tmp_path, damage):
    snapshot_id = take_snapshot(store, 10, 3, [b"some state " * 100])
    state = tmp_path / "snapshots" / snapshot_id / "state.bin"
    data = state.read_bytes()
    if damage == "absent":
        state.unlink()
    else:
        changed = {
            "flipped": data[:50] + b"X" + data[51:],
            "cut": data[:-1],
            "longer": data + b"\0",
        }
        state.write_bytes(changed[damage])

    expected = SnapshotError if damage == "absent" else SnapshotCorruptError
    with pytest.raises(expected):
        store.open(snapshot_id)


def test_what_is_no_snapshot_is_not_listed(store, tmp_path, caplog):
    snapshot_id = take_snapshot(store, 10, 3, [])
    directory = tmp_path / "snapshots"
    (directory / "3-11-1").mkdir()
    (directory / "3-12-1").mkdir()
    (directory / "3-12-1" / "meta.json").write_text("nonsense")
    shutil.copytree(directory / snapshot_id, directory / "3-13-1")
    (directory / "lost+found").mkdir()
    (directory / "3-14-1").touch()

    with caplog.at_level(logging.WARNING):
        assert [meta.id for meta in store.list()] == [snapshot_id]

    assert "3-12-1" in caplog.text
    assert "3-13-1" in caplog.text
    with pytest.raises(SnapshotError):
        store.open("../snapshots/" + snapshot_id)


def test_leftovers_are_removed_at_the_start_but_not_from_under_a_writer(store, tmp_path):
    living = begin_snapshot(store, 20, 3)
    shutil.copytree(VECTORS / "snapshots", tmp_path / "snapshots", dirs_exist_ok=True)
    (tmp_path / "snapshots" / "9-9-9.tmp").mkdir()
    (tmp_path / "snapshots" / "somebody's.tmp").mkdir()

    FileSnapshotStore(tmp_path)

    left = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert left == [living.id() + ".tmp", "somebody's.tmp"]
    living.write(b"data")
    living.close()
    assert read_all(store.open(living.id())[1]) == b"data"


def test_a_snapshot_that_cannot_be_read_just_now_is_not_passed_over(store, monkeypatch):
    """A node would start without it, and vote for who lacks what it has acknowledged."""
    take_snapshot(store, 10, 3, [b"old"])
    snapshot_id = take_snapshot(store, 20, 3, [b"new"])

    def fail_with(number):
        def fail(path, most):
            if path.parent.name == snapshot_id:
                raise OSError(number, "no", str(path))
            return read_file(path, most)

        monkeypatch.setattr("raft.snapshots.file.read_file", fail)

    fail_with(errno.EMFILE)
    with pytest.raises(SnapshotError, match=snapshot_id):
        store.list()

    fail_with(errno.EIO)  # that one is lost
    assert [meta.index for meta in store.list()] == [10]


def fail_to(monkeypatch, name):
    """Let a function of `os` fail as on a full disk."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_snapshot_that_cannot_be_finished_leaves_the_older_one(
    store, tmp_path, monkeypatch, step
):
    snapshot_id = take_snapshot(store, 10, 3, [b"old"])
    sink = begin_snapshot(store, 20, 3)
    sink.write(b"new")

    with monkeypatch.context() as patch:
        fail_to(patch, step)
        with pytest.raises(SnapshotError, match="no space"):
            sink.close()

    assert [meta.id for meta in store.list()] == [snapshot_id]
    assert names(tmp_path) == [snapshot_id]
    sink.close()
    sink.cancel()


def test_a_snapshot_whose_write_failed_is_never_published(store, tmp_path, monkeypatch):
    sink = begin_snapshot(store, 20, 3)
    with monkeypatch.context() as patch:
        fail_to(patch, "fsync")
        with pytest.raises(SnapshotError, match="no space"):
            sink.write(bytes(20 << 20))
    sink.write(b"more")

    with pytest.raises(SnapshotError, match="incomplete"):
        sink.close()

    assert names(tmp_path) == []


def test_a_failure_to_begin_leaves_nothing(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_to(patch, "fsync")
        with pytest.raises(SnapshotError, match="no space"):
            begin_snapshot(store, 10, 3)

    assert names(tmp_path) == []


def test_a_failure_to_remove_old_ones_does_not_fail_the_new_one(tmp_path, monkeypatch, caplog):
    store = FileSnapshotStore(tmp_path, retain=1)
    take_snapshot(store, 10, 3, [])

    with monkeypatch.context() as patch:
        fail_to(patch, "rmdir")
        newest = take_snapshot(store, 20, 3, [])

    assert "cannot remove old snapshots" in caplog.text
    assert [meta.id for meta in store.list()] == [newest]
    FileSnapshotStore(tmp_path, retain=1)
    assert names(tmp_path) == [newest]


def test_one_large_write_is_the_same_as_many_small_ones(store):
    data = bytes(range(256)) * 5000

    whole = take_snapshot(store, 10, 3, [data])
    pieces = take_snapshot(store, 11, 3, [data[i : i + 999] for i in range(0, len(data), 999)])

    assert read_all(store.open(whole)[1]) == read_all(store.open(pieces)[1]) == data


def test_content_is_removed_only_once_its_name_is_durably_gone(store, tmp_path, monkeypatch):
    """Else a crash could leave a name that is listed, and nothing behind it."""
    snapshot_id = take_snapshot(store, 10, 3, [b"data"])

    with monkeypatch.context() as patch:
        fail_to(patch, "fsync")
        with pytest.raises(SnapshotError, match="no space"):
            store.remove(snapshot_id)

    assert list(store.list()) == []
    assert (tmp_path / "snapshots" / f"{snapshot_id}.tmp" / "state.bin").read_bytes() == b"data"


@pytest.mark.parametrize("retain", [0, -1])
def test_at_least_one_snapshot_must_be_retained(tmp_path, retain):
    with pytest.raises(ValueError, match="must retain at least one snapshot"):
        FileSnapshotStore(tmp_path, retain=retain)


# ---- unsettled snapshots (departure 19) ----


def test_what_is_unsettled_does_not_count_for_retention(tmp_path):
    store = FileSnapshotStore(tmp_path, retain=1)
    settled = [store.create(1, index, 3, CONFIGURATION, 2) for index in (10, 11)]
    marked = store.create(1, 90, 3, CONFIGURATION, 2, unsettled=True)
    marked.close()
    for sink in settled:
        sink.close()

    assert [meta.index for meta in store.list()] == [90, 11]
    store.settle(marked.id())

    assert [meta.index for meta in store.list()] == [90]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [marked.id()]


def test_a_settled_mark_survives_a_restart(tmp_path):
    store = FileSnapshotStore(tmp_path, retain=2)
    sink = store.create(1, 90, 3, CONFIGURATION, 2, unsettled=True)
    sink.close()
    assert FileSnapshotStore(tmp_path, retain=2).list()[0].unsettled

    store.settle(sink.id())

    again = FileSnapshotStore(tmp_path, retain=2)
    assert [meta.unsettled for meta in again.list()] == [False]
    meta, reader = again.open(sink.id())
    reader.close()
    assert not meta.unsettled


def test_settling_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SnapshotError, match="cannot settle"):
        FileSnapshotStore(tmp_path, retain=2).settle("3-90-1")


def test_snapshots_can_be_reaped_by_hand(tmp_path):
    generous = FileSnapshotStore(tmp_path, retain=3)
    for index in (10, 11, 12):
        generous.create(1, index, 3, CONFIGURATION, 2).close()

    FileSnapshotStore(tmp_path, retain=1).reap_snapshots()

    assert [meta.index for meta in generous.list()] == [12]


def test_a_snapshot_is_published_though_older_ones_cannot_be_looked_at(tmp_path):
    """Its writer would take an error for a snapshot that is not there."""
    store = FileSnapshotStore(tmp_path)
    sink = store.create(1, 11, 3, CONFIGURATION, 2)
    newer = tmp_path / "snapshots" / "3-10-1700000000000"
    newer.mkdir()
    (newer / "meta.json").write_text('{"Version": 9, "ID": "3-10-1700000000000"}')

    sink.close()

    assert sink.id() in names(tmp_path)


def test_a_snapshot_with_spoiled_metadata_is_lost_and_not_listed(tmp_path):
    store = FileSnapshotStore(tmp_path)
    for index in (4, 9):
        sink = store.create(1, index, 2, Configuration(), 1)
        sink.close()
    (path,) = (tmp_path / "snapshots").glob("2-9-*/meta.json")
    path.write_bytes(b"{")

    assert [meta.index for meta in store.list()] == [4]
    assert store.lost() == [EntryID(2, 9)]


def test_a_program_that_changes_its_directory_keeps_its_snapshots(tmp_path, monkeypatch):
    """Else what was compacted away in favour of a snapshot is missing at the next start."""
    monkeypatch.chdir(tmp_path)
    store = FileSnapshotStore("node1")
    take_snapshot(store, 5, 3, [b"data"])
    (tmp_path / "elsewhere").mkdir()

    monkeypatch.chdir("elsewhere")

    assert [meta.index for meta in store.list()] == [5]
    take_snapshot(store, 9, 3, [b"data"])
    assert [meta.index for meta in FileSnapshotStore(tmp_path / "node1").list()] == [9, 5]


def test_a_snapshot_without_its_metadata_is_lost_and_not_being_removed(store, tmp_path):
    take_snapshot(store, 5, 3, [b"data"])
    newest = take_snapshot(store, 9, 3, [b"data"])

    (tmp_path / "snapshots" / newest / "meta.json").unlink()

    assert [meta.index for meta in store.list()] == [5]
    assert store.lost() == [EntryID(3, 9)]


# ---- junk, and damage that is known ----


def test_a_link_that_leads_to_itself_is_passed_over(store, tmp_path):
    kept = take_snapshot(store, 10, 3, [b"data"])
    for name in ("loop", "3-99-1"):
        link = tmp_path / "snapshots" / name
        link.symlink_to(link)

    again = FileSnapshotStore(tmp_path, retain=3)

    assert [meta.id for meta in again.list()] == [kept]
    assert read_all(again.open(kept)[1]) == b"data"


def test_a_folder_in_the_place_of_the_metadata_is_a_lost_snapshot(store, tmp_path):
    kept = take_snapshot(store, 10, 3, [b"data"])
    spoilt = take_snapshot(store, 20, 4, [b"more"])
    metadata = tmp_path / "snapshots" / spoilt / "meta.json"
    metadata.unlink()
    metadata.mkdir()

    again = FileSnapshotStore(tmp_path, retain=3)

    assert [meta.id for meta in again.list()] == [kept]
    assert again.lost() == [EntryID(4, 20)]


def spoil(tmp_path, snapshot_id):
    state = tmp_path / "snapshots" / snapshot_id / "state.bin"
    data = bytearray(state.read_bytes())
    data[0] ^= 1
    state.write_bytes(data)


def test_a_damaged_snapshot_takes_no_good_ones_place(tmp_path):
    store = FileSnapshotStore(tmp_path, retain=2)
    good = take_snapshot(store, 10, 3, [b"good"])
    damaged = take_snapshot(store, 20, 3, [b"damaged"])
    spoil(tmp_path, damaged)
    with pytest.raises(SnapshotCorruptError):
        store.open(damaged)

    newest = take_snapshot(store, 30, 3, [b"newest"])

    assert [meta.id for meta in store.list()] == [newest, damaged, good]
    next_one = take_snapshot(store, 40, 3, [b"next"])
    assert [meta.id for meta in store.list()] == [next_one, newest]


# ---- room ----


def disk_with(monkeypatch, free, files=1000):
    """Let the file system of all snapshots have so many bytes and files left."""
    found = os.statvfs("/")
    values = list(found)
    values[1], values[4], values[7], values[5] = 1, free, files, 10_000
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))


@pytest.mark.parametrize(
    ("free", "size", "fits"), [(1500, 500, True), (1499, 500, False), (1 << 40, 2**62, False)]
)
def test_a_snapshot_for_which_there_is_no_room_is_refused_at_once(
    tmp_path, monkeypatch, free, size, fits
):
    store = FileSnapshotStore(tmp_path, keep_free=1000)
    disk_with(monkeypatch, free)
    reader = io.BytesIO(b"x" * size) if size < 1000 else io.BytesIO()
    meta = SnapshotMeta("", 5, 2, Configuration(), 0, size)

    if fits:
        assert store_snapshot(store, meta, reader).index == 5
    else:
        with pytest.raises(SnapshotError, match=f"no room for {size} bytes"):
            store_snapshot(store, meta, reader)
        assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_disk_without_room_for_files_takes_no_snapshot(tmp_path, monkeypatch):
    store = FileSnapshotStore(tmp_path)
    disk_with(monkeypatch, 1 << 40, files=3)

    with pytest.raises(SnapshotError, match="only 3 more files fit"):
        store.check_room(1)


def test_a_snapshot_that_grows_gives_way_before_the_disk_is_full(tmp_path, monkeypatch):
    store = FileSnapshotStore(tmp_path, keep_free=1000)
    sink = store.create(1, 5, 2, Configuration(), 0)
    sink.write(bytes(9 << 20))
    disk_with(monkeypatch, 999)

    with pytest.raises(SnapshotError, match="no room"):
        sink.write(bytes(9 << 20))
    sink.cancel()

    assert list((tmp_path / "snapshots").iterdir()) == []
