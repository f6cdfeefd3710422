"""Faults that are made of several: each gets the cluster into the state that it is there for."""

import pytest

from raft.testing.simulation.faults import DiskFaults, ServerFaults
from raft.testing.simulation.operations import Operations
from raft.testing.simulation.scenario import TIMEOUT
from raft.testing.simulation.successions import Successions
from tests.simulation.worlds import in_led_cluster


def successions(cluster):
    return Successions(cluster, Operations(cluster), ServerFaults(cluster))


def quick(config):
    """Set the timeouts that faults are made for."""
    config.heartbeat_timeout = config.election_timeout = TIMEOUT
    config.leader_lease_timeout = TIMEOUT * 0.75


def in_quick_cluster(story, count=3, seed=1):
    return in_led_cluster(story, count, seed=seed, commands=5, configure=quick)


def test_a_restore_in_vain_is_often_lost_with_its_leader():
    def story(cluster, leader):
        assert successions(cluster).restore_in_vain()
        cluster.network.heal()
        successor = cluster.wait_for(cluster.leader, 60, "a leader")
        successor.call(lambda node: node.barrier(5).result(10), 10)
        return successor is not leader, successor.fsm.mark

    outcomes = [in_quick_cluster(story, seed=seed) for seed in range(10)]

    assert all(is_another for is_another, _ in outcomes)
    assert outcomes.count((True, b"")) >= 3


def test_a_leader_that_was_outdated_needs_a_snapshot_where_it_has_entries_of_its_own():
    def story(cluster, leader):
        conflicts = []

        def look():
            for meta, _ in leader.disk.content.snapshots.values():
                log = leader.disk.content.logs.get(meta.index)
                conflicts.append(log is not None and log.term != meta.term)

        assert successions(cluster).outdate_leader()
        leader.disk.on_snapshot = look
        cluster.scheduler.sleep(5.0)
        return any(conflicts)

    assert sum(in_quick_cluster(story, seed=seed) for seed in range(6)) >= 5


def test_a_deluded_leader_leads_beside_another_one():
    def story(cluster, leader):
        others = [server for server in cluster.servers.values() if server is not leader]
        faults, seen = successions(cluster), []
        cluster.on_leader = lambda server: seen.append(server in others and leader.is_leader())
        assert faults.delude_leader()
        assert not cluster.network.ways.lag
        return any(seen)

    assert sum(in_quick_cluster(story, seed=seed) for seed in range(6)) >= 5


def test_a_leader_that_lost_the_snapshot_that_is_needed_takes_another():
    def story(cluster, leader):
        assert successions(cluster).lose_needed_snapshots()
        snapshots = leader.disk.content.snapshots
        if snapshots:
            return False  # nobody needed them in time
        cluster.scheduler.sleep(5.0)
        ends = {server.node.applied_index() for server in cluster.servers.values()}
        return bool(snapshots) and len(ends) == 1

    assert sum(in_quick_cluster(story, seed=seed) for seed in range(6)) >= 5


def test_nobody_restores_anything_in_vain_while_something_is_to_be_healed():
    def story(cluster, leader):
        cluster.servers["n1"].disk.spoil(1)
        return successions(cluster).restore_in_vain()

    assert in_quick_cluster(story) is False


@pytest.mark.parametrize("seed", range(3))
def test_what_a_power_cut_spoils_comes_to_light_while_nobody_leads(seed):
    def story(cluster, leader):
        faults = DiskFaults(cluster, lambda: True)
        disks = [server.disk for server in cluster.servers.values()]
        # Without the first entry, which has the members, a node does not start.
        cluster.wait_for(lambda: all(len(d.content.logs) > 3 for d in disks), 60, "the log")
        assert faults.spoil_in_power_cut()
        state = [s.incarnation for s in cluster.up()], [s.disk.is_damaged() for s in cluster.up()]
        assert cluster.leader() is None
        cluster.wait_for(cluster.leader, 60, "a leader")
        return *state, cluster.wait_for(
            lambda: not any(s.disk.is_damaged() for s in cluster.up()), 60, "healing"
        )

    incarnations, damaged, is_healed = in_quick_cluster(story, seed=seed)

    assert set(incarnations) <= {2, 3}
    assert sum(damaged) == 1
    assert is_healed
