"""Live nodes over TLS: they agree, take new certificates, and keep a stranger out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raft import Configuration, Raft, RaftState, Server
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import fast_config, wait_for
from raft.testing.fsm import RecordingFSM
from raft.transport import MutualTLS, TLSTransport
from tests.cluster.helpers import ANSWER
from tests.unit.transport.certificates import Authority


class Trio:
    """Three voters; `n3` has whatever certificate a test gives it."""

    def __init__(self, authority: Authority, contexts_of_n3: MutualTLS) -> None:
        contexts = {i: authority.contexts(i) for i in ("n1", "n2")} | {"n3": contexts_of_n3}
        self.transports = {
            i: TLSTransport("127.0.0.1:0", ssl_context=contexts[i], timeout=2.0) for i in contexts
        }
        self.fsms = {i: RecordingFSM() for i in contexts}
        self.nodes: dict[str, Raft] = {}
        for i, transport in self.transports.items():
            store = InmemStore()
            self.nodes[i] = Raft(
                fast_config(i), self.fsms[i], store, store, InmemSnapshotStore(), transport
            )
        servers = [Server(i, transport.local_addr()) for i, transport in self.transports.items()]
        self.nodes["n1"].bootstrap_cluster(Configuration(servers)).result(ANSWER)

    def apply(self, command: bytes) -> None:
        """Apply a command on whoever leads."""
        leader = wait_for(
            lambda: next((n for n in self.nodes.values() if n.state() is RaftState.LEADER), None),
            what="a leader",
        )
        leader.apply(command).result(ANSWER)

    def wait_until_applied(self, *ids: str, commands: list[bytes]) -> None:
        """Wait until so many nodes have applied just these commands."""
        for i in ids:
            wait_for(lambda i=i: self.fsms[i].commands() == commands, what=f"commands at {i}")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def trios() -> Iterator[list[Trio]]:
    made: list[Trio] = []
    yield made
    for trio in made:
        for node in trio.nodes.values():
            node.shutdown().result(ANSWER)


def test_a_cluster_takes_new_certificates_while_it_runs(
    authority: Authority, trios: list[Trio]
) -> None:
    trios.append(trio := Trio(authority, authority.contexts("n3")))
    trio.apply(b"before")

    for i, transport in trio.transports.items():
        transport.reload(authority.contexts(i))
        transport.close_streams()
    trio.apply(b"after")

    trio.wait_until_applied("n1", "n2", "n3", commands=[b"before", b"after"])


def test_a_server_that_cannot_prove_its_id_gets_nothing(
    authority: Authority, trios: list[Trio]
) -> None:
    trios.append(trio := Trio(authority, authority.contexts("n4")))

    trio.apply(b"secret")

    trio.wait_until_applied("n1", "n2", commands=[b"secret"])
    assert trio.fsms["n3"].commands() == []
    assert trio.nodes["n3"].last_index() == 0
