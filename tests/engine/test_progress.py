"""What is logged while a snapshot is restored."""

import io
import pickle

import pytest

from raft.engine.progress import BUFFER_BYTES, CountingReader, RestoreReader
from raft.errors import SnapshotError
from raft.snapshots import InmemSnapshotStore
from raft.testing.fsm import RecordedSnapshot
from raft.testing.manual import ManualRuntime
from raft.testing.script import ScriptedNode, entries, servers
from raft.types import Configuration, SnapshotMeta


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def lines(caplog):
    caplog.set_level("INFO", logger="raft.engine.progress")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "raft.engine.progress"]


def reader(runtime, content, size=None):
    size = len(content) if size is None else size
    meta = SnapshotMeta("1-3-5", 3, 1, Configuration(), 1, size)
    return RestoreReader(runtime, io.BytesIO(content), meta)


def test_a_fast_restore_is_reported_once_at_its_end(runtime, lines):
    """SNP-06; as in all our messages the number is a `key=value` of the line."""
    snapshots = InmemSnapshotStore(runtime=runtime)
    sink = snapshots.create(1, 3, 1, servers("n1"), 1)
    RecordedSnapshot(entries(2, terms=(1, 1))).persist(sink)
    sink.close()

    ScriptedNode(snapshots=snapshots, runtime=runtime)

    (line,) = lines()
    assert line.startswith(f"snapshot restore progress id={snapshots.list()[0].id} ")
    assert line.endswith("percent_complete=100.00%")


def test_a_slow_restore_is_reported_every_ten_seconds(runtime, lines):
    slow = reader(runtime, bytes(3 * BUFFER_BYTES))
    for _ in range(3):
        runtime.advance(9.0)
        slow.read(BUFFER_BYTES)
    slow.close()
    slow.close()

    assert [line.split("=")[-1] for line in lines()] == ["66.67%", "100.00%"]


def test_a_restore_that_breaks_off_says_where(runtime, lines):
    broken = reader(runtime, bytes(4 * BUFFER_BYTES))
    broken.read(BUFFER_BYTES)
    broken.close()

    assert lines()[0].endswith("read_bytes=65536 size=262144 percent_complete=25.00%")


def test_an_empty_snapshot_is_complete(runtime, lines):
    reader(runtime, b"").close()

    assert lines()[0].endswith("percent_complete=100.00%")


def test_the_stream_inside_is_there_for_an_fsm_that_wants_it(runtime):
    outer = reader(runtime, b"content")

    assert outer.wrapped().read() == b"content"
    outer.close()
    assert outer.wrapped().closed


def test_an_fsm_reads_with_whatever_reads_a_file(runtime):
    """What `pickle.dump` wrote must not fail in `pickle.load` at the first start over it."""
    state = {"a": ["b"] * 1000}

    assert pickle.load(reader(runtime, pickle.dumps(state))) == state
    assert pickle.load(reader(runtime, pickle.dumps(state, protocol=0))) == state
    assert list(reader(runtime, b"one\ntwo")) == [b"one\n", b"two"]
    assert io.TextIOWrapper(reader(runtime, "für".encode()), "utf-8").read() == "für"


def test_what_the_stream_inside_raises_comes_through(runtime):
    class Broken(io.BytesIO):
        def read(self, _size=-1, /):
            raise SnapshotError("checksum")

    meta = SnapshotMeta("1-3-5", 3, 1, Configuration(), 1, 5)
    for read in (lambda r: r.read(), lambda r: r.read(3), lambda r: r.readline()):
        with pytest.raises(SnapshotError, match="checksum"):
            read(RestoreReader(runtime, Broken(), meta))


def test_a_slow_rate_is_kept_in_small_pieces_that_the_receiver_does_not_time_out_between(runtime):
    """A chunk of 256 KiB at 20 kB/s took 13 s, and a receiver waits 10: it never arrived."""
    slow = CountingReader(runtime, io.BytesIO(bytes(600_000)), rate=20_000, stopped=runtime.event())

    pieces = [len(slow.read(256 * 1024))]
    pieces.append(len(slow.read(256 * 1024)))

    assert 0 < max(pieces) <= 20_000 * 0.25
