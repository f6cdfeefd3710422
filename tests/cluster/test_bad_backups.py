"""Backups that cannot be restored: their caller is told, and the cluster stays as it was."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest

from raft import (
    NotAppliedError,
    OutcomeUnknownError,
    RaftError,
    RestoreFailedError,
    SnapshotCorruptError,
)
from raft.testing.cluster import Cluster, Member
from raft.testing.fsm import RecordingFSM
from tests.cluster.helpers import ANSWER, apply_count
from tests.cluster.test_user_restore import take_snapshot, wait_for_settled

UNREADABLE = b"\xff"


def restore_unreadable(leader: Member) -> RaftError:
    """Have a leader restore a backup with bytes that nothing vouches for; return its answer."""
    meta, data = take_snapshot(leader)
    with pytest.raises(RaftError) as caught:
        leader.node.restore(replace(meta, checksum=""), io.BytesIO(UNREADABLE * len(data)), ANSWER)
    return caught.value


def test_a_backup_that_the_machine_cannot_read_changes_nothing() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        term = leader.node.current_term()

        error = restore_unreadable(leader)

        assert isinstance(error, RestoreFailedError)
        assert isinstance(error, NotAppliedError)
        assert error.__cause__ is not None
        assert (leader.is_leader(), leader.node.current_term()) == (True, term)
        apply_count(leader, 1, b"after")
        assert cluster.assert_same_state() == [b"command-%d" % n for n in range(5)] + [b"after-0"]
        wait_for_settled(cluster)
        assert not [m for m in cluster.running() if m is not leader and m.fsm.restores]


def test_a_restart_after_a_refused_backup_knows_nothing_of_it() -> None:
    with Cluster(1) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        restore_unreadable(leader)

        cluster.restart(leader)

        cluster.leader()
        assert cluster.assert_same_state() == [b"command-%d" % n for n in range(5)]


def test_a_refused_backup_leaves_a_leader_while_another_server_is_down() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        cluster.stop(cluster.followers()[0])

        assert isinstance(restore_unreadable(leader), RestoreFailedError)

        apply_count(cluster.leader(), 1)


def test_a_flipped_bit_is_found_before_the_machine_sees_anything() -> None:
    with Cluster(1) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        flipped = bytes([data[0] ^ 1]) + data[1:]

        with pytest.raises(SnapshotCorruptError, match="checksum"):
            leader.node.restore(meta, io.BytesIO(flipped), ANSWER)

        assert leader.fsm.restores == 0
        assert leader.fsm.commands() == [b"command-%d" % n for n in range(5)]
        apply_count(leader, 1)


class RefusingFSM(RecordingFSM):
    """Restores nothing while it `refuses`, and waits in a restore until it `may_go_on`."""

    refuses = False

    def __init__(self, *watches: object) -> None:
        super().__init__(*watches)  # type: ignore[arg-type]
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def restore(self, reader: object) -> None:
        self.has_begun.set()
        self.may_go_on.wait(ANSWER)
        if self.refuses:
            self._logs = []
            raise ValueError("an older version of the application")
        super().restore(reader)  # type: ignore[arg-type]


def test_a_follower_that_alone_cannot_read_a_backup_costs_no_majority() -> None:
    with Cluster(3, make_fsm=RefusingFSM) as cluster:
        leader, other = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        apply_count(leader, 3, b"lost")
        other.fsm.refuses = True

        leader.node.restore(meta, io.BytesIO(data), ANSWER)

        apply_count(leader, 2, b"after")
        assert leader.is_leader()
        other.fsm.refuses = False
        assert cluster.assert_same_state() == leader.fsm.commands()


def test_a_leader_deposed_while_its_machine_tries_a_backup_goes_back() -> None:
    with Cluster(3, make_fsm=RefusingFSM) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        apply_count(leader, 3, b"kept")
        leader.fsm.has_begun.clear()
        leader.fsm.may_go_on.clear()
        outcome: list[BaseException | None] = []

        def restore() -> None:
            try:
                leader.node.restore(meta, io.BytesIO(data), ANSWER)
                outcome.append(None)
            except RaftError as error:
                outcome.append(error)

        caller = threading.Thread(target=restore)
        caller.start()
        try:
            assert leader.fsm.has_begun.wait(ANSWER)
            cluster.disconnect(leader)
            cluster.wait_for(lambda: not leader.is_leader(), what="the leader to step down")
        finally:
            leader.fsm.may_go_on.set()
            caller.join(ANSWER)

        assert isinstance(outcome[0], OutcomeUnknownError)
        cluster.heal()
        apply_count(cluster.leader(), 1, b"after")
        assert len(cluster.assert_same_state()) == 9
        wait_for_settled(cluster)
