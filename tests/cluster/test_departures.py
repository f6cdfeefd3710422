"""Departures from the original that show in live clusters; numbers as in docs/architecture.md."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from raft import (
    CantBootstrapError,
    ClusterMismatchError,
    Config,
    Configuration,
    LogCorruptError,
    Raft,
    Server,
    bootstrap_cluster,
)
from raft.messages import AppendEntriesRequest
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import SCALE, Cluster, fast_config, wait_for
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport, TCPTransport
from tests.cluster.helpers import ANSWER, PROPAGATION, apply_count, header_of, stays_so, stranger


def test_a_peer_that_is_back_does_not_wait_for_a_long_back_off() -> None:
    """Departure 12: after three seconds of failures the next try would be over a second away."""
    with Cluster(3) as cluster:
        leader, away = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(away)
        stays_so(cluster, "away", 3.0 * SCALE, leader.is_leader)
        apply_count(leader, 10)

        cluster.heal()

        began = time.monotonic()
        cluster.wait_for(lambda: len(away.fsm.logs()) == 10)
        assert time.monotonic() - began < 0.8 * SCALE


def test_a_node_without_a_cluster_id_takes_its_leaders() -> None:
    """Departure 15"""
    with Cluster(1) as cluster:
        leader, joiner = cluster.leader(), cluster.add()
        assert joiner.node.cluster_id() is None

        leader.node.add_voter(joiner.id, joiner.address).result(ANSWER)

        cluster.wait_for(lambda: joiner.node.cluster_id() == leader.node.cluster_id())
        cluster.restart(joiner)
        assert joiner.node.cluster_id() == leader.node.cluster_id() is not None


def test_voters_bootstrapped_alike_and_apart_agree_on_the_cluster_id() -> None:
    """Departure 15"""
    with Cluster(3) as cluster:
        cluster.leader()

        assert len({member.node.cluster_id() for member in cluster.members.values()}) == 1


def tcp_node(server_id: str, store: InmemStore) -> tuple[Raft, TCPTransport]:
    transport = TCPTransport("127.0.0.1:0", timeout=2.0)
    snapshots = InmemSnapshotStore()
    return (
        Raft(fast_config(server_id), RecordingFSM(), store, store, snapshots, transport),
        transport,
    )


def test_a_node_of_another_cluster_gets_nothing_from_this_one() -> None:
    """Departure 15: old data under a known id and address is not mixed in."""
    first, transport_of_first = tcp_node("n1", InmemStore())
    other, transport_of_other = tcp_node("n2", InmemStore())
    try:
        for node, transport in ((first, transport_of_first), (other, transport_of_other)):
            own = Server(node._config.local_id, transport.local_addr())
            node.bootstrap_cluster(Configuration([own])).result(ANSWER)
            node.wait_for_leader(ANSWER)
            node.apply(b"of its own").result(ANSWER)
        last, term = other.last_index(), other.current_term()

        future = first.add_voter("n2", transport_of_other.local_addr())

        assert future.error(ANSWER) is not None  # two voters, and one of them cannot be reached
        assert (other.last_index(), other.current_term()) == (last, term)
        header = first._core.header
        with pytest.raises(ClusterMismatchError):
            transport_of_first.append_entries(
                "n2", transport_of_other.local_addr(), AppendEntriesRequest(header, 99)
            )
    finally:
        for node in (first, other):
            node.shutdown().result(ANSWER)


def test_an_entry_spoiled_on_disk_is_found_at_start() -> None:
    """Departure 16"""
    with Cluster(1) as cluster:
        leader = cluster.leader()
        apply_count(leader, 10)
        cluster.stop(leader)
        store = leader.logs
        spoiled = replace(store.get_log(5), data=b"spoiled")
        store.store_log(spoiled)

        with pytest.raises(LogCorruptError, match="entry 5"):
            cluster.restart(leader)


def test_a_member_with_a_spoiled_entry_gets_it_again_and_is_whole() -> None:
    """Departure 16: it runs, but neither votes nor leads until its log is as long as it was."""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 10)
        cluster.assert_same_state()
        cluster.stop(follower)
        store = follower.logs
        store.store_log(replace(store.get_log(5), data=b"spoiled"))

        cluster.restart(follower)

        assert len(cluster.assert_same_state()) == 10
        assert store.get_log(5).is_intact()
        assert follower.node._core.damage.is_whole()


def test_an_entry_spoiled_on_its_way_is_not_stored() -> None:
    """Departure 16"""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 3)
        cluster.assert_same_state()
        cluster.disconnect(follower)
        last = follower.node._core.raft_log.last()
        entry = leader.logs.get_log(last.index)
        spoiled = replace(entry, index=last.index + 1, data=b"spoiled")
        request = AppendEntriesRequest(
            header_of(leader), leader.node.current_term(), last.index, last.term, (spoiled,)
        )

        with pytest.raises(Exception, match="checksum"):
            stranger(follower).append_entries(follower.id, follower.address, request)

        assert follower.node.last_index() == last.index


def test_a_snapshot_is_possible_right_after_a_membership_change() -> None:
    """Departure 18"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        change = leader.node.add_nonvoter("x", "x:1")
        change.result(ANSWER)

        snapshot = leader.node.snapshot()
        snapshot.result(ANSWER)

        meta, reader = snapshot.open()
        reader.close()
        assert meta.index >= change.index()
        assert meta.configuration.server("x") is not None
        assert meta.configuration_index == change.index()


