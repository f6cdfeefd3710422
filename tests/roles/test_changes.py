"""New voters that catch up before they vote (thesis 4.2.1); other changes: test_leader."""

import pytest

import raft.roles.changes
from raft.engine.inbox import ChangeKind, NewerTermSeen
from raft.errors import (
    CatchUpError,
    ConfigurationChangedError,
    EnqueueTimeoutError,
    LeadershipLostError,
    LeadershipTransferInProgressError,
    NotLeaderError,
    OutcomeUnknownError,
)
from raft.testing.script import servers
from raft.types import ServerSuffrage
from tests.roles.bench import NOOP, TERM, THREE, Bench

ADD, REMOVE = ChangeKind.ADD_VOTER, ChangeKind.REMOVE_SERVER
ADD_NONVOTER = ChangeKind.ADD_NONVOTER
ENTERED = servers("n1", "n2", "n3", nonvoters=["n4"])


def bench(**config):
    made = Bench(storing=["n2", "n3"], **{"election_timeout": 0.1} | config)
    assert made.core.membership.is_stable()
    return made


def add(leader, **options):
    return leader.change(ADD, "n4", "n4:1", catch_up=True, **options)


def test_a_new_voter_enters_without_a_vote():
    """It cannot hold up commits before it has the log."""
    leader = bench()

    future = add(leader)

    assert leader.core.membership.latest == ENTERED
    assert not future.done()
    assert leader.node.apply(b"x").result(0) == 2


def test_it_gets_its_vote_when_it_has_caught_up():
    leader = bench()
    future = add(leader)

    leader.store("n4")
    leader.runtime.advance(0.01)

    assert future.error(0) is None
    assert leader.core.membership.committed.has_vote("n4")
    assert future.index() == NOOP + 2


def test_a_round_longer_than_an_election_timeout_is_followed_by_another():
    """What came meanwhile must be shown to arrive faster than that."""
    leader = bench()
    future = add(leader)
    leader.node.apply(b"x")
    leader.runtime.advance(0.3)

    leader.storing = {"n2", "n3"}
    leader.leader.commitment.match("n4", NOOP + 2)
    leader.runtime.run()
    assert not leader.core.membership.latest.has_vote("n4")
    leader.store("n4")
    leader.runtime.advance(0.05)

    assert future.error(0) is None


def test_one_that_stays_too_slow_gets_no_vote():
    leader = bench()
    future = add(leader)

    for _ in range(10):
        assert not future.done()
        leader.runtime.advance(0.2)
        leader.leader.commitment.match("n4", leader.core.raft_log.last_index())
        leader.runtime.run()

    assert isinstance(future.error(0), CatchUpError)
    assert leader.core.membership.latest == ENTERED


def test_one_that_does_not_answer_is_given_up():
    leader = bench()
    leader.beating.discard("n4")

    future = add(leader)
    leader.runtime.advance(0.9)
    assert not future.done()
    leader.runtime.advance(0.2)

    said = str(future.error(0))
    assert "n4 does not answer (last error: " in said
    assert leader.leader.peers.last_error("n4") in said
    assert "stays as a non-voter" in said
    assert leader.core.membership.latest == ENTERED


def test_the_callers_timeout_covers_catching_up():
    leader = bench()

    future = add(leader, timeout=0.3)
    leader.runtime.advance(0.35)

    assert isinstance(future.error(0), CatchUpError)
    assert "in time" in str(future.error(0))
    assert leader.core.membership.latest == ENTERED


def test_one_that_is_removed_meanwhile_is_given_up():
    leader = bench()
    future = add(leader)

    leader.change(REMOVE, "n4").result(0)

    assert "removed" in str(future.error(0))
    assert leader.core.membership.latest == THREE


def test_a_non_voter_of_long_standing_is_promoted_alike():
    leader = Bench(ENTERED, storing=["n2", "n3", "n4"])

    future = add(leader)
    leader.runtime.advance(0.01)

    assert future.error(0) is None
    assert leader.core.membership.latest.server("n4").suffrage is ServerSuffrage.VOTER


def test_a_voter_has_nothing_to_catch_up():
    leader = bench()

    future = leader.change(ADD, "n3", "elsewhere:1", catch_up=True)

    assert future.error(0) is None
    assert leader.core.membership.latest.server("n3").address == "elsewhere:1"


def test_asking_twice_is_refused_while_it_catches_up():
    leader = bench()
    first = add(leader)

    second = add(leader)

    assert "already" in str(second.error(0))
    assert not first.done()


def test_a_change_that_cannot_be_made_is_refused_before_anything_is_logged():
    leader = bench()

    future = add(leader, prev_index=7)

    assert isinstance(future.error(0), ConfigurationChangedError)
    assert leader.core.raft_log.last_index() == NOOP


def test_the_previous_index_is_looked_at_when_it_enters_only():
    leader = bench()

    future = add(leader, prev_index=1)
    leader.store("n4")
    leader.runtime.advance(0.01)

    assert future.error(0) is None


def test_the_end_of_the_leadership_is_the_end_of_catching_up():
    leader = bench()
    future = add(leader)

    leader.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    leader.runtime.run()

    assert isinstance(future.error(0), LeadershipLostError)


def test_other_changes_do_not_wait_for_it():
    leader = bench()
    add(leader)

    assert leader.change(REMOVE, "n3").error(0) is None


def test_one_that_waits_for_its_turn_too_long_has_not_entered():
    leader = Bench(election_timeout=0.1)

    future = add(leader, timeout=0.2)
    leader.runtime.advance(0.25)

    assert isinstance(future.error(0), EnqueueTimeoutError)
    assert leader.core.membership.latest == THREE


