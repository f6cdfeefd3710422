"""Commands, followers that lag, snapshots sent to them (scenario area REP)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from raft import (
    ApplyFuture,
    CommandTooLargeError,
    Config,
    EnqueueTimeoutError,
    Log,
    LogType,
    NothingNewToSnapshotError,
    NotLeaderError,
)
from raft.messages import AppendEntriesRequest, RPCHeader
from raft.stores import InmemStore, LogCache
from raft.testing.cluster import Cluster, Member
from raft.testing.fsm import RecordingFSM
from raft.testing.invariants import Invariants
from tests.cluster.helpers import (
    ANSWER,
    HEARTBEAT,
    apply_all,
    apply_count,
    header_of,
    stranger,
)


def keep_ten(config: Config) -> None:
    config.trailing_logs = 10


def snapshot_all(cluster: Cluster) -> None:
    """Take a snapshot on every node; one that has applied nothing new may say so."""
    for member in cluster.running():
        error = member.node.snapshot().error(ANSWER)
        assert error is None or isinstance(error, NothingNewToSnapshotError)


def test_a_follower_that_was_cut_off_catches_up() -> None:
    """REP-01"""
    with Cluster(3) as cluster:
        leader, behind = cluster.leader(), cluster.followers()[0]

        cluster.disconnect(behind)
        apply_count(leader, 100)

        assert behind.node.last_contact() is not None
        assert behind.fsm.logs() == []
        cluster.heal()
        assert len(cluster.assert_same_state()) == 100


def test_a_follower_refuses_commands_every_time_it_is_asked() -> None:
    """REP-02, ETC-46"""
    with Cluster(3) as cluster:
        future = cluster.followers()[0].node.apply(b"test")

        assert isinstance(future.error(ANSWER), NotLeaderError)
        assert future.error(ANSWER) is future.error(ANSWER)


def test_a_hundred_threads_apply_at_once() -> None:
    """REP-03"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        errors: list[BaseException | None] = []

        def apply(number: int) -> None:
            errors.append(leader.node.apply(b"test-%d" % number).error(ANSWER))

        threads = [threading.Thread(target=apply, args=(n,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert errors == [None] * 100
        assert len(cluster.assert_same_state()) == 100


class StuckStore(InmemStore):
    """Holds every write up while `free` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()

    def store_logs(self, logs: Sequence[Log]) -> None:
        self.free.wait(ANSWER)
        super().store_logs(logs)


@pytest.mark.parametrize("timeout", [0.001, 0])
def test_a_full_queue_times_out(timeout: float) -> None:
    """REP-04: more bytes are unanswered than `max_pending_bytes` allows."""

    def configure(config: Config) -> None:
        config.max_command_bytes = 1000
        config.max_pending_bytes = 1000

    store = StuckStore()
    with Cluster(0, configure=configure) as cluster:
        member = cluster.add(logs=store, stable=store)
        cluster.bootstrap()
        leader = cluster.leader()
        leader.node.barrier().result(ANSWER)
        store.free.clear()

        taken = leader.node.apply(b"x" * 600)
        refused = leader.node.apply(b"x" * 600, timeout=timeout)
        error = refused.error(ANSWER)
        store.free.set()

        assert isinstance(error, EnqueueTimeoutError)
        assert taken.result(ANSWER) == 1
        leader.node.barrier().result(ANSWER)
        assert member.fsm.commands() == [b"x" * 600]


def test_a_leader_that_was_refuses_at_once_although_its_fsm_still_holds_the_bytes() -> None:
    """Another server can take the command; this one has no room until its FSM goes on."""
    door = threading.Event()

    class Slow(RecordingFSM):
        def apply(self, log: Log) -> int:
            door.wait(ANSWER)
            return super().apply(log)

    def small(config: Config) -> None:
        config.max_command_bytes = config.max_pending_bytes = 100

    with Cluster(3, configure=small, make_fsm=Slow) as cluster:
        leader = cluster.leader()
        cluster.wait_for(lambda: leader.node.commit_index() > 1)
        slow = leader.node.apply(bytes(100))
        cluster.wait_for(lambda: leader.node.commit_index() >= slow.index() > 0)
        cluster.disconnect(leader)
        cluster.wait_for(lambda: not leader.is_leader())

        refused = leader.node.apply(b"x", timeout=HEARTBEAT)

        assert isinstance(refused.error(ANSWER), NotLeaderError)
        door.set()
        assert slow.result(ANSWER) == 1


def test_a_barrier_waits_for_all_before_it() -> None:
    """REP-05"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        futures: list[ApplyFuture] = [leader.node.apply(b"test-%d" % n) for n in range(100)]

        leader.node.barrier().result(ANSWER)

        assert len(leader.fsm.logs()) == 100
        assert all(future.done() for future in futures)
        assert len(cluster.assert_same_state()) == 100


def test_a_commit_index_beyond_the_entries_sent_is_capped() -> None:
    """REP-06: the original's legacy leader field is not part of the native messages."""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(follower)
        last = follower.node._core.raft_log.last()
        term = leader.node.current_term() + 1
        entry = Log(last.index + 1, term, LogType.COMMAND, b"hand-made").sealed()

        request = AppendEntriesRequest(
            header_of(leader), term, last.index, last.term, (entry,), leader_commit=90
        )
        answer = stranger(follower).append_entries(follower.id, follower.address, request)

        assert answer.success
        assert follower.node.commit_index() == last.index + 1
        cluster.wait_for(lambda: follower.fsm.commands() == [b"hand-made"])
        cluster.invariants = Invariants()  # no leader has made this entry
        cluster.stop(follower)


def test_a_leader_without_a_name_is_taken_by_its_address() -> None:
    """REP-06, second half: an empty id in the header."""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        last = follower.node._core.raft_log.last()
        term = leader.node.current_term()

        request = AppendEntriesRequest(RPCHeader("", leader.address), term, last.index, last.term)
        answer = stranger(follower).append_entries(follower.id, follower.address, request)

        assert answer.success


class FailingOnceStore(InmemStore):
    """Fails the next write when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_next = False
        self.failed = threading.Event()

    def _fail(self) -> None:
        if self.fail_next:
            self.fail_next = False
            self.failed.set()
            raise OSError("disk on fire")

    def store_logs(self, logs: Sequence[Log]) -> None:
        self._fail()
        super().store_logs(logs)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        self._fail()
        super().replace_suffix(first, logs)


def test_a_cache_does_not_make_up_for_entries_that_were_not_stored() -> None:
    """REP-07"""
    with Cluster(1) as cluster:
        store = FailingOnceStore()
        follower = cluster.add(logs=LogCache(100, store), stable=store)
        leader = cluster.leader()
        leader.node.add_voter(follower.id, follower.address).result(ANSWER)
        apply_count(leader, 5)

        store.fail_next = True
        apply_count(leader, 3, b"after")

        assert store.failed.wait(ANSWER)
        cluster.assert_same_state()
        follower.logs = store
        cluster.restart(follower)
        assert len(cluster.assert_same_state()) == 8


def test_a_follower_behind_the_log_gets_a_snapshot() -> None:
    """REP-08"""
    with Cluster(3, configure=keep_ten) as cluster:
        leader, behind = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(behind)
        apply_count(leader, 100)
        snapshot_all(cluster)

        cluster.heal()

        assert len(cluster.assert_same_state()) == 100
        assert behind.fsm.restores == 1


def test_a_follower_behind_the_log_gets_a_snapshot_and_then_entries() -> None:
    """REP-09"""
    with Cluster(3, configure=keep_ten) as cluster:
        leader, behind = cluster.leader(), cluster.followers()[0]
        cluster.disconnect(behind)
        apply_count(leader, 100)
        snapshot_all(cluster)
        apply_count(leader, 100, b"more")

        cluster.heal()

        assert len(cluster.assert_same_state()) == 200
        assert behind.fsm.restores == 1


def test_a_command_that_is_too_large_is_refused_and_changes_nothing() -> None:
    def configure(config: Config) -> None:
        config.max_command_bytes = 10

    with Cluster(1, configure=configure) as cluster:
        leader = cluster.leader()

        error = leader.node.apply(b"x" * 11).error(ANSWER)

        assert isinstance(error, CommandTooLargeError)
        leader.node.barrier().result(ANSWER)
        assert leader.fsm.logs() == []


def test_entries_larger_than_a_message_travel_alone() -> None:
    def configure(config: Config) -> None:
        config.max_append_bytes = 1000

    with Cluster(3, configure=configure) as cluster:
        apply_all(cluster.leader(), [b"%d" % n + b"x" * 2000 for n in range(20)])

        assert len(cluster.assert_same_state()) == 20


def test_writes_go_on_while_a_follower_comes_and_goes() -> None:
    with Cluster(3) as cluster:
        leader: Member = cluster.leader()
        unstable = cluster.followers()[0]
        for round_number in range(5):
            cluster.disconnect(unstable)
            apply_count(leader, 20, b"down-%d" % round_number)
            cluster.heal()
            apply_count(leader, 20, b"up-%d" % round_number)

        assert len(cluster.assert_same_state()) == 200
        assert leader.is_leader()
