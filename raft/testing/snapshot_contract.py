"""Tests that every snapshot store must pass; see `raft.testing.contracts`."""

from __future__ import annotations

from typing import Any

from raft.interfaces import SnapshotSink, SnapshotStore
from raft.testing.contract_base import (
    CONFIGURATION,
    Contract,
    raises_any,
)
from raft.types import SnapshotMeta


class SnapshotStoreContract(Contract):
    """What `SnapshotStore` promises; the store must keep at least one snapshot."""

    def test_a_snapshot_is_listed_once_it_is_closed(self, store: Any) -> None:
        assert list(store.list()) == []

        sink = begin_snapshot(store, 10, 3)
        assert list(store.list()) == []
        sink.write(b"first\n")
        sink.write(b"second\n")
        assert list(store.list()) == []
        sink.close()

        expected = SnapshotMeta(sink.id(), 10, 3, CONFIGURATION, 2, 13)
        assert list(store.list()) == [expected]

    def test_a_snapshot_is_read_as_it_was_written(self, store: Any) -> None:
        chunks = [bytes([number]) * (number * 1000) for number in range(40)]
        snapshot_id = take_snapshot(store, 10, 3, chunks)

        for _ in range(2):
            meta, reader = store.open(snapshot_id)
            assert meta == store.list()[0]
            assert meta.size == sum(map(len, chunks))
            assert read_all(reader) == b"".join(chunks)

    def test_write_tells_how_much_it_took(self, store: Any) -> None:
        sink = begin_snapshot(store, 10, 3)

        assert sink.write(b"12345") == 5
        assert sink.write(b"") == 0

        sink.cancel()

    def test_an_empty_snapshot_is_a_snapshot(self, store: Any) -> None:
        snapshot_id = take_snapshot(store, 10, 3, [])

        meta, reader = store.open(snapshot_id)

        assert meta.size == 0
        assert read_all(reader) == b""

    def test_a_cancelled_snapshot_is_gone(self, store: Any) -> None:
        sink = begin_snapshot(store, 10, 3)
        sink.write(b"data")

        sink.cancel()

        assert list(store.list()) == []
        with raises_any():
            store.open(sink.id())

    def test_a_cancelled_snapshot_leaves_the_older_one(self, store: Any) -> None:
        snapshot_id = take_snapshot(store, 10, 3, [b"old"])

        sink = begin_snapshot(store, 20, 3)
        sink.write(b"new")
        sink.cancel()

        assert [meta.id for meta in store.list()] == [snapshot_id]
        assert read_all(store.open(snapshot_id)[1]) == b"old"

    def test_closing_and_cancelling_again_does_nothing(self, store: Any) -> None:
        sink = begin_snapshot(store, 10, 3)
        sink.write(b"data")
        sink.close()
        sink.cancel()
        sink.close()
        dropped = begin_snapshot(store, 20, 3)
        dropped.cancel()
        dropped.close()

        assert [meta.id for meta in store.list()] == [sink.id()]

    def test_the_newest_snapshot_is_listed_first_by_term_then_index(self, store: Any) -> None:
        take_snapshot(store, 130_350, 5, [b"old"])
        newest = take_snapshot(store, 204_917, 36, [b"new"])

        assert store.list()[0].id == newest

    def test_an_unsettled_snapshot_is_marked(self, store: Any) -> None:
        sink = store.create(1, 10, 3, CONFIGURATION, 2, unsettled=True)
        sink.close()

        assert store.list()[0].unsettled
        meta, reader = store.open(sink.id())
        reader.close()
        assert meta.unsettled

    def test_an_unsettled_snapshot_and_the_others_do_not_replace_each_other(
        self, store: Any
    ) -> None:
        older = take_snapshot(store, 10, 3, [b"older"])
        unsettled = store.create(1, 90, 3, CONFIGURATION, 2, unsettled=True)
        unsettled.close()
        assert [meta.id for meta in store.list()] == [unsettled.id(), older]

        newer = take_snapshot(store, 20, 3, [b"newer"])

        assert [meta.id for meta in store.list()][:2] == [unsettled.id(), newer]
        assert read_all(store.open(newer)[1]) == b"newer"

    def test_settling_takes_the_mark_off(self, store: Any) -> None:
        sink = store.create(1, 90, 3, CONFIGURATION, 2, unsettled=True)
        sink.write(b"data")
        sink.close()

        store.settle(sink.id())
        store.settle(sink.id())

        assert store.list()[0].id == sink.id()
        assert not store.list()[0].unsettled
        assert read_all(store.open(sink.id())[1]) == b"data"

    def test_removing_takes_one_snapshot_away(self, store: Any) -> None:
        kept = take_snapshot(store, 10, 3, [b"kept"])
        sink = store.create(1, 90, 3, CONFIGURATION, 2, unsettled=True)
        sink.close()

        store.remove(sink.id())
        store.remove(sink.id())
        store.remove("3-11-99")

        assert [meta.id for meta in store.list()] == [kept]

    def test_another_version_is_refused(self, store: Any) -> None:
        for version in (0, 2):
            with raises_any():
                store.create(version, 10, 3, CONFIGURATION, 2)
        assert list(store.list()) == []

    def test_an_unknown_snapshot_cannot_be_opened(self, store: Any) -> None:
        for snapshot_id in ("", "1-2-3"):
            with raises_any():
                store.open(snapshot_id)

    def test_a_snapshot_can_be_read_while_the_next_is_written(self, store: Any) -> None:
        snapshot_id = take_snapshot(store, 10, 3, [b"old" * 1000])
        _, reader = store.open(snapshot_id)
        start = reader.read(10)

        take_snapshot(store, 20, 3, [b"new"])

        assert start + read_all(reader) == b"old" * 1000

    def test_snapshots_survive_a_restart(self, store: Any) -> None:
        snapshot_id = take_snapshot(store, 10, 3, [b"data"])
        meta = store.list()[0]

        store = self.restarted(store)

        assert list(store.list()) == [meta]
        assert read_all(store.open(snapshot_id)[1]) == b"data"


def begin_snapshot(store: SnapshotStore, index: int, term: int) -> SnapshotSink:
    """Begin a snapshot with `CONFIGURATION` as of index 2."""
    return store.create(1, index, term, CONFIGURATION, 2)


def take_snapshot(store: SnapshotStore, index: int, term: int, chunks: list[bytes]) -> str:
    """Write a whole snapshot and return its id."""
    sink = begin_snapshot(store, index, term)
    for chunk in chunks:
        sink.write(chunk)
    sink.close()
    return sink.id()


def read_all(reader: Any) -> bytes:
    """Read a snapshot to its end in small pieces, and close it twice."""
    pieces = iter(lambda: reader.read(700), b"")
    data = b"".join(pieces)
    reader.close()
    reader.close()
    return data
