"""The native protocol between transports, and with peers that do not keep it."""

import gc
import io
import logging
import os
import queue
import socket
import struct
import threading
from contextlib import ExitStack, suppress

import pytest

from raft.codec import decode_message
from raft.errors import (
    ClusterMismatchError,
    ConnectionLostError,
    ForkedProcessError,
    PeerUnreachableError,
    PipelineShutdownError,
    RaftError,
    RPCTimeoutError,
    TransportError,
    TransportShutdownError,
    UnsupportedProtocolError,
    WrongServerError,
)
from raft.interfaces import WithClose, WithDelivery, WithIdentity, WithPreVote, WithQueueBound
from raft.messages import (
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
)
from raft.runtime import ThreadRuntime
from raft.testing.cluster import wait_for
from raft.testing.transport_contract import (
    Answering,
    InBackground,
    Zeros,
    answer_with,
    raised_by,
)
from raft.transport import NetworkTransport, TCPTransport, server
from raft.transport.connection import WORKING_FRAME, Connection
from tests.unit.transport.tools import (
    HEARTBEAT,
    PATIENCE,
    REQUEST,
    RESPONSE,
    FakePeer,
    address_without_listener,
    answer,
    connection,
    dial,
    identity,
    is_closed_by_peer,
    open_descriptors,
    telling,
    transport_threads,
)

INSTALLED = InstallSnapshotResponse(RPCHeader("b"), 3, True)
LARGE = 64 * 1024 * 1024


def snapshot(size):
    return InstallSnapshotRequest(RPCHeader("a"), 3, 9, 2, size=size)


@pytest.fixture
def make():
    made = []

    def transport(server_id, cluster_id=None, bind="127.0.0.1:0", **options):
        one = TCPTransport(bind, **{"timeout": PATIENCE, **options})
        one.identify(server_id, cluster_id if callable(cluster_id) else lambda: cluster_id)
        made.append(one)
        return one

    yield transport
    for one in made:
        one.close()
    assert transport_threads() == []


@pytest.fixture
def pair(make):
    a, b = make("a"), make("b")
    b.deliver_to(answer_with(RESPONSE))
    return a, b


