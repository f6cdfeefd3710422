"""Clusters that are recovered by hand, all servers down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft import Config, Configuration, LogType, read_config_json, recover_cluster
from raft.snapshots import FileSnapshotStore
from raft.testing.cluster import Cluster, Member
from raft.testing.fsm import RecordingFSM
from tests.cluster.helpers import ANSWER, HEARTBEAT, PROPAGATION, apply_count, stays_so


def few_trailing(config: Config) -> None:
    config.trailing_logs = 10


def eager(config: Config) -> None:
    config.trailing_logs = 10
    config.snapshot_threshold = 5
    config.snapshot_interval = 2 * PROPAGATION


def recover(member: Member, configuration: Configuration) -> None:
    """Recover a stopped member with an FSM to be thrown away."""
    recover_cluster(
        member.config,
        RecordingFSM(),
        member.logs,
        member.stable,
        member.snapshots,
        configuration,
    )


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(0, id="SNP-13 no snapshot, no trailing logs"),
        pytest.param(4, id="SNP-14 no snapshot, some trailing logs"),
        pytest.param(25, id="SNP-15 snapshot, with trailing logs"),
    ],
)
def test_a_cluster_recovered_with_its_own_configuration_goes_on(tmp_path: Path, count: int) -> None:
    """SNP-13, SNP-14, SNP-15; protocol 3, as everything here."""
    with Cluster(0, configure=eager) as cluster:
        for number in range(3):
            cluster.add(snapshots=FileSnapshotStore(tmp_path / str(number), retain=100))
        cluster.bootstrap()
        leader = cluster.leader()
        apply_count(leader, count)
        commands = cluster.assert_same_state()
        members = list(cluster.members.values())
        if count == 25:
            cluster.wait_for(lambda: all(m.snapshots.list() for m in members), what="snapshots")
        before = leader.node.get_configuration().result(1)
        for member in members:
            cluster.stop(member)

        for member in members:
            snapshots = len(member.snapshots.list())
            recover(member, before)
            assert len(member.snapshots.list()) == snapshots + 1
            assert (member.logs.first_index(), member.logs.last_index()) == (0, 0)

        for member in members:
            cluster.restart(member)
        cluster.followers()
        assert cluster.assert_same_state() == commands
        apply_count(cluster.leader(), 1, b"after")
        configurations = {m.node.get_configuration().result(1) for m in members}
        assert configurations == {before}
        assert len({m.node.cluster_id() for m in members}) == 1


def test_a_server_left_behind_is_refused() -> None:
    """Departure 15: it knows the address, and has a log of its own, but another cluster's id."""
    with Cluster(3) as cluster:
        apply_count(cluster.leader(), 3)
        commands = cluster.assert_same_state()
        survivor, left_behind, lost = cluster["n1"], cluster["n2"], cluster["n3"]
        for member in (survivor, left_behind, lost):
            cluster.stop(member)
        last_term = survivor.node.current_term()

        recover(survivor, Configuration([survivor.server()]))
        cluster.restart(survivor)
        cluster.restart(left_behind)
        survivor.node.wait_for_leader(ANSWER)
        survivor.node.add_nonvoter(left_behind.id, left_behind.address).result(ANSWER)
        survivor.node.apply(b"after").result(ANSWER)

        stays_so(
            cluster,
            "the old cluster is over",
            10 * HEARTBEAT,
            lambda: survivor.is_leader() and left_behind.fsm.commands() != [*commands, b"after"],
        )
        assert survivor.node.current_term() > last_term
        assert survivor.node.cluster_id() != left_behind.node.cluster_id()


def test_a_survivor_goes_on_with_blank_servers(tmp_path: Path) -> None:
    """SNP-08 with what holds here: protocol 3 only, so the file names ids as well."""
    with Cluster(3, configure=few_trailing) as cluster:
        survivor = cluster.leader()
        apply_count(survivor, 100)
        commands = cluster.assert_same_state()
        survivor.node.snapshot().result(ANSWER)
        for member in list(cluster.members.values()):
            cluster.stop(member)
        blanks = [cluster.add(), cluster.add()]
        path = tmp_path / "peers.json"
        servers = [{"id": m.id, "address": m.address} for m in (survivor, *blanks)]
        path.write_text(json.dumps(servers))

        recover(survivor, read_config_json(path))
        cluster.restart(survivor)

        cluster.followers()
        members = (survivor, *blanks)
        # Bootstrap, no-op, 100 commands, and the no-op of the new leader: 103, unless the machine
        # is so busy that there was another.
        cluster.wait_for(lambda: all(m.node.applied_index() >= 103 for m in members), what="103")
        assert cluster.assert_same_state() == commands
        for member in members:
            configuration = member.node.get_configuration().result(1)
            assert {s.id for s in configuration.servers} == {s["id"] for s in servers}
            behind = range(103, member.logs.last_index() + 1)
            assert {member.logs.get_log(index).type for index in behind} == {LogType.NOOP}
