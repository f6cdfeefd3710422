"""Elections, leadership, lease, verification (scenario area ELE)."""

from __future__ import annotations

import pytest

from raft import LeadershipLostError, NotLeaderError, RaftState
from raft.messages import RequestVoteRequest
from raft.testing.cluster import Cluster, Member
from tests.cluster.helpers import (
    ANSWER,
    HEARTBEAT,
    PROPAGATION,
    apply_count,
    header_of,
    stays_so,
    stranger,
)


def ask_for_vote(
    candidate: Member, voter: Member, leader: Member, *, transfer: bool = False
) -> bool:
    """Send a voter a hand-made request ten terms ahead, with the leader's last entry."""
    last = leader.node._core.raft_log.last()
    request = RequestVoteRequest(
        header_of(candidate), leader.node.current_term() + 10, last.index, last.term, transfer
    )
    return stranger(voter).request_vote(voter.id, voter.address, request).granted


def test_a_single_node_elects_itself_and_applies() -> None:
    """ELE-01, ETC-13: with a pre-vote"""
    with Cluster(1) as cluster:
        node = cluster["n1"].node
        assert node.leader_ch().get(timeout=ANSWER) is True
        assert node.state() is RaftState.LEADER

        future = node.apply(b"test", timeout=HEARTBEAT)

        assert future.result(ANSWER) == future.response() == 1
        assert future.index() > 0
        assert cluster["n1"].fsm.commands() == [b"test"]


