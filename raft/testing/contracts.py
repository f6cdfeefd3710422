"""Tests that every log store, stable store and snapshot store must pass, for use with pytest.

Take the classes whose contracts a store offers and give it to them by a fixture called `store`,
which hands out an empty one:

    from raft.testing.contracts import LogStoreContract, StableStoreContract

    class TestMyStore(LogStoreContract, StableStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            with MyStore(tmp_path / "log") as store:
                yield store

For a store that keeps its data elsewhere than in memory, override `restarted`, too. A project
that wants pytest's long explanations of a failed assertion calls
`pytest.register_assert_rewrite("raft.testing")` in its `conftest.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raft.errors import KeyNotFoundError, LogNotFoundError
from raft.interfaces import SnapshotSink, SnapshotStore
from raft.types import Configuration, Log, LogType, Server, ServerSuffrage, SnapshotMeta

CONFIGURATION = Configuration(
    [Server("a", "a:1"), Server("b", "b:1"), Server("c", "c:1", ServerSuffrage.NONVOTER)]
)


def entries(first: int, last: int, *, term: int = 1, size: int = 10) -> list[Log]:
    """Return sealed commands with the indexes from `first` to `last`, each with data of its own."""
    return [
        Log(index, term, data=(b"%d/%d " % (index, term) * size)[:size]).sealed()
        for index in range(first, last + 1)
    ]


def stored(store: Any) -> list[tuple[int, int]]:
    """Return (index, term) of all entries of a log store without gaps."""
    first, last = store.first_index(), store.last_index()
    return [(log.index, log.term) for log in map(store.get_log, range(first, last + 1)) if first]


@contextmanager
def raises(expected: type[BaseException]) -> Iterator[None]:
    """Fail unless the body raises `expected`."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")


class _Contract:
    def restarted(self, store: Any) -> Any:
        """Return the store as it is after it was closed and opened again."""
        return store


class LogStoreContract(_Contract):
    """What `LogStore` promises."""

    def test_an_empty_store_has_no_indexes(self, store: Any) -> None:
        assert store.first_index() == 0
        assert store.last_index() == 0
        with raises(LogNotFoundError):
            store.get_log(1)

    def test_entries_come_back_as_they_were_stored(self, store: Any) -> None:
        logs = [
            Log(1, 1, LogType.CONFIGURATION, b"\x81\xa7Servers\x90", appended_at=-1).sealed(),
            Log(2, 1, LogType.NOOP).sealed(),
            Log(3, 2, LogType.BARRIER, b"", b"extensions", 1_700_000_000_000_000_001).sealed(),
            Log(4, 2, LogType.COMMAND, bytes(range(256)) * 300).sealed(),
            Log(5, 2, LogType.COMMAND, b"without a checksum"),
        ]

        store.store_logs(logs)

        assert [store.get_log(index) for index in range(1, 6)] == logs

    def test_one_entry_may_be_stored_alone(self, store: Any) -> None:
        (log,) = entries(7, 7)

        store.store_log(log)

        assert store.get_log(7) == log
        assert (store.first_index(), store.last_index()) == (7, 7)

    def test_storing_nothing_changes_nothing(self, store: Any) -> None:
        store.store_logs(entries(1, 2))

        store.store_logs([])

        assert (store.first_index(), store.last_index()) == (1, 2)

    def test_an_entry_of_the_same_index_is_replaced(self, store: Any) -> None:
        store.store_logs(entries(1, 3))

        store.store_logs(entries(2, 3, term=2))

        assert stored(store) == [(1, 1), (2, 2), (3, 2)]

    def test_a_batch_of_any_size_is_stored_in_one_call(self, store: Any) -> None:
        first = 1
        for count in (1, 2, 3, 63, 64, 65, 127, 128, 129, 1000):
            store.store_logs(entries(first, first + count - 1))
            first += count

        assert store.last_index() == first - 1
        assert len(stored(store)) == first - 1

    def test_deleting_a_prefix_moves_the_first_index(self, store: Any) -> None:
        store.store_logs(entries(1, 10))

        store.delete_range(1, 4)

        assert (store.first_index(), store.last_index()) == (5, 10)
        with raises(LogNotFoundError):
            store.get_log(4)
        assert store.get_log(5).index == 5

    def test_deleting_a_suffix_moves_the_last_index(self, store: Any) -> None:
        store.store_logs(entries(1, 10))

        store.delete_range(7, 10)

        assert (store.first_index(), store.last_index()) == (1, 6)

    def test_deleting_everything_leaves_an_empty_store(self, store: Any) -> None:
        store.store_logs(entries(3, 9))

        store.delete_range(3, 9)

        assert (store.first_index(), store.last_index()) == (0, 0)
        store.store_logs(entries(100, 101))
        assert (store.first_index(), store.last_index()) == (100, 101)

    def test_deleting_what_is_absent_does_not_matter(self, store: Any) -> None:
        store.delete_range(1, 100)
        store.store_logs(entries(5, 8))

        store.delete_range(1, 5)
        store.delete_range(8, 50)
        store.delete_range(7, 6)

        assert stored(store) == [(6, 1), (7, 1)]

    def test_a_long_prefix_can_be_deleted(self, store: Any) -> None:
        for first in range(1, 10_001, 1000):
            store.store_logs(entries(first, first + 999))

        store.delete_range(1, 9_990)

        assert stored(store) == [(index, 1) for index in range(9_991, 10_001)]

    def test_entries_survive_a_restart(self, store: Any) -> None:
        store.store_logs(entries(1, 5))
        store.delete_range(1, 2)

        store = self.restarted(store)

        assert stored(store) == [(3, 1), (4, 1), (5, 1)]

    def test_threads_may_read_while_one_writes(self, store: Any) -> None:
        store.store_logs(entries(1, 1))
        done = threading.Event()
        faults: list[object] = []

        def read() -> None:
            while not done.is_set():
                last = store.last_index()
                if store.get_log(last).index != last:
                    faults.append(last)

        readers = [_Thread(read) for _ in range(3)]
        for index in range(2, 60):
            store.store_logs(entries(index, index))
        done.set()
        for reader in readers:
            reader.finish()

        assert not faults


