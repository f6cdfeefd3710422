"""Code of the application that fails, blocks, forks or leaves: the node stays what it is."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any, ClassVar

import pytest

from raft import (
    Config,
    DeadlockError,
    EnqueueTimeoutError,
    ForkedProcessError,
    FSMError,
    FSMFailedError,
    FSMHaltError,
    Log,
    NotLeaderError,
    Observation,
    Observer,
    OutcomeUnknownError,
    RaftShutdownError,
    RaftState,
    SnapshotMeta,
    SnapshotReader,
)
from raft.futures import Future
from raft.testing.cluster import Cluster
from raft.testing.fsm import RecordingFSM
from raft.types import EMPTY_CONFIGURATION
from tests.cluster.helpers import ANSWER, apply_count

ROOT = Path(__file__).resolve().parents[2]


class TouchyFSM(RecordingFSM):
    """Raises what the command names."""

    errors: ClassVar[dict[bytes, BaseException]] = {
        b"value": ValueError("no such account"),
        b"raft": NotLeaderError(),
        b"halt": FSMHaltError("the database is gone"),
        b"os": OSError(errno.EIO, "disk on fire"),
    }

    def apply(self, log: Log) -> int:
        if log.data in self.errors:
            raise self.errors[log.data]
        return super().apply(log)


def test_what_an_fsm_raises_is_the_answer_to_that_command_alone() -> None:
    with Cluster(3, make_fsm=TouchyFSM) as cluster:
        leader = cluster.leader()
        futures = [leader.node.apply(data) for data in (b"a", b"value", b"b")]

        assert futures[0].result(ANSWER) == 1
        assert isinstance(futures[1].error(ANSWER), ValueError)
        assert isinstance(futures[1].response(), ValueError)
        assert futures[2].result(ANSWER) == 2
        assert cluster.assert_same_state() == [b"a", b"b"]


def test_an_error_of_ours_out_of_an_fsm_does_not_lie_about_the_outcome() -> None:
    with Cluster(1, make_fsm=TouchyFSM) as cluster:
        error = cluster.leader().node.apply(b"raft").error(ANSWER)

        assert isinstance(error, FSMError)
        assert isinstance(error.__cause__, NotLeaderError)


@pytest.mark.parametrize("command", [b"halt", b"os"])
def test_a_fault_of_the_machine_halts_the_node_before_anything_later_is_applied(
    command: bytes,
) -> None:
    with Cluster(1, make_fsm=TouchyFSM) as cluster:
        leader = cluster.leader()
        futures = [leader.node.apply(data) for data in (b"a", command, b"b")]

        errors = [future.error(ANSWER) for future in futures[1:]]

        assert all(isinstance(e, OutcomeUnknownError | RaftShutdownError) for e in errors)
        cluster.wait_for(lambda: leader.node.state() is RaftState.SHUTDOWN)
        assert isinstance(leader.node.failure, FSMFailedError)
        assert leader.node.failure.__cause__ is TouchyFSM.errors[command]
        assert str(leader.node.failure) in str(errors[0])
        assert leader.fsm.commands() == [b"a"]


class WaitingFSM(RecordingFSM):
    """Waits for a future of its own node, or for ever."""

    node: Any = None
    go_on = threading.Event()

    def apply(self, log: Log) -> Any:
        if log.data == b"wait for self":
            return WaitingFSM.node.apply(b"inner").result(ANSWER)
        if log.data == b"wait for ever":
            WaitingFSM.go_on.wait(ANSWER * 3)
        return super().apply(log)


def test_fsm_code_that_applies_does_not_wait_for_room() -> None:
    """Room is made by the FSM thread alone, which is the one that would wait."""
    inner: list[Any] = []

    class Applying(RecordingFSM):
        node: Any = None

        def apply(self, log: Log) -> int:
            if log.data.startswith(b"outer"):
                inner.append(Applying.node.apply(bytes(50)))
            return super().apply(log)

    def small(config: Config) -> None:
        config.max_command_bytes = config.max_pending_bytes = 100

    with Cluster(1, configure=small, make_fsm=Applying) as cluster:
        Applying.node = cluster.leader().node
        outer = Applying.node.apply(b"outer" + bytes(60))

        assert outer.result(ANSWER) == 1
        assert isinstance(inner[0].error(ANSWER), EnqueueTimeoutError)


def test_fsm_code_that_waits_for_its_own_node_is_told_so() -> None:
    with Cluster(1, make_fsm=WaitingFSM) as cluster:
        WaitingFSM.node = cluster.leader().node

        outer = WaitingFSM.node.apply(b"wait for self")

        error = outer.error(ANSWER)
        assert isinstance(error, FSMError)
        assert isinstance(error.__cause__, DeadlockError)
        WaitingFSM.node = None


def test_fsm_code_that_restores_its_own_cluster_is_told_so_before_anything_happens() -> None:
    class Restoring(RecordingFSM):
        node: ClassVar[Any] = None
        given: ClassVar[Any] = None

        def apply(self, log: Log) -> int:
            if log.data == b"restore":
                Restoring.node.restore(*Restoring.given)
            return super().apply(log)

    with Cluster(1, make_fsm=Restoring) as cluster:
        node = Restoring.node = cluster.leader().node
        node.apply(b"x").result(ANSWER)
        taken = node.snapshot()
        taken.result(ANSWER)
        Restoring.given = taken.open()

        error = node.apply(b"restore").error(ANSWER)

        assert isinstance(error.__cause__, DeadlockError)
        node.apply(b"y").result(ANSWER)
        assert cluster["n1"].fsm.restores == 0
        Restoring.given[1].close()


def test_an_fsm_that_blocks_delays_answers_but_no_heartbeat_and_no_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def configure(config: Config) -> None:
        config.shutdown_timeout = 0.5

    WaitingFSM.go_on.clear()
    with Cluster(3, configure=configure, make_fsm=WaitingFSM) as cluster:
        leader = cluster.leader()
        term = leader.node.current_term()
        stuck = leader.node.apply(b"wait for ever")
        later = leader.node.apply(b"later")

        leader.node.verify_leader().result(ANSWER)
        cluster.wait_for(lambda: leader.node.commit_index() >= later.index() > 0)
        assert not stuck.done()
        assert (leader.is_leader(), leader.node.current_term()) == (True, term)
        began = time.monotonic()
        cluster.stop(leader)

        assert time.monotonic() - began < 5
        assert isinstance(later.error(ANSWER), OutcomeUnknownError | RaftShutdownError)
        assert stuck.done()
        assert f"raft-{leader.id}-fsm" in caplog.text
        WaitingFSM.go_on.set()


def test_a_blocking_observer_blocks_nothing_but_itself() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        full: queue.Queue[Observation] = queue.Queue(1)
        leader.node.register_observer(Observer(full, blocking=True))
        for follower in cluster.followers():
            cluster.disconnect(follower)
            cluster.heal(follower)

        apply_count(leader, 20)

        assert leader.is_leader()


def test_observers_see_what_their_filter_lets_through() -> None:
    seen: queue.Queue[Observation] = queue.Queue()
    with Cluster(1, bootstrap=False) as cluster:
        node = cluster["n1"].node
        observer = Observer(seen, filter=lambda o: isinstance(o.data, RaftState))
        node.register_observer(observer)

        cluster.bootstrap()
        cluster.leader()

        states = [seen.get(timeout=ANSWER).data for _ in range(2)]
        assert states == [RaftState.CANDIDATE, RaftState.LEADER]
        node.deregister_observer(observer)


def test_a_callback_runs_on_the_events_thread_and_may_fail() -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node
        names: queue.Queue[str] = queue.Queue()

        def fail(_: object) -> None:
            names.put(threading.current_thread().name)
            raise ValueError("callback on fire")

        future = node.apply(b"x")
        future.add_done_callback(fail)

        assert names.get(timeout=ANSWER) == "raft-n1-events"
        assert node.apply(b"y").result(ANSWER) == 2


def test_an_events_thread_that_ends_all_the_same_is_no_secret() -> None:
    with Cluster(1) as cluster:
        member = cluster.leader()
        error = GeneratorExit("no exception that anybody expects")

        def fail(_: object) -> None:
            raise error

        member.node.apply(b"x").add_done_callback(fail)

        cluster.wait_for(lambda: member.node.failure is error)


def test_a_callback_that_halts_the_node_keeps_none_behind_it_waiting() -> None:
    """Else what `asyncio.wrap_future` made of a future that is answered is never done."""
    with Cluster(1) as cluster:
        node = cluster.leader().node
        told: queue.Queue[object] = queue.Queue()
        go_on = threading.Event()

        def fail(_: object) -> None:
            go_on.wait(ANSWER)
            raise GeneratorExit("no exception that anybody expects")

        node.apply(b"x").add_done_callback(fail)
        node.apply(b"y").add_done_callback(told.put)
        go_on.set()

        assert told.get(timeout=ANSWER)
        cluster.wait_for(lambda: node.state() is RaftState.SHUTDOWN)
        assert node.shutdown().result(ANSWER) is None


def test_a_caller_who_is_interrupted_while_he_waits_gives_his_bytes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C, or the time limit of a worker: else the leader takes no more commands one day."""
    with Cluster(1) as cluster:
        node = cluster.leader().node
        command = bytes(8 * 1024 * 1024)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(node._core.inbox, "submit", interrupt)
            for _ in range(9):  # 72 MiB: more than max_pending_bytes
                with pytest.raises(KeyboardInterrupt):
                    node.apply(command, timeout=0.01)

        assert node.apply(b"x", timeout=0.01).result(ANSWER) == 1


