"""Tests that every transport must pass, for use with pytest.

Give `TransportContract` a fixture called `transports`, which hands out two transports that reach
each other, known to be servers `a` and `b` (`identify`, where they offer it), with a default
timeout of a few seconds:

    class TestMyTransport(TransportContract):
        @pytest.fixture
        def transports(self):
            a, b = MyTransport("127.0.0.1:0"), MyTransport("127.0.0.1:0")
            a.identify("a", lambda: "cluster")
            b.identify("b", lambda: "cluster")
            yield a, b
            a.close()
            b.close()

What a transport need not offer (`WithPreVote`, `WithIdentity`, `WithDelivery`) is tested where it
does. A transport that declines pipelining takes the other classes one by one. The first `consumer`
is where a transport may begin to serve. Ids such as TRA-02 stand for the original's own tests.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from raft.errors import (
    RemoteError,
    RPCTimeoutError,
    TransportError,
    TransportShutdownError,
    WrongServerError,
)
from raft.interfaces import Transport, WithClose, WithDelivery, WithIdentity, WithPreVote
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.runtime import QueueEmpty
from raft.types import Configuration, Log, LogType, Server

Pair: TypeAlias = tuple[Any, Any]
"""Two transports, `a` and `b`."""

PATIENCE = 8.0  # seconds until a test gives up waiting for what must happen
BRIEF = 0.1  # seconds for what must time out

A = RPCHeader("a", "cartman")
B = RPCHeader("b", "kenny")
SERVERS = Configuration([Server("a", "a:1"), Server("b", "b:1")])

HEARTBEAT = AppendEntriesRequest(A, 10)
APPEND = AppendEntriesRequest(
    A, 10, 100, 4, (Log(101, 4, LogType.NOOP), Log(102, 4, data=b"x", extensions=b"y").sealed()), 90
)
APPENDED = AppendEntriesResponse(B, 4, 90, True)
SNAPSHOT = InstallSnapshotRequest(A, 10, 100, 9, SERVERS, 50, 10)
DIGITS = b"0123456789"
INSTALLED = InstallSnapshotResponse(B, 10, True)
REFUSED = InstallSnapshotResponse(B, 11)


class Answering:
    """Answers what comes in at a transport, on a thread of its own, as a node would.

    `answer` gets each request and answers it, or leaves it unanswered.
    """

    def __init__(self, transport: Transport, answer: Callable[[RPC], None]) -> None:
        self.requests: list[Any] = []
        self.faults: list[BaseException] = []
        self._queue = transport.consumer()
        self._answer = answer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                rpc = self._queue.get(timeout=0.02)
            except QueueEmpty:
                continue
            self.requests.append(rpc.command)
            try:
                self._answer(rpc)
            except TransportError as exc:
                self.faults.append(exc)
                rpc.respond(None, exc)


def answer_with(response: Any) -> Callable[[RPC], None]:
    """Return an `answer` that gives everybody the same response."""
    return lambda rpc: rpc.respond(response)


def raised_by(call: Callable[[], object]) -> BaseException:
    """Return what a call raises; fail when it returns."""
    try:
        result = call()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the test looks at it
        return exc
    raise AssertionError(f"no error was raised, but this returned: {result!r}")


def offers(transport: object, contract: type) -> bool:
    """Tell whether a transport has an optional contract's methods."""
    return isinstance(transport, contract)


