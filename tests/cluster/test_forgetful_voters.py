"""A voter that lost its disk and comes back empty under its id (departure 21)."""

from __future__ import annotations

import queue

from raft import (
    Config,
    Observation,
    Observer,
    RaftState,
    VoterReplacedObservation,
)
from raft.snapshots import InmemSnapshotStore
from raft.testing.cluster import SCALE, Cluster, Member, WatchedStore
from tests.cluster.helpers import ANSWER, HEARTBEAT, apply_count, stays_so


def wipe(cluster: Cluster, member: Member) -> None:
    """Have a stopped server come back with nothing on its disk."""
    store = WatchedStore(member.id, cluster.invariants)
    member.logs = member.stable = store
    member.snapshots = InmemSnapshotStore()
    cluster.invariants.rebuilt(member.id)


def test_an_acknowledged_write_is_not_lost_by_a_voter_that_forgot_it() -> None:
    """Five reports of 2026: a volume is lost, the pod restarts empty, and the third server wins."""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        forgetful, behind = cluster.followers()
        apply_count(leader, 3)
        cluster.assert_same_state()
        cluster.disconnect(behind)
        leader.node.apply(b"acknowledged").result(ANSWER)
        cluster.stop(leader)
        cluster.stop(forgetful)
        wipe(cluster, forgetful)

        cluster.restart(forgetful)
        cluster.heal()

        stays_so(
            cluster,
            "nobody leads",
            10 * HEARTBEAT,
            lambda: not forgetful.is_leader() and not behind.is_leader(),
        )
        cluster.restart(leader)
        cluster.leader().node.apply(b"after").result(ANSWER)
        assert b"acknowledged" in cluster.assert_same_state()


def test_a_leader_does_not_commit_or_read_by_a_voter_that_forgot() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        forgetful, other = cluster.followers()
        apply_count(leader, 3)
        cluster.stop(forgetful)
        wipe(cluster, forgetful)
        seen: queue.Queue[Observation] = queue.Queue()
        leader.node.register_observer(
            Observer(seen, filter=lambda o: isinstance(o.data, VoterReplacedObservation))
        )
        cluster.restart(forgetful)
        assert seen.get(timeout=ANSWER).data.server_id == forgetful.id
        assert leader.node.stats()["replaced_voters"] == forgetful.id
        apply_count(leader, 1, b"by-two")

        cluster.stop(other)

        cluster.wait_for(lambda: leader.node.state() is not RaftState.LEADER)
        cluster.restart(other)
        apply_count(cluster.leader(), 1, b"again")


def test_a_voter_that_forgot_gets_the_log_and_counts_once_it_was_removed_and_added() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        forgetful, other = cluster.followers()
        apply_count(leader, 3)
        cluster.stop(forgetful)
        wipe(cluster, forgetful)
        cluster.restart(forgetful)
        cluster.assert_same_state()
        leader = cluster.leader()

        leader.node.remove_server(forgetful.id).result(ANSWER)
        leader.node.add_voter(
            forgetful.id, forgetful.address, timeout=ANSWER, catch_up=True
        ).result(ANSWER)

        assert leader.node.stats()["replaced_voters"] == ""
        cluster.stop(other)
        apply_count(cluster.leader(), 1, b"by-both")


def test_of_two_servers_either_may_come_back_empty() -> None:
    def configure(config: Config) -> None:
        config.heartbeat_timeout = config.election_timeout = 0.2 * SCALE

    with Cluster(2, configure=configure) as cluster:
        leader = cluster.leader()
        apply_count(leader, 3)
        forgetful = cluster.followers()[0]
        cluster.stop(forgetful)
        wipe(cluster, forgetful)

        cluster.restart(forgetful)

        apply_count(cluster.leader(), 1, b"after")
        assert len(cluster.assert_same_state()) == 4


def test_a_leader_that_forgot_is_known_to_a_server_that_was_added_while_it_led() -> None:
    """That server has heard nobody else, and would win by the vote of the one that comes back."""
    with Cluster(2) as cluster:
        leader = cluster.leader()
        other = cluster.followers()[0]
        late = cluster.add()
        leader.node.add_voter(late.id, late.address, timeout=ANSWER, catch_up=True).result(ANSWER)
        cluster.disconnect(late)
        leader.node.apply(b"acknowledged").result(ANSWER)
        cluster.stop(other)
        cluster.stop(leader)
        wipe(cluster, leader)

        cluster.restart(leader)
        cluster.heal()

        stays_so(
            cluster,
            "nobody leads",
            10 * HEARTBEAT,
            lambda: not leader.is_leader() and not late.is_leader(),
        )
        cluster.restart(other)
        assert cluster.leader() is other
        assert b"acknowledged" in cluster.assert_same_state()
