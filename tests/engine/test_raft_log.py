from dataclasses import replace

import pytest

from raft.engine.raft_log import RaftLog
from raft.errors import (
    LogCompactedError,
    LogCorruptError,
    LogGapError,
    LogNotFoundError,
    RaftInternalError,
)
from raft.interfaces import RangeLogStore, SuffixReplacingLogStore
from raft.stores import InmemStore
from raft.testing.manual import ManualRuntime
from raft.testing.script import ScriptedStore, entries
from raft.types import NO_ENTRY, EntryID

PLENTY = 1 << 20


class PlainStore:
    """A log store with nothing beyond the original's contract, that notes what it is asked."""

    def __init__(self):
        self._inner = InmemStore()
        self.asked = []

    def __getattr__(self, name):
        if name in ("get_range", "replace_suffix"):
            raise AttributeError(name)
        method = getattr(self._inner, name)

        def call(*args):
            self.asked.append(name)
            return method(*args)

        return call


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture(params=["all abilities", "plain"])
def store(request, runtime):
    return ScriptedStore(runtime) if request.param == "all abilities" else PlainStore()


def loaded(runtime, store, *logs, boundary=NO_ENTRY, memory=PLENTY):
    """A log over a store that holds these entries, as after a start."""
    if logs:
        store.store_logs(list(logs))
    log = RaftLog(runtime, store, memory)
    log.set_boundary(boundary)
    log.reload()
    return log


def terms(log, first, last):
    return [log.term_at(index) for index in range(first, last + 1)]


def test_the_plain_store_of_these_tests_is_plain():
    assert not isinstance(PlainStore(), RangeLogStore | SuffixReplacingLogStore)


def test_a_blank_log_ends_at_nothing(runtime, store):
    log = loaded(runtime, store)

    assert (log.first_index(), log.last(), log.durable_index()) == (0, NO_ENTRY, 0)
    assert log.term_at(0) == 0
    with pytest.raises(LogNotFoundError):
        log.term_at(1)


def test_a_log_is_what_its_store_holds(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 2)))

    assert (log.first_index(), log.last(), log.durable_index()) == (1, EntryID(2, 3), 3)
    assert terms(log, 1, 3) == [1, 1, 2]
    assert list(log.entries(1, 9, PLENTY)) == entries(1, terms=(1, 1, 2))


# ---- the tail ----


def test_the_tail_is_readable_before_it_is_durable(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1,)))

    log.append(entries(2, terms=(2, 2)))

    assert (log.last(), log.durable_index()) == (EntryID(2, 3), 1)
    assert log.term_at(3) == 2
    assert log.entries(2, 9, PLENTY) == tuple(entries(2, terms=(2, 2)))
    assert store.last_index() == 1


def test_storing_the_tail_makes_it_durable_in_one_transaction(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store)
    log.append(entries(1, terms=(1,)))
    log.append(entries(2, terms=(1, 1)))

    assert log.store_tail() == 3

    assert store.writes == ["store 1-3"]
    assert log.durable_index() == 3


def test_storing_twice_writes_nothing_the_second_time(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store)
    log.append(entries(1, terms=(1,)))
    log.store_tail()

    assert log.store_tail() == 1

    assert store.writes == ["store 1-1"]


def test_a_failed_write_leaves_the_tail_not_durable(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store)
    log.append(entries(1, terms=(1,)))

    def fail(_):
        raise OSError("disk")

    store.before_write = fail
    with pytest.raises(OSError, match="disk"):
        log.store_tail()

    assert (log.durable_index(), log.last_index()) == (0, 1)


def test_a_dropped_tail_is_not_stored_and_forgotten_when_read_anew(runtime, store):
    """Law 5: batches not begun are dropped."""
    log = loaded(runtime, store, *entries(1, terms=(1,)))
    log.append(entries(2, terms=(2,)))

    log.drop_tail()
    assert log.store_tail() == 1
    log.reload()

    assert (store.last_index(), log.last()) == (1, EntryID(1, 1))
    with pytest.raises(LogNotFoundError):
        log.term_at(2)


@pytest.mark.parametrize("first", [1, 2, 4])
def test_appending_anywhere_but_at_the_end_is_an_internal_error(runtime, store, first):
    log = loaded(runtime, store, *entries(1, terms=(1, 1)))

    with pytest.raises(RaftInternalError, match="hole"):
        log.append(entries(first, terms=(2,)))


def test_the_tail_begins_behind_the_boundary_of_an_empty_log(runtime, store):
    log = loaded(runtime, store, boundary=EntryID(2, 10))

    log.append(entries(11, terms=(3,)))
    log.store_tail()

    assert (log.first_index(), log.last(), store.first_index()) == (11, EntryID(3, 11), 11)


# ---- reading ----


def test_new_entries_are_read_from_memory(runtime):
    store = PlainStore()
    log = loaded(runtime, store)
    log.append(entries(1, terms=(1, 1, 1)))
    log.store_tail()
    store.asked.clear()

    log.entries(1, 3, PLENTY)
    log.term_at(2)

    assert store.asked == []


