"""A small dose of `make fuzz`, and floods of connections against a live cluster."""

from __future__ import annotations

import logging
import random
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from raft import Config, Configuration, Raft, RaftState, Server
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import SCALE, wait_for
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from tests.fuzz.inputs import Inputs
from tests.fuzz.listener import CriticalRecords, Target, ViolationError
from tests.fuzz.run import native_batch, tls_batch
from tests.fuzz.tls import TLSTarget
from tests.unit.transport.tools import dial, is_closed_by_peer, open_descriptors, transport_threads

ANSWER = 10.0 * SCALE
CONNECTIONS = 700  # to each of three listeners
OPEN_AT_ONCE = 100


@pytest.fixture
def critical(caplog: pytest.LogCaptureFixture) -> Iterator[CriticalRecords]:
    handler = CriticalRecords()
    caplog.set_level("CRITICAL")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_hostile_input_of_the_native_protocol(critical: CriticalRecords) -> None:
    figures = native_batch(random.Random(1), critical)

    assert figures["requests"] > 20  # a good part gets as far as the node


def test_hostile_input_of_tls(critical: CriticalRecords) -> None:
    with TLSTarget() as target:
        tls_batch(random.Random(1), critical, target)


def feed_all(target: Target, inputs: list[bytes]) -> None:
    for data in inputs:
        target.feed(data)


def test_a_listener_that_breaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check is worth: here no connection is ever closed."""
    target = Target(random.Random(1))
    inputs = [Inputs(random.Random(seed)).draw() for seed in range(200)]
    monkeypatch.setattr("raft.transport.server.Connection.close", lambda _: None)

    with pytest.raises(ViolationError, match="still open"):
        feed_all(target, inputs)


class Cluster:
    """Three nodes over TCP, with default timeouts."""

    def __init__(self) -> None:
        self.transports = [TCPTransport("127.0.0.1:0") for _ in range(3)]
        self.nodes = [
            Raft(
                Config(local_id=f"n{number}"),
                RecordingFSM(),
                store := InmemStore(),
                store,
                InmemSnapshotStore(),
                transport,
            )
            for number, transport in enumerate(self.transports)
        ]
        servers = [Server(f"n{n}", t.local_addr()) for n, t in enumerate(self.transports)]
        self.nodes[0].bootstrap_cluster(Configuration(servers)).result(ANSWER)
        self.leader: Raft = wait_for(
            lambda: next((n for n in self.nodes if n.state() is RaftState.LEADER), None)
        )
        self.leader.barrier().result(ANSWER)

    def stop(self) -> None:
        """Shut all nodes down."""
        for future in [node.shutdown() for node in self.nodes]:
            future.result(ANSWER)


class Flood(threading.Thread):
    """Opens connections to one transport, many at a time, and says what no peer would say."""

    def __init__(self, transport: TCPTransport, seed: int) -> None:
        super().__init__()
        self._transport = transport
        self._chance = random.Random(seed)
        self._inputs = Inputs(self._chance, "nobody")  # who knows no name is not let in

    def run(self) -> None:
        """Open, say something or nothing or half of it, and close the oldest."""
        opened: list[socket.socket] = []
        try:
            for _ in range(CONNECTIONS):
                opened.append(sock := dial(self._transport))
                data = self._inputs.draw()
                what = self._chance.randrange(4)
                try:
                    sock.sendall((b"", data, data[: len(data) // 2], data[:1])[what])
                except OSError:
                    pass  # it was closed already
                if len(opened) > OPEN_AT_ONCE:
                    opened.pop(0).close()
        finally:
            for sock in opened:
                sock.close()


@pytest.mark.timeout(120)
def test_thousands_of_hostile_connections_cost_a_cluster_nothing() -> None:
    threads, descriptors = transport_threads(), open_descriptors()
    cluster = Cluster()
    try:
        term = cluster.leader.current_term()
        floods = [Flood(t, seed) for seed, t in enumerate(cluster.transports)]
        for flood in floods:
            flood.start()
        written = 0
        while any(flood.is_alive() for flood in floods):
            cluster.leader.apply(b"x", ANSWER).result(ANSWER)
            written += 1
        for flood in floods:
            flood.join()

        assert (cluster.leader.state(), cluster.leader.current_term()) == (RaftState.LEADER, term)
        assert written > 20
    finally:
        cluster.stop()
    wait_for(lambda: transport_threads() == threads, what="threads to end")
    wait_for(lambda: open_descriptors() <= descriptors, what="descriptors to be closed")


def test_a_slow_sender_is_let_go_and_holds_up_nobody() -> None:
    """One byte a moment: the handshake as a whole has a deadline."""
    with (
        closing(TCPTransport("127.0.0.1:0", handshake_timeout=0.3)) as transport,
        selectors.DefaultSelector() as selector,
    ):
        transport.identify("n1", lambda: None)
        transport.deliver_to(lambda _: None)
        with dial(transport) as sock:
            selector.register(sock, selectors.EVENT_READ)
            begun = time.monotonic()
            with suppress(ConnectionError):  # closed between the look and the sending
                for byte in bytes.fromhex("5241465450590d0a"):
                    if selector.select(0.1):
                        break
                    sock.sendall(bytes([byte]))

            assert is_closed_by_peer(sock)
            assert time.monotonic() - begun < 5
