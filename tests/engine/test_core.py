"""What all roles rest on: durable before known, and the laws when a leadership ends."""

import logging

import pytest

from raft.engine.core import NodeLogger, StoppingError
from raft.engine.inbox import Apply, Bootstrap, SnapshotReceived
from raft.engine.state import HardState, NodeState
from raft.errors import (
    NotLeaderError,
    RaftInternalError,
    ShutdownNotAppliedError,
    StorageFailedError,
)
from raft.futures import ApplyFuture, Future
from raft.messages import AppendEntriesRequest, InstallSnapshotRequest
from raft.observer import LeaderObservation
from raft.roles.follower import Follower
from raft.runtime import Deadline, ThreadRuntime
from raft.testing.script import (
    Asked,
    ScriptedNode,
    configuration_entry,
    entries,
    header,
    servers,
)
from raft.types import EntryID, LogType, RaftState, SnapshotMeta


def node_with(*terms, **more):
    return ScriptedNode(log=entries(2, terms=terms), **more)


def failing(_):
    raise OSError("disk")


def append(term, prev, logs=(), commit=0):
    return AppendEntriesRequest(header("n2"), term, *prev, tuple(logs), commit)


# ---- transitions ----


def test_a_transition_is_observed_once():
    node = node_with()

    node.core.become(RaftState.CANDIDATE)
    node.core.become(RaftState.CANDIDATE)

    assert node.events == [RaftState.CANDIDATE]


def test_a_leader_is_observed_when_it_changes():
    node = node_with()

    node.core.set_leader("n2", "n2:1")
    node.core.set_leader("n2", "n2:1")
    node.core.set_leader("", "")

    assert node.events == [LeaderObservation("n2:1", "n2"), LeaderObservation("", "")]


def test_a_newer_term_is_durable_before_it_is_known():
    node = node_with()
    seen = []
    node.store.before_write = lambda _: seen.append(node.core.state.term)

    node.core.adopt_term(5)

    assert (seen, node.core.state.term) == ([1], 5)


@pytest.mark.parametrize("term", [1, 2])
def test_an_older_or_equal_term_changes_nothing(term):
    node = node_with(hard_state=HardState(2, "n3", "n3:1"))

    node.core.adopt_term(term)

    assert node.core.hard_state == HardState(2, "n3", "n3:1")
    assert node.store.writes == []


def test_a_vote_record_that_cannot_be_stored_changes_nothing():
    """Departure 2."""
    node = node_with()
    node.store.before_write = failing

    with pytest.raises(StorageFailedError, match="disk"):
        node.core.save_hard_state(HardState(5, "n2", "n2:1"))

    assert (node.core.hard_state, node.core.state.term) == (HardState(1), 1)
    assert isinstance(node.core.fault, OSError)


# ---- writing ----


def test_clients_are_refused_while_the_main_thread_waits_for_its_disk():
    node = node_with()
    node.core.set_leader("n2", "n2:1")
    door = node.runtime.event()
    node.runtime.spawn("main", lambda: node.core.write("slow", door.wait))
    node.runtime.run()

    future = node.apply(b"x")

    assert future.error(0).leader_id == "n2"
    door.set()
    node.runtime.run()
    assert node.core.disk.is_idle()


def test_a_bootstrap_waits_for_the_write_that_the_main_thread_waits_for():
    """It may be the entry of another server that was bootstrapped alike."""
    node = node_with()
    door = node.runtime.event()
    node.runtime.spawn("main", lambda: node.core.write("slow", door.wait))
    node.runtime.run()
    future = Future(node.host)

    message = Bootstrap(node.configuration, None, future)
    node.core.inbox.submit(message, Deadline(node.runtime, 0))
    node.runtime.run()
    assert not future.done()
    door.set()
    node.runtime.run()

    assert node.core.inbox.take(None) is message


def test_a_shutdown_gets_through_to_a_main_thread_that_waits_for_its_disk():
    """Law 1."""
    node = node_with()
    door, ended = node.runtime.event(), []

    def main():
        try:
            node.core.write("slow", door.wait)
        except StoppingError:
            ended.append("stopped")

    node.runtime.spawn("main", main)
    node.runtime.run()

    node.core.inbox.close()
    node.runtime.run()

    assert ended == ["stopped"]


# ---- the laws when a leadership ends ----


def test_a_tail_that_is_not_durable_is_forgotten():
    """Law 5."""
    node = node_with(1)
    node.core.raft_log.append(entries(3, terms=(1, 1)))
    node.core.publish_log()

    node.core.settle()

    assert node.core.raft_log.last() == EntryID(1, 2)
    assert node.core.state.published().last_log == EntryID(1, 2)