def test_durable_entries_leave_memory_to_save_room(runtime):
    store = PlainStore()
    log = loaded(runtime, store, memory=0)
    log.append(entries(1, terms=(1, 1)))
    assert log.entries(1, 2, PLENTY) == tuple(entries(1, terms=(1, 1)))
    assert "get_log" not in store.asked

    log.store_tail()

    assert log.entries(1, 2, PLENTY) == tuple(entries(1, terms=(1, 1)))
    assert "get_log" in store.asked


def test_the_tail_never_leaves_memory(runtime, store):
    log = loaded(runtime, store, memory=0)
    log.append(entries(1, terms=(1, 1)))
    log.store_tail()

    log.append(entries(3, terms=(1, 1)))

    assert log.entries(3, 2, PLENTY) == tuple(entries(3, terms=(1, 1)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_read_ends_at_the_count_and_at_the_bytes_but_gives_one(runtime, store, in_memory):
    logs = entries(1, terms=(1,) * 5)
    size = logs[0].size()
    log = loaded(runtime, store, *([] if in_memory else logs))
    if in_memory:
        log.append(logs)

    assert log.entries(2, 3, PLENTY) == tuple(logs[1:4])
    assert log.entries(4, 9, PLENTY) == tuple(logs[3:])
    assert log.entries(2, 9, 2 * size) == tuple(logs[1:3])
    assert log.entries(2, 9, 1) == (logs[1],)


def test_reading_behind_the_end_finds_nothing(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1)))

    with pytest.raises(LogNotFoundError) as caught:
        log.entries(3, 1, PLENTY)

    assert not isinstance(caught.value, LogCompactedError)


def test_a_read_that_begins_in_the_store_goes_no_further_than_what_is_durable(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1)))
    log.append(entries(3, terms=(2,)))

    assert [e.index for e in log.entries(1, 9, PLENTY)] == [1, 2]


def spoil(store, index):
    """Change an entry on disk behind its checksum."""
    store.store_logs([replace(store.get_log(index), data=b"rotten")])


def test_an_entry_that_the_disk_has_changed_is_found_when_read(runtime, store):
    """Departure 16."""
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)))
    spoil(store, 2)

    assert [entry.index for entry in log.entries(1, 3, PLENTY)] == [1]
    with pytest.raises(LogCorruptError, match="entry 2") as caught:
        log.entries(2, 2, PLENTY)
    assert caught.value.index == 2
    with pytest.raises(LogCorruptError, match="entry 2"):
        log.term_at(2)


def test_a_changed_last_entry_is_found_at_start(runtime, store):
    store.store_logs(entries(1, terms=(1, 1)))
    spoil(store, 2)

    with pytest.raises(LogCorruptError, match="entry 2"):
        loaded(runtime, store)


# ---- the follower's write ----


def test_a_suffix_that_follows_is_just_stored(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store, *entries(1, terms=(1,)))
    store.writes.clear()

    log.replace_suffix(2, entries(2, terms=(2, 2)))

    assert store.writes == ["store 2-3"]
    assert (log.last(), log.durable_index()) == (EntryID(2, 3), 3)


def test_a_conflicting_suffix_is_replaced_in_one_transaction(runtime):
    """Departure 3."""
    store = ScriptedStore(runtime)
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)))
    store.writes.clear()

    log.replace_suffix(2, entries(2, terms=(2,)))

    assert store.writes == ["replace 2 by 2-2"]


def test_a_conflicting_suffix_is_gone_afterwards(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)))

    log.replace_suffix(2, entries(2, terms=(2,)))

    assert (log.last(), log.durable_index(), store.last_index()) == (EntryID(2, 2), 2, 2)
    assert terms(log, 1, 2) == [1, 2]
    with pytest.raises(LogNotFoundError):
        log.term_at(3)


def test_a_plain_store_truncates_first_and_then_appends(runtime):
    store = PlainStore()
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)))
    store.asked.clear()

    log.replace_suffix(2, entries(2, terms=(2,)))

    assert [name for name in store.asked if name in ("delete_range", "store_logs")] == [
        "delete_range",
        "store_logs",
    ]


def test_a_suffix_behind_a_hole_is_an_internal_error(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1,)))

    with pytest.raises(RaftInternalError, match="hole"):
        log.replace_suffix(3, entries(3, terms=(2,)))


def test_a_suffix_replaces_what_is_in_memory_too(runtime, store):
    log = loaded(runtime, store)
    log.append(entries(1, terms=(1, 1, 1)))
    log.store_tail()

    log.replace_suffix(2, entries(2, terms=(2, 2)))

    assert log.entries(1, 9, PLENTY) == tuple(entries(1, terms=(1, 2, 2)))


def test_a_suffix_from_the_first_entry_on_replaces_the_whole_log(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1)))

    log.replace_suffix(1, entries(1, terms=(3,)))

    assert (log.first_index(), log.last()) == (1, EntryID(3, 1))


# ---- compaction and the boundary ----