def complaints(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_it_offers_the_optional_contracts(pair):
    for contract in (WithClose, WithDelivery, WithIdentity, WithPreVote, WithQueueBound):
        assert isinstance(pair[0], contract)


# ---- connections ----


def test_a_connection_is_used_again(pair):
    a, b = pair
    for _ in range(5):
        a.append_entries("b", b.local_addr(), REQUEST)

    assert transport_threads() == ["raft-b-accept", "raft-b-conn-1"]


def calls_at_once(a, b, meanwhile=lambda: None, count=5):
    """The answers to so many calls, all of which are under way while `meanwhile` is called."""
    kept = queue.Queue()
    b.deliver_to(kept.put)
    calls = [
        InBackground(lambda: a.append_entries("b", b.local_addr(), REQUEST)) for _ in range(count)
    ]
    rpcs = [kept.get(timeout=PATIENCE) for _ in calls]
    meanwhile()
    for rpc in rpcs:
        rpc.respond(RESPONSE)
    return [call.outcome() for call in calls]


def idle_count(a, b):
    return a._pool.idle_count(("b", b.local_addr()))


def test_the_connection_that_a_vote_used_is_used_on(make, monkeypatch):
    """A new leader's first contact would else be three ways there and back, and not one."""
    a, b = make("a"), make("b")
    answers = {RequestVoteRequest: RequestVoteResponse(RESPONSE.header, 3, granted=True)}
    b.deliver_to(lambda rpc: rpc.respond(answers.get(type(rpc.command), RESPONSE)))
    dialed = []
    dial = a._layer.dial
    monkeypatch.setattr(a._layer, "dial", lambda *to: dialed.append(to) or dial(*to))

    a.request_vote("b", b.local_addr(), RequestVoteRequest(REQUEST.header, 3, 1, 1))
    a.append_entries("b", b.local_addr(), REQUEST)
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    pipeline.append_entries(REQUEST)

    assert pipeline.receive() == RESPONSE
    assert len(dialed) == 1
    pipeline.close()


def test_entries_do_not_take_the_connection_of_heartbeats(make, monkeypatch):
    """A new one would have to be made behind the entries, on a slow link."""
    a, b = make("a"), make("b")
    b.deliver_to(answer_with(RESPONSE))
    b.set_heartbeat_handler(answer_with(RESPONSE))
    dialed = []
    dial = a._layer.dial
    monkeypatch.setattr(a._layer, "dial", lambda *to: dialed.append(to) or dial(*to))
    a.append_entries("b", b.local_addr(), HEARTBEAT)

    a.append_entries("b", b.local_addr(), REQUEST)
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    a.append_entries("b", b.local_addr(), HEARTBEAT)

    assert len(dialed) == 2
    pipeline.close()


def test_as_many_connections_as_the_pool_holds_are_kept(make):
    """TRA-29."""
    a, b = make("a", max_pool=3), make("b")

    assert calls_at_once(a, b) == [RESPONSE] * 5
    assert idle_count(a, b) == 3


@pytest.mark.parametrize("whose", ["dialing", "dialed"])
def test_streams_can_be_closed_and_calls_go_on(make, whose):
    """TRA-11, with the part in the middle."""
    a, b = make("a", max_pool=3), make("b", max_pool=2)

    for _ in range(2):
        assert calls_at_once(a, b) == [RESPONSE] * 5
        assert idle_count(a, b) == 3
        (a if whose == "dialing" else b).close_streams()
        assert idle_count(a, b) == (0 if whose == "dialing" else 3)

    assert calls_at_once(a, b) == [RESPONSE] * 5
    assert idle_count(a, b) == 3


@pytest.mark.parametrize("whose", ["dialing", "dialed"])
def test_streams_closed_while_in_use_end_with_their_answer(make, monkeypatch, whose):
    a, b = make("a", max_pool=5), make("b")
    ended = queue.Queue()
    monkeypatch.setattr(b._server, "forget", ended.put)

    answers = calls_at_once(a, b, (a if whose == "dialing" else b).close_streams)

    assert answers == [RESPONSE] * 5
    assert len({ended.get(timeout=PATIENCE) for _ in range(5)}) == 5


def test_a_restarted_peer_costs_no_call(make):
    a, b = make("a"), make("b")
    address = b.local_addr()
    b.deliver_to(answer_with(RESPONSE))
    a.append_entries("b", address, REQUEST)

    b.close()
    again = make("b", bind=address)
    again.deliver_to(answer_with(RESPONSE))

    assert a.append_entries("b", address, REQUEST) == RESPONSE


def test_a_kept_connection_that_breaks_on_use_is_replaced(make):
    def break_off(link):
        answer(link)
        link.receive(PATIENCE)

    with FakePeer(break_off, answer) as peer:
        a = make("a")
        a.append_entries("b", peer.address, REQUEST)

        assert a.append_entries("b", peer.address, REQUEST) == RESPONSE


def test_a_fresh_connection_that_breaks_is_an_error(make):
    def break_off(link):
        link.welcome(identity("b"), PATIENCE)
        link.receive(PATIENCE)

    with FakePeer(break_off) as peer, pytest.raises(ConnectionLostError):
        make("a").append_entries("b", peer.address, REQUEST)


def test_after_a_timeout_the_late_answer_is_not_taken_for_the_next(make):
    a, b = make("a"), make("b")
    kept = queue.Queue()
    b.deliver_to(kept.put)
    raised_by(lambda: a.append_entries("b", b.local_addr(), REQUEST, 0.05))
    b.deliver_to(answer_with(RESPONSE))

    kept.get(timeout=PATIENCE).respond(None, ValueError("late"))

    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE


def test_an_address_that_nobody_could_dial_is_known_unless_a_provider_is_asked(make):
    class Book:
        def server_addr(self, server_id):
            return "127.0.0.1:1"

    make("b", server_address_provider=Book()).check_address("a name of the provider's")
    a = make("a")
    a.check_address("node.example:7000")
    with pytest.raises(ValueError, match="not of the form host:port"):
        a.check_address("node.example")


def test_the_address_provider_is_asked_first_and_may_fail(make, caplog):
    """TRA-28: the provider wins in dialing; headers carry the sender's own address as it is."""

    class Book:
        def server_addr(self, server_id):
            if server_id == "d":
                return None
            if server_id != "b":
                raise LookupError("not in the book")
            return b.local_addr()

    a, b = make("a", server_address_provider=Book()), make("b")
    b.deliver_to(answer_with(RESPONSE))
    assert isinstance(raised_by(lambda: a.append_entries("d", b.local_addr(), REQUEST)), RaftError)

    assert a.append_entries("b", "nonsense", REQUEST) == RESPONSE
    assert isinstance(raised_by(lambda: a.append_entries("c", b.local_addr(), REQUEST)), RaftError)
    assert any("not in the book" in line for line in complaints(caplog))


def test_servers_that_are_gone_keep_no_descriptors(make):
    a, b = make("a"), make("b")
    b.deliver_to(answer_with(RESPONSE))
    before = None
    for number in range(8):
        moving = make(f"m{number}")
        moving.deliver_to(answer_with(RESPONSE))
        a.append_entries(f"m{number}", moving.local_addr(), REQUEST)
        moving.close()
        before = before or open_descriptors()

    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE  # a dial
    assert open_descriptors() <= before + 2  # the two ends of that one


# ---- who is who ----


def test_a_request_for_another_server_is_never_delivered(make, caplog):
    a, b = make("a"), make("b")
    inbox = b.consumer()

    for _ in range(3):
        with pytest.raises(WrongServerError):
            a.append_entries("c", b.local_addr(), REQUEST)

    assert inbox.qsize() == 0
    b.close()
    assert len(complaints(caplog)) == 1


def test_a_request_of_another_cluster_is_never_delivered(make):
    a, b = make("a", "one"), make("b", "two")
    inbox = b.consumer()

    with pytest.raises(ClusterMismatchError):
        a.append_entries("b", b.local_addr(), REQUEST)
    with pytest.raises(ClusterMismatchError):
        a.append_entries_pipeline("b", b.local_addr())

    assert inbox.qsize() == 0


def test_a_cluster_learnt_later_counts_for_connections_made_before(make):
    known = []
    a, b = make("a", "one"), make("b", lambda: known[0] if known else None)
    b.deliver_to(answer_with(RESPONSE))
    a.append_entries("b", b.local_addr(), REQUEST)

    known.append("two")

    with pytest.raises(ClusterMismatchError):
        a.append_entries("b", b.local_addr(), REQUEST)


def test_the_receiver_learns_the_senders_cluster_as_soon_as_it_has_one(make):
    known, heard = [], []
    a, b = make("a", lambda: known[0] if known else None), make("b")

    def take(rpc):
        heard.append(rpc.cluster_id)
        rpc.respond(RESPONSE)

    b.deliver_to(take)
    a.append_entries("b", b.local_addr(), REQUEST)
    known.append("one")
    a.append_entries("b", b.local_addr(), REQUEST)

    assert heard == [None, "one"]


def test_a_peer_of_a_later_version_is_talked_to_in_a_common_one(make):
    def later(link):
        link.welcome(identity("b"), PATIENCE, (1, 9))
        link.receive(PATIENCE)
        link.send_message(RESPONSE, PATIENCE)

    with FakePeer(later) as peer:
        assert make("a").append_entries("b", peer.address, REQUEST) == RESPONSE


def test_a_peer_without_a_common_version_is_named(make, caplog):
    def too_late(link):
        raised_by(lambda: link.welcome(identity("b"), PATIENCE, (5, 9)))

    with FakePeer(too_late) as peer, pytest.raises(UnsupportedProtocolError, match="5 to 9"):
        make("a").append_entries("b", peer.address, REQUEST)

    b = make("b")
    b.consumer()
    link = connection(dial(b))
    with pytest.raises(UnsupportedProtocolError, match="1 to 1"):
        link.greet(identity("a"), "b", PATIENCE, (5, 9))
    link.close()
    b.close()
    assert len(complaints(caplog)) == 1


def test_a_peer_of_another_protocol_is_named(make):
    def speak_otherwise(link):
        link.stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n", PATIENCE)
        link.await_input(PATIENCE)

    with FakePeer(speak_otherwise) as peer, pytest.raises(TransportError, match="does not speak"):
        make("a").append_entries("b", peer.address, REQUEST)


# ---- what else may come in ----

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    bytes(100),
    b"RAFTPY\r\n" + b"\xff" * 6,
]
BAD_FRAMES = [
    struct.pack(">IBI", 4, 0, 1) + b"data",  # a wrong CRC
    struct.pack(">IBI", 2**32 - 1, 0, 0),
    struct.pack(">IBI", 0, 99, 0x12345678),
]


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_ends_that_one_connection_with_one_line(pair, caplog, data):
    a, b = pair
    with dial(b) as sock:
        sock.sendall(data)
        assert is_closed_by_peer(sock)

    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    b.close()
    assert len(complaints(caplog)) == 1


