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

NO_ADDRESSES = [
    "10.0.0.2",
    "10.0.0.2:70000",
    "10.0.0.2:0",
    "0.0.0.0:7000",
    ":7000",
    "fe80::1:70",
    "http://h:70",
]


@pytest.fixture
def alone() -> Iterator[Raft]:
    """The leader of a cluster of one."""
    store = InmemStore()
    transport = TCPTransport("127.0.0.1:0")
    config = fast_config("n1")
    with Raft(config, RecordingFSM(), store, store, InmemSnapshotStore(), transport) as node:
        node.bootstrap_cluster(Configuration([Server("n1", transport.local_addr())])).result(ANSWER)
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


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_node_is_not_bootstrapped_with_an_address_that_it_could_not_dial(address):
    store, transport = InmemStore(), TCPTransport("127.0.0.1:0")
    config = fast_config("n1")
    own = Server("n1", transport.local_addr())
    with Raft(config, RecordingFSM(), store, store, InmemSnapshotStore(), transport) as node:
        with pytest.raises(InvalidConfigurationError, match="the address of n2"):
            node.bootstrap_cluster(Configuration([own, Server("n2", address)])).result(ANSWER)

        assert not store.last_index()
