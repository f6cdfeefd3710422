"""The transport in memory, where it differs: connections by hand, one way, and by reference."""

import io
import queue
import re

import pytest

from raft.errors import (
    ClusterMismatchError,
    PeerUnreachableError,
    PipelineShutdownError,
    RPCTimeoutError,
    SnapshotError,
    TransportError,
    TransportShutdownError,
)
from raft.interfaces import WithClose, WithDelivery, WithIdentity, WithPeers, WithPreVote
from raft.messages import InstallSnapshotRequest, InstallSnapshotResponse, RPCHeader
from raft.testing.transport_contract import Answering, InBackground, answer_with, raised_by
from raft.transport import InmemTransport
from tests.unit.transport.tools import HEARTBEAT, PATIENCE, REQUEST, RESPONSE


@pytest.fixture
def pair():
    a, b = InmemTransport("a:1", PATIENCE), InmemTransport("b:1", PATIENCE)
    a.connect("b:1", b)
    b.connect("a:1", a)
    yield a, b
    a.close()
    b.close()


def test_it_offers_all_optional_contracts():
    """TRA-07."""
    for contract in (WithClose, WithDelivery, WithIdentity, WithPeers, WithPreVote):
        assert isinstance(InmemTransport(), contract)


def test_addresses_are_as_given_or_random():
    """UTL-06"""
    pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

    assert InmemTransport("x").local_addr() == "x"
    addresses = {InmemTransport().local_addr() for _ in range(100)}
    assert all(re.fullmatch(pattern, address) for address in addresses)
    assert len(addresses) == 100
    assert InmemTransport().local_addr() != InmemTransport().local_addr()


def test_an_address_not_connected_cannot_be_reached(pair):
    a, _ = pair

    with pytest.raises(PeerUnreachableError, match="failed to connect to peer: c:1"):
        a.append_entries("c", "c:1", REQUEST)
    with pytest.raises(PeerUnreachableError):
        a.append_entries_pipeline("c", "c:1")


def test_it_connects_to_its_own_kind_only(pair):
    with pytest.raises(TypeError):
        pair[0].connect("c:1", object())


def test_disconnecting_cuts_one_way_only(pair):
    a, b = pair
    a.disconnect("b:1")

    assert isinstance(raised_by(lambda: a.append_entries("b", "b:1", REQUEST)), TransportError)
    with Answering(a, answer_with(RESPONSE)):
        assert b.append_entries("a", "a:1", REQUEST) == RESPONSE


def test_disconnecting_closes_pipelines_to_there(pair):
    a, b = pair
    a.connect("c:1", b)
    cut, kept = a.append_entries_pipeline("b", "b:1"), a.append_entries_pipeline("c", "c:1")
    waiting = InBackground(lambda: cut.receive(60.0))

    a.disconnect("b:1")

    assert isinstance(waiting.outcome(), PipelineShutdownError)
    with Answering(b, answer_with(RESPONSE)):
        kept.append_entries(REQUEST)
        assert kept.receive(PATIENCE) == RESPONSE


def test_a_partition_can_be_healed(pair):
    a, b = pair
    a.disconnect_all()
    a.connect("b:1", b)

    with Answering(b, answer_with(RESPONSE)):
        assert a.append_entries("b", "b:1", REQUEST) == RESPONSE


def test_requests_are_handed_over_by_reference(pair):
    a, b = pair

    with Answering(b, answer_with(RESPONSE)) as peer:
        answer = a.append_entries("b", "b:1", REQUEST)

    assert peer.requests[0] is REQUEST
    assert answer is RESPONSE


def test_a_full_queue_times_out():
    """TRA-08: a queue holds one request at least, which is taken in and then not answered."""
    a, b = InmemTransport("a", 0.02), InmemTransport("b", 0.02, queue_size=1)
    a.connect("b", b)

    with Answering(b, answer_with(RESPONSE)):
        answered = a.append_entries("b", "b", REQUEST, PATIENCE)
    first = raised_by(lambda: a.append_entries("b", "b", REQUEST))
    second = raised_by(lambda: a.append_entries("b", "b", REQUEST))

    assert answered == RESPONSE
    assert isinstance(first, RPCTimeoutError)
    assert str(first).startswith("command timed out")
    assert isinstance(second, RPCTimeoutError)
    assert str(second).startswith("send timed out")


def test_what_the_heartbeat_handler_raises_is_the_answer(pair):
    a, b = pair

    def fail(_):
        raise ValueError("no heart")

    b.set_heartbeat_handler(fail)

    with pytest.raises(TransportError, match="no heart"):
        a.append_entries("b", "b:1", HEARTBEAT)


def test_servers_of_two_clusters_do_not_talk(pair):
    a, b = pair
    a.identify("a", lambda: "one")
    b.identify("b", lambda: "two")

    with Answering(b, answer_with(RESPONSE)) as peer, pytest.raises(ClusterMismatchError):
        a.append_entries("b", "b:1", REQUEST)
    assert peer.requests == []


def test_the_receiver_learns_the_senders_cluster(pair):
    a, b = pair
    a.identify("a", lambda: "one")
    clusters = []

    def take(rpc):
        clusters.append(rpc.cluster_id)
        rpc.respond(RESPONSE)

    b.deliver_to(take)
    a.append_entries("b", "b:1", REQUEST)

    assert clusters == ["one"]


def test_a_closed_transport_cannot_be_reached_nor_connected(pair):
    a, b = pair
    b.close()

    assert isinstance(
        raised_by(lambda: a.append_entries("b", "b:1", REQUEST)), PeerUnreachableError
    )
    with pytest.raises(TransportShutdownError):
        b.connect("a:1", a)


def test_progress_of_a_snapshot_renews_its_time_limit(pair):
    a, b = pair
    steps = queue.Queue()

    def install(rpc):
        while steps.get(timeout=PATIENCE):
            rpc.reader.read(1)
        rpc.respond(InstallSnapshotResponse(RPCHeader("b"), 1, True))

    request = InstallSnapshotRequest(RPCHeader("a"), 1, 1, 1, size=1000)
    with Answering(b, install):
        call = InBackground(
            lambda: a.install_snapshot("b", "b:1", request, io.BytesIO(bytes(1000)), 1.0)
        )
        for _ in range(4):
            with pytest.raises(queue.Empty):
                call.outcome(0.4)
            steps.put(True)
        steps.put(False)

        assert call.outcome().success


def test_a_snapshot_that_stalls_times_out_and_is_not_read_any_more(pair):
    a, b = pair
    kept = queue.Queue()
    request = InstallSnapshotRequest(RPCHeader("a"), 1, 1, 1, size=10)

    with Answering(b, kept.put):
        error = raised_by(lambda: a.install_snapshot("b", "b:1", request, io.BytesIO(), 0.02))
        late = raised_by(lambda: kept.get(timeout=PATIENCE).reader.read(1))

    assert isinstance(error, RPCTimeoutError)
    assert isinstance(late, TransportError)


def test_a_snapshot_at_fault_is_the_senders_error(pair):
    a, b = pair
    request = InstallSnapshotRequest(RPCHeader("a"), 1, 1, 1, size=10)

    with Answering(b, lambda rpc: rpc.reader.read()), pytest.raises(SnapshotError):
        a.install_snapshot("b", "b:1", request, io.BytesIO(b"short"))