@pytest.mark.parametrize("data", BAD_FRAMES)
def test_garbage_behind_a_good_handshake_does_too(pair, caplog, data):
    a, b = pair
    with dial(b) as sock:
        greet(sock)
        sock.sendall(data)
        assert is_closed_by_peer(sock)

    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    b.close()
    assert len(complaints(caplog)) == 1


def greet(sock):
    """Keep the protocol up to the first frame; the socket remains usable."""
    link = connection(socket.socket(fileno=os.dup(sock.fileno())))
    link.greet(identity("a"), "b", PATIENCE)
    link.close()
    sock.settimeout(PATIENCE)


def test_a_message_that_is_no_request_ends_the_connection(pair, caplog):
    _, b = pair
    with dial(b) as sock:
        link = connection(sock)
        link.greet(identity("a"), "b", PATIENCE)
        link.send_message(RESPONSE, PATIENCE)
        assert link.await_input(PATIENCE) is False
        link.close()
    b.close()

    assert ["came as a request" in line for line in complaints(caplog)] == [True]


def test_timeouts_above_a_minute_are_doubted(make, caplog):
    make("b", timeout=60)
    assert not caplog.records

    make("c", timeout=5000)

    assert "timeout is 5000 seconds, more than a minute" in caplog.text


def test_a_connection_that_says_nothing_is_closed(make, caplog):
    b = make("b", handshake_timeout=0.05)
    b.consumer()
    with dial(b) as silent:
        assert is_closed_by_peer(silent)

    b.close()
    assert len(complaints(caplog)) == 1


