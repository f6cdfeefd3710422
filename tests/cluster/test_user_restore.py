"""Replacing the state of a cluster by a snapshot of the user's (SNP-16 to SNP-39, departure 19)."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from raft import (
    NotLeaderError,
    RaftError,
    RestoreInProgressError,
    SnapshotError,
    SnapshotMeta,
    StorageFailedError,
)
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import Cluster, Member
from tests.cluster.helpers import ANSWER, apply_count


class MonotonicStore(InmemStore):
    """A log store that says it may refuse gaps."""

    def is_monotonic(self) -> bool:
        return True


def make_cluster(*, monotonic: bool) -> Cluster:
    cluster = Cluster(0, bootstrap=False)
    for _ in range(3):
        cluster.add(logs=MonotonicStore() if monotonic else None)
    cluster.bootstrap()
    return cluster


def take_snapshot(leader: Member) -> tuple[SnapshotMeta, bytes]:
    future = leader.node.snapshot()
    future.result(ANSWER)
    meta, reader = future.open()
    with reader:
        return meta, reader.read()


def wait_for_settled(cluster: Cluster) -> None:
    """Wait until no snapshot bears the mark: the disk thread sees to that between its writes."""
    cluster.wait_for(
        lambda: not [s for m in cluster.running() for s in m.snapshots.list() if s.unsettled],
        what="all marks to be gone",
    )


def commands(first: int, last: int) -> list[bytes]:
    return [b"test-%d" % n for n in range(first, last + 1)]


def apply_range(leader: Member, first: int, last: int) -> None:
    for future in [leader.node.apply(command) for command in commands(first, last)]:
        future.result(ANSWER)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 2, 100, 1000, 10000])
def test_a_snapshot_replaces_everything(offset: int, monotonic: bool, fresh: bool) -> None:
    """SNP-16, SNP-17, SNP-18, SNP-19, SNP-20, SNP-21, SNP-22, SNP-23, SNP-24, SNP-25, SNP-26,
    SNP-27, SNP-28, SNP-29, SNP-30, SNP-31, SNP-32, SNP-33, SNP-34, SNP-35, SNP-36, SNP-37, SNP-38,
    SNP-39: one index is burnt, and a no-op stands behind it. Our log has no hole on any store, so
    it always begins with that no-op; the original's begins there on a monotonic store only.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(make_cluster(monotonic=monotonic))
        leader = cluster.leader()
        apply_range(leader, 0, 9)
        meta, data = take_snapshot(leader)
        apply_range(leader, 10, 19)
        if fresh:
            cluster = stack.enter_context(make_cluster(monotonic=monotonic))
            leader = cluster.leader()
            leader.node.barrier().result(ANSWER)
        last = leader.node.last_index()
        meta = replace(meta, index=meta.index + offset)

        leader.node.restore(meta, io.BytesIO(data), ANSWER)

        expected = max(last, meta.index) + 2
        assert leader.node.last_index() == expected
        assert leader.fsm.commands() == commands(0, 9)
        cluster.wait_for(
            lambda: {m.logs.first_index() for m in cluster.running()} == {expected},
            what="all logs to begin behind the restore",
        )
        apply_range(leader, 20, 29)
        assert cluster.assert_same_state() == commands(0, 9) + commands(20, 29)
        wait_for_settled(cluster)


