"""One server that is stopped and started again over its stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raft import Config, NothingNewToSnapshotError
from raft.interfaces import CommitTrackingLogStore, MonotonicLogStore
from raft.snapshots import FileSnapshotStore
from raft.stores import InmemStore, LogCache
from raft.testing.cluster import SCALE, Cluster, Member
from tests.cluster.helpers import ANSWER, apply_count


class MonotonicStore(InmemStore):
    """A log store that would refuse gaps."""

    def is_monotonic(self) -> bool:
        return True


def trailing(config: Config) -> None:
    config.trailing_logs = 10


def single(configure: Callable[[Config], None], **stores: Any) -> Cluster:
    """Return a cluster of one server over the stores given."""
    cluster = Cluster(0, configure=configure)
    cluster.add(**stores)
    cluster.bootstrap()
    return cluster


def with_snapshot(cluster: Cluster) -> tuple[Member, int]:
    """Apply 100 commands, take a snapshot, wait for compaction; return the index covered."""
    member = cluster.leader()
    apply_count(member, 100)
    member.node.snapshot().result(ANSWER)
    (meta,) = member.snapshots.list()
    cluster.wait_for(lambda: member.logs.first_index() > 1, what="compaction")
    return member, meta.index


def restart_patiently(cluster: Cluster, member: Member) -> Member:
    """Restart a member so that it stays a follower while the test looks at it."""
    member.config.heartbeat_timeout = member.config.election_timeout = 60.0 * SCALE
    return cluster.restart(member)


@pytest.mark.parametrize(
    ("make_store", "contract"),
    [
        pytest.param(InmemStore, None, id="SNP-01"),
        pytest.param(MonotonicStore, MonotonicLogStore, id="SNP-02"),
        pytest.param(InmemStore, CommitTrackingLogStore, id="SNP-03"),
    ],
)
@pytest.mark.parametrize("capacity", [None, 64], ids=["store", "cache"])
def test_the_newest_snapshot_is_there_as_soon_as_the_node_is(
    tmp_path: Path, make_store: type[InmemStore], contract: Any, capacity: int | None
) -> None:
    """SNP-01, SNP-02, SNP-03"""
    store = make_store()
    logs = store if capacity is None else LogCache(capacity, store)
    assert contract is None or isinstance(logs, contract)
    snapshots = FileSnapshotStore(tmp_path)
    with single(trailing, logs=logs, stable=store, snapshots=snapshots) as cluster:
        member, covered = with_snapshot(cluster)
        ends = (logs.first_index(), logs.last_index())
        assert ends == (covered - 10 + 1, covered)

        restart_patiently(cluster, member)

        assert member.node.applied_index() == covered
        assert len(member.fsm.commands()) == 100
        assert len(snapshots.list()) == 1
        assert (logs.first_index(), logs.last_index()) == ends


@pytest.mark.parametrize("capacity", [None, 64], ids=["store", "cache"])
def test_what_was_committed_is_applied_as_soon_as_the_node_is_there(
    tmp_path: Path, capacity: int | None
) -> None:
    """SNP-04"""

    def tracking(config: Config) -> None:
        trailing(config)
        config.restore_committed_logs = True

    store = InmemStore()
    logs = store if capacity is None else LogCache(capacity, store)
    snapshots = FileSnapshotStore(tmp_path)
    with single(tracking, logs=logs, stable=store, snapshots=snapshots) as cluster:
        member, covered = with_snapshot(cluster)
        apply_count(member, 99, b"more")
        apply_count(member, 1, b"last")  # its write takes along that the others are committed

        restart_patiently(cluster, member)

        committed = store.get_commit_index()
        assert member.node.applied_index() == member.node.commit_index() == committed
        assert covered + 99 <= committed <= member.node.last_index()
        assert len(member.fsm.commands()) == committed - 2  # bootstrap and no-op are none


def test_an_fsm_that_keeps_its_state_is_not_restored_at_start() -> None:
    """SNP-07"""
    with single(trailing) as cluster:
        member, covered = with_snapshot(cluster)
        member.config.no_snapshot_restore_on_start = True

        restart_patiently(cluster, member)

        assert member.fsm.commands() == []
        assert member.node.applied_index() == covered


def test_a_snapshot_is_taken_when_the_log_has_grown() -> None:
    """SNP-09"""

    def often(config: Config) -> None:
        trailing(config)
        config.snapshot_interval = 2 * config.commit_timeout
        config.snapshot_threshold = 50

    with single(often) as cluster:
        member = cluster.leader()

        apply_count(member, 100)

        cluster.wait_for(member.snapshots.list, what="a snapshot")


def test_a_snapshot_is_taken_when_the_user_wants_one() -> None:
    """SNP-10; the no-op counts as new here (departure 18), so the first look comes before it."""

    def never(config: Config) -> None:
        trailing(config)
        config.snapshot_threshold = 50

    with Cluster(0, configure=never) as cluster:
        member = cluster.add()
        with pytest.raises(NothingNewToSnapshotError):
            member.node.snapshot().result(ANSWER)
        assert member.snapshots.list() == []
        cluster.bootstrap()
        apply_count(cluster.leader(), 10)

        snapshot = member.node.snapshot().result(ANSWER)

        assert [meta.id for meta in member.snapshots.list()] == [snapshot]


def test_a_store_says_whether_it_is_monotonic() -> None:
    """CFG-03; a cache over a store without the capability has none either, instead of False."""
    plain, declaring = InmemStore(), MonotonicStore()

    assert not isinstance(plain, MonotonicLogStore)
    assert not isinstance(LogCache(4, plain), MonotonicLogStore)
    assert declaring.is_monotonic()
    cache = LogCache(4, declaring)
    assert isinstance(cache, MonotonicLogStore)
    assert cache.is_monotonic()