class MonotonicContract(_Contract):
    """What `MonotonicLogStore` promises on top."""

    def test_it_says_whether_gaps_are_an_error(self, store: Any) -> None:
        assert isinstance(store.is_monotonic(), bool)


class SuffixReplacingContract(_Contract):
    """What `SuffixReplacingLogStore` promises on top."""

    def test_a_suffix_is_replaced_by_fewer_entries(self, store: Any) -> None:
        store.store_logs(entries(1, 10))

        store.replace_suffix(4, entries(4, 5, term=2))

        assert stored(store) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
        store = self.restarted(store)
        assert stored(store) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]

    def test_a_suffix_is_replaced_by_more_entries(self, store: Any) -> None:
        store.store_logs(entries(1, 3))

        store.replace_suffix(3, entries(3, 300, term=2))

        assert stored(store) == [(1, 1), (2, 1)] + [(index, 2) for index in range(3, 301)]

    def test_a_whole_log_is_replaced(self, store: Any) -> None:
        store.store_logs(entries(5, 7))

        store.replace_suffix(5, entries(5, 5, term=3))

        assert stored(store) == [(5, 3)]

    def test_a_suffix_is_dropped_without_replacement(self, store: Any) -> None:
        store.store_logs(entries(1, 3))

        store.replace_suffix(2, [])

        assert stored(store) == [(1, 1)]


class RangeContract(_Contract):
    """What `RangeLogStore` promises on top."""

    def test_a_range_is_read_with_both_ends(self, store: Any) -> None:
        logs = entries(1, 300)
        store.store_logs(logs)

        assert store.get_range(1, 300, 1 << 20) == logs
        assert store.get_range(7, 9, 1 << 20) == logs[6:9]

    def test_a_range_ends_where_the_log_ends(self, store: Any) -> None:
        logs = entries(1, 3)
        store.store_logs(logs)

        assert store.get_range(2, 100, 1 << 20) == logs[1:]

    def test_a_range_stops_before_the_byte_limit_but_has_one_entry(self, store: Any) -> None:
        logs = entries(1, 9, size=1000)
        store.store_logs(logs)
        size = logs[0].size()

        assert store.get_range(1, 9, 3 * size) == logs[:3]
        assert store.get_range(1, 9, 3 * size - 1) == logs[:2]
        assert store.get_range(1, 9, 0) == logs[:1]

    def test_a_range_whose_first_entry_is_absent_is_refused(self, store: Any) -> None:
        store.store_logs(entries(5, 6))

        for first in (1, 4, 7):
            with raises(LogNotFoundError):
                store.get_range(first, 100, 1 << 20)