class HeldReader(io.BytesIO):
    """A snapshot whose reading waits until the test lets it go on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.is_read = threading.Event()
        self.may_go_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.is_read.set()
        self.may_go_on.wait(ANSWER)
        return super().read(size)


def restoring(leader: Member, meta: SnapshotMeta, reader: io.BytesIO) -> Callable[[], object]:
    """Restore on a thread of its own; return what waits for it and gives its error or None."""
    outcome: list[object] = []

    def restore() -> None:
        try:
            leader.node.restore(meta, reader, ANSWER)
            outcome.append(None)
        except RaftError as error:
            outcome.append(error)

    thread = threading.Thread(target=restore)
    thread.start()

    def wait() -> object:
        thread.join(ANSWER)
        return outcome[0]

    return wait


def test_writes_are_refused_while_a_snapshot_is_copied_and_reads_are_not() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        reader = HeldReader(data)
        wait = restoring(leader, meta, reader)
        assert reader.is_read.wait(ANSWER)

        refused = [
            leader.node.apply(b"x"),
            leader.node.barrier(),
            leader.node.add_nonvoter("n9", "n9:1"),
            leader.node.leadership_transfer(),
        ]
        read = leader.node.read_barrier()

        assert {type(future.error(ANSWER)) for future in refused} == {RestoreInProgressError}
        assert read.error(ANSWER) is None
        with pytest.raises(RestoreInProgressError):
            leader.node.restore(meta, io.BytesIO(data), ANSWER)
        reader.may_go_on.set()
        assert wait() is None
        assert leader.node.apply(b"x").result(ANSWER) == 6


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_snapshot_of_another_size_changes_nothing(wrong: int) -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)

        meta = replace(meta, size=meta.size + wrong, checksum="")

        with pytest.raises(SnapshotError, match="bytes instead of"):
            leader.node.restore(meta, io.BytesIO(data), ANSWER)

        assert not any(listed.unsettled for listed in leader.snapshots.list())
        assert leader.node.apply(b"x").result(ANSWER) == 6
        assert len(cluster.assert_same_state()) == 6


@pytest.mark.parametrize("version", [-1, 2])
def test_a_snapshot_of_an_unknown_version_changes_nothing(version: int) -> None:
    with Cluster(1) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)

        with pytest.raises(SnapshotError, match=f"unsupported snapshot version {version}"):
            leader.node.restore(replace(meta, version=version), io.BytesIO(data), ANSWER)

        assert leader.node.apply(b"x").result(ANSWER) == 6


@pytest.mark.parametrize("index", [-1, 2**62, 2**64])
def test_a_snapshot_of_an_index_that_no_server_believes_changes_nothing(index: int) -> None:
    """The others refuse it: the leader alone would have it, and commit nothing any more."""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)

        with pytest.raises(SnapshotError, match="no snapshot can end at"):
            leader.node.restore(replace(meta, index=index), io.BytesIO(data), ANSWER)

        assert leader.node.apply(b"x").result(ANSWER) == 6


def test_a_reader_that_fails_changes_nothing() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("gone")

    with Cluster(1) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, _ = take_snapshot(leader)

        with pytest.raises(SnapshotError, match="gone"):
            leader.node.restore(meta, Broken(), ANSWER)

        assert leader.node.apply(b"x").result(ANSWER) == 6


class Hesitant(InmemSnapshotStore):
    """Stores a snapshot given by hand, and says that it failed; so it may with its removal."""

    def __init__(self, *, may_remove: bool) -> None:
        super().__init__()
        self._may_remove = may_remove

    def _keep(self, meta: SnapshotMeta, data: bytes) -> None:
        super()._keep(meta, data)
        if meta.unsettled:
            raise OSError("is it there?")

    def remove(self, snapshot_id: str) -> None:
        if not self._may_remove:
            raise OSError("will it go?")
        super().remove(snapshot_id)


@pytest.mark.parametrize(
    ("may_remove", "error"), [(True, SnapshotError), (False, StorageFailedError)]
)
def test_a_snapshot_that_may_be_stored_is_taken_back_or_its_outcome_unknown(
    may_remove: bool, error: type[RaftError]
) -> None:
    """A restart would start from it."""
    with Cluster(0, bootstrap=False) as cluster:
        member = cluster.add(snapshots=Hesitant(may_remove=may_remove))
        cluster.bootstrap()
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)

        with pytest.raises(error, match="is it there"):
            leader.node.restore(meta, io.BytesIO(data), ANSWER)

        assert [m for m in member.snapshots.list() if m.unsettled] == [] or not may_remove
        assert cluster.leader().node.apply(b"x").result(ANSWER) == 6


def test_what_follows_a_snapshot_that_could_not_be_taken_back_outlives_a_restart() -> None:
    """A later term proves that it never happened. In the same one it would take the log's place."""
    with Cluster(0, bootstrap=False) as cluster:
        member = cluster.add(snapshots=Hesitant(may_remove=False))
        cluster.bootstrap()
        apply_count(cluster.leader(), 5)
        term = member.node.current_term()
        meta, data = take_snapshot(member)
        with pytest.raises(StorageFailedError, match="take hold after a restart"):
            member.node.restore(replace(meta, index=1000), io.BytesIO(data), ANSWER)
        cluster.wait_for(lambda: member.node.current_term() > term)
        apply_count(cluster.leader(), 3, b"later")

        cluster.restart(member)
        cluster.leader().node.barrier().result(ANSWER)

        assert len(cluster.assert_same_state()) == 8


def test_only_a_leader_restores() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        follower = cluster.followers()[0]

        with pytest.raises(NotLeaderError):
            follower.node.restore(meta, io.BytesIO(data), ANSWER)


def test_leadership_lost_while_copying_leaves_the_cluster_as_it_was() -> None:
    """Departure 19: what only the old leader has stored is removed there, too."""
    with Cluster(3) as cluster:
        old = cluster.leader()
        apply_count(old, 5)
        meta, data = take_snapshot(old)
        reader = HeldReader(data)
        wait = restoring(old, meta, reader)
        assert reader.is_read.wait(ANSWER)

        cluster.disconnect(old)
        error = wait()
        assert isinstance(error, RaftError)
        reader.may_go_on.set()
        cluster.heal()

        leader = cluster.leader()
        apply_count(leader, 5)
        assert len(cluster.assert_same_state()) == 10
        wait_for_settled(cluster)


def test_a_restore_that_only_its_leader_has_is_given_up() -> None:
    """Departure 19: its leader is alone when it happens; the others' next snapshot replaces it."""

    def configure(config: object) -> None:
        config.trailing_logs = 0  # type: ignore[attr-defined]

    with Cluster(3, configure=configure) as cluster:
        old = cluster.leader()
        apply_count(old, 5)
        meta, data = take_snapshot(old)
        apply_count(old, 5)
        followers = cluster.followers()
        cluster.assert_same_state()
        reader = HeldReader(data)
        wait = restoring(old, meta, reader)
        assert reader.is_read.wait(ANSWER)
        for follower in followers:
            cluster.cut(old, follower)  # heartbeats fail, the lease still runs
        reader.may_go_on.set()
        assert isinstance(wait(), RaftError)
        cluster.disconnect(old)

        leader = cluster.leader()
        apply_count(leader, 5)
        take_snapshot(leader)
        cluster.wait_for(lambda: leader.logs.first_index() == 0, what="compaction")
        cluster.heal()

        assert len(cluster.assert_same_state()) == 15
        wait_for_settled(cluster)


def test_a_restore_survives_its_leader_once_a_majority_has_it() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        meta, data = take_snapshot(leader)
        apply_count(leader, 5)

        leader.node.restore(meta, io.BytesIO(data), ANSWER)
        cluster.stop(leader)

        assert len(cluster.assert_same_state()) == 5
        apply_count(cluster.leader(), 1)
        cluster.restart(leader)
        assert len(cluster.assert_same_state()) == 6
