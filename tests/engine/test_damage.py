"""Entries that the disk has changed, and what becomes of a node that has some (departure 16)."""

import io
from dataclasses import replace

import pytest

from raft.engine.damage import DAMAGE_KEY
from raft.engine.inbox import LogCorrupted, SnapshotTaken
from raft.engine.state import HardState
from raft.errors import LogCorruptError, RaftInternalError, StorageFailedError
from raft.futures import Future
from raft.messages import (
    AppendEntriesRequest,
    InstallSnapshotRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    TimeoutNowRequest,
)
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.testing.fsm import RecordedSnapshot
from raft.testing.manual import ManualRuntime
from raft.testing.script import (
    DEADLINE,
    Asked,
    ScriptedNode,
    ScriptedStore,
    configuration_entry,
    entries,
    header,
    servers,
)
from raft.types import EntryID, RaftState
from tests.roles.bench import NOOP, TERM, Bench

MEMBERS = servers("n1", "n2", "n3")


def spoil(store, index):
    store.store_logs([replace(store.get_log(index), data=b"rotten")])


def damaged(*indexes, configuration=MEMBERS, last=6):
    """A node that starts over entries 1 to `last`, some of them changed by the disk."""
    runtime = ManualRuntime()
    store = ScriptedStore(runtime)
    store.store_logs([configuration_entry(1, 1, configuration)])
    store.store_logs(entries(2, terms=(1,) * (last - 1)))
    HardState(1).save(store)
    for index in indexes:
        spoil(store, index)
    return ScriptedNode(runtime=runtime, store=store)


def append(node, prev, logs, commit=0):
    return node.ask(AppendEntriesRequest(header("n2"), 1, prev, 1, tuple(logs), commit))


def vote(node, term=2):
    return node.ask(RequestVoteRequest(header("n2"), term, 99, 99)).response


# ---- at start ----


@pytest.mark.parametrize("index", [2, 4, 6])
def test_what_is_spoiled_and_all_behind_it_is_given_up(index):
    node = damaged(index)

    assert node.stored() == [(i, 1) for i in range(1, index)]
    assert node.core.damage.upto == 6
    assert node.store.get(DAMAGE_KEY) == b"6 1"


def test_the_mark_is_durable_before_anything_is_deleted():
    runtime = ManualRuntime()
    store = ScriptedStore(runtime)
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1))])
    spoil(store, 2)
    store.writes.clear()
    order = []
    store.before_write = order.append

    ScriptedNode(runtime=runtime, store=store)

    assert [name for name in order if "set Damaged" in name or "delete" in name] == [
        "set DamagedUpto",
        "delete 2-3",
    ]


def test_the_first_of_several_damages_counts():
    assert damaged(5, 3).stored() == [(1, 1), (2, 1)]


def test_without_another_voter_the_node_does_not_start_and_keeps_everything():
    """Nobody could send it again: somebody may want to save what is left."""
    runtime = ManualRuntime()
    store = ScriptedStore(runtime)
    store.store_logs([configuration_entry(1, 1, servers("n1")), *entries(2, terms=(1, 1))])
    spoil(store, 2)

    with pytest.raises(LogCorruptError, match="entry 2"):
        ScriptedNode(runtime=runtime, store=store)

    assert store.last_index() == 3


def test_a_first_entry_that_is_spoiled_names_nobody_who_could_help():
    with pytest.raises(LogCorruptError, match="entry 1"):
        damaged(1)


def test_a_store_that_does_not_say_which_entry_is_spoiled_stops_the_start():
    """It is told no index, so giving up is not tried for ever."""

    class Vague(ScriptedStore):
        def get_log(self, index):
            raise LogCorruptError("something is damaged")

    runtime = ManualRuntime()
    store = Vague(runtime)
    store.store_logs([configuration_entry(1, 1, MEMBERS)])

    with pytest.raises(LogCorruptError, match="something"):
        ScriptedNode(runtime=runtime, store=store)


# ---- neither votes nor leads ----


def test_a_damaged_node_does_not_vote():
    node = damaged(4)

    assert not vote(node).granted
    assert not node.ask(RequestPreVoteRequest(header("n2"), 2, 99, 99)).response.granted


def test_a_damaged_node_does_not_campaign():
    node = damaged(4)

    node.play(Follower, DEADLINE, DEADLINE, DEADLINE)
    assert node.core.state.role is RaftState.FOLLOWER
    assert node.ask(TimeoutNowRequest(header("n2"))).error is not None
    node.play(Candidate)
    assert node.core.state.role is RaftState.FOLLOWER


def test_it_does_not_after_a_restart_either():
    again = damaged(4).restarted()

    assert again.core.damage.upto == 6
    assert not vote(again).granted


def test_entries_up_to_the_old_end_make_it_whole():
    node = damaged(4)

    assert append(node, 3, entries(4, terms=(1, 1))).response.success
    assert not vote(node).granted
    assert append(node, 5, entries(6, terms=(1,))).response.success

    node.core.set_leader("", "")
    assert vote(node).granted
    assert int(node.store.get(DAMAGE_KEY)) == 0
    assert node.restarted().core.damage.is_whole()


def test_a_snapshot_behind_the_old_end_makes_it_whole():
    node = damaged(4)
    node.start(Follower)
    pieces = []

    class Sink:
        write = pieces.append

    RecordedSnapshot([]).persist(Sink())
    data = b"".join(pieces)
    request = InstallSnapshotRequest(header("n2"), 1, 6, 1, MEMBERS, 1, len(data))
    asked = Asked(request, io.BytesIO(data))

    node.core.inbox.deliver(asked.rpc)
    node.runtime.run()

    assert asked.response.success
    assert node.core.damage.is_whole()


# ---- while it runs ----


