"""Handing leadership over (thesis 3.10), over peers that the test answers for."""

import pytest

from raft.engine.inbox import ChangeKind, NewerTermSeen
from raft.errors import (
    LeadershipLostError,
    LeadershipTransferError,
    LeadershipTransferInProgressError,
    NotLeaderError,
    RPCTimeoutError,
    ShutdownOutcomeUnknownError,
)
from raft.messages import TimeoutNowRequest, TimeoutNowResponse
from raft.roles.follower import Follower
from raft.roles.transfer import pick_target
from raft.testing.script import header, servers
from raft.types import LogType, RaftState
from tests.roles.bench import NOOP, TERM, Bench

FOUR = servers("l", "a", "b", "c")


@pytest.mark.parametrize(
    ("next_indexes", "picked"),
    [
        ({}, None),
        ({"a": 9}, "a"),
        ({"a": 9, "b": 8}, "a"),
        ({"c": 9, "b": 8, "a": 8}, "c"),
        ({"a": 7, "b": 11, "c": 8}, "b"),
        ({"l": 20, "a": 7}, "a"),
        ({"b": 8, "a": 8}, "a"),
    ],
)
def test_the_voter_with_most_of_the_log_is_picked_never_the_leader_itself(next_indexes, picked):
    """XFR-02, XFR-03, XFR-04, XFR-05, XFR-06"""
    target = pick_target(FOUR, "l", next_indexes)

    assert (target and target.id) == picked


def test_nonvoters_are_not_picked():
    """XFR-17"""
    configuration = servers("l", "a", nonvoters=["b"])

    assert pick_target(configuration, "l", {"a": 3, "b": 9}).id == "a"
    assert pick_target(servers("l", nonvoters=["b"]), "l", {"b": 9}) is None


def ready():
    """A leader whose two followers have the whole log."""
    return Bench(storing=["n2", "n3"], election_timeout=0.2, heartbeat_timeout=0.2)


def timeout_now(bench):
    return bench.transport.open_calls(TimeoutNowRequest)


def settle(bench):
    """Let the followers answer what tells the leader that they have the whole log."""
    bench.runtime.advance(0.01)


def test_the_target_is_told_to_campaign_once_it_has_the_whole_log():
    """XFR-13, ETC-82: it is caught up first."""
    bench = ready()
    bench.storing.clear()
    bench.node.apply(b"x")

    future = bench.transfer("n2", "n2:1")
    settle(bench)
    assert timeout_now(bench) == []
    bench.store("n2")
    settle(bench)

    assert [call.server_id for call in timeout_now(bench)] == ["n2"]
    assert not future.done()


def test_a_transfer_succeeds_when_this_node_leads_no_longer():
    """ETC-80: not already when the target says that it campaigns."""
    bench = ready()
    future = bench.transfer("n2", "n2:1")
    settle(bench)

    timeout_now(bench)[0].answer(TimeoutNowResponse(header("n2")))
    bench.runtime.run()
    assert not future.done()
    bench.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    bench.runtime.run()

    assert future.error(0) is None
    assert bench.state.role is RaftState.FOLLOWER


def test_without_a_name_any_up_to_date_voter_takes_over():
    """XFR-07"""
    bench = ready()
    bench.transfer()
    settle(bench)

    assert [call.server_id for call in timeout_now(bench)] == ["n2"]


def test_a_transfer_needs_another_voter():
    """XFR-08, XFR-17"""
    for configuration in (servers("n1"), servers("n1", nonvoters=["n2"])):
        error = Bench(configuration).transfer().error(0)

        assert isinstance(error, LeadershipTransferError)
        assert "cannot find peer" in str(error)


@pytest.mark.parametrize(
    ("server_id", "text"),
    [
        ("n9", "cannot find replication state"),
        ("n1", "cannot transfer leadership to itself"),
        ("n4", "has no vote"),
    ],
)
def test_a_target_that_cannot_lead_is_refused_at_once(server_id, text):
    """XFR-11, XFR-14, ETC-84; and trap T15: a non-voter would depose us without being electable."""
    bench = Bench(servers("n1", "n2", "n3", nonvoters=["n4"]), storing=["n2"])

    error = bench.transfer(server_id, "x:1").error(0)

    assert isinstance(error, LeadershipTransferError)
    assert text in str(error)
    assert bench.node.apply(b"x").result(0) == 2


def test_a_target_that_cannot_be_asked_ends_the_transfer():
    """XFR-12: and it was asked at the address given."""
    bench = ready()
    future = bench.transfer("n2", "nowhere:1")
    settle(bench)
    (call,) = timeout_now(bench)

    call.answer(RPCTimeoutError("no answer in time"))
    bench.runtime.run()

    assert call.address == "nowhere:1"
    assert "failed to make TimeoutNow RPC" in str(future.error(0))
    assert bench.node.apply(b"x").result(0) == 2


