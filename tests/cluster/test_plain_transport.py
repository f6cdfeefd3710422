"""A transport that offers the contract and no capability beyond it is enough for a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from raft import Configuration, Raft, Server
from raft.errors import PipelineNotSupportedError
from raft.interfaces import (
    Transport,
    WithAddressCheck,
    WithClose,
    WithDelivery,
    WithIdentity,
    WithMetrics,
    WithPeers,
    WithPreVote,
)
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import fast_config, wait_for
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport
from tests.cluster.helpers import ANSWER

IDS = ("n1", "n2", "n3")


class PlainTransport:
    """What `raft.interfaces.Transport` asks for, over memory: no pipelines, no pre-votes."""

    def __init__(self, inner: InmemTransport) -> None:
        self.local_addr = inner.local_addr
        self.consumer = inner.consumer
        self.set_heartbeat_handler = inner.set_heartbeat_handler
        self.append_entries = inner.append_entries
        self.request_vote = inner.request_vote
        self.install_snapshot = inner.install_snapshot
        self.timeout_now = inner.timeout_now

    def append_entries_pipeline(self, *_: Any) -> NoReturn:
        raise PipelineNotSupportedError("no pipelines here")


@pytest.fixture
def nodes() -> Iterator[list[Raft]]:
    inner = {name: InmemTransport(f"{name}:1", ANSWER) for name in IDS}
    for one in inner.values():
        for other in inner.values():
            if other is not one:
                one.connect(other.local_addr(), other)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Raft(
                    fast_config(name),
                    RecordingFSM(),
                    store := InmemStore(),
                    store,
                    InmemSnapshotStore(),
                    PlainTransport(inner[name]),
                )
            )
            for name in IDS
        ]
    for transport in inner.values():
        transport.close()


def test_it_has_no_capability() -> None:
    transport: Transport = PlainTransport(InmemTransport("n1:1"))

    more = (WithAddressCheck, WithClose, WithDelivery, WithIdentity, WithMetrics, WithPeers)
    for contract in (*more, WithPreVote):
        assert not isinstance(transport, contract)


def test_requests_of_its_queue_reach_the_node(nodes: list[Raft]) -> None:
    nodes[0].bootstrap_cluster(Configuration([Server(name, f"{name}:1") for name in IDS])).result(
        ANSWER
    )
    nodes[0].wait_for_leader(ANSWER)
    leader = nodes[0]

    index = [leader.apply(b"%d" % number) for number in range(50)][-1]

    assert index.result(ANSWER) == 50
    wait_for(lambda: all(node.applied_index() == index.index() for node in nodes))