def test_three_nodes_agree_on_one_leader() -> None:
    """ELE-02"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        assert len(cluster.followers()) == 2

        leader.node.apply(b"test").result(ANSWER)

        cluster.wait_for_commands(1)


def test_a_cut_off_leader_is_replaced_and_its_command_is_gone() -> None:
    """ELE-03, ETC-22"""
    with Cluster(3) as cluster:
        old = cluster.leader()
        old.node.apply(b"test").result(ANSWER)
        old_term = old.node.current_term()

        cluster.disconnect(old)
        fail = old.node.apply(b"fail")
        new = cluster.wait_for(
            lambda: next(
                (m for m in cluster.members.values() if m is not old and m.is_leader()), None
            )
        )
        new.node.apply(b"apply").result(ANSWER)

        assert new.node.current_term() > old_term
        assert isinstance(fail.error(ANSWER), LeadershipLostError | NotLeaderError)
        cluster.heal()
        assert cluster.assert_same_state() == [b"test", b"apply"]


def test_a_leader_without_quorum_steps_down_when_its_lease_is_over() -> None:
    """ELE-04"""
    with Cluster(2) as cluster:
        leader = cluster.leader()
        (follower,) = cluster.followers()
        assert leader.node.leader_ch().get(timeout=ANSWER) is True

        cluster.disconnect(follower)

        assert leader.node.leader_ch().get(timeout=ANSWER) is False
        assert leader.node.last_contact() is not None
        cluster.wait_for(lambda: leader.node.leader_with_id() == ("", ""))
        cluster.wait_for(lambda: follower.node.leader_with_id() == ("", ""))
        contact = follower.node.last_contact()
        stays_so(
            cluster,
            "no contact while cut off",
            PROPAGATION,
            lambda: follower.node.last_contact() == contact,
        )


def test_a_leader_verifies_its_leadership() -> None:
    """ELE-05"""
    with Cluster(3) as cluster:
        cluster.leader().node.verify_leader().result(ANSWER)


def test_a_single_node_verifies_at_once() -> None:
    """ELE-06"""
    with Cluster(1) as cluster:
        cluster.leader().node.verify_leader().result(ANSWER)


def test_a_leader_that_a_newer_term_has_overtaken_is_not_verified() -> None:
    """ELE-07"""
    with Cluster(2) as cluster:
        leader = cluster.leader()
        (follower,) = cluster.followers()
        assert leader.node.leader_ch().get(timeout=ANSWER) is True

        assert ask_for_vote(leader, follower, leader)  # the follower lives in a newer term now
        verified = leader.node.verify_leader()

        assert isinstance(verified.error(ANSWER), NotLeaderError | LeadershipLostError)


def test_a_leader_is_verified_by_two_of_three() -> None:
    """ELE-08"""
    with Cluster(3) as cluster:
        leader = cluster.leader()

        cluster.disconnect(cluster.followers()[0])

        leader.node.verify_leader().result(ANSWER)


def test_a_restarted_follower_causes_no_election() -> None:
    """ELE-13"""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 5)
        term = leader.node.current_term()

        cluster.restart(follower)

        stays_so(cluster, "one leader", 5 * HEARTBEAT, lambda: cluster.leader() is leader)
        assert leader.node.current_term() == term
        assert len(cluster.followers()) == 2
        cluster.assert_same_state()


def test_a_vote_is_refused_while_another_leader_is_known() -> None:
    """ELE-14: the leader's own request is granted, another's only with the transfer flag."""
    with Cluster(3) as cluster:
        leader, (first, second) = cluster.leader(), cluster.followers()

        assert not ask_for_vote(first, second, leader)
        assert ask_for_vote(first, second, leader, transfer=True)

    with Cluster(3) as cluster:
        leader, (first, _) = cluster.leader(), cluster.followers()

        assert ask_for_vote(leader, first, leader)


def test_a_removed_server_gets_no_vote_even_without_a_leader() -> None:
    """ELE-15: once it is known that the removal is committed; before, a vote may be needed."""
    with Cluster(3) as cluster:
        leader, (removed, other) = cluster.leader(), cluster.followers()
        removal = leader.node.remove_server(removed.id)
        removal.result(ANSWER)
        cluster.wait_for(lambda: other.node.commit_index() >= removal.index())
        assert len(other.node.get_configuration().configuration().servers) == 2
        assert removed.node.state() is RaftState.FOLLOWER

        cluster.disconnect(leader)
        cluster.wait_for(lambda: other.node.leader_with_id() == ("", ""))

        assert not ask_for_vote(removed, other, leader)


def test_a_non_voter_with_a_higher_term_does_not_break_the_cluster() -> None:
    """ELE-16: the term is raised by a vote request while the node belongs to nobody."""
    with Cluster(3) as cluster:
        leader, (away, _) = cluster.leader(), cluster.followers()
        apply_count(leader, 10)
        cluster.assert_same_state()
        cluster.disconnect(away)
        leader.node.remove_server(away.id).result(ANSWER)
        raised = leader.node.current_term() + 20
        last = away.node._core.raft_log.last()
        request = RequestVoteRequest(header_of(leader), raised, last.index, last.term, True)
        assert stranger(away).request_vote(away.id, away.address, request).granted

        leader.node.add_nonvoter(away.id, away.address).result(ANSWER)
        cluster.heal()

        cluster.wait_for(lambda: cluster.leader().node.current_term() >= raised)
        apply_count(cluster.leader(), 100, b"more")
        cluster.assert_same_state()
        leader = cluster.leader()
        assert leader is not away
        leader.node.remove_server(away.id).result(ANSWER)
        leader.node.add_voter(away.id, away.address).result(ANSWER)
        apply_count(leader, 100, b"most")
        cluster.assert_same_state()
        assert cluster.leader() is leader


def test_address_and_id_of_the_leader_are_known_to_all() -> None:
    """ELE-17"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        cluster.followers()

        named = {member.node.leader_with_id() for member in cluster.members.values()}

        assert named == {(leader.address, leader.id)}
        cluster.assert_same_state()


def test_a_follower_names_the_leader_when_it_refuses() -> None:
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]

        error = follower.node.apply(b"x").error(ANSWER)

        assert isinstance(error, NotLeaderError)
        assert (error.leader_id, error.leader_address) == (leader.id, leader.address)


def test_waiting_for_a_leader_in_vain_times_out() -> None:
    with Cluster(1, bootstrap=False) as cluster, pytest.raises(TimeoutError):
        cluster["n1"].node.wait_for_leader(0.05)