def test_a_voter_that_is_behind_has_nothing_to_catch_up_either():
    leader = Bench(storing=["n2"])

    future = leader.change(ADD, "n3", "elsewhere:1", catch_up=True)

    assert future.error(0) is None


def test_a_further_round_goes_to_where_the_log_ended_when_it_began():
    leader = bench()
    add(leader)
    goal = leader.core.raft_log.last_index()
    leader.node.apply(b"x")
    leader.runtime.advance(0.3)

    for _ in range(2):
        leader.leader.commitment.match("n4", goal)
        leader.runtime.run()

    assert not leader.core.membership.latest.has_vote("n4")


def caught_up_while_another_change_is_under_way(leader, **options):
    """`n4` has caught up, but the change before its promotion is not committed yet."""
    promoted = add(leader, **options)
    leader.storing = set()
    leader.change(ChangeKind.ADD_NONVOTER, "n5", "n5:1")
    last = leader.change(ChangeKind.ADD_NONVOTER, "n6", "n6:1")
    leader.leader.commitment.match("n4", NOOP + 1)
    leader.runtime.run()
    assert not promoted.done()
    return promoted, last


def test_a_promotion_comes_before_the_changes_that_wait():
    leader = bench()
    promoted, last = caught_up_while_another_change_is_under_way(leader)

    leader.store("n2", "n3", "n4")
    leader.runtime.advance(0.05)

    assert promoted.index() < last.index()


def test_a_promotion_is_not_given_up_for_the_callers_timeout():
    """The timeout covers catching up, and that is done."""
    leader = bench()
    promoted, _ = caught_up_while_another_change_is_under_way(leader, timeout=0.3)
    leader.runtime.advance(0.4)

    leader.store("n2", "n3", "n4")
    leader.runtime.advance(0.05)

    assert promoted.error(0) is None


def test_a_change_that_waited_and_breaks_the_node_is_answered(monkeypatch):
    leader = bench()
    leader.storing = set()
    leader.change(ChangeKind.ADD_NONVOTER, "n5", "n5:1")
    waiting = leader.change(ChangeKind.ADD_NONVOTER, "n6", "n6:1")

    def out_of_memory(_):
        raise MemoryError

    monkeypatch.setattr(raft.roles.changes, "encode_configuration", out_of_memory)
    leader.store("n2", "n3")

    assert isinstance(waiting.error(0), OutcomeUnknownError)


def test_a_promotion_that_waits_is_no_change_without_effect_when_leadership_ends():
    """Its server is in the configuration already, as a non-voter."""
    leader = bench()
    promoted, last = caught_up_while_another_change_is_under_way(leader)

    leader.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    leader.runtime.run()

    assert isinstance(promoted.error(0), LeadershipLostError)
    assert isinstance(last.error(0), NotLeaderError)


def test_a_promotion_outlives_a_transfer_that_fails():
    leader = bench()
    promoted, last = caught_up_while_another_change_is_under_way(leader)

    leader.transfer("n2", "n2:1")
    assert isinstance(last.error(0), LeadershipTransferInProgressError)
    leader.runtime.advance(0.1)  # an election timeout
    leader.store("n2", "n3", "n4")
    leader.runtime.advance(0.05)

    assert promoted.error(0) is None


def test_who_has_moved_meanwhile_is_promoted_where_it_is():
    leader = bench()
    future = add(leader)
    leader.change(ChangeKind.ADD_NONVOTER, "n4", "n4:2").result(0)

    leader.store("n4")
    leader.runtime.advance(0.01)

    assert future.error(0) is None
    assert leader.core.membership.latest.server("n4").address == "n4:2"


# ---- no thread to be had ----


@pytest.mark.parametrize("name", ["repl", "beat"])
def test_a_server_added_when_there_is_no_thread_is_served_as_soon_as_there_is_one(name):
    """The change stands: it is in the log, and its caller hears what became of it."""
    leader = Bench(storing=["n2", "n3", "n4"])
    leader.runtime.no_thread_for = f"{name}-n4"

    future = leader.change(ADD_NONVOTER, "n4", "n4:1")
    assert future.error(0) is None
    leader.runtime.advance(0.2)
    assert leader.sent_to("n4") == set()
    leader.runtime.no_thread_for = ""
    leader.runtime.advance(0.2)
    leader.node.apply(b"x")

    assert leader.is_leading()
    assert leader.sent_to("n4") == {(NOOP + 2, TERM)}


def test_a_change_made_later_when_there_is_no_thread_halts_nobody():
    leader = Bench()
    leader.runtime.no_thread_for = "-n5"
    door = leader.shut_disk()

    futures = [leader.change(ADD_NONVOTER, name, f"{name}:1") for name in ("n4", "n5")]
    assert not futures[1].done()  # it waits for the change before
    door.set()
    leader.store("n2")
    leader.runtime.advance(0.05)

    assert leader.node.crashes == []
    assert [future.error(0) for future in futures] == [None, None]
    assert leader.is_leading()


def test_a_change_that_need_not_wait_is_made_though_nobody_would_wait():
    leader = bench()
    leader.storing.clear()

    made = leader.change(ADD, "n4", "n4:1", timeout=0)
    refused = leader.change(ADD, "n5", "n5:1", timeout=0)
    leader.store("n2", "n3")
    leader.runtime.advance(0.01)

    assert made.error(0) is None
    assert isinstance(refused.error(0), EnqueueTimeoutError)