def test_a_lack_of_threads_ends_the_transfer_and_not_the_node():
    bench = ready()
    bench.runtime.no_thread_for = "transfer"

    future = bench.transfer()
    settle(bench)

    assert isinstance(future.error(0), LeadershipTransferError)
    assert bench.is_leading()


def test_nothing_new_is_taken_in_while_leadership_is_handed_over():
    """XFR-01, XFR-15, ETC-86, ETC-88, ETC-89"""
    bench = ready()
    first = bench.transfer("n2", "n2:1")

    refused = [
        bench.node.apply(b"x"),
        bench.node.apply(b"", LogType.BARRIER),
        bench.change(ChangeKind.ADD_VOTER, "n4", "n4:1"),
        bench.change(ChangeKind.ADD_NONVOTER, "n4", "n4:1"),
        bench.change(ChangeKind.DEMOTE_VOTER, "n3"),
        bench.change(ChangeKind.REMOVE_SERVER, "n2"),
        bench.transfer(),
        bench.transfer("n3", "n3:1"),
    ]

    assert {type(future.error(0)) for future in refused} == {LeadershipTransferInProgressError}
    assert bench.core.raft_log.last_index() == NOOP
    assert not first.done()


def test_changes_that_wait_are_refused_when_a_transfer_begins():
    bench = Bench()
    waiting = bench.change(ChangeKind.ADD_VOTER, "n4", "n4:1")

    bench.transfer("n2", "n2:1")

    assert isinstance(waiting.error(0), LeadershipTransferInProgressError)


def test_reads_go_on_during_a_transfer():
    bench = ready()
    bench.transfer("n2", "n2:1")

    assert bench.verify().error(0) is None
    assert bench.read().result(0) == NOOP


def test_a_target_that_does_not_catch_up_in_time_ends_the_transfer():
    """XFR-16, ETC-85: after an election timeout the leader works as before."""
    bench = ready()
    bench.storing = {"n3"}
    bench.node.apply(b"x")
    future = bench.transfer("n2", "n2:1")

    bench.runtime.advance(0.19)
    assert not future.done()
    bench.runtime.advance(0.02)

    assert "leadership transfer timeout" in str(future.error(0))
    assert bench.node.apply(b"y").result(0) == 3
    assert timeout_now(bench) == []


def test_a_target_that_campaigns_in_vain_ends_the_transfer():
    """ETC-85: one more election timeout after it said yes."""
    bench = ready()
    future = bench.transfer("n2", "n2:1")
    settle(bench)
    timeout_now(bench)[0].answer(TimeoutNowResponse(header("n2")))

    bench.runtime.advance(0.19)
    assert not future.done()
    bench.runtime.advance(0.02)

    assert "leadership transfer timeout" in str(future.error(0))
    assert bench.is_leading()


def test_a_late_answer_does_not_touch_the_next_transfer():
    """Trap T16: one object for each transfer."""
    bench = ready()
    first = bench.transfer("n2", "n2:1")
    settle(bench)
    (late,) = timeout_now(bench)
    bench.runtime.advance(0.19)
    late.answer(RPCTimeoutError("no answer in time"))
    bench.runtime.run()
    assert first.done()

    second = bench.transfer("n2", "n2:1")
    settle(bench)
    late = timeout_now(bench)[0]
    bench.runtime.advance(0.25)
    third = bench.transfer("n3", "n3:1")
    late.answer(RPCTimeoutError("no answer in time"))
    bench.runtime.run()

    assert second.done()
    assert not third.done()


def test_leadership_lost_before_the_target_was_asked_is_told():
    """XFR-18, ETC-87: nothing is sent any more, and nobody waits for ever."""
    bench = ready()
    bench.storing.clear()
    bench.node.apply(b"x")
    future = bench.transfer("n2", "n2:1")

    bench.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    bench.runtime.advance(1.0)

    assert isinstance(future.error(0), LeadershipLostError)
    assert timeout_now(bench) == []


def test_a_shutdown_answers_a_transfer():
    bench = ready()
    future = bench.transfer("n2", "n2:1")

    bench.core.inbox.close()
    bench.runtime.run()

    assert isinstance(future.error(0), ShutdownOutcomeUnknownError)


def test_a_follower_refuses_a_transfer():
    bench = ready()
    bench.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    bench.runtime.run()

    bench.node.start(Follower)

    assert isinstance(bench.transfer().error(0), NotLeaderError)
