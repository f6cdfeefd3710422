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
from typing import Any

from raft.errors import KeyNotFoundError, LogNotFoundError
from raft.testing.contract_base import (
    CONFIGURATION,
    Contract,
    WatchedThread,
    entries,
    raises,
    stored,
)
from raft.testing.snapshot_contract import (
    SnapshotStoreContract,
    begin_snapshot,
    read_all,
    take_snapshot,
)
from raft.types import Log, LogType

__all__ = [
    "CONFIGURATION",
    "CommitTrackingContract",
    "LogStoreContract",
    "MonotonicContract",
    "RangeContract",
    "SnapshotStoreContract",
    "StableStoreContract",
    "SuffixReplacingContract",
    "begin_snapshot",
    "entries",
    "raises",
    "read_all",
    "stored",
    "take_snapshot",
]


class LogStoreContract(Contract):
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

    def test_what_no_index_can_be_is_absent(self, store: Any) -> None:
        store.store_logs(entries(1, 3))

        for index in (-1, 0, 2**63 - 1, 2**63, 2**64, 2**80):
            with raises(LogNotFoundError):
                store.get_log(index)

    def test_a_range_to_delete_may_be_larger_than_any_log(self, store: Any) -> None:
        store.store_logs(entries(1, 10))

        store.delete_range(2**63, 2**64)
        store.delete_range(5, 2**64)
        assert (store.first_index(), store.last_index()) == (1, 4)
        store.delete_range(-(2**64), 2**64)

        assert (store.first_index(), store.last_index()) == (0, 0)

    def test_an_entry_far_ahead_can_be_deleted(self, store: Any) -> None:
        store.store_logs(entries(1, 3))
        store.store_log(Log(2**62, 1).sealed())

        store.delete_range(2, 2**63)

        assert (store.first_index(), store.last_index()) == (1, 1)

    def test_what_is_of_another_type_is_refused(self, store: Any) -> None:
        changeable: Any = bytearray(b"x")

        for wrong in (Log(4, 1, data=changeable), Log(4, 1, extensions=changeable)):
            with raises(TypeError):
                store.store_logs([*entries(1, 3), wrong])
        for too_large in (Log(2**63, 1), Log(4, 2**63), Log(-1, 1)):
            with raises(ValueError):
                store.store_logs([*entries(1, 3), too_large])

        assert store.last_index() == 0

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

        readers = [WatchedThread(read) for _ in range(3)]
        for index in range(2, 60):
            store.store_logs(entries(index, index))
        done.set()
        for reader in readers:
            reader.finish()

        assert not faults


class MonotonicContract(Contract):
    """What `MonotonicLogStore` promises on top."""

    def test_it_says_whether_gaps_are_an_error(self, store: Any) -> None:
        assert isinstance(store.is_monotonic(), bool)


class SuffixReplacingContract(Contract):
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


class RangeContract(Contract):
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

    def test_a_range_may_be_larger_than_any_log(self, store: Any) -> None:
        store.store_logs(entries(1, 3))

        assert store.get_range(2, 2**80, 1 << 20) == entries(2, 3)
        with raises(LogNotFoundError):
            store.get_range(2**63, 2**64, 1 << 20)

    def test_a_range_whose_first_entry_is_absent_is_refused(self, store: Any) -> None:
        store.store_logs(entries(5, 6))

        for first in (1, 4, 7):
            with raises(LogNotFoundError):
                store.get_range(first, 100, 1 << 20)


class CommitTrackingContract(Contract):
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


class StableStoreContract(Contract):
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

    def test_what_is_no_bytes_and_no_number_of_64_bits_is_refused(self, store: Any) -> None:
        wrong: Any
        for wrong in ("text", bytearray(b"x"), None, 1):
            with raises(TypeError):
                store.set(wrong, b"value")
            with raises(TypeError):
                store.set(b"key", wrong)
            with raises(TypeError):
                store.set_uint64(wrong, 1)
        for wrong in ("1", 1.0, None):
            with raises(TypeError):
                store.set_uint64(b"key", wrong)
        for number in (-1, 2**64):
            with raises(ValueError):
                store.set_uint64(b"key", number)

        with raises(KeyNotFoundError):
            store.get(b"key")

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