def test_futures_work_with_the_standard_library() -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node
        futures = [node.apply(b"%d" % n) for n in range(5)]

        done, pending = wait(futures, ANSWER)
        results = sorted(future.result() for future in as_completed(futures, ANSWER))

        async def ask() -> int:
            return await asyncio.wrap_future(node.apply(b"async"))

        assert (len(done), len(pending)) == (5, 0)
        assert results == [1, 2, 3, 4, 5]
        assert asyncio.run(ask()) == 6


def test_a_command_that_is_no_bytes_is_a_type_error() -> None:
    with Cluster(1) as cluster, pytest.raises(TypeError, match="bytes"):
        cluster.leader().node.apply("text")  # type: ignore[arg-type] # that is the point


@pytest.mark.parametrize(
    "call",
    [
        lambda node: node.apply_log(Log(0, 0, data=b"x", extensions="text")),
        lambda node: node.add_voter("n2", "n2:1", None),
        lambda node: node.add_voter(["n2"], "n2:1", catch_up=True),
        lambda node: node.remove_server("n1", "3"),
        lambda node: node.leadership_transfer_to_server("n2", None),
        lambda node: node.restore(None, None),
        lambda node: node.restore(SnapshotMeta("x", "5", 1, EMPTY_CONFIGURATION, 1), None),
        lambda node: node.restore(SnapshotMeta("x", 5.0, 1, EMPTY_CONFIGURATION, 1), None),
    ],
)
def test_what_is_of_another_type_is_refused_in_the_callers_thread(
    call: Callable[[Any], object],
) -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node

        with pytest.raises(TypeError):
            call(node)

        node.apply(b"x").result(ANSWER)
        assert node.failure is None


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that a fork is risky
def test_a_forked_child_is_told_the_cure_and_the_parent_goes_on() -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node
        pending: Future[None] = Future(node._host)
        calls: list[Callable[[], object]] = [
            lambda: node.apply(b"x"),
            lambda: node.barrier(),
            lambda: node.shutdown(),
            lambda: node.snapshot(),
            lambda: node.verify_leader(),
            lambda: node.wait_for_leader(1),
            lambda: node.add_voter("x", "x:1"),
            lambda: node.get_configuration(),
            lambda: node.leader_with_id(),
            lambda: node.leader_ch(),
            lambda: node.state(),  # or else a leader at the fork would lead for ever
            lambda: node.stats(),  # a lock that was held at the fork is held for ever
            lambda: node.commit_index(),
            lambda: node.cluster_id(),
            lambda: node.register_observer(Observer(None)),
            lambda: node.failure,
            lambda: node.reloadable_config(),
            lambda: pending.result(ANSWER),  # nobody is here who could answer it
            lambda: pending.exception(ANSWER),
        ]

        child = os.fork()
        if child == 0:
            told = 0
            for call in calls:
                try:
                    call()
                except ForkedProcessError as error:
                    told += "post_fork" in str(error)
            os._exit(0 if told == len(calls) else 1)
        _, status = os.waitpid(child, 0)

        assert status == 0
        assert node.apply(b"y").result(ANSWER) == 1


