import pytest

from raft.errors import LogNotFoundError
from raft.interfaces import (
    CommitTrackingLogStore,
    LogStore,
    MaintainedStore,
    MeasuredStore,
    MonotonicLogStore,
    RangeLogStore,
    ReopenableStore,
    SuffixReplacingLogStore,
)
from raft.stores import InmemStore, LogCache
from raft.testing.contracts import entries

OPTIONAL = {
    SuffixReplacingLogStore: ("replace_suffix",),
    RangeLogStore: ("get_range",),
    MonotonicLogStore: ("is_monotonic",),
    CommitTrackingLogStore: ("stage_commit_index", "get_commit_index"),
    MaintainedStore: ("maintain",),
    MeasuredStore: ("stats",),
    ReopenableStore: ("reopen",),
}


class FailingStore(InmemStore):
    """Fails the next write, before or after it took effect."""

    failure = ""

    def store_logs(self, logs):
        failure, self.failure = self.failure, ""
        if failure == "before":
            raise OSError("some error")
        super().store_logs(logs)
        if failure == "after":
            raise OSError("some error")


class PlainStore:
    """A log store with nothing but what every log store has."""

    def __init__(self):
        below = InmemStore()
        self.first_index, self.last_index = below.first_index, below.last_index
        self.get_log, self.store_log = below.get_log, below.store_log
        self.store_logs, self.delete_range = below.store_logs, below.delete_range


def test_writes_go_through_and_recent_entries_are_served_from_the_ring():
    """LOG-01"""
    below = InmemStore()
    below.store_logs(entries(1, 32))
    cache = LogCache(16, below)
    assert (cache.first_index(), cache.last_index()) == (1, 32)
    assert cache.get_log(1).index == 1

    cache.store_logs(entries(33, 34))

    assert cache.last_index() == 34
    assert [below.get_log(index).index for index in (33, 34)] == [33, 34]
    below.delete_range(33, 34)
    assert [cache.get_log(index).index for index in (33, 34)] == [33, 34]
    assert cache.get_range(33, 34, 1 << 20) == entries(33, 34)
    cache.delete_range(33, 34)
    for index in (33, 34):
        with pytest.raises(LogNotFoundError):
            cache.get_log(index)


def test_entries_that_the_store_failed_to_take_do_not_enter_the_cache():
    """LOG-02"""
    below = FailingStore()
    below.store_logs(entries(1, 4))
    below.failure = "before"
    cache = LogCache(16, below)

    with pytest.raises(OSError, match="some error"):
        cache.store_logs(entries(5, 5))

    assert [cache.get_log(index).index for index in range(1, 5)] == [1, 2, 3, 4]
    with pytest.raises(LogNotFoundError):
        cache.get_log(5)


def test_a_failed_overwrite_is_read_anew_from_the_store():
    below = FailingStore()
    cache = LogCache(16, below)
    cache.store_logs(entries(1, 2))
    below.failure = "after"

    with pytest.raises(OSError, match="some error"):
        cache.store_logs(entries(2, 2, term=7))

    assert cache.get_log(2).term == 7


def test_reads_do_not_fill_the_cache():
    below = InmemStore()
    below.store_logs(entries(1, 4))
    cache = LogCache(16, below)
    assert cache.get_log(3) == cache.get_range(3, 3, 0)[0]

    below.delete_range(1, 4)

    with pytest.raises(LogNotFoundError):
        cache.get_log(3)


def test_an_entry_that_lost_its_slot_is_read_from_the_store():
    cache = LogCache(4, InmemStore())
    cache.store_logs(entries(1, 10))

    assert [cache.get_log(index).index for index in range(1, 11)] == list(range(1, 11))
    assert cache.get_range(1, 10, 1 << 20) == entries(1, 10)


def test_a_replaced_suffix_leaves_nothing_of_the_old_one():
    cache = LogCache(16, InmemStore())
    cache.store_logs(entries(1, 8))

    cache.replace_suffix(3, entries(3, 4, term=2))

    assert [cache.get_log(index).term for index in range(1, 5)] == [1, 1, 2, 2]
    with pytest.raises(LogNotFoundError):
        cache.get_log(5)


@pytest.mark.parametrize("capacity", [0, -1])
def test_the_capacity_must_be_positive(capacity):
    with pytest.raises(ValueError, match="capacity must be positive"):
        LogCache(capacity, InmemStore())


@pytest.mark.parametrize("contract", OPTIONAL, ids=lambda contract: contract.__name__)
def test_exactly_the_optional_contracts_of_the_store_are_offered(contract):
    below = PlainStore()
    without: LogStore = LogCache(4, below)
    for name in OPTIONAL[contract]:
        setattr(below, name, lambda *_: "forwarded")
    cache = LogCache(4, below)

    assert not any(isinstance(without, optional) for optional in OPTIONAL)
    assert [optional for optional in OPTIONAL if isinstance(cache, optional)] == [contract]
    assert [optional for optional in OPTIONAL if isinstance(LogCache(4, cache), optional)] == [
        contract
    ]


def test_forwarded_calls_reach_the_store():
    below = PlainStore()
    calls = []
    below.stage_commit_index = calls.append
    below.get_commit_index = lambda: 7
    below.is_monotonic = lambda: True
    below.maintain = lambda: calls.append("maintain")
    below.reopen = lambda: calls.append("reopen")
    cache = LogCache(4, below)

    cache.stage_commit_index(5)
    cache.maintain()
    cache.reopen()

    assert calls == [5, "maintain", "reopen"]
    assert cache.get_commit_index() == 7
    assert cache.is_monotonic() is True


def test_a_reopened_store_is_read_anew():
    below = PlainStore()
    below.reopen = lambda: below.delete_range(2, 2)
    cache = LogCache(4, below)
    cache.store_logs(entries(1, 2))

    cache.reopen()

    assert cache.get_log(1).index == 1
    with pytest.raises(LogNotFoundError):
        cache.get_log(2)
