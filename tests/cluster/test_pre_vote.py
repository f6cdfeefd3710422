"""Asking before campaigning, thesis 9.6 (scenario area PRE)."""

from __future__ import annotations

import pytest

from raft import Config, RaftState
from raft.messages import RPC, AppendEntriesRequest, AppendEntriesResponse, RequestPreVoteRequest
from raft.testing.cluster import SCALE, Cluster, Member
from tests.cluster.helpers import (
    ANSWER,
    HEARTBEAT,
    PROPAGATION,
    apply_count,
    header_of,
    stays_so,
    stranger,
)


def ask(candidate: Member, voter: Member, leader: Member) -> bool:
    """Send a pre-vote request one term ahead, with the leader's last entry."""
    last = leader.node._core.raft_log.last()
    request = RequestPreVoteRequest(
        header_of(candidate), leader.node.current_term() + 1, last.index, last.term
    )
    return stranger(voter).request_pre_vote(voter.id, voter.address, request).granted


@pytest.mark.parametrize(
    ("with_pre_vote", "without"),
    [
        pytest.param(2, 3, id="PRE-01"),
        pytest.param(3, 2, id="PRE-02"),
        pytest.param(1, 2, id="PRE-03"),
        pytest.param(2, 1, id="PRE-04"),
        pytest.param(3, 0, id="PRE-05"),
        pytest.param(0, 3, id="PRE-06"),
    ],
)
def test_mixed_clusters_elect_another_leader(with_pre_vote: int, without: int) -> None:
    """PRE-01, PRE-02, PRE-03, PRE-04, PRE-05, PRE-06: the larger group is there first."""
    first_disabled = without > with_pre_vote
    larger, smaller = max(with_pre_vote, without), min(with_pre_vote, without)
    made: list[Config] = []

    def configure(config: Config) -> None:
        config.pre_vote_disabled = first_disabled if len(made) < larger else not first_disabled
        made.append(config)

    with Cluster(larger, configure=configure) as cluster:
        for _ in range(smaller):
            joiner = cluster.add()
            cluster.leader().node.add_voter(joiner.id, joiner.address).result(ANSWER)
        cluster.followers()
        old = cluster.leader()

        cluster.disconnect(old)

        cluster.wait_for(
            lambda: any(m.is_leader() for m in cluster.members.values() if m is not old)
        )


def test_a_partitioned_follower_raises_no_term() -> None:
    """PRE-07"""
    with Cluster(5) as cluster:
        leader, away = cluster.leader(), cluster.followers()[0]
        term = leader.node.current_term()

        def is_quiet() -> bool:
            nodes = [member.node for member in cluster.members.values()]
            return leader.is_leader() and all(node.current_term() == term for node in nodes)

        cluster.disconnect(away)
        stays_so(cluster, "one term while cut off", 10 * PROPAGATION, is_quiet)
        assert sum(m.node.state() is RaftState.FOLLOWER for m in cluster.members.values()) == 3

        cluster.heal()
        stays_so(cluster, "one term after healing", 3 * PROPAGATION, is_quiet)
        cluster.wait_for(lambda: len(cluster.followers()) == 4)


def test_the_leaders_own_pre_vote_is_granted() -> None:
    """PRE-08"""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]

        assert ask(leader, follower, leader)


def test_a_pre_vote_is_refused_while_another_leader_is_known() -> None:
    """PRE-09"""
    with Cluster(3) as cluster:
        leader, (first, second) = cluster.leader(), cluster.followers()

        assert not ask(first, second, leader)


def test_answering_pre_votes_is_no_contact_with_the_leader() -> None:
    """PRE-10, on transports in memory: heartbeats are refused without being heard."""

    def configure(config: Config) -> None:
        config.commit_timeout = 5.0 * SCALE

    with Cluster(3, configure=configure) as cluster:
        leader, followers = cluster.leader(), cluster.followers()
        apply_count(leader, 1)
        for follower in followers:
            assert ask(leader, follower, leader)

            def refuse(rpc: RPC, member: Member = follower) -> None:
                if isinstance(rpc.command, AppendEntriesRequest):
                    term = rpc.command.term
                    rpc.respond(AppendEntriesResponse(header_of(member), term))

            follower.transport.set_heartbeat_handler(refuse)

        def spam() -> bool:
            for follower in followers:
                ask(leader, follower, leader)
            return any(follower.is_leader() for follower in followers)

        cluster.wait_for(spam, 50 * HEARTBEAT)
