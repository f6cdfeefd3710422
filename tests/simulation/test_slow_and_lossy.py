"""Whole clusters where something is slow, or large messages vanish."""

import pytest

from raft.errors import OutcomeUnknownError
from tests.simulation.worlds import in_led_cluster


def configure(config):
    config.heartbeat_timeout = config.election_timeout = 0.4
    config.leader_lease_timeout = 0.3
    config.commit_stall_timeout = 1.0


def serves(cluster):
    """Tell whether the leader, if there is one, commits a command."""
    leader = cluster.leader()
    if leader is None:
        return False
    has_ended, answer = leader.call(lambda node: node.apply(b"x").result(1), 2)
    return has_ended and isinstance(answer, int)


@pytest.mark.parametrize("seed", range(3))
def test_a_leader_whose_entries_vanish_is_succeeded_by_one_that_can_commit(seed):
    def story(cluster, leader):
        cluster.network.ways.swallowing[leader.address] = None
        _, answer = leader.call(lambda node: node.apply(b"lost").result(10), 10)
        cluster.wait_for(lambda: serves(cluster), 10, "service by another")
        return answer, cluster.leader() is leader

    answer, is_same = in_led_cluster(story, seed=seed, configure=configure)

    assert isinstance(answer, OutcomeUnknownError)
    assert "heartbeats are answered" in str(answer)
    assert not is_same


def test_where_nobody_can_commit_leadership_goes_round_slowly():
    def story(cluster, leader):
        for server in cluster.servers.values():
            cluster.network.ways.swallowing[server.address] = None
        leader.call(lambda node: node.apply(b"lost").result(10), 10)
        before = cluster.leader_changes
        cluster.scheduler.sleep(30.0)
        changes = cluster.leader_changes - before
        cluster.network.ways.swallowing.clear()
        cluster.wait_for(lambda: serves(cluster), 10, "service once entries pass")
        return changes

    assert in_led_cluster(story, configure=configure) <= 30 / 1.0


@pytest.mark.parametrize("seed", range(3))
def test_votes_that_take_nearly_an_election_timeout_to_store_elect_a_leader(seed):
    """A voter writes once for a vote, and its candidate waits until the round is over."""

    def story(cluster, leader):
        for server in cluster.servers.values():
            server.disk.vote_seconds = 0.35
        leader.crash()
        began = cluster.scheduler.now
        cluster.wait_for(lambda: serves(cluster), 10, "a leader of slow disks")
        return cluster.scheduler.now - began

    assert in_led_cluster(story, seed=seed, configure=configure) < 8.0
