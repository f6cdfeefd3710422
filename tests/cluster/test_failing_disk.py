"""Disks that stall and fail under a leader or a follower (departure 8; the laws)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from raft import Config, Log, OutcomeUnknownError, StorageFailedError
from raft.snapshots import FileSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import SCALE, Cluster, Member
from raft.testing.fsm import RecordingFSM
from tests.cluster.helpers import ANSWER, PROPAGATION, apply_count, stays_so


class WilfulStore(InmemStore):
    """Holds writes of entries up while `free` is not set, then fails them if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.fails = False
        self.probes_fail = False

    def _obey(self) -> None:
        self.free.wait(ANSWER)
        if self.fails:
            raise OSError("disk on fire")

    def store_logs(self, logs: Sequence[Log]) -> None:
        self._obey()
        super().store_logs(logs)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        self._obey()
        super().replace_suffix(first, logs)

    def set(self, key: bytes, value: bytes) -> None:
        if self.probes_fail:
            raise OSError("disk still on fire")
        super().set(key, value)


class HeldFSM(RecordingFSM):
    """Applies only while `go_on` is set."""

    go_on = threading.Event()

    def apply(self, log: Log) -> int:
        self.go_on.wait(ANSWER)
        return super().apply(log)


@pytest.fixture(autouse=True)
def let_go() -> None:
    HeldFSM.go_on.set()


def wilful_leader(cluster: Cluster, **options: object) -> tuple[Member, WilfulStore]:
    """Start three members, the first of which leads over a store with a will of its own."""
    store = WilfulStore()
    first = cluster.add(logs=store, stable=store, **options)  # type: ignore[arg-type] # as add's
    cluster.bootstrap([first])
    cluster.leader()
    for _ in range(2):
        other = cluster.add()
        first.node.add_voter(other.id, other.address).result(ANSWER)
    cluster.followers()
    # What a leader notes about its voters is written after they have joined.
    cluster.wait_for(lambda: len(first.node._core.incarnations.notes) == 2)
    return first, store


def stall_soon(config: Config) -> None:
    config.disk_stall_timeout = 0.3 * SCALE


def has_stepped_down(member: Member) -> Callable[[], bool]:
    return lambda: not member.is_leader()


def test_a_leader_whose_write_fails_leaves_and_another_goes_on() -> None:
    with Cluster(0) as cluster:
        first, store = wilful_leader(cluster)
        store.fails = store.probes_fail = True

        future = first.node.apply(b"x")

        assert isinstance(future.error(ANSWER), StorageFailedError | type(None))
        cluster.wait_for(has_stepped_down(first))
        cluster.wait_for(lambda: cluster.leader() is not first)
        stays_so(cluster, "unfit", 5 * PROPAGATION, has_stepped_down(first))
        apply_count(cluster.leader(), 10)

        store.fails = store.probes_fail = False

        assert len(cluster.assert_same_state()) in (10, 11)


def test_a_leader_whose_write_stalls_leaves_and_another_goes_on() -> None:
    with Cluster(0, configure=stall_soon) as cluster:
        first, store = wilful_leader(cluster)
        store.free.clear()

        future = first.node.apply(b"x")  # the others commit it: our own disk is not needed

        assert future.result(ANSWER) == 1
        cluster.wait_for(has_stepped_down(first))
        cluster.wait_for(lambda: any(m.is_leader() for m in cluster.running() if m is not first))
        assert isinstance(first.node.apply(b"y").error(ANSWER), Exception)

        store.free.set()

        assert cluster.assert_same_state()[0] == b"x"


def test_what_was_committed_by_the_others_alone_comes_back_to_a_leader_that_lost_it() -> None:
    """Law 3: the FSM lags behind, and the own disk fails to keep what is committed."""
    with Cluster(0) as cluster:
        first, store = wilful_leader(cluster, make_fsm=HeldFSM)
        HeldFSM.go_on.clear()
        store.free.clear()
        first.node.apply(b"x")
        second = first.node.apply(b"y")
        cluster.wait_for(lambda: 0 < second.index() <= first.node.commit_index())

        store.fails = True
        store.free.set()
        cluster.wait_for(has_stepped_down(first))
        store.fails = False
        cluster.wait_for(lambda: first.node._core.fault is None)
        HeldFSM.go_on.set()

        assert cluster.assert_same_state() == [b"x", b"y"]
        assert second.error(ANSWER) is None or isinstance(second.error(), OutcomeUnknownError)
        assert first.node.failure is None