def test_an_older_boundary_changes_nothing(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1,) * 9), boundary=EntryID(1, 5))

    log.set_boundary(EntryID(1, 3))

    assert log.boundary() == EntryID(1, 5)


def test_compaction_deletes_from_the_front_in_steps(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store, *entries(1, terms=(1,) * 700), boundary=EntryID(1, 650))
    store.writes.clear()

    steps = 1
    while log.compact_step(600):
        steps += 1

    assert store.writes[0] == "delete 1-256"
    assert (steps, log.first_index(), store.first_index()) == (2, 601, 601)
    assert log.compact_step(600) is False


def test_slow_steps_become_smaller(runtime):
    store = ScriptedStore(runtime)
    log = loaded(runtime, store, *entries(1, terms=(1,) * 700), boundary=EntryID(1, 700))

    def slow(_):
        runtime.now += 0.010

    store.before_write = slow
    store.writes.clear()
    for _ in range(3):
        log.compact_step(700)

    assert store.writes == ["delete 1-256", "delete 257-384", "delete 385-448"]


def test_nothing_above_the_boundary_is_compacted(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1,) * 9), boundary=EntryID(1, 4))

    log.compact_step(9)

    assert log.first_index() == 5


def test_what_was_compacted_says_so(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 2, 2)), boundary=EntryID(2, 3))

    log.compact_step(3)

    with pytest.raises(LogCompactedError):
        log.term_at(2)
    with pytest.raises(LogCompactedError):
        log.entries(2, 1, PLENTY)
    assert log.term_at(3) == 2, "the boundary's own term is known"


def test_compaction_of_everything_leaves_an_empty_log_that_goes_on(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1)), boundary=EntryID(1, 2))

    assert log.compact_step(2) is False
    assert (log.first_index(), log.last(), store.last_index()) == (0, EntryID(1, 2), 0)
    log.append(entries(3, terms=(1,)))
    log.store_tail()

    assert (log.first_index(), log.last_index()) == (3, 3)


def test_a_read_that_compaction_overtook_says_so(runtime):
    class Racing(InmemStore):
        """Loses the front while it is being read, as the disk thread may do to a reader."""

        def get_range(self, first, last, max_bytes):
            self.delete_range(1, 3)
            return super().get_range(first, last, max_bytes)

    log = loaded(runtime, Racing(), *entries(1, terms=(1,) * 5), boundary=EntryID(1, 3))

    with pytest.raises(LogCompactedError):
        log.entries(2, 1, PLENTY)


def test_dropping_everything_begins_behind_the_snapshot(runtime, store):
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)))

    log.drop_all(EntryID(4, 9))

    assert (store.last_index(), log.first_index(), log.durable_index()) == (0, 0, 0)
    assert (log.last(), log.boundary()) == (EntryID(4, 9), EntryID(4, 9))
    assert log.term_at(9) == 4
    log.replace_suffix(10, entries(10, terms=(4,)))
    assert log.last() == EntryID(4, 10)


# ---- law 4 at start: does the log join the newest snapshot? ----


@pytest.mark.parametrize(
    ("first", "log_terms", "boundary", "drops"),
    [
        pytest.param(1, (), EntryID(2, 4), False, id="no log"),
        pytest.param(1, (1, 1), NO_ENTRY, False, id="no snapshot"),
        pytest.param(1, (1, 1, 2, 2, 2), EntryID(2, 4), False, id="same entry at the boundary"),
        pytest.param(1, (1, 1, 2, 2), EntryID(2, 4), False, id="ends at the boundary"),
        pytest.param(5, (2, 2), EntryID(2, 4), False, id="begins right behind"),
        pytest.param(1, (1, 1, 1, 1, 1), EntryID(2, 4), True, id="another term at the boundary"),
        pytest.param(1, (1, 1, 2), EntryID(2, 4), True, id="ends before the boundary"),
        pytest.param(4, (3, 3), EntryID(2, 4), True, id="begins at it with another term"),
    ],
)
def test_at_start_the_log_is_kept_only_if_it_holds_the_snapshots_last_entry(
    runtime, store, first, log_terms, boundary, drops
):
    """Law 4, departure 4."""
    log = loaded(runtime, store, *entries(first, terms=log_terms), boundary=boundary)

    assert log.must_drop() is drops


@pytest.mark.parametrize(("first", "boundary"), [(6, EntryID(2, 4)), (2, NO_ENTRY)])
def test_a_gap_above_the_snapshot_is_refused(runtime, store, first, boundary):
    """Law 4, departure 4."""
    log = loaded(runtime, store, *entries(first, terms=(2, 2)), boundary=boundary)

    with pytest.raises(LogGapError, match="entries are missing"):
        log.must_drop()


def test_a_spoiled_entry_does_not_tell_whether_the_log_goes_on(runtime, store):
    """Departure 16: its term may be what the disk has changed."""
    log = loaded(runtime, store, *entries(1, terms=(1, 1, 1)), boundary=EntryID(1, 2))
    store.store_logs([replace(store.get_log(2), data=b"rotten")])

    with pytest.raises(LogCorruptError):
        log.must_drop()
