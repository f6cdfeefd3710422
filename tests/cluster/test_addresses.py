"""A live node refuses an address that nobody could ever dial, before it counts for a majority."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raft import Configuration, Raft, Server
from raft.errors import InvalidConfigurationError
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import fast_config
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from tests.cluster.helpers import ANSWER

NO_ADDRESSES = ["10.0.0.2", "10.0.0.2:70000", "10.0.0.2:0", "0.0.0.0:7000", ":7000", "fe80::1:70"]


@pytest.fixture
def alone() -> Iterator[Raft]:
    """The leader of a cluster of one; its own address is dialed by nobody, so any will do."""
    store = InmemStore()
    transport = TCPTransport("127.0.0.1:0")
    config = fast_config("n1")
    with Raft(config, RecordingFSM(), store, store, InmemSnapshotStore(), transport) as node:
        node.bootstrap_cluster(Configuration([Server("n1", "n1")])).result(ANSWER)
        node.wait_for_leader(ANSWER)
        yield node


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_server_without_a_usable_address_is_not_added(alone, address):
    """Its vote would be asked for in vain for ever, and without it nobody could take it out."""
    for add in (alone.add_voter, alone.add_nonvoter):
        with pytest.raises(InvalidConfigurationError, match="address"):
            add("n2", address).result(ANSWER)

    assert [server.id for server in alone.get_configuration().result().servers] == ["n1"]
    alone.apply(b"goes on").result(ANSWER)