def test_a_snapshot_of_what_was_never_on_the_own_disk_leaves_no_hole() -> None:
    """Law 3 with a snapshot: the log that ends before it is dropped whole."""
    with Cluster(0) as cluster:
        first, store = wilful_leader(cluster)
        apply_count(first, 5)
        store.free.clear()
        apply_count(first, 5, b"ahead")
        first.node.snapshot().result(ANSWER)
        covered = int(first.node.stats()["last_snapshot_index"])

        store.fails = True
        store.free.set()
        cluster.wait_for(has_stepped_down(first))
        store.fails = False
        apply_count(cluster.leader(), 5, b"after")

        assert len(cluster.assert_same_state()) == 15
        log = first.node._core.raft_log
        assert log.first_index() > covered or log.first_index() == 0


def test_a_follower_whose_write_fails_acknowledges_nothing_until_a_probe_succeeds() -> None:
    with Cluster(2) as cluster:
        store = WilfulStore()
        third = cluster.add(logs=store, stable=store)
        leader = cluster.leader()
        leader.node.add_voter(third.id, third.address).result(ANSWER)
        apply_count(leader, 3)
        cluster.assert_same_state()
        last = third.node.last_index()

        store.fails = store.probes_fail = True
        apply_count(leader, 3, b"more")

        stays_so(cluster, "nothing stored", 3 * PROPAGATION, lambda: store.last_index() == last)
        store.fails = store.probes_fail = False
        assert len(cluster.assert_same_state()) == 6


class BlindStore(InmemStore):
    """Cannot be read while `is_blind`."""

    is_blind = False

    def last_index(self) -> int:
        if self.is_blind:
            raise OSError("disk cannot be read")
        return super().last_index()


def test_a_store_that_cannot_be_read_when_leadership_ends_is_tried_again() -> None:
    with Cluster(0) as cluster:
        store = BlindStore()
        first = cluster.add(logs=store, stable=store)
        cluster.bootstrap([first])
        cluster.leader()
        for _ in range(2):
            other = cluster.add()
            first.node.add_voter(other.id, other.address).result(ANSWER)
        apply_count(first, 3)

        store.is_blind = True
        cluster.disconnect(first)
        cluster.wait_for(lambda: first.node._core.fault is not None)
        store.is_blind = False
        cluster.heal()

        cluster.wait_for(lambda: first.node._core.fault is None)
        assert first.node.failure is None
        apply_count(cluster.leader(), 3, b"after")
        assert len(cluster.assert_same_state()) == 6


def test_a_damaged_newest_snapshot_does_not_keep_a_peer_out(tmp_path: Path) -> None:
    """An older one is sent, if the log goes on behind it."""

    def keep_five(config: Config) -> None:
        config.trailing_logs = 5

    snapshots = FileSnapshotStore(tmp_path, retain=2)
    with Cluster(0, configure=keep_five) as cluster:
        first = cluster.add(snapshots=snapshots)
        cluster.bootstrap([first])
        leader = cluster.leader()
        for count in (20, 2):
            apply_count(leader, count, b"before-%d" % count)
            leader.node.snapshot().result(ANSWER)
        cluster.wait_for(lambda: leader.node._core.raft_log.first_index() > 1)
        newest = snapshots.list()[0]
        state = tmp_path / "snapshots" / newest.id / "state.bin"
        state.write_bytes(b"spoiled" + state.read_bytes()[7:])

        joiner = cluster.add()
        leader.node.add_voter(joiner.id, joiner.address).result(ANSWER)

        assert len(cluster.assert_same_state()) == 22
        assert joiner.fsm.restores == 1
