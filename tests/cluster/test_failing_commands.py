"""Commands on which a state machine raises: the cluster outlives them, and says what happened."""

from __future__ import annotations

import errno
import json
import logging
import queue
from typing import Any

import pytest

from raft import (
    Config,
    FailedCommandObservation,
    FSMFailedError,
    Log,
    Observation,
    Observer,
    Raft,
    RaftState,
    ShutdownOutcomeUnknownError,
)
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import Cluster
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport
from tests.cluster.helpers import ANSWER

NESTED = b"[" * 5000
MISSING = b'"/no/such/file"'


class JsonFSM(RecordingFSM):
    """Does what applications do with a command: parses it, and opens the file that it names."""

    def apply(self, log: Log) -> Any:
        name = json.loads(log.data)
        if isinstance(name, str):
            with open(name):
                pass
        return super().apply(log)


@pytest.mark.parametrize(
    ("command", "expected"), [(NESTED, RecursionError), (MISSING, FileNotFoundError)]
)
def test_a_command_that_the_machine_cannot_take_is_answered_and_ends_no_replica(
    command: bytes, expected: type[Exception]
) -> None:
    with Cluster(3, make_fsm=JsonFSM) as cluster:
        leader = cluster.leader()

        assert isinstance(leader.node.apply(command).error(ANSWER), expected)

        assert leader.node.apply(b"1").result(ANSWER) == 1
        assert cluster.assert_same_state() == [b"1"]
        cluster.restart(leader)
        cluster.leader().node.apply(b"2").result(ANSWER)
        assert cluster.assert_same_state() == [b"1", b"2"]


class FullDiskFSM(RecordingFSM):
    """Has no room for one command."""

    def apply(self, log: Log) -> int:
        if log.data == b"large":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().apply(log)


def test_a_node_that_halts_says_why_and_at_its_second_stop_that_the_command_looks_guilty() -> None:
    with Cluster(1, make_fsm=FullDiskFSM) as cluster:
        leader = cluster.leader()
        future = leader.node.apply(b"large")

        error = future.error(ANSWER)

        failure = leader.node.failure
        assert isinstance(error, ShutdownOutcomeUnknownError)
        assert isinstance(failure, FSMFailedError)
        assert failure.index == future.index()
        assert str(failure) in str(error)
        assert "looks guilty" not in str(failure)
        again = cluster.restart(leader)
        cluster.wait_for(lambda: again.node.state() is RaftState.SHUTDOWN)
        assert "looks guilty" in str(again.node.failure)


def test_the_way_out_of_a_halt_works() -> None:
    with Cluster(1, make_fsm=FullDiskFSM) as cluster:
        leader = cluster.leader()
        leader.node.apply(b"large").error(ANSWER)

        leader.config.fsm_halt_on = ()
        again = cluster.restart(leader)
        cluster.leader()

        assert again.node.apply(b"small").result(ANSWER) == 1
        assert again.node.stats()["fsm_failed_commands"] == "1"


class OneSidedFSM(RecordingFSM):
    """Raises on one node only, as no state machine should."""

    fails = False

    def apply(self, log: Log) -> int:
        if self.fails:
            raise ValueError("only here")
        return super().apply(log)


def test_a_replica_that_alone_raises_is_logged_counted_and_observed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Cluster(3, make_fsm=OneSidedFSM) as cluster, caplog.at_level(logging.WARNING):
        leader = cluster.leader()
        lonely = cluster.followers()[0]
        seen: queue.Queue[Observation] = queue.Queue()
        lonely.node.register_observer(
            Observer(seen, filter=lambda o: isinstance(o.data, FailedCommandObservation))
        )
        lonely.fsm.fails = True

        futures = [leader.node.apply(b"x") for _ in range(3)]

        observed = [seen.get(timeout=ANSWER).data for _ in futures]
        assert [o.index for o in observed] == [f.index() for f in futures]
        assert [o.is_answered for o in observed] == [False] * 3
        assert lonely.node.stats()["fsm_failed_commands"] == "3"
        assert leader.node.stats()["fsm_failed_commands"] == "0"
        lonely.fsm.fails = False
    records = [r for r in caplog.records if "command failed, nobody" in r.getMessage()]
    assert len(records) == 1, "one in ten seconds"
    assert f"index={futures[0].index()} error=ValueError('only here')" in records[0].getMessage()


def test_a_caller_who_gets_the_exception_is_enough() -> None:
    with Cluster(1, make_fsm=JsonFSM) as cluster:
        leader = cluster.leader()
        seen: queue.Queue[Observation] = queue.Queue()
        leader.node.register_observer(
            Observer(seen, filter=lambda o: isinstance(o.data, FailedCommandObservation))
        )

        leader.node.apply(MISSING).error(ANSWER)

        assert seen.get(timeout=ANSWER).data.is_answered


class NoRestore:
    def apply(self, log: Log) -> None: ...
    def snapshot(self) -> None: ...


def test_the_constructor_refuses_an_fsm_that_lacks_a_method() -> None:
    store = InmemStore()
    transport = InmemTransport("n1")

    with pytest.raises(TypeError, match=r"lacks the method restore\(reader\)"):
        Raft(
            Config(local_id="n1"),
            NoRestore(),  # type: ignore[arg-type]
            store,
            store,
            InmemSnapshotStore(),
            transport,
        )