def test_half_a_frame_is_waited_for_no_longer_than_the_timeout(make, caplog):
    b = make("b", timeout=0.05)
    b.consumer()
    with dial(b) as sock:
        greet(sock)
        sock.sendall(b"\0\0\0")
        assert is_closed_by_peer(sock)

    b.close()
    assert len(complaints(caplog)) == 1


def test_half_a_frame_and_the_end_is_no_news(make, caplog):
    b = make("b")
    b.consumer()
    with dial(b) as sock:
        greet(sock)
        sock.sendall(b"\0\0\0")
        sock.shutdown(socket.SHUT_WR)
        assert is_closed_by_peer(sock)

    assert complaints(caplog) == []


def test_too_many_connections_are_refused_with_one_line(make, caplog):
    b = make("b", max_inbound=2)
    b.deliver_to(answer_with(RESPONSE))
    first, second = make("a"), make("c")
    first.append_entries("b", b.local_addr(), REQUEST)
    second.append_entries("b", b.local_addr(), REQUEST)

    for _ in range(3):
        with dial(b) as sock:
            assert is_closed_by_peer(sock)

    assert first.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    assert len(complaints(caplog)) == 1


def test_strangers_give_way_to_newcomers_and_peers_stay(make):
    """Who opens many connections and says nothing keeps nobody out."""
    b = make("b", max_inbound=3)
    b.deliver_to(answer_with(RESPONSE))
    peer, late = make("a"), make("c")
    peer.append_entries("b", b.local_addr(), REQUEST)
    strangers = [dial(b) for _ in range(10)]

    assert late.append_entries("b", b.local_addr(), REQUEST) == RESPONSE

    assert [is_closed_by_peer(sock) for sock in strangers[:8]] == [True] * 8
    strangers[9].settimeout(0)
    with pytest.raises(BlockingIOError):
        strangers[9].recv(1)
    assert len(b._server._inbound) == 3
    assert peer.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    for sock in strangers:
        sock.close()


def test_a_connection_long_idle_gives_way(make, monkeypatch):
    monkeypatch.setattr(server, "_LONG_IDLE", 0.0)
    b = make("b", max_inbound=1)
    b.deliver_to(answer_with(RESPONSE))
    idle, newcomer = make("a"), make("c")

    def all_are_idle():
        """They are not before `b` knows that its answer has left."""
        return all(inbound.idle_seconds() > 0.0 for inbound in list(b._server._inbound))

    for caller in (idle, newcomer, idle):  # which dials anew
        assert caller.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
        wait_for(all_are_idle, 10.0, "idle connections")


