import pytest

from raft.errors import LogNotFoundError
from raft.interfaces import LogStore, StableStore, oldest_log
from raft.stores import InmemStore
from raft.testing.contracts import entries


def test_the_oldest_entry_of_an_empty_store_is_an_error():
    """LOG-03"""
    with pytest.raises(LogNotFoundError):
        oldest_log(InmemStore())


def test_the_oldest_entry_is_the_one_of_the_lowest_index():
    """LOG-04"""
    store = InmemStore()
    store.store_logs(entries(1234, 1236))

    assert oldest_log(store).index == 1234


def test_the_oldest_entry_is_found_although_it_is_compacted_meanwhile():
    class Compacting(InmemStore):
        def first_index(self):
            first = super().first_index()
            if first == 1:
                self.delete_range(1, 4)
            return first

    store = Compacting()
    store.store_logs(entries(1, 9))

    assert oldest_log(store).index == 5


def test_an_entry_below_the_first_one_lowers_the_first_index():
    store = InmemStore()
    store.store_logs(entries(5, 6))

    store.store_logs(entries(3, 3))

    assert (store.first_index(), store.last_index()) == (3, 6)


def test_deleting_up_to_a_gap_finds_the_next_entry_beyond_it():
    store = InmemStore()
    store.store_logs(entries(1, 2) + entries(8, 9))

    store.delete_range(1, 2)
    assert (store.first_index(), store.last_index()) == (8, 9)
    store.store_logs(entries(1, 2))
    store.delete_range(8, 9)
    assert (store.first_index(), store.last_index()) == (1, 2)


def test_a_range_stops_before_a_gap():
    store = InmemStore()
    store.store_logs(entries(1, 2) + entries(4, 5))

    assert store.get_range(1, 5, 1 << 20) == entries(1, 2)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_that_is_no_unsigned_64_bit_number_is_refused(value):
    store: StableStore = InmemStore()

    with pytest.raises(ValueError, match="unsigned"):
        store.set_uint64(b"key", value)


def test_it_is_both_a_log_store_and_a_stable_store():
    logs: LogStore = InmemStore()
    stable: StableStore = InmemStore()

    assert logs.last_index() == 0
    stable.set(b"key", b"value")
