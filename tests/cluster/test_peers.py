"""What a node says of the others: `Raft.peers`, and `Raft.stats`."""

import pytest

from raft.testing.cluster import Cluster
from raft.types import RaftState, ServerSuffrage
from tests.cluster.helpers import ANSWER, apply_count


def peer(member, server_id):
    (found,) = [peer for peer in member.node.peers() if peer.id == server_id]
    return found


def test_a_leader_knows_how_far_each_peer_is():
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 3)
        cluster.wait_for(lambda: all(p.lag == 0 for p in leader.node.peers()))

        for known in leader.node.peers():
            assert known.counts
            assert known.match_index == leader.node.last_index()
            assert known.next_index == known.match_index + 1
            assert known.last_contact < ANSWER
            assert known.failures == 0
            assert known.activity == "pipelining"


def test_a_peer_that_cannot_be_reached_has_its_error_and_its_lag():
    with Cluster(3) as cluster:
        leader, cut = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(cut)
        apply_count(leader, 2)

        cluster.wait_for(lambda: peer(leader, cut.id).failures > 0)
        known = peer(leader, cut.id)
        assert known.lag >= 2
        assert known.last_error
        assert known.last_error in leader.node.stats()["peers"]


def test_a_follower_knows_the_members_alone():
    with Cluster(2) as cluster:
        leader, (follower,) = cluster.leader(), cluster.followers()

        (known,) = follower.node.peers()

        assert (known.id, known.suffrage) == (leader.id, ServerSuffrage.VOTER)
        assert known.match_index is None
        assert known.counts is None
        assert leader.address in follower.node.stats()["peers"]


@pytest.mark.parametrize("pre_vote_disabled", [False, True])
def test_who_finds_no_majority_says_what_became_of_its_requests(pre_vote_disabled):
    def configure(config):
        config.pre_vote_disabled = pre_vote_disabled

    with Cluster(3, configure=configure) as cluster:
        cut = cluster.followers()[0]
        cluster.disconnect(cut)
        cluster.wait_for(lambda: cut.node.stats()["last_lost_election"])

        assert cut.node.stats()["last_lost_election"].startswith("1 of 3 votes: ")
        cluster.wait_for(lambda: all(known.last_error for known in cut.node.peers()))

        cluster.heal()
        cluster.wait_for(lambda: cut.node.leader_with_id()[1])
        cluster.wait_for(lambda: cut.node.state() is not RaftState.CANDIDATE)
        assert cut.node.stats()["last_lost_election"] == ""