def test_a_request_that_trickles_in_gives_way_to_a_newcomer(make, monkeypatch):
    """Else as many as are served keep every peer out, by a byte a second each."""
    monkeypatch.setattr(server, "_TRICKLE_GRACE", 0.0)
    b = make("b", max_inbound=2)
    b.deliver_to(answer_with(RESPONSE))
    with dial(b) as one, dial(b) as other:
        for sock in (one, other):
            greet(sock)
            sock.sendall(b"\0")

        def all_trickle():
            inbound = list(b._server._inbound)
            return len(inbound) == 2 and all(each.is_trickling() for each in inbound)

        wait_for(all_trickle, 10.0, "requests that trickle")
        for name in ("a", "c"):
            assert make(name).append_entries("b", b.local_addr(), REQUEST) == RESPONSE

        assert is_closed_by_peer(one)
        assert is_closed_by_peer(other)


def test_requests_that_come_in_take_no_more_memory_than_they_may(make, monkeypatch):
    """A dozen connections with a frame each that never ends took gigabytes."""
    b = make("b")
    b._server.max_inbound_bytes = 3 << 20
    b.deliver_to(answer_with(RESPONSE))
    with ExitStack() as stack:
        greedy = [stack.enter_context(dial(b)) for _ in range(4)]
        for sock in greedy:
            greet(sock)
            sock.sendall(struct.pack(">IBI", 32 << 20, 0, 0))
            with suppress(OSError):
                sock.sendall(bytes((1 << 20) + 1))

        def are_few():
            inbound = list(b._server._inbound)
            return len(inbound) < 4 and sum(each.memory() for each in inbound) <= 3 << 20

        wait_for(are_few, 10.0, "the slowest to be closed")
        assert make("a").append_entries("b", b.local_addr(), REQUEST) == RESPONSE


def test_who_holds_more_places_than_it_needs_gives_one_up(make, monkeypatch):
    monkeypatch.setattr(server, "_ENOUGH", 2)
    b = make("b", max_inbound=3)
    greedy, late = make("a", max_pool=3), make("c")
    calls_at_once(greedy, b, count=3)

    b.deliver_to(answer_with(RESPONSE))

    assert late.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    assert greedy.append_entries("b", b.local_addr(), REQUEST) == RESPONSE


def test_a_connection_is_not_idle_while_a_request_comes_in(make, monkeypatch):
    a, b = make("a"), make("b")
    b.deliver_to(answer_with(RESPONSE))
    idle = []

    class Watched(Connection):
        def await_input(self, timeout):
            (inbound,) = b._server._inbound
            inbound._heard_at -= 1000.0  # the last request was long ago
            return super().await_input(timeout)

        def receive(self, timeout):
            idle.extend(inbound.idle_seconds() for inbound in b._server._inbound)
            return super().receive(timeout)

    monkeypatch.setattr(server, "Connection", Watched)

    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE

    assert [seconds < 1000.0 for seconds in idle] == [True]


def test_a_caller_that_gave_up_does_not_hold_a_thread(make, monkeypatch):
    monkeypatch.setattr(server, "WORKING_INTERVAL", 0.01)
    a, b = make("a"), make("b", max_inbound=1)
    b.deliver_to(lambda _: None)
    ended = threading.Event()
    monkeypatch.setattr(b._server, "forget", telling(ended, b._server.forget))

    raised_by(lambda: a.append_entries("b", b.local_addr(), REQUEST, 0.05))
    assert ended.wait(PATIENCE)

    b.deliver_to(answer_with(RESPONSE))
    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE


def test_a_host_that_errs_in_ever_new_ways_does_not_fill_the_log(make, caplog):
    b = make("b")
    b.deliver_to(answer_with(RESPONSE))
    for number in range(server._MOST_COMPLAINTS + 10):
        length = 10_000 + number  # of a greeting that is too long each time
        with dial(b) as sock:
            sock.sendall(b"RAFTPY\r\n" + length.to_bytes(2, "big") + bytes(4))
            assert is_closed_by_peer(sock)

    b.close()
    assert len(complaints(caplog)) == server._MOST_COMPLAINTS


def test_a_reason_that_came_when_the_log_was_full_is_told_later(make, caplog, monkeypatch):
    b = make("b")
    for number in range(server._MOST_COMPLAINTS):
        b._server.complain("h:1", RaftError(f"reason {number}"))
    for port in (2, 3):
        b._server.complain(f"h:{port}", RaftError("what matters"))
    assert len(complaints(caplog)) == server._MOST_COMPLAINTS

    monkeypatch.setattr(server, "_COMPLAINT_PERIOD", -1.0)  # it is over
    for port in (4, 5):
        b._server.complain(f"h:{port}", RaftError("what matters"))

    assert ["what matters" in line for line in complaints(caplog)[-2:]] == [False, True]


