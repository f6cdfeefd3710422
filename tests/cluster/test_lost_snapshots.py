"""Snapshots that are gone, or cannot be read, while others need them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raft import Config
from raft.snapshots import FileSnapshotStore
from raft.testing.cluster import SCALE, Cluster, Member
from tests.cluster.helpers import apply_count


def keeps_no_entries(config: Config) -> None:
    config.trailing_logs = 0
    # Who leads shall do so to the end, on a busy machine, too.
    config.heartbeat_timeout = config.election_timeout = 0.5 * SCALE


def lose_directory(folder: Path) -> None:
    shutil.rmtree(folder / "snapshots")


def flip_a_bit(folder: Path) -> None:
    for state in folder.glob("snapshots/*/state.bin"):
        data = bytearray(state.read_bytes())
        data[0] ^= 1
        state.write_bytes(data)


@pytest.mark.parametrize("harm", [lose_directory, flip_a_bit])
def test_a_leader_without_a_snapshot_takes_another_one_for_whom_needs_it(
    harm: object, tmp_path: Path
) -> None:
    with Cluster(0, bootstrap=False, configure=keeps_no_entries) as cluster:
        members = [cluster.add(snapshots=FileSnapshotStore(tmp_path / f"n{n}")) for n in (1, 2, 3)]
        cluster.bootstrap(members)
        leader, behind = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 3)
        cluster.stop(behind)
        apply_count(leader, 3, b"missed")
        leader.node.snapshot().result(10 * SCALE)
        cluster.wait_for(lambda: leader.logs.first_index() != 1, what="the log to be compacted")
        harm(tmp_path / leader.id)  # type: ignore[operator]

        cluster.restart(behind)

        assert len(cluster.assert_same_state(20)) == 6
        assert cluster.leader() is leader
        restarted: Member = cluster.restart(leader)
        assert len(restarted.fsm.commands()) == 6
        cluster.leader()


def test_a_snapshot_that_is_gone_is_replaced_before_anybody_needs_it(tmp_path: Path) -> None:
    def configure(config: Config) -> None:
        config.trailing_logs = 0
        config.snapshot_interval = 0.1 * SCALE

    with Cluster(0, bootstrap=False, configure=configure) as cluster:
        member = cluster.add(snapshots=FileSnapshotStore(tmp_path))
        cluster.bootstrap()
        apply_count(cluster.leader(), 3)
        member.node.snapshot().result(10 * SCALE)
        cluster.wait_for(lambda: member.logs.first_index() != 1, what="the log to be compacted")

        lose_directory(tmp_path)

        cluster.wait_for(lambda: member.snapshots.list(), what="another snapshot")
