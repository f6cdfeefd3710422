"""Config.restore_committed_logs: the commit index kept with the log, and what a start makes of it.

The index is only trusted as far as it cannot be wrong: what a quorum is known to have, in entries
that are on this disk.
"""

from dataclasses import replace

import pytest

from raft.engine.raft_log import RaftLog
from raft.errors import IncompatibleLogStoreError
from raft.messages import AppendEntriesRequest
from raft.roles.leader import Leader
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore, LogCache
from raft.testing.fsm import RecordedSnapshot, RecordingFSM
from raft.testing.manual import ManualRuntime
from raft.testing.script import (
    ScriptedNode,
    ScriptedStore,
    configuration_entry,
    entries,
    header,
    servers,
)

ON = {"restore_committed_logs": True}
MEMBERS, BIGGER = servers("n1", "n2"), servers("n1", "n2", "n3")


class ForgetfulStore:
    """A log store that tracks no commits."""

    def __init__(self, runtime):
        below = ScriptedStore(runtime)
        for name in ("first_index", "last_index", "get_log", "store_log", "store_logs"):
            setattr(self, name, getattr(below, name))
        for name in ("delete_range", "set", "get", "set_uint64", "get_uint64"):
            setattr(self, name, getattr(below, name))


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def store(runtime):
    return ScriptedStore(runtime)


def fill(store, *logs, commit):
    """Store entries behind a first configuration, in one write that tracks a commit index."""
    store.stage_commit_index(commit)
    store.store_logs([configuration_entry(1, 1, MEMBERS), *logs])


def started(store, runtime, **more):
    return ScriptedNode(store=store, runtime=runtime, **{"config": ON} | more)


def append(term, prev, logs, commit):
    return AppendEntriesRequest(header("n2"), term, *prev, tuple(logs), commit)


# ---- at start ----


def test_what_was_committed_is_applied_before_the_node_runs(store, runtime):
    fill(store, *entries(2, terms=(1, 1, 1)), commit=3)
    applied = []
    fsm = RecordingFSM(lambda log: applied.append((runtime.now, log.index)))

    core = started(store, runtime, fsm=fsm).core

    assert [index for _, index in applied] == [2, 3]
    assert (core.state.commit_index, core.state.applied_index) == (3, 3)
    assert core.raft_log.last_index() == 4


def test_more_than_one_batch_is_applied(store, runtime):
    """T6 (b): however many they are."""
    fill(store, *entries(2, terms=[1] * 500), commit=501)

    node = started(store, runtime, config=ON | {"max_append_entries": 8})

    assert node.core.state.applied_index == 501
    assert len(node.fsm.commands()) == 500


def test_an_entry_spoiled_while_it_is_applied_holds_up_nobody(store, runtime):
    """Departure 16: the node starts, and then sees to it as it would at any time."""
    fill(store, *entries(2, terms=(1, 1, 1)), commit=4)
    read, looks = store.get_range, []

    def get_range(first, last, max_bytes):
        looks.append(first)
        logs = read(first, last, max_bytes)
        if len(looks) == 1:
            return logs  # the scan for configurations
        return [replace(log, data=b"rotten") if log.index == 2 else log for log in logs]

    store.get_range = get_range

    core = started(store, runtime).core

    assert (core.state.commit_index, core.state.applied_index) == (4, 1)


def test_without_the_option_the_index_is_not_looked_at(store, runtime):
    fill(store, *entries(2, terms=(1,)), commit=2)

    core = started(store, runtime, config={}).core

    assert (core.state.commit_index, core.state.applied_index) == (0, 0)


def test_configurations_that_were_committed_count_as_such(store, runtime):
    """T6 (a): the log is looked through from the snapshot on, whatever is applied."""
    fill(store, configuration_entry(2, 1, BIGGER), *entries(3, terms=(1, 1)), commit=3)

    members = started(store, runtime).core.membership

    assert (members.committed, members.committed_index, members.latest) == (BIGGER, 2, BIGGER)


def test_a_configuration_behind_the_commit_index_is_not_committed(store, runtime):
    fill(store, *entries(2, terms=(1,)), configuration_entry(3, 1, BIGGER), commit=2)

    members = started(store, runtime).core.membership

    assert (members.committed, members.committed_index, members.latest) == (MEMBERS, 1, BIGGER)


@pytest.mark.parametrize(("commit", "applied"), [(2, 3), (3, 3), (4, 4)])
def test_a_snapshot_counts_as_committed_anyway(store, runtime, commit, applied):
    fill(store, *entries(2, terms=(1, 1, 1)), commit=commit)
    snapshots = InmemSnapshotStore(runtime=runtime)
    sink = snapshots.create(1, 3, 1, MEMBERS, 1)
    RecordedSnapshot(entries(2, terms=(1, 1))).persist(sink)
    sink.close()

    node = started(store, runtime, snapshots=snapshots)

    assert (node.core.state.commit_index, node.core.state.applied_index) == (applied, applied)
    assert len(node.fsm.commands()) == applied - 1


@pytest.mark.parametrize(("commit", "known"), [(2, 2), (4, 4)])
def test_a_user_restore_is_settled_by_a_commit_behind_it_alone(store, runtime, commit, known):
    """Departure 19: what was committed before it says nothing about it."""
    snapshots = InmemSnapshotStore(runtime=runtime)
    sink = snapshots.create(1, 3, 1, MEMBERS, 1, unsettled=True)
    RecordedSnapshot(entries(2, terms=(1, 1))).persist(sink)
    sink.close()
    store.stage_commit_index(commit)
    store.store_logs(entries(4, terms=(1, 1)))

    core = started(store, runtime, snapshots=snapshots).core

    assert (core.state.commit_index, core.state.applied_index) == (known, max(known, 3))
    assert (core.unsettled.meta is None) is (commit > 3)