def test_what_was_not_told_does_not_fill_the_log(make, caplog):
    b = make("b")
    for _ in range(server._MOST_COMPLAINTS):
        b._server.complain("h:1", RaftError("as ever"))
    b._server.complain("h:1", RaftError("something else"))

    assert [line.rpartition("=")[2] for line in complaints(caplog)] == ["as ever", "something else"]


def test_as_many_hosts_as_connections_are_each_complained_about_once(make, caplog):
    b = make("b", max_inbound=2)
    for _ in range(3):
        for host in ("g", "h"):
            b._server.complain(f"{host}:1", RaftError("as ever"))

    assert len(complaints(caplog)) == 2


# ---- accepting ----


@pytest.mark.parametrize("failure", [OSError, MemoryError, ValueError])
def test_failures_to_accept_are_paused_after(caplog, failure):
    """TRA-30: twelve accepts and lines in the first 4.3 seconds of pauses."""
    pauses = []

    class Recording(ThreadRuntime):
        def event(self):
            event = threading.Event()
            wait, event.wait = event.wait, lambda timeout: pauses.append(timeout) or wait(0)
            return event

    class Failing:
        enough, closed = threading.Event(), threading.Event()

        def local_addr(self):
            return "nowhere:1"

        def accept(self, timeout):
            if len(pauses) < 12:
                raise failure("too many open files")
            self.enough.set()
            self.closed.wait(PATIENCE)

        def close(self):
            self.closed.set()

        def abandon(self):
            pass

    transport = NetworkTransport(Failing(), runtime=Recording())
    transport.consumer()
    assert Failing.enough.wait(PATIENCE)
    transport.close()

    assert pauses[:10] == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    assert len([line for line in complaints(caplog) if "too many open files" in line]) == 12
    assert transport_threads() == []


def test_closing_ends_the_pause_after_a_failure(monkeypatch):
    """TRA-30: the loop ends when the transport is closed."""
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 600.0)
    monkeypatch.setattr(server, "_ACCEPT_PAUSE_MAX", 600.0)
    failed = threading.Event()

    class Failing:
        def local_addr(self):
            return "nowhere:1"

        def accept(self, timeout):
            failed.set()
            raise OSError("too many open files")

        def close(self):
            pass

        def abandon(self):
            pass

    transport = NetworkTransport(Failing())
    transport.consumer()
    assert failed.wait(PATIENCE)

    transport.close()

    assert transport_threads() == []


def test_a_connection_that_gets_no_thread_is_closed_and_the_next_is_served(make, caplog):
    """A limit of threads that is reached for a moment must not leave a server deaf."""
    refused = []

    class Scarce(ThreadRuntime):
        def spawn(self, name, target):
            if "-conn-" in name and not refused:
                refused.append(name)
                raise RuntimeError("can't start new thread")
            return super().spawn(name, target)

    a, b = make("a", timeout=5.0), make("b", runtime=Scarce(), max_inbound=1)
    b.deliver_to(answer_with(RESPONSE))

    assert isinstance(
        raised_by(lambda: a.append_entries("b", b.local_addr(), REQUEST)), PeerUnreachableError
    )
    assert a.append_entries("b", b.local_addr(), REQUEST) == RESPONSE
    assert [line for line in complaints(caplog) if "can't start new thread" in line]


# ---- pipelines ----


def pipelined(pipeline, count, meanwhile=lambda: None):
    """The answers and errors to so many requests; `meanwhile` is called after ten of them."""
    outcomes = []
    for number in range(count):
        if number == 10:
            meanwhile()
        try:
            pipeline.append_entries(REQUEST)
        except TransportError as exc:
            outcomes.append(exc)
    for _ in range(count - len(outcomes)):
        try:
            outcomes.append(pipeline.receive(PATIENCE))
        except TransportError as exc:
            outcomes.append(exc)
    return outcomes