def test_settling_waits_for_the_write_under_way():
    """Law 5."""
    node = node_with(1)
    door = node.runtime.event()
    node.store.before_write = lambda _: door.wait()
    node.core.raft_log.append(entries(3, terms=(1,)))
    node.core.disk.submit("entries", node.core.raft_log.store_tail)
    node.runtime.run()
    ended = []

    node.runtime.spawn("main", lambda: ended.append(node.core.settle()))
    node.runtime.run()
    assert ended == []
    door.set()
    node.runtime.run()

    assert ended == [None]
    assert node.core.raft_log.last() == EntryID(1, 3)


def test_a_configuration_in_the_lost_tail_is_out_of_force():
    """Law 5."""
    node = node_with(1)
    changed = servers("n1", "n2", "n3", "n4")
    node.core.raft_log.append([configuration_entry(3, 1, changed)])
    node.core.membership.append_own(3, changed)

    node.core.settle()

    assert node.core.membership.latest == node.configuration
    assert node.core.state.published().configuration_index == 1


def committed_ahead_of_the_disk(tail):
    """A node whose tail the others have committed, and its own disk has not got."""
    node = node_with(1)
    node.core.raft_log.append(tail)
    for log in tail:
        if log.type is LogType.CONFIGURATION:
            node.core.membership.append_own(log.index, servers("n1", "n2", "n3", "n4"))
    node.core.apply_committed(tail[-1].index)
    node.runtime.run()
    return node


def test_what_was_committed_ahead_of_the_disk_comes_back_from_the_next_leader():
    """Law 3."""
    node = committed_ahead_of_the_disk(entries(3, terms=(1, 1)))
    node.core.settle()
    assert node.core.raft_log.last() == EntryID(1, 2)

    asked = node.ask(append(2, (2, 1), entries(3, terms=(1, 1, 2)), commit=5))

    assert asked.response.success
    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1", b"5/2"]


def test_a_configuration_committed_ahead_of_the_disk_comes_back_as_well():
    """Law 3: what is stored again in place of nothing truncates nothing."""
    changed = servers("n1", "n2", "n3", "n4")
    tail = [*entries(3, terms=(1,)), configuration_entry(4, 1, changed)]
    node = committed_ahead_of_the_disk(tail)
    node.core.settle()

    asked = node.ask(append(2, (2, 1), [*tail, *entries(5, terms=(2,))], commit=5))

    assert asked.response.success
    members = node.core.membership
    assert (members.latest, members.latest_index, members.is_stable()) == (changed, 4, True)


def test_an_older_configuration_that_comes_back_does_not_replace_the_committed_one():
    """Law 3."""
    changed = servers("n1", "n2", "n3", "n4")
    tail = [*entries(3, terms=(1,)), configuration_entry(4, 1, changed)]
    node = committed_ahead_of_the_disk(tail)
    node.core.settle()

    node.ask(append(2, (2, 1), tail[:1]))
    assert (node.core.membership.latest, node.core.membership.latest_index) == (changed, 4)
    node.ask(append(2, (3, 1), tail[1:]))

    assert (node.core.membership.latest, node.core.membership.latest_index) == (changed, 4)


def test_a_log_that_ends_before_the_own_snapshot_is_dropped_whole():
    """Law 3 and law 4: no hole may be left between them."""
    node = committed_ahead_of_the_disk(entries(3, terms=(1, 1)))
    node.core.snapshot_taken(SnapshotMeta("s", 4, 1, node.configuration, 1))

    node.core.settle()
    asked = node.ask(append(2, (4, 1), entries(5, terms=(2,))))

    assert asked.response.success
    assert node.stored() == [(5, 2)]


def test_a_snapshot_of_a_tail_that_is_lost_already_drops_the_log_as_well():
    """It was written while leadership ended: the news of it comes after the log was read anew."""
    node = committed_ahead_of_the_disk(entries(3, terms=(1, 1)))
    node.core.settle()

    node.core.snapshot_taken(SnapshotMeta("s", 4, 1, node.configuration, 1))
    asked = node.ask(append(2, (4, 1), entries(5, terms=(2,))))

    assert asked.response.success
    assert node.stored() == [(5, 2)]
    assert node.core.state.published().last_log == EntryID(2, 5)