class InBackground:
    """A call on a thread of its own; `outcome` waits for what it returned or raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._outcome: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._run, args=(call,), name="calling", daemon=True).start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self._outcome.put(call())
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test looks at it
            self._outcome.put(exc)

    def outcome(self, timeout: float = PATIENCE) -> Any:
        """Return what the call returned or raised; `queue.Empty` when it goes on too long."""
        return self._outcome.get(timeout=timeout)


class CallContract:
    """Calls that wait for their answer, both ways, and how they fail."""

    def test_entries_arrive_as_sent_and_the_answer_comes_back(self, transports: Pair) -> None:
        """TRA-02, TRA-13, TRA-14."""
        a, b = transports

        with Answering(b, answer_with(APPENDED)) as peer:
            assert a.append_entries("b", b.local_addr(), APPEND) == APPENDED

        assert peer.requests == [APPEND]

    def test_calls_work_in_the_other_direction_too(self, transports: Pair) -> None:
        a, b = transports
        request = replace(APPEND, header=B)

        with Answering(a, answer_with(APPENDED)) as peer:
            assert b.append_entries("a", a.local_addr(), request) == APPENDED

        assert peer.requests == [request]

    def test_votes_are_asked_and_given(self, transports: Pair) -> None:
        """TRA-04, TRA-23, TRA-24."""
        a, b = transports
        request, response = RequestVoteRequest(A, 20, 100, 19, True), RequestVoteResponse(B, 20)

        with Answering(b, answer_with(response)) as peer:
            assert a.request_vote("b", b.local_addr(), request) == response

        assert peer.requests == [request]

    def test_pre_votes_are_asked_and_given(self, transports: Pair) -> None:
        a, b = transports
        request = RequestPreVoteRequest(A, 20, 100, 19)
        response = RequestPreVoteResponse(B, 20, True)
        if not offers(a, WithPreVote):
            return

        with Answering(b, answer_with(response)) as peer:
            assert a.request_pre_vote("b", b.local_addr(), request) == response

        assert peer.requests == [request]

    def test_a_server_is_told_to_campaign(self, transports: Pair) -> None:
        a, b = transports

        with Answering(b, answer_with(TimeoutNowResponse(B))) as peer:
            answer = a.timeout_now("b", b.local_addr(), TimeoutNowRequest(A))

        assert answer == TimeoutNowResponse(B)
        assert peer.requests == [TimeoutNowRequest(A)]

    def test_many_callers_get_each_their_own_answer(self, transports: Pair) -> None:
        a, b = transports
        requests = [AppendEntriesRequest(A, term, 1, 1) for term in range(1, 21)]

        def echo(rpc: RPC) -> None:
            assert isinstance(rpc.command, AppendEntriesRequest)
            rpc.respond(AppendEntriesResponse(B, rpc.command.term))

        with Answering(b, echo):
            calls = [
                InBackground(partial(a.append_entries, "b", b.local_addr(), r)) for r in requests
            ]
            assert [call.outcome().term for call in calls] == [r.term for r in requests]

    def test_an_error_as_the_answer_is_raised_as_a_remote_one(self, transports: Pair) -> None:
        a, b = transports

        with Answering(b, lambda rpc: rpc.respond(None, ValueError("disk on fire"))):
            error = raised_by(lambda: a.append_entries("b", b.local_addr(), APPEND))

        assert isinstance(error, RemoteError)
        assert "disk on fire" in str(error)

    def test_the_next_call_after_an_error_works(self, transports: Pair) -> None:
        a, b = transports
        answers: Iterator[Any] = iter([(None, ValueError("once")), (APPENDED, None)])

        with Answering(b, lambda rpc: rpc.respond(*next(answers))):
            raised_by(lambda: a.append_entries("b", b.local_addr(), APPEND))
            assert a.append_entries("b", b.local_addr(), APPEND) == APPENDED

    def test_a_call_nobody_answers_times_out(self, transports: Pair) -> None:
        a, b = transports

        with Answering(b, lambda _: None):
            error = raised_by(lambda: a.append_entries("b", b.local_addr(), APPEND, BRIEF))

        assert isinstance(error, RPCTimeoutError)

    def test_an_answer_after_the_timeout_harms_nobody(self, transports: Pair) -> None:
        a, b = transports
        kept: queue.Queue[RPC] = queue.Queue()
        with Answering(b, kept.put):
            raised_by(lambda: a.append_entries("b", b.local_addr(), APPEND, BRIEF))

        kept.get(timeout=PATIENCE).respond(APPENDED)

        with Answering(b, answer_with(AppendEntriesResponse(B, 77))):
            assert a.append_entries("b", b.local_addr(), APPEND).term == 77

    def test_another_servers_answer_does_not_count(self, transports: Pair) -> None:
        a, b = transports
        if not offers(b, WithIdentity):
            return

        with Answering(b, answer_with(APPENDED)) as peer:
            error = raised_by(lambda: a.append_entries("c", b.local_addr(), APPEND))

        assert isinstance(error, WrongServerError)
        assert peer.requests == []


class DeliveryContract:
    """Which way requests go in."""

    def test_heartbeats_go_to_their_handler_and_not_to_the_inbox(self, transports: Pair) -> None:
        """TRA-12."""
        a, b = transports
        heard: list[Any] = []

        def on_heartbeat(rpc: RPC) -> None:
            heard.append(rpc.command)
            rpc.respond(APPENDED)

        b.set_heartbeat_handler(on_heartbeat)
        inbox = b.consumer()

        assert a.append_entries("b", b.local_addr(), HEARTBEAT) == APPENDED
        assert heard == [HEARTBEAT]
        assert inbox.qsize() == 0

    def test_entries_do_not_go_to_the_heartbeat_handler(self, transports: Pair) -> None:
        a, b = transports
        b.set_heartbeat_handler(lambda rpc: rpc.respond(None, AssertionError("not for me")))

        with Answering(b, answer_with(APPENDED)):
            assert a.append_entries("b", b.local_addr(), APPEND) == APPENDED

    def test_heartbeats_take_the_common_way_without_a_handler(self, transports: Pair) -> None:
        a, b = transports

        with Answering(b, answer_with(APPENDED)) as peer:
            a.append_entries("b", b.local_addr(), HEARTBEAT)

        assert peer.requests == [HEARTBEAT]

    def test_requests_can_be_delivered_without_the_queue(self, transports: Pair) -> None:
        a, b = transports
        if not offers(b, WithDelivery):
            return
        b.deliver_to(answer_with(APPENDED))

        assert a.append_entries("b", b.local_addr(), APPEND) == APPENDED


class PipelineContract:
    """Several AppendEntries under way at a time."""

    def test_pipeline_answers_come_in_the_order_of_the_requests(self, transports: Pair) -> None:
        """TRA-03, TRA-15, TRA-16."""
        a, b = transports

        with Answering(b, _echo_term):
            pipeline = a.append_entries_pipeline("b", b.local_addr())
            for term in range(1, 11):
                pipeline.append_entries(AppendEntriesRequest(A, term, 1, 1))
            terms = [pipeline.receive(PATIENCE).term for _ in range(10)]
            pipeline.close()

        assert terms == list(range(1, 11))

    def test_pipeline_sends_on_before_the_first_answer(self, transports: Pair) -> None:
        a, b = transports
        kept: queue.Queue[RPC] = queue.Queue()

        with Answering(b, kept.put):
            pipeline = a.append_entries_pipeline("b", b.local_addr())
            for term in (1, 2, 3):
                pipeline.append_entries(AppendEntriesRequest(A, term, 1, 1))
            for _ in range(3):
                _echo_term(kept.get(timeout=PATIENCE))
            terms = [pipeline.receive(PATIENCE).term for _ in range(3)]

        pipeline.close()
        assert terms == [1, 2, 3]

    def test_pipeline_survives_a_wait_that_was_too_short(self, transports: Pair) -> None:
        a, b = transports
        b.consumer()
        pipeline = a.append_entries_pipeline("b", b.local_addr())

        pipeline.append_entries(AppendEntriesRequest(A, 1, 1, 1))
        early = raised_by(lambda: pipeline.receive(0.01))
        with Answering(b, _echo_term):
            late = pipeline.receive(PATIENCE)

        pipeline.close()
        assert isinstance(early, RPCTimeoutError)
        assert late.term == 1

    def test_pipeline_raises_an_error_in_its_place(self, transports: Pair) -> None:
        a, b = transports
        answers: Iterator[Any] = iter([(None, ValueError("no")), (APPENDED, None)])

        with Answering(b, lambda rpc: rpc.respond(*next(answers))):
            pipeline = a.append_entries_pipeline("b", b.local_addr())
            pipeline.append_entries(APPEND)
            pipeline.append_entries(APPEND)
            error = raised_by(lambda: pipeline.receive(PATIENCE))
            answer = pipeline.receive(PATIENCE)

        pipeline.close()
        assert isinstance(error, RemoteError)
        assert answer == APPENDED

    def test_closing_a_pipeline_wakes_its_receiver(self, transports: Pair) -> None:
        a, b = transports
        b.consumer()
        pipeline = a.append_entries_pipeline("b", b.local_addr())
        pipeline.append_entries(APPEND)
        waiting = InBackground(lambda: pipeline.receive(60.0))

        pipeline.close()
        pipeline.close()

        assert isinstance(waiting.outcome(), TransportError)
        assert isinstance(raised_by(lambda: pipeline.append_entries(APPEND)), TransportError)


class SnapshotContract:
    """Snapshots as streams: whole, in pieces, refused, too short, too long."""

    def test_a_snapshot_arrives_to_the_byte(self, transports: Pair) -> None:
        """TRA-05, TRA-25, TRA-26."""
        a, b = transports
        body: list[bytes] = []

        def install(rpc: RPC) -> None:
            body.append(_reader(rpc).read())
            rpc.respond(INSTALLED)

        with Answering(b, install) as peer:
            answer = a.install_snapshot("b", b.local_addr(), SNAPSHOT, io.BytesIO(DIGITS))

        assert answer == INSTALLED
        assert peer.requests == [SNAPSHOT]
        assert body == [DIGITS]

    def test_a_snapshot_can_be_read_in_pieces_by_another_thread(self, transports: Pair) -> None:
        a, b = transports
        body: list[bytes] = []

        def install(rpc: RPC) -> None:
            while piece := _reader(rpc).read(3):
                body.append(piece)
            rpc.respond(INSTALLED)

        def install_elsewhere(rpc: RPC) -> None:
            InBackground(lambda: install(rpc))

        with Answering(b, install_elsewhere):
            a.install_snapshot("b", b.local_addr(), SNAPSHOT, io.BytesIO(DIGITS))

        assert body == [b"012", b"345", b"678", b"9"]

    def test_an_empty_snapshot_is_a_snapshot(self, transports: Pair) -> None:
        a, b = transports
        request = InstallSnapshotRequest(A, 10, 100, 9, SERVERS, 50, 0)

        def install(rpc: RPC) -> None:
            assert _reader(rpc).read(100) == b""
            rpc.respond(INSTALLED)

        with Answering(b, install):
            answer = a.install_snapshot("b", b.local_addr(), request, io.BytesIO())

        assert answer == INSTALLED

    def test_a_snapshot_can_be_refused_unread(self, transports: Pair) -> None:
        a, b = transports
        size = 32 * 1024 * 1024
        request = InstallSnapshotRequest(A, 10, 100, 9, SERVERS, 50, size)
        reader = Zeros(size)

        with Answering(b, answer_with(REFUSED)):
            answer = a.install_snapshot("b", b.local_addr(), request, reader)

        assert answer == REFUSED
        assert reader.left > 0

    def test_a_snapshot_that_ends_early_fails_on_both_sides(self, transports: Pair) -> None:
        faults, error = self._send_broken(transports, DIGITS[:7])

        assert isinstance(faults[0], TransportError)
        assert isinstance(error, Exception)

    def test_a_snapshot_longer_than_announced_fails_on_both_sides(self, transports: Pair) -> None:
        faults, error = self._send_broken(transports, DIGITS * 2)

        assert isinstance(faults[0], TransportError)
        assert isinstance(error, Exception)

    def _send_broken(self, transports: Pair, data: bytes) -> tuple[list[Any], BaseException]:
        a, b = transports
        failed = threading.Event()

        def install(rpc: RPC) -> None:
            try:
                _reader(rpc).read(SNAPSHOT.size)
            finally:
                failed.set()
            rpc.respond(INSTALLED)

        with Answering(b, install) as peer:
            error = raised_by(
                lambda: a.install_snapshot("b", b.local_addr(), SNAPSHOT, io.BytesIO(data))
            )
            assert failed.wait(PATIENCE)
        return peer.faults, error


class ClosingContract:
    """Nobody is left waiting for a transport that is gone."""

    def test_closing_ends_the_calls_under_way(self, transports: Pair) -> None:
        a, b = transports
        if not offers(a, WithClose):
            return
        arrived = threading.Event()

        with Answering(b, lambda _: arrived.set()):
            call = InBackground(lambda: a.append_entries("b", b.local_addr(), APPEND, 60.0))
            assert arrived.wait(PATIENCE)
            a.close()
            error = call.outcome()

        assert isinstance(error, TransportShutdownError)

    def test_a_closed_transport_refuses_calls_and_closes_again(self, transports: Pair) -> None:
        """TRA-01, TRA-10."""
        a, b = transports
        address = b.local_addr()
        if not offers(a, WithClose):
            return

        a.close()
        a.close()

        error = raised_by(lambda: a.append_entries("b", address, APPEND))
        assert isinstance(error, TransportShutdownError)

    def test_a_peer_that_closes_ends_the_calls_made_to_it(self, transports: Pair) -> None:
        a, b = transports
        address = b.local_addr()
        if not offers(b, WithClose):
            return
        arrived = threading.Event()

        with Answering(b, lambda _: arrived.set()):
            call = InBackground(lambda: a.append_entries("b", address, APPEND, 60.0))
            assert arrived.wait(PATIENCE)
            b.close()
            error = call.outcome()

        assert isinstance(error, TransportError)


class TransportContract(
    CallContract, DeliveryContract, PipelineContract, SnapshotContract, ClosingContract
):
    """All of it; the parts are there for transports that can do only some."""


class Zeros:
    """A snapshot of so many zero bytes, made as it is read."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to so many of the zeros left."""
        count = self.left if size < 0 else min(size, self.left)
        self.left -= count
        return bytes(count)

    def close(self) -> None:
        """Do nothing."""


def _echo_term(rpc: RPC) -> None:
    assert isinstance(rpc.command, AppendEntriesRequest)
    rpc.respond(AppendEntriesResponse(B, rpc.command.term))


def _reader(rpc: RPC) -> Any:
    assert rpc.reader is not None
    return rpc.reader
