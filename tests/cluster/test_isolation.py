"""A server comes back from isolation: candidates that lose, follow, or cost one election.

Scenarios of etcd's (area ETC). What one node decides in them, `tests/roles` shows case by case.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raft import Config, RaftState
from raft.engine.state import HardState
from raft.stores import InmemStore
from raft.testing.cluster import Cluster, Member
from raft.testing.script import configuration_entry, entries, servers
from tests.cluster.helpers import ANSWER, apply_count


def without_pre_vote(config: Config) -> None:
    config.pre_vote_disabled = True


def keep_one(config: Config) -> None:
    config.trailing_logs = 1


def has_state(member: Member, state: RaftState) -> Callable[[], bool]:
    return lambda: member.node.state() is state


def reach_terms_above(cluster: Cluster, member: Member, term: int) -> None:
    """Let a server that is cut off campaign in vain until it is in a newer term."""
    cluster.wait_for(lambda: member.node.current_term() > term)


# ---- elections ----


def test_a_candidate_with_a_short_log_loses_and_is_freed_by_an_election() -> None:
    """ETC-10, ETC-34: without pre-votes. One server hears it all the time, and refuses.

    It knows the leader. Healed, the candidate's newer term deposes that leader, and no more.
    """
    with Cluster(3, configure=without_pre_vote) as cluster:
        leader, (voter, candidate) = cluster.leader(), cluster.followers()
        term = leader.node.current_term()
        cluster.partition([leader], [candidate])
        apply_count(leader, 1)
        reach_terms_above(cluster, candidate, term + 1)
        assert (leader.is_leader(), voter.node.current_term()) == (True, term)
        raised = candidate.node.current_term()

        cluster.heal()

        cluster.wait_for(lambda: leader.node.current_term() >= raised)
        cluster.followers()
        assert cluster.leader() is not candidate
        assert cluster.leader().node.current_term() >= raised
        assert len(cluster.assert_same_state()) == 1


def test_with_pre_votes_a_candidate_disturbs_neither_leader_nor_term() -> None:
    """ETC-11"""
    with Cluster(3) as cluster:
        leader, (_, candidate) = cluster.leader(), cluster.followers()
        term = leader.node.current_term()
        cluster.partition([leader], [candidate])
        apply_count(leader, 1)
        cluster.wait_for(has_state(candidate, RaftState.CANDIDATE))

        cluster.heal()

        assert len(cluster.assert_same_state()) == 1
        cluster.followers()
        assert cluster.leader() is leader
        assert {m.node.current_term() for m in cluster.running()} == {term}


def test_an_isolated_candidate_of_a_lower_term_follows_the_leader_of_a_newer_one() -> None:
    """ETC-12, ETC-17: it takes term and log from it."""
    with Cluster(3) as cluster:
        old, others = cluster.leader(), cluster.followers()
        term = old.node.current_term()
        cluster.disconnect(old)
        cluster.wait_for(lambda: any(member.is_leader() for member in others))
        new = next(member for member in others if member.is_leader())
        apply_count(new, 3)
        cluster.wait_for(has_state(old, RaftState.CANDIDATE))
        assert old.node.current_term() == term < new.node.current_term()

        cluster.heal()

        assert len(cluster.assert_same_state()) == 3
        assert old.node.state() is RaftState.FOLLOWER
        assert old.node.current_term() == new.node.current_term()


def test_a_server_of_an_older_term_makes_a_majority_with_one_of_a_newer() -> None:
    """ETC-20: the third dies as it comes back."""
    with Cluster(3) as cluster:
        first, (second, away) = cluster.leader(), cluster.followers()
        cluster.disconnect(away)
        first.node.leadership_transfer_to_server(second.id, second.address).result(ANSWER)
        cluster.wait_for(second.is_leader)
        apply_count(second, 1)
        assert away.node.current_term() < first.node.current_term()

        cluster.stop(second)
        cluster.heal()

        cluster.wait_for(first.is_leader)
        assert len(cluster.assert_same_state()) == 1


@pytest.mark.parametrize(
    "leader_dies", [pytest.param(True, id="ETC-23"), pytest.param(False, id="ETC-24")]
)
def test_a_server_is_freed_whose_term_ran_away_before_it_had_pre_votes(leader_dies: bool) -> None:
    """ETC-23, ETC-24: it has the newest term and the shortest log."""
    with Cluster(3) as cluster:
        leader, (other, stuck) = cluster.leader(), cluster.followers()
        cluster.disconnect(stuck)
        apply_count(leader, 1)
        stuck.config.pre_vote_disabled = True
        cluster.restart(stuck)
        reach_terms_above(cluster, stuck, leader.node.current_term() + 1)
        stuck.config.pre_vote_disabled = False
        cluster.restart(stuck)
        raised = stuck.node.current_term()

        if leader_dies:
            cluster.stop(leader)
        cluster.heal()

        cluster.wait_for(lambda: other.node.current_term() >= raised)
        cluster.followers()
        assert cluster.leader() is not stuck
        apply_count(cluster.leader(), 1, b"more")
        assert len(cluster.assert_same_state()) == 2


# ---- replication ----


def test_a_newer_entry_that_no_quorum_has_is_overwritten() -> None:
    """ETC-07: two have an entry of term 1, one has an entry of term 2, for which two have voted.

    That one is away while the others elect: with its log it would win.
    """
    configuration = servers("n1", "n2", "n3", "n4", "n5")
    logs = [(1,), (1,), (2,), (), ()]
    with Cluster(0) as cluster:
        for number, terms in enumerate(logs, 1):
            store = InmemStore()
            store.store_logs([configuration_entry(1, 1, configuration), *entries(2, terms=terms)])
            HardState(1 if terms == (1,) else 2, "" if terms == (1,) else "n3", "n3:1").save(store)
            member = cluster.add(logs=store, stable=store)
            if number == 3:
                cluster.disconnect(member)
            for earlier in cluster.members.values():
                if number > 3 and earlier.id == "n3":
                    cluster.partition([earlier], [member])
        away = cluster["n3"]
        leader = cluster.leader()
        assert leader.id in ("n1", "n2")

        cluster.heal()

        assert cluster.assert_same_state() == [b"2/1"]
        terms = [away.logs.get_log(index).term for index in (1, 2, 3)]
        assert terms[:2] == [1, 1]
        assert terms[2] == leader.logs.get_log(3).term > 2


def test_commands_of_two_leaders_are_committed_in_order_by_all() -> None:
    """ETC-40: behind the configuration, a no-op and a command of each."""
    with Cluster(3) as cluster:
        old, (new, _) = cluster.leader(), cluster.followers()
        apply_count(old, 1, b"first")
        cluster.wait_for(lambda: all(m.node.commit_index() == 3 for m in cluster.running()))

        old.node.leadership_transfer_to_server(new.id, new.address).result(ANSWER)
        cluster.wait_for(new.is_leader)
        apply_count(new, 1, b"second")

        assert cluster.assert_same_state() == [b"first-0", b"second-0"]
        assert {m.node.commit_index() for m in cluster.running()} == {5}


def test_commits_do_not_wait_for_a_nonvoter_and_it_gets_them_all() -> None:
    """ETC-41"""
    with Cluster(1) as cluster:
        leader, nonvoter = cluster.leader(), cluster.add()
        leader.node.add_nonvoter(nonvoter.id, nonvoter.address).result(ANSWER)
        cluster.disconnect(nonvoter)
        apply_count(leader, 3)
        assert nonvoter.fsm.logs() == []

        cluster.heal()

        assert len(cluster.assert_same_state()) == 3
        assert nonvoter.node.commit_index() == leader.node.commit_index()


# ---- snapshots ----


def test_a_new_nonvoter_of_a_compacted_log_gets_a_snapshot_and_the_rest() -> None:
    """ETC-64"""
    with Cluster(1, configure=keep_one) as cluster:
        leader = cluster.leader()
        apply_count(leader, 20)
        leader.node.snapshot().result(ANSWER)
        cluster.wait_for(lambda: leader.logs.first_index() > 1)
        nonvoter = cluster.add()

        leader.node.add_nonvoter(nonvoter.id, nonvoter.address).result(ANSWER)
        apply_count(leader, 5, b"more")

        assert len(cluster.assert_same_state()) == 25
        assert nonvoter.fsm.restores == 1