def test_a_pipeline_to_a_peer_that_closes_its_streams_fails_and_the_next_works(make):
    """TRA-17, TRA-18."""
    book = {}

    class Book:
        def server_addr(self, server_id):
            return book[server_id]

    a = make("a", server_address_provider=Book())
    b = make("b", server_address_provider=Book())
    book["b"] = b.local_addr()
    b.deliver_to(answer_with(RESPONSE))
    first = a.append_entries_pipeline("b", "nowhere:1")

    broken = pipelined(first, 100, b.close_streams)
    second = a.append_entries_pipeline("b", "nowhere:1")
    whole = pipelined(second, 100)

    assert len(broken) == 100
    assert {type(outcome) for outcome in broken} <= {type(RESPONSE), ConnectionLostError}
    assert isinstance(broken[-1], ConnectionLostError)
    assert whole == [RESPONSE] * 100
    first.close()
    second.close()


def test_a_pipeline_whose_peer_goes_away_ends(make):
    a, b = make("a"), make("b")
    b.deliver_to(lambda _: None)
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    pipeline.append_entries(REQUEST)
    waiting = InBackground(lambda: pipeline.receive(60.0))

    b.close()

    assert isinstance(waiting.outcome(), ConnectionLostError)
    assert isinstance(raised_by(lambda: pipeline.append_entries(REQUEST)), TransportError)


def test_closing_the_transport_ends_its_pipelines(make):
    a, b = make("a"), make("b")
    b.deliver_to(lambda _: None)
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    waiting = InBackground(lambda: pipeline.receive(60.0))

    a.close()

    assert isinstance(waiting.outcome(), TransportShutdownError)


def test_a_closed_pipeline_says_so(make):
    a, b = make("a"), make("b")
    b.deliver_to(lambda _: None)
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    pipeline.close()

    assert isinstance(raised_by(lambda: pipeline.receive(1.0)), PipelineShutdownError)
    assert isinstance(raised_by(lambda: pipeline.append_entries(REQUEST)), PipelineShutdownError)


def test_an_answer_nobody_asked_for_ends_a_pipeline(make):
    def overeager(link):
        link.welcome(identity("b"), PATIENCE)
        link.send_message(RESPONSE, PATIENCE)
        link.await_input(PATIENCE)

    with FakePeer(overeager) as peer:
        pipeline = make("a").append_entries_pipeline("b", peer.address)

        with pytest.raises(TransportError, match="not sent"):
            pipeline.receive(PATIENCE)


def test_heartbeats_pass_a_request_that_is_not_answered(make):
    a, b = make("a"), make("b")
    b.set_heartbeat_handler(answer_with(RESPONSE))
    arrived = threading.Event()
    b.deliver_to(lambda _: arrived.set())
    pipeline = a.append_entries_pipeline("b", b.local_addr())
    pipeline.append_entries(REQUEST)
    assert arrived.wait(PATIENCE)

    assert a.append_entries("b", b.local_addr(), HEARTBEAT) == RESPONSE
    pipeline.close()


# ---- snapshots ----


def test_a_large_snapshot_can_be_refused_at_once(make):
    a, b = make("a"), make("b")
    b.deliver_to(answer_with(INSTALLED))
    reader = Zeros(LARGE)

    assert a.install_snapshot("b", b.local_addr(), snapshot(LARGE), reader) == INSTALLED
    assert reader.left > LARGE // 2


def test_a_receiver_that_works_long_shows_signs_of_life(make, monkeypatch):
    monkeypatch.setattr(server, "WORKING_INTERVAL", 0.01)
    b = make("b")
    kept = queue.Queue()
    b.deliver_to(kept.put)
    link = connection(dial(b))
    link.greet(identity("a"), "b", PATIENCE)
    link.send_message(snapshot(0), PATIENCE)
    link.send(130, b"", PATIENCE)
    rpc = kept.get(timeout=PATIENCE)
    assert rpc.reader.read(1) == b""

    assert [link.receive(PATIENCE)[0] for _ in range(5)] == [WORKING_FRAME] * 5
    rpc.respond(INSTALLED)
    while (frame := link.receive(PATIENCE))[0] == WORKING_FRAME:
        pass
    assert decode_message(*frame) == INSTALLED
    link.close()


def test_a_sender_that_stalls_fails_on_both_sides(make):
    a, b = make("a"), make("b", timeout=0.05)
    go_on, failed = threading.Event(), queue.Queue()

    class Stalling(Zeros):
        def read(self, size=-1, /):
            go_on.wait(PATIENCE)
            return super().read(size)

    def install(rpc):
        fault = raised_by(lambda: rpc.reader.read(10))
        rpc.respond(None, fault)
        failed.put(fault)

    with Answering(b, install):
        call = InBackground(
            lambda: a.install_snapshot("b", b.local_addr(), snapshot(10), Stalling(10))
        )
        fault = failed.get(timeout=PATIENCE)
        go_on.set()

        assert isinstance(fault, RPCTimeoutError)
        assert isinstance(call.outcome(), TransportError)


