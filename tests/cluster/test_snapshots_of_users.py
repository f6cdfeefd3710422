"""What a state machine is told, and may do, when snapshots are taken and restored."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import pytest

from raft import Config, Configuration, DeadlockError, SnapshotError, recover_cluster
from raft.interfaces import SnapshotSink
from raft.testing.cluster import Cluster
from raft.testing.fsm import ConfigurationRecordingFSM, RecordedSnapshot, RecordingFSM
from tests.cluster.helpers import ANSWER, apply_count


def snapshots_soon(config: Config) -> None:
    config.trailing_logs = 0


def test_a_configuration_store_hears_the_members_after_an_install_and_after_a_restart() -> None:
    with Cluster(3, make_fsm=ConfigurationRecordingFSM, configure=snapshots_soon) as cluster:
        leader, absent = cluster.leader(), cluster.followers()[0]
        cluster.stop(absent)
        apply_count(leader, 5)
        members = leader.node.get_configuration().result(ANSWER)
        leader.node.snapshot().result(ANSWER)
        cluster.wait_for(lambda: leader.logs.first_index() != 1, what="the log to be compacted")
        absent.make_fsm = ConfigurationRecordingFSM
        absent.logs.delete_range(1, absent.logs.last_index())

        cluster.restart(absent)
        cluster.assert_same_state()

        assert (1, members) in absent.fsm.configurations
        cluster.restart(leader)
        assert (1, members) in leader.fsm.configurations
        cluster.leader()


def test_a_configuration_store_hears_of_the_members_that_a_recovery_gives_it() -> None:
    with Cluster(1) as cluster:
        member = cluster.leader()
        apply_count(member, 3)
        cluster.stop(member)
        fsm = ConfigurationRecordingFSM()
        alone = Configuration([member.server()])

        recover_cluster(
            member.config, fsm, member.logs, member.stable, member.snapshots, alone, "next"
        )

        assert fsm.configurations == [(5, alone)]


class SelfishView(RecordedSnapshot):
    """Waits for its own node while it is written."""

    node: Any = None

    def persist(self, sink: SnapshotSink) -> None:
        SelfishView.node.apply(b"inner").result(ANSWER)
        super().persist(sink)


class SelfishFSM(RecordingFSM):
    def snapshot(self) -> RecordedSnapshot:
        return SelfishView(self.logs())


def test_a_view_that_waits_for_its_own_node_is_told_and_the_node_goes_on() -> None:
    with Cluster(1, make_fsm=SelfishFSM) as cluster:
        node = cluster.leader().node
        SelfishView.node = node
        node.apply(b"x").result(ANSWER)

        error = node.snapshot().error(ANSWER)

        assert isinstance(error, SnapshotError)
        assert isinstance(error.__cause__, DeadlockError)
        node.apply(b"y").result(ANSWER)


class GreedyView(RecordedSnapshot):
    """Holds the interpreter: no other thread of the process runs meanwhile."""

    seconds = 0.0

    def persist(self, sink: SnapshotSink) -> None:
        numbers = list(range(1000))
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            sum(numbers)  # the switch interval of the test keeps the others out
        super().persist(sink)


class GreedyFSM(RecordingFSM):
    def snapshot(self) -> RecordedSnapshot:
        return GreedyView(self.logs())


def test_a_stall_while_a_snapshot_is_written_names_the_likely_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster(1, make_fsm=GreedyFSM) as cluster, caplog.at_level(logging.WARNING):
        node = cluster.leader().node
        node.apply(b"x").result(ANSWER)
        interval = sys.getswitchinterval()
        monkeypatch.setattr(GreedyView, "seconds", 2 * node.reloadable_config().heartbeat_timeout)
        sys.setswitchinterval(30.0)
        try:
            node.snapshot().result(ANSWER)
        finally:
            sys.setswitchinterval(interval)
        cluster.wait_for(lambda: "likely_cause=FSMSnapshot.persist" in caplog.text)