def test_a_deposed_leaders_state_is_gone_with_its_term() -> None:
    """Departure 7: what it held is answered, and the next leadership starts anew."""
    with Cluster(3) as cluster:
        leader, others = cluster.leader(), cluster.followers()
        for other in others:
            cluster.disconnect(other)
        waiting = [leader.node.apply(b"x"), leader.node.verify_leader()]
        changes = [leader.node.add_nonvoter(i, f"{i}:1") for i in ("x", "y")]

        assert all(future.error(ANSWER) is not None for future in (*waiting, *changes))
        cluster.heal()

        apply_count(cluster.leader(), 5)
        assert len(cluster.assert_same_state()) in (5, 6)


def test_a_limited_rate_slows_a_snapshot_and_nothing_else() -> None:
    """Departure 14"""

    def limit(config: Config) -> None:
        config.trailing_logs = 0
        config.snapshot_send_rate = 200_000

    with Cluster(3, configure=limit) as cluster:
        leader, away = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(away)
        for _ in range(2):
            leader.node.apply(b"x" * 100_000).result(ANSWER)
        leader.node.snapshot().result(ANSWER)

        cluster.heal()
        began = time.monotonic()
        apply_count(leader, 20)
        written = time.monotonic() - began
        cluster.wait_for(lambda: away.fsm.restores == 1)

        assert time.monotonic() - began > 0.6
        assert written < 0.6 * SCALE
        assert len(cluster.assert_same_state()) == 22


def test_offline_bootstrap_needs_blank_stores(tmp_path: Path) -> None:
    store, snapshots = InmemStore(), InmemSnapshotStore()
    configuration = Configuration([Server("n1", "n1:1")])
    bootstrap_cluster(fast_config("n1"), store, store, snapshots, configuration)

    bootstrap_cluster(fast_config("n1"), store, store, snapshots, configuration)  # done already
    other = Configuration([Server("n1", "n1:2")])
    with pytest.raises(CantBootstrapError, match=r"not empty, they hold .*n1:1"):
        bootstrap_cluster(fast_config("n1"), store, store, snapshots, other)
    with pytest.raises(CantBootstrapError, match="not empty"):
        bootstrap_cluster(fast_config("n1"), store, store, snapshots, configuration, "another")

    fsm = RecordingFSM()
    with Raft(fast_config("n1"), fsm, store, store, snapshots, InmemTransport("n1:1")) as node:
        assert node.wait_for_leader(ANSWER) == ("n1:1", "n1")
        assert node.apply(b"x").result(ANSWER) == 1


def test_a_bootstrap_cut_short_before_its_term_is_made_up_for() -> None:
    store, snapshots = InmemStore(), InmemSnapshotStore()
    bootstrap_cluster(
        fast_config("n1"), store, store, snapshots, Configuration([Server("n1", "n1:1")])
    )
    cut_short = InmemStore()
    cut_short.store_log(store.get_log(1))

    fsm = RecordingFSM()
    transport = InmemTransport("n1:1")
    with Raft(fast_config("n1"), fsm, cut_short, cut_short, snapshots, transport) as node:
        assert node.wait_for_leader(ANSWER) == ("n1:1", "n1")
        wait_for(lambda: node.current_term() >= 2)


def test_removed_servers_do_not_disturb() -> None:
    """H14: a removed node that never learned of it campaigns in vain, and raises no term."""
    with Cluster(3) as cluster:
        leader, removed = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(removed)
        leader.node.remove_server(removed.id).result(ANSWER)
        term = leader.node.current_term()

        cluster.heal()

        stays_so(
            cluster,
            "undisturbed",
            10 * PROPAGATION,
            lambda: leader.is_leader() and leader.node.current_term() == term,
        )