class CommitTrackingContract(_Contract):
    """What `CommitTrackingLogStore` promises on top."""

    def test_a_new_store_has_no_commit_index(self, store: Any) -> None:
        assert store.get_commit_index() == 0

    def test_a_staged_commit_index_becomes_durable_with_the_next_append(self, store: Any) -> None:
        store.store_logs(entries(1, 5))

        store.stage_commit_index(3)
        assert store.get_commit_index() == 0
        store.store_logs(entries(6, 6))

        assert store.get_commit_index() == 3
        assert self.restarted(store).get_commit_index() == 3

    def test_the_commit_index_is_never_above_the_last_index(self, store: Any) -> None:
        store.stage_commit_index(50)
        store.store_logs(entries(1, 5))

        assert store.get_commit_index() == 5
        store.store_logs(entries(6, 60))
        assert store.get_commit_index() == 5

    def test_the_commit_index_does_not_outlive_its_entries(self, store: Any) -> None:
        store.stage_commit_index(5)
        store.store_logs(entries(1, 5))

        store.delete_range(3, 5)
        assert store.get_commit_index() == 2
        store.delete_range(1, 2)
        assert store.get_commit_index() == 0


class StableStoreContract(_Contract):
    """What `StableStore` promises."""

    def test_an_absent_key_is_refused(self, store: Any) -> None:
        with raises(KeyNotFoundError):
            store.get(b"absent")
        with raises(KeyNotFoundError):
            store.get_uint64(b"absent")

    def test_values_come_back_as_they_were_set(self, store: Any) -> None:
        for key, value in ((b"text", b"some"), (b"empty", b""), (b"\xff\x00", bytes(range(256)))):
            store.set(key, value)
            assert store.get(key) == value

    def test_the_last_value_of_a_key_counts(self, store: Any) -> None:
        store.set(b"key", b"first")
        store.set(b"key", b"second")

        assert store.get(b"key") == b"second"

    def test_numbers_of_64_bits_come_back(self, store: Any) -> None:
        for value in (0, 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1):
            store.set_uint64(b"number", value)
            assert store.get_uint64(b"number") == value

    def test_numbers_and_values_have_keys_of_their_own(self, store: Any) -> None:
        store.set(b"key", b"value")
        store.set_uint64(b"key", 7)

        assert store.get(b"key") == b"value"
        assert store.get_uint64(b"key") == 7

    def test_keys_survive_a_restart(self, store: Any) -> None:
        store.set(b"key", b"value")
        store.set_uint64(b"number", 9)

        store = self.restarted(store)

        assert store.get(b"key") == b"value"
        assert store.get_uint64(b"number") == 9


class SnapshotStoreContract(_Contract):
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
        with _raises_any():
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
            with _raises_any():
                store.create(version, 10, 3, CONFIGURATION, 2)
        assert list(store.list()) == []

    def test_an_unknown_snapshot_cannot_be_opened(self, store: Any) -> None:
        for snapshot_id in ("", "1-2-3"):
            with _raises_any():
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


@contextmanager
def _raises_any() -> Iterator[None]:
    try:
        yield
    except Exception:  # noqa: BLE001 - which error it is, is the store's own choice
        return
    raise AssertionError("nothing was raised")


class _Thread:
    """A thread whose exception comes out where it is joined."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._target = target
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._target()
        except BaseException as error:  # noqa: BLE001 - handed on by `finish`
            self._error = error

    def finish(self) -> None:
        """Wait for the end of the thread and raise what it died of."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