def test_a_log_that_cannot_be_dropped_now_is_dropped_once_the_disk_is_fit():
    """Law 4: until then nothing is decided."""
    node = committed_ahead_of_the_disk(entries(3, terms=(1, 1)))
    node.core.snapshot_taken(SnapshotMeta("s", 4, 1, node.configuration, 1))
    node.store.before_write = failing

    node.core.settle()
    refused = node.ask(append(2, (4, 1), entries(5, terms=(2,))))
    node.store.before_write = lambda _: None

    assert isinstance(refused.error, StorageFailedError)
    assert node.core.recover_disk()
    assert node.stored() == []


# ---- recovering ----


def test_a_disk_that_is_fit_again_is_read_anew():
    node = node_with(1)
    node.store.before_write = failing
    with pytest.raises(StorageFailedError):
        node.core.save_hard_state(HardState(5))
    node.store.before_write = lambda _: None

    assert node.core.recover_disk() is True

    assert (node.core.fault, node.core.disk.is_fit()) == (None, True)


def test_what_a_failed_write_stored_all_the_same_is_found():
    """After an error the stores alone know."""
    node = node_with(1)

    def store_and_fail():
        HardState(5, "n2", "n2:1").save(node.store)
        raise OSError("power flickered")

    with pytest.raises(StorageFailedError):
        node.core.write("vote record", store_and_fail)

    assert node.core.recover_disk()
    assert (node.core.hard_state, node.core.state.term) == (HardState(5, "n2", "n2:1"), 5)


def test_a_probe_that_fails_leaves_the_fault():
    node = node_with(1)
    node.store.before_write = failing
    with pytest.raises(StorageFailedError):
        node.core.save_hard_state(HardState(5))

    assert node.core.recover_disk() is False

    assert node.core.fault is not None


def test_a_vote_record_that_fell_back_halts():
    """A disk that lost a durable vote must not vote again."""
    node = node_with(1, hard_state=HardState(5, "n2", "n2:1"))
    HardState(4).save(node.store)

    with pytest.raises(RaftInternalError, match="fell back"):
        node.core.settle()


# ---- compaction ----


def test_compaction_leaves_the_trailing_entries():
    node = node_with(*[1] * 9, config={"trailing_logs": 3})

    node.core.snapshot_taken(SnapshotMeta("s", 9, 1, node.configuration, 1))
    node.runtime.run()

    assert [index for index, _ in node.stored()] == [8, 9, 10]
    assert node.core.state.published().last_snapshot == EntryID(1, 9)


def test_compaction_never_goes_beyond_the_snapshot():
    node = node_with(*[1] * 9, config={"trailing_logs": 0})

    node.core.snapshot_taken(SnapshotMeta("s", 4, 1, node.configuration, 1))
    node.runtime.run()

    assert node.store.first_index() == 5


def test_a_short_log_is_not_compacted():
    node = node_with(*[1] * 9, config={"trailing_logs": 100})

    node.core.snapshot_taken(SnapshotMeta("s", 9, 1, node.configuration, 1))
    node.runtime.run()

    assert node.store.first_index() == 1


# ---- refusing ----


def test_a_refusal_names_the_leader():
    node = node_with()
    node.core.set_leader("n2", "n2:1")

    error = node.core.not_leader()

    assert (type(error), error.leader_id, error.leader_address) == (NotLeaderError, "n2", "n2:1")


def test_leftovers_of_a_closed_inbox_are_answered():
    node = node_with()
    future = ApplyFuture(node.host)
    node.core.inbox.submit(Apply(LogType.COMMAND, b"", b"", future), Deadline(node.runtime, None))
    asked = Asked(append(1, (0, 0)))
    node.core.inbox.deliver(asked.rpc)
    node.core.inbox.close()

    node.core.refuse_leftovers()

    assert isinstance(future.error(0), ShutdownNotAppliedError)
    assert isinstance(asked.error, ShutdownNotAppliedError)


def test_a_follower_refuses_what_only_a_leader_does():
    node = node_with()
    future = ApplyFuture(node.host)

    node.play(Follower, Apply(LogType.COMMAND, b"", b"", future))

    assert isinstance(future.error(0), NotLeaderError)


def test_an_id_with_a_percent_sign_does_not_spoil_the_log(caplog):
    log = NodeLogger(logging.getLogger("raft"), "n%d", NodeState(ThreadRuntime()))

    log.warning("x=%s", 1)

    assert caplog.messages == ["node=n_d term=0 x=1"]


def test_a_snapshot_that_came_too_late_is_answered_at_shutdown():
    node = ScriptedNode()
    asked = Asked(InstallSnapshotRequest(header("n2"), 1, 9, 1))
    node.core.inbox.post(SnapshotReceived(asked.rpc, None, None))
    node.core.inbox.close()

    node.core.refuse_leftovers()

    assert isinstance(asked.error, ShutdownNotAppliedError)
