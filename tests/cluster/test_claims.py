"""A store has one node."""

from __future__ import annotations

import pytest

from raft import (
    Configuration,
    Raft,
    Server,
    StoreLockedError,
    bootstrap_cluster,
    recover_cluster,
)
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore, LogCache
from raft.testing.cluster import Cluster, fast_config
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport
from tests.cluster.helpers import apply_count

HERE = Configuration([Server("n1", "n1:1")])


def start(logs: object, stable: object) -> Raft:
    snapshots, transport = InmemSnapshotStore(), InmemTransport("x:1")
    return Raft(fast_config("x"), RecordingFSM(), logs, stable, snapshots, transport)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda store: store, lambda store: LogCache(10, store)])
def test_a_store_that_a_node_uses_is_refused_and_stays_as_it_is(wrap):
    with Cluster(1) as cluster:
        member = cluster.leader()
        apply_count(member, 10)
        logs, config, fsm = wrap(member.logs), fast_config("n1"), RecordingFSM()
        stores = (logs, member.stable, member.snapshots)
        last = member.logs.last_index()

        for use in (
            lambda: start(logs, InmemStore()),
            lambda: start(InmemStore(), member.stable),
            lambda: recover_cluster(config, fsm, *stores, HERE),
            lambda: bootstrap_cluster(config, *stores, HERE),
        ):
            with pytest.raises(StoreLockedError, match="belongs to node n1"):
                use()

        assert (member.logs.last_index(), fsm.commands()) == (last, [])
        apply_count(member, 10)


def test_a_store_is_free_once_its_node_is_down_or_could_not_start():
    class Broken(InmemStore):
        def last_index(self) -> int:
            raise OSError("the disk is gone")

    store, broken = InmemStore(), Broken()

    for _ in range(2):
        with start(store, store), pytest.raises(StoreLockedError):
            start(store, InmemStore())
        with pytest.raises(OSError, match="disk is gone"):
            start(broken, store)
