import pytest

from raft.errors import SnapshotError
from raft.interfaces import SnapshotSink, SnapshotStore
from raft.snapshots import DiscardSnapshotStore, InmemSnapshotStore
from raft.testing.contracts import CONFIGURATION, begin_snapshot, read_all, take_snapshot


@pytest.mark.parametrize("make", [InmemSnapshotStore, DiscardSnapshotStore])
def test_store_and_sink_offer_their_contracts(make):
    """SST-02, SST-03"""
    store: SnapshotStore = make()
    sink: SnapshotSink = store.create(1, 10, 3, CONFIGURATION, 2)

    for contract, found in ((SnapshotStore, store), (SnapshotSink, sink)):
        methods = {name for name in vars(contract) if not name.startswith("_")}
        assert methods <= set(dir(found))


def test_a_snapshot_in_memory_appears_when_it_is_closed():
    """SST-11, but for the time: the original lists it, and loses the older one, from the start."""
    store = InmemSnapshotStore()
    assert store.list() == []
    sink = begin_snapshot(store, 10, 3)
    assert store.list() == []

    sink.write(b"first\n")
    sink.write(b"second\n")
    sink.close()

    (meta,) = store.list()
    assert (meta.index, meta.term, meta.size) == (10, 3, 13)
    assert (meta.configuration, meta.configuration_index) == (CONFIGURATION, 2)
    assert read_all(store.open(meta.id)[1]) == b"first\nsecond\n"


def test_a_snapshot_in_memory_can_be_read_twice():
    """SST-12"""
    store = InmemSnapshotStore()
    snapshot_id = take_snapshot(store, 10, 3, [b"data"])

    assert read_all(store.open(snapshot_id)[1]) == b"data"
    assert read_all(store.open(snapshot_id)[1]) == b"data"


def test_an_older_snapshot_finished_late_does_not_replace_a_newer_one():
    store = InmemSnapshotStore()
    late = begin_snapshot(store, 10, 3)
    newest = take_snapshot(store, 20, 3, [])

    late.close()

    assert [meta.id for meta in store.list()] == [newest]


def test_discarded_snapshots_cannot_be_listed_or_opened():
    store = DiscardSnapshotStore()

    sink = begin_snapshot(store, 10, 3)
    assert sink.write(b"data") == 4
    sink.close()
    sink.cancel()

    assert sink.id() == "discard"
    assert store.list() == []
    with pytest.raises(SnapshotError, match="open is not supported"):
        store.open("discard")
    with pytest.raises(SnapshotError, match="unsupported snapshot version"):
        store.create(2, 10, 3, CONFIGURATION, 2)