class RefusingFSM(RecordingFSM):
    """Cannot restore while `broken` is set."""

    broken = threading.Event()

    def restore(self, reader: SnapshotReader) -> None:
        if RefusingFSM.broken.is_set():
            raise ValueError("half restored")
        super().restore(reader)


def test_a_failed_restore_poisons_the_fsm_until_one_succeeds() -> None:
    """Departure 9."""

    def keep_ten(config: Config) -> None:
        config.trailing_logs = 10

    with Cluster(3, configure=keep_ten, make_fsm=RefusingFSM) as cluster:
        leader, behind = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(behind)
        apply_count(leader, 50)
        leader.node.snapshot().result(ANSWER)
        RefusingFSM.broken.set()

        cluster.heal()
        cluster.wait_for(lambda: behind.node._core.fsm.restores.poison is not None)
        apply_count(leader, 10, b"more")
        cluster.wait_for(lambda: behind.node.last_index() == leader.node.last_index())

        assert behind.node.applied_index() == 0
        assert behind.fsm.logs() == []
        RefusingFSM.broken.clear()
        assert len(cluster.assert_same_state()) == 60


PROGRAM = """
import sys
from raft.testing.cluster import Cluster
cluster = Cluster(1)
node = cluster.leader().node
print(node.apply(b"x").result(5), flush=True)
"""


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise SystemExit(3)"])
def test_an_interpreter_that_ends_with_a_live_node_does_not_hang(ending: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("1\n", 3 if ending else 0)


def test_stats_have_the_originals_names() -> None:
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        apply_count(leader, 3)
        cluster.assert_same_state()

        stats = leader.node.stats()

        assert set(stats) == {
            "state",
            "term",
            "last_log_index",
            "last_log_term",
            "commit_index",
            "applied_index",
            "fsm_pending",
            "fsm_failed_commands",
            "replaced_voters",
            "peers",
            "certificate_days_left",
            "last_lost_election",
            "last_snapshot_index",
            "last_snapshot_term",
            "protocol_version",
            "protocol_version_min",
            "protocol_version_max",
            "snapshot_version_min",
            "snapshot_version_max",
            "latest_configuration_index",
            "latest_configuration",
            "num_peers",
            "last_contact",
        }
        assert (stats["state"], stats["num_peers"], stats["last_contact"]) == ("Leader", "2", "0")
        assert stats["applied_index"] == stats["commit_index"] == str(leader.node.last_index())
        assert follower.node.stats()["last_contact"].endswith("s")
        assert str(leader.node) == f"Node at {leader.address} [Leader]"
        assert leader.node.cluster_id() is not None


def test_a_snapshot_that_was_answered_shows_in_the_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node
        applied = node.apply(b"x")
        applied.result(ANSWER)
        monkeypatch.setattr(node._core.inbox, "post", lambda _: None)  # main hears of nothing

        node.snapshot().result(ANSWER)

        assert int(node.stats()["last_snapshot_index"]) >= applied.index()
        monkeypatch.undo()
