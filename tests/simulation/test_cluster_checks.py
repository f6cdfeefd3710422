"""What is looked at after each step of a node, and what may be harmed."""

import io

import pytest

from raft.codec import encode_configuration
from raft.errors import RaftInternalError, UnsettledSnapshotError
from raft.testing.contracts import entries
from raft.testing.simulation.cluster import NodeFailedError, SimCluster
from raft.testing.simulation.harm import is_whole, may_harm
from raft.testing.simulation.machine import NO_MARK, MarkedFSM, pack_state
from raft.testing.simulation.runtime import Scheduler
from raft.types import Configuration, Log, LogType
from tests.simulation.worlds import in_led_cluster


def new_cluster(count):
    """Return a cluster of so many voters that are down; its scheduler is not run."""
    cluster = SimCluster(Scheduler(1), lambda _: None)
    servers = [cluster.add() for _ in range(count)]
    cluster.bootstrap(servers)
    return cluster, servers


def test_a_commit_that_only_a_minority_has_on_disk_is_found():
    def story(cluster, leader):
        index = leader.node.commit_index()
        term = leader.node.current_term()
        cluster._check_commit(leader, term, index)
        assert cluster.invariants.violations == []
        for server in cluster.servers.values():
            if server is not leader:
                server.disk.content.logs.pop(index, None)  # one of the two need not have it
        cluster._check_commit(leader, term, index)
        found, cluster.invariants.violations = cluster.invariants.violations, []
        return leader.id, found

    leader_id, (found,) = in_led_cluster(story, 3)

    assert found.startswith(f"commit: {leader_id} at ")
    assert f"['{leader_id}'] of ['n1', 'n2', 'n3']" in found


def test_a_server_that_uses_another_configuration_than_its_latest_is_found():
    def story(cluster, leader):
        follower = next(s for s in cluster.servers.values() if s is not leader)
        cluster.wait_for(lambda: follower.disk.content.logs.get(3), 60, "the entries")
        members = follower.node._core.membership
        found = [cluster.network.witness.wrong_members(follower.id, index) for index in (0, 1, 2)]
        for members.latest_index in (2, 9):
            found.append(cluster.network.witness.wrong_members(follower.id, 0))
        follower.node._core.state.set_commit_index(9)  # by the others, before its disk failed
        found.append(cluster.network.witness.wrong_members(follower.id, 0))
        return found

    assert in_led_cluster(story, 3) == [
        "",
        "",
        "uses the configuration of entry 1, and has that of 2",
        "uses the configuration of entry 2, which it has not",
        "uses the configuration of entry 9, which it has not",
        "",
    ]


def test_a_leader_without_the_votes_of_a_majority_is_found():
    def story(cluster, leader):
        leader.last_led = 0
        cluster.invariants._votes.clear()
        cluster._note_leader(leader, leader.node.current_term())
        found, cluster.invariants.violations = cluster.invariants.violations, []
        return found

    (found,) = in_led_cluster(story, 3)

    assert "without a majority" in found


def test_a_leader_that_leads_on_with_a_failed_disk_is_found():
    def story(cluster, leader):
        for is_unfit, commits in [(True, 60), (False, 1), (True, 60), (True, 1)]:
            leader.node._core.disk.is_unfit = is_unfit
            assert cluster.invariants.violations == []
            for _ in range(commits):
                cluster._check_disk(leader)
        leader.node._core.disk.is_unfit = False
        found, cluster.invariants.violations = cluster.invariants.violations, []
        return leader.id, found

    leader_id, found = in_led_cluster(story, 3)

    assert found == [f"disk: {leader_id} leads on though its disk has failed"]


def test_a_node_that_fails_ends_the_run(monkeypatch):
    def break_it(self, _):
        raise RaftInternalError("broken on purpose")

    monkeypatch.setattr("raft.roles.leader.Leader.on_commit", break_it)

    with pytest.raises(NodeFailedError, match="broken on purpose"):
        in_led_cluster(lambda cluster, leader: cluster.scheduler.sleep(5.0), 3)


def test_a_node_that_must_be_rebuilt_is_lost_and_does_not_start_again():
    def story(cluster, leader):
        leader.node._lifecycle._crashed("main", UnsettledSnapshotError("rebuild me"))
        cluster.wait_for(lambda: leader.lost, 60, "the loss")
        leader.revive()
        return leader.lost, leader.node

    assert in_led_cluster(story, 3) == ("rebuild me", None)


def test_a_minority_may_be_harmed_and_no_more():
    cluster, (one, two, three) = new_cluster(3)

    assert may_harm(cluster, one)
    one.disk.spoil(1)

    assert not is_whole(one)
    assert may_harm(cluster, one)
    assert not may_harm(cluster, two)
    assert not may_harm(cluster, three)


def test_a_change_that_may_come_into_force_counts_for_what_may_be_harmed():
    cluster, servers = new_cluster(4)
    servers[0].lose("its disk is gone")
    assert not may_harm(cluster, servers[1])

    cluster, servers = new_cluster(5)
    servers[0].lose("its disk is gone")
    assert may_harm(cluster, servers[1])
    smaller = Configuration([server.server() for server in servers[:4]])
    servers[1].disk.content.logs[2] = Log(
        2, 2, LogType.CONFIGURATION, encode_configuration(smaller)
    ).sealed()

    assert not may_harm(cluster, servers[2])


def restored(index, *, failures=0):
    """Return what is found when entries up to 3, and then a snapshot up to `index`, come."""
    cluster, (server,) = new_cluster(1)
    fsm = MarkedFSM(lambda _: None, lambda _: None, server._marked, server._disorder)
    for log in entries(1, 3):
        fsm.apply(log)
    fsm.fails_to_restore = failures
    for _ in range(failures):
        with pytest.raises(OSError, match="simulated"):
            fsm.restore(io.BytesIO(pack_state(NO_MARK, entries(1, 4))))
    fsm.restore(io.BytesIO(pack_state(NO_MARK, entries(1, index))))
    return cluster.invariants.violations


def test_a_snapshot_that_is_older_than_the_state_is_a_violation():
    assert restored(2) == ["order: n1 went back from 3 to 2"]
    assert restored(3) == []


def test_after_a_failed_restore_an_older_snapshot_may_follow():
    assert restored(1, failures=1) == []


def test_entries_that_go_back_are_a_violation():
    cluster, (server,) = new_cluster(1)
    fsm = MarkedFSM(lambda _: None, lambda _: None, lambda _: None, server._disorder)

    for log in entries(2, 3):
        fsm.apply(log)
    fsm.apply(entries(3, 3)[0])

    assert cluster.invariants.violations == ["order: n1 applied 3 after 3"]