def test_closing_ends_a_snapshot_on_its_way(make):
    a, b = make("a"), make("b")
    arrived = threading.Event()

    with Answering(b, lambda _: arrived.set()):
        call = InBackground(
            lambda: a.install_snapshot("b", b.local_addr(), snapshot(LARGE), Zeros(LARGE), 60.0)
        )
        assert arrived.wait(PATIENCE)
        a.close()

        assert isinstance(call.outcome(), TransportShutdownError)


def test_a_snapshot_at_fault_is_logged_by_the_receiver(make, caplog):
    b = make("b")
    with Answering(b, lambda rpc: rpc.reader.read()):
        link = connection(dial(b))
        link.greet(identity("a"), "b", PATIENCE)
        link.send_message(snapshot(10), PATIENCE)
        link.send(129, b"12345678901", PATIENCE)
        error = raised_by(lambda: link.receive_answer(PATIENCE))
        link.close()
    b.close()

    assert "beyond its size" in str(error)
    assert len(complaints(caplog)) == 1


# ---- life ----


def test_a_request_not_answered_is_let_go_on_closing(make):
    a, b = make("a"), make("b")
    kept = queue.Queue()
    b.deliver_to(kept.put)
    call = InBackground(lambda: a.append_entries("b", b.local_addr(), REQUEST, 60.0))
    rpc = kept.get(timeout=PATIENCE)

    b.close()
    rpc.respond(RESPONSE)

    assert isinstance(call.outcome(), TransportError)
    assert transport_threads() == []


def test_opening_and_closing_leaves_nothing_behind():
    def answer_all(rpc):
        is_snapshot = isinstance(rpc.command, InstallSnapshotRequest)
        rpc.respond(INSTALLED if is_snapshot else RESPONSE)

    def cycle():
        a, b = TCPTransport("127.0.0.1:0"), TCPTransport("127.0.0.1:0")
        a.identify("a", lambda: None)
        b.deliver_to(answer_all)
        a.consumer()
        a.append_entries("", b.local_addr(), REQUEST)
        a.append_entries_pipeline("", b.local_addr())
        a.install_snapshot("", b.local_addr(), snapshot(0), io.BytesIO())
        a.close()
        b.close()

    cycle()
    gc.collect()
    before = open_descriptors(), threading.active_count()
    for _ in range(100):
        cycle()
    gc.collect()

    assert (open_descriptors(), threading.active_count()) == before


def test_a_forked_child_lets_go_and_says_so(pair):
    a, b = pair
    a.append_entries("b", b.local_addr(), REQUEST)
    address = b.local_addr()
    pipeline = a.append_entries_pipeline("b", address)
    calls = [
        a.local_addr,
        a.consumer,
        a.close,
        a.close_streams,
        lambda: a.identify("a", lambda: None),
        lambda: a.set_heartbeat_handler(None),
        lambda: a.deliver_to(print),
        lambda: a.append_entries("b", address, REQUEST),
        lambda: a.append_entries_pipeline("b", address),
        lambda: a.install_snapshot("b", address, snapshot(0), Zeros(0)),
        lambda: pipeline.append_entries(REQUEST),
        lambda: pipeline.receive(1.0),
        pipeline.close,
    ]
    sockets = [stream.sock.fileno() for each in pair for stream in each._layer._streams]

    child = os.fork()
    if child == 0:
        try:
            refused = [isinstance(raised_by(call), ForkedProcessError) for call in calls]
            gone = [isinstance(raised_by(lambda fd=fd: os.fstat(fd)), OSError) for fd in sockets]
            os._exit(0 if all(refused) and all(gone) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert a.append_entries("b", address, REQUEST) == RESPONSE
    pipeline.append_entries(REQUEST)
    assert pipeline.receive(PATIENCE) == RESPONSE
    pipeline.close()


def test_an_address_nobody_has_is_unreachable(make):
    with address_without_listener() as address, pytest.raises(PeerUnreachableError, match=address):
        make("a").append_entries("b", address, REQUEST)
