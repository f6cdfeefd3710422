"""The cluster on threads: that it does what the tests built on it rely on."""

import threading

import pytest

from raft.errors import NotLeaderError, OutcomeUnknownError
from raft.testing.cluster import Cluster, wait_for
from raft.testing.fsm import BatchingRecordingFSM, ConfigurationRecordingFSM
from raft.testing.invariants import InvariantViolation
from raft.types import RaftState, ServerSuffrage

pytestmark = pytest.mark.timeout(60)

SECONDS = 10


def test_three_members_elect_and_replicate():
    with Cluster(3) as cluster:
        leader = cluster.leader()
        futures = [leader.node.apply(b"%d" % n) for n in range(10)]

        assert [future.result(SECONDS) for future in futures] == list(range(1, 11))
        assert cluster.assert_same_state() == [b"%d" % n for n in range(10)]


def test_followers_know_the_leader():
    with Cluster(3) as cluster:
        followers = cluster.followers()

        assert len(followers) == 2
        for follower in followers:
            assert follower.node.leader_with_id() == (cluster.leader().address, cluster.leader().id)
            with pytest.raises(NotLeaderError):
                follower.node.apply(b"x").result(SECONDS)


def test_a_leader_cut_off_is_replaced_and_comes_back_as_follower():
    with Cluster(3) as cluster:
        old = cluster.leader()
        cluster.disconnect(old)
        lost = old.node.apply(b"lost")
        cluster.wait_for(lambda: not old.is_leader())
        new = cluster.leader()
        new.node.apply(b"kept").result(SECONDS)

        cluster.heal()

        assert new is not old
        assert cluster.assert_same_state() == [b"kept"]
        with pytest.raises((OutcomeUnknownError, NotLeaderError)):
            lost.result(SECONDS)


def test_one_way_can_be_cut_alone():
    with Cluster(3) as cluster:
        leader = cluster.leader()
        deaf = cluster.followers()[0]
        cluster.cut(leader, deaf)
        leader.node.apply(b"x").result(SECONDS)

        assert deaf.fsm.commands() == []
        cluster.heal(deaf)
        assert cluster.assert_same_state() == [b"x"]


def test_a_restarted_member_has_its_log_and_a_new_fsm():
    with Cluster(3) as cluster:
        cluster.leader().node.apply(b"before").result(SECONDS)
        member = cluster.followers()[0]
        old_fsm = member.fsm
        cluster.stop(member)
        cluster.leader().node.apply(b"meanwhile").result(SECONDS)

        cluster.restart(member)

        assert member.fsm is not old_fsm
        assert cluster.assert_same_state() == [b"before", b"meanwhile"]


def test_a_server_can_be_added_and_joins_when_told():
    with Cluster(1, make_fsm=ConfigurationRecordingFSM) as cluster:
        leader = cluster.leader()
        leader.node.apply(b"x").result(SECONDS)
        joiner = cluster.add()

        leader.node.add_nonvoter(joiner.id, joiner.address).result(SECONDS)

        assert cluster.assert_same_state() == [b"x"]
        (_, latest) = joiner.fsm.configurations[-1]
        assert latest.server(joiner.id) == joiner.server(ServerSuffrage.NONVOTER)


def test_a_batching_fsm_and_a_changed_configuration_can_be_given():
    def configure(config):
        config.snapshot_threshold = 1
        config.trailing_logs = 0

    with Cluster(1, make_fsm=BatchingRecordingFSM, configure=configure) as cluster:
        leader = cluster.leader()
        leader.node.apply(b"x").result(SECONDS)
        leader.node.snapshot().result(SECONDS)

        cluster.restart(leader)

        assert leader.fsm.restores == 1
        assert cluster.assert_same_state() == [b"x"]


def test_leaving_stops_every_thread():
    before = threading.active_count()
    with Cluster(3) as cluster:
        nodes = [member.node for member in cluster.running()]

    assert {node.state() for node in nodes} == {RaftState.SHUTDOWN}
    wait_for(lambda: threading.active_count() <= before)


def test_a_broken_invariant_fails_the_test_that_leaves():
    def lead_twice():
        with Cluster(1) as cluster:
            cluster.invariants.led("n1", 99)
            cluster.invariants.led("n2", 99)

    with pytest.raises(InvariantViolation, match="both lead term 99"):
        lead_twice()


def test_waiting_in_vain_says_for_what():
    with pytest.raises(AssertionError, match="in vain for a miracle"):
        wait_for(lambda: False, 0.01, "a miracle")