def test_an_index_above_the_log_is_not_trusted(store, runtime):
    fill(store, *entries(2, terms=(1, 1)), commit=3)
    store.get_commit_index = lambda: 99  # by a store that does not look at its own end

    core = started(store, runtime).core

    assert (core.state.commit_index, core.state.applied_index) == (3, 3)


def test_a_log_that_a_snapshot_replaces_takes_its_index_along(store, runtime):
    """Law 4."""
    fill(store, *entries(2, terms=(1,) * 8), commit=4)
    snapshots = InmemSnapshotStore(runtime=runtime)
    sink = snapshots.create(1, 7, 2, MEMBERS, 1)
    RecordedSnapshot([]).persist(sink)
    sink.close()

    core = started(store, runtime, snapshots=snapshots).core

    assert (core.state.commit_index, core.raft_log.last_index()) == (7, 7)


def test_a_damaged_entry_is_not_applied(store, runtime):
    fill(store, *entries(2, terms=(1, 1)), commit=3)
    rotten = replace(store.get_log(3), data=b"rotten")
    store.store_logs([rotten])
    fsm = RecordingFSM()

    core = started(store, runtime, fsm=fsm).core

    assert fsm.commands() == [b"2/1"]
    assert (core.state.applied_index, core.damage.is_whole()) == (2, False)


def test_a_store_that_tracks_no_commits_is_refused(runtime):
    """SNP-05; before anything is read or written."""
    store = ForgetfulStore(runtime)

    with pytest.raises(IncompatibleLogStoreError, match="ForgetfulStore"):
        started(store, runtime)
    with pytest.raises(IncompatibleLogStoreError):
        RaftLog(runtime, LogCache(4, store), 0).track_commits()

    started(store, runtime, config={})


def test_a_cache_passes_it_on(runtime):
    """T6 (d)"""
    below = InmemStore(runtime=runtime)
    log = RaftLog(runtime, LogCache(4, below), 0)
    log.track_commits()

    log.replace_suffix(1, entries(1, terms=(1, 1, 1)), 2)

    assert (below.get_commit_index(), log.tracked_commit_index()) == (2, 2)


# ---- while running ----


def test_no_write_takes_along_an_index_above_its_own_end(store, runtime):
    """Law 3: a quorum may have more than this disk."""
    staged = []
    store.stage_commit_index = staged.append
    log = RaftLog(runtime, store, 1 << 20)
    log.track_commits()

    log.replace_suffix(1, entries(1, terms=(1, 1, 1)), 9)
    log.append(entries(4, terms=(1,)))
    log.store_tail(9)

    assert staged == [3, 4]


def test_a_follower_stores_what_the_request_has_shown_to_be_committed(runtime):
    node = ScriptedNode(runtime=runtime, config=ON)

    node.ask(append(1, (1, 1), entries(2, terms=(1, 1, 1)), commit=3))
    assert node.store.get_commit_index() == 3
    node.ask(append(1, (4, 1), entries(5, terms=(1,)), commit=50))
    assert node.store.get_commit_index() == 5

    assert node.restarted().core.state.applied_index == 5


def test_a_replaced_suffix_takes_the_index_along(runtime):
    """One transaction: what is committed by it, and what it replaces."""
    node = ScriptedNode(runtime=runtime, config=ON, log=entries(2, terms=(1, 1, 1)))

    node.ask(append(2, (2, 1), entries(3, terms=(2,)), commit=3))

    assert node.store.get_commit_index() == 3
    assert node.restarted().fsm.commands() == [b"2/1", b"3/2"]


def test_a_leader_stores_what_a_quorum_has(runtime):
    node = ScriptedNode(runtime=runtime, config=ON, configuration=servers("n1"))
    node.start(Leader)
    for data in (b"x", b"y"):
        node.apply(data)

    # Entries 2 to 4; each transaction holds what was committed before it began.
    assert (node.core.state.commit_index, node.store.get_commit_index()) == (4, 3)
    assert node.restarted().fsm.commands() == [b"x"]


def test_a_leader_that_knows_of_no_commit_of_its_own_stores_none(runtime):
    """A commit index that rests on a snapshot alone is none that a quorum has been counted for."""
    node = ScriptedNode(runtime=runtime, config=ON)
    node.core.state.set_commit_index(1)

    node.start(Leader)

    assert (node.core.raft_log.durable_index(), node.store.get_commit_index()) == (2, 0)


def test_without_the_option_nothing_is_tracked(runtime):
    node = ScriptedNode(runtime=runtime)

    node.ask(append(1, (1, 1), entries(2, terms=(1, 1)), commit=3))

    assert node.store.get_commit_index() == 0


def test_a_write_that_failed_has_tracked_nothing(runtime):
    node = ScriptedNode(runtime=runtime, config=ON)

    def fail(name):
        if name.startswith("store"):
            raise OSError("disk")

    node.store.before_write = fail
    node.ask(append(1, (1, 1), entries(2, terms=(1, 1)), commit=3))

    assert node.store.get_commit_index() == 0