def running(*terms, **more):
    """A follower whose entries are on disk only."""
    node = ScriptedNode(log=entries(2, terms=terms), config={"recent_log_bytes": 0}, **more)
    node.start(Follower)
    return node


def test_an_entry_that_is_spoiled_when_it_shall_be_applied_comes_again():
    node = running(1, 1, 1)
    spoil(node.store, 3)

    node.deliver(AppendEntriesRequest(header("n2"), 1, 4, 1, (), 4))
    node.runtime.advance(0.25)
    assert node.stored() == [(1, 1), (2, 1)]
    assert not node.core.damage.is_whole()
    node.deliver(AppendEntriesRequest(header("n2"), 1, 2, 1, tuple(entries(3, terms=(1, 1))), 4))
    node.runtime.advance(0.25)

    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1"]
    assert node.core.damage.is_whole()
    assert node.crashes == []


def test_a_second_damage_does_not_forget_how_far_the_log_once_went():
    node = damaged(4)
    assert append(node, 3, entries(4, terms=(1,))).response.success
    spoil(node.store, 4)

    node.core.damage.cut_off(4)

    assert (node.core.damage.upto, node.store.get(DAMAGE_KEY)) == (6, b"6 1")


@pytest.mark.parametrize(("term", "is_whole"), [(1, False), (2, True)])
def test_an_entry_of_a_later_term_makes_a_shorter_log_whole(term, is_whole):
    """All that was committed lies before it. Found by the simulation: nothing more was written."""
    node = damaged(4)
    request = AppendEntriesRequest(header("n2"), term, 3, 1, tuple(entries(4, terms=(term,))), 4)

    assert node.ask(request).response.success

    assert node.core.damage.is_whole() is is_whole
    node.runtime.run()
    assert node.restarted().core.damage.is_whole() is is_whole


def test_what_the_log_does_not_hold_is_not_cut_off():
    node = running(1, 1, 1)

    node.core.damage.cut_off(99)

    assert node.core.damage.is_whole()
    assert node.core.raft_log.last_index() == 4


def test_a_late_report_does_not_harm_what_has_come_again():
    node = running(1, 1, 1)
    error = LogCorruptError("entry 3", 3)

    node.core.inbox.post(LogCorrupted(error))
    node.runtime.advance(0.3)

    assert node.stored() == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert (node.core.damage.is_whole(), node.core.fault) == (True, None)


def test_below_the_snapshot_it_is_merely_dropped():
    node = running(1, 1, 1)
    node.core.raft_log.set_boundary(EntryID(1, 3))
    spoil(node.store, 2)

    node.core.inbox.post(LogCorrupted(LogCorruptError("entry 2", 2)))
    node.runtime.run()

    assert node.stored() == [(3, 1), (4, 1)]
    assert (node.core.damage.is_whole(), node.core.fault) == (True, None)


def test_a_leader_that_finds_damage_leaves():
    bench = Bench(storing=["n2", "n3"])
    in_flight = bench.node.apply(b"x")
    bench.storing.clear()
    in_flight = bench.node.apply(b"y")
    spoil(bench.node.store, 2)

    bench.core.inbox.post(LogCorrupted(LogCorruptError("entry 2", 2)))
    bench.runtime.run()

    assert not bench.is_leading()
    assert isinstance(in_flight.error(0), StorageFailedError)


def test_a_leader_whose_snapshot_covers_it_leads_on():
    bench = Bench(storing=["n2", "n3"])
    bench.core.raft_log.set_boundary(EntryID(TERM, NOOP))
    spoil(bench.node.store, 2)

    bench.core.inbox.post(LogCorrupted(LogCorruptError("entry 2", 2)))
    bench.runtime.run()

    assert bench.is_leading()
    assert bench.node.store.first_index() == 3


def test_a_lone_voter_that_finds_damage_halts():
    bench = Bench(servers("n1"))

    bench.core.inbox.post(LogCorrupted(LogCorruptError("entry 2", 2)))
    bench.runtime.run()

    (crash,) = bench.node.crashes
    assert isinstance(crash, RaftInternalError)
    assert "restore a backup" in str(crash)
    assert bench.node.store.last_index() == NOOP


def test_a_cut_whose_answer_was_lost_is_remembered():
    """The entries are gone all the same: the mark counts from before."""
    node = damaged()
    node.start(Follower)
    spoil(node.store, 4)
    delete = node.store.delete_range

    def lose_the_answer(first, last):
        delete(first, last)
        raise OSError("lost answer")

    node.store.delete_range = lose_the_answer
    node.core.inbox.post(LogCorrupted(LogCorruptError("entry 4", 4)))
    node.runtime.advance(1.0)
    node.store.delete_range = delete
    node.runtime.advance(5.0)

    assert node.stored() == [(1, 1), (2, 1), (3, 1)]
    assert node.core.damage.upto == 6


def test_a_snapshot_of_our_own_behind_the_old_end_makes_it_whole():
    """The FSM has what the log lacks; without this, two of three could elect nobody."""
    node = damaged()
    node.start(Follower)
    node.core.apply_committed(6)
    node.runtime.run()
    spoil(node.store, 4)
    node.core.inbox.post(LogCorrupted(LogCorruptError("entry 4", 4)))
    node.runtime.advance(0.25)
    assert not node.core.damage.is_whole()

    future = Future(node.host)
    node.core.fsm.capture(future)
    node.runtime.run()
    view = future.result(0)
    sink = node.snapshots.create(1, view.last.index, view.last.term, MEMBERS, 1)
    view.snapshot.persist(sink)
    sink.close()
    node.core.inbox.post(SnapshotTaken(node.snapshots.list()[0]))
    node.runtime.advance(0.02)

    assert node.core.damage.is_whole()
