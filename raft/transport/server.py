"""The inbound side of the native protocol: one thread accepts, one more serves each connection.

A connection carries one request at a time, strictly in order. Its thread takes the request in,
hands it over, waits for the answer and writes it; a heartbeat is answered on that very thread.
Whatever is wrong with what a peer sends ends that one connection, with one line in the log.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, cast

from raft.codec import decode_message
from raft.errors import (
    ClusterMismatchError,
    ConnectionLostError,
    NoThreadError,
    ProtocolError,
    RaftError,
    RPCTimeoutError,
)
from raft.logs import get_logger
from raft.messages import RPC, RPC_TYPES, InstallSnapshotRequest, Request, Response
from raft.metrics import Laps, rpc_labels
from raft.runtime import Deadline, Runtime, Task, ThreadGroup, backoff
from raft.transport.connection import WORKING_FRAME, Connection
from raft.transport.delivery import Delivery, Identity, check_caller, check_proof
from raft.transport.snapshot_stream import WORKING_INTERVAL, SnapshotStream
from raft.transport.stream import Stream, StreamLayer

logger = get_logger(__name__)

_ACCEPT_SLICE = 1.0  # seconds; closing the layer ends a wait sooner where the system lets it
_ACCEPT_PAUSE = 0.005  # seconds after the first failure to accept, doubling up to
_ACCEPT_PAUSE_MAX = 1.0
_IDLE_SLICE = 60.0  # seconds; an idle connection is kept, this merely bounds one wait
_TRICKLE_RATE = 512  # bytes a second; a request that comes more slowly
_TRICKLE_GRACE = 1.0  # seconds after its first byte gives way when there are too many
_ENOUGH = 8  # connections that one server may need at a time
_LONG_IDLE = 10.0  # seconds after which a connection gives way when there are too many
_MOST_COMPLAINTS = 20  # about one host, logged as warnings in
_COMPLAINT_PERIOD = 60.0  # seconds
_DRAIN_LIMIT = 2.0  # seconds for a sender to notice that its snapshot was refused


class _Complaints(NamedTuple):
    """Why connections from one host were ended: the last reason told, and how many since when."""

    text: str
    number: int
    since: float


class _Answer:
    """Where the answer to one request arrives, once.

    A lock used as a gate: closed at birth, opened by the first answer. It is the cheapest thing
    that one thread can wait on and another release.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._gate = runtime.lock()
        self._gate.acquire()
        self._open = False
        self.response: Response | None = None
        self.error: Exception | None = None

    def give(self, response: Response | None, error: Exception | None) -> None:
        """Take the answer and wake whoever waits; neither blocks nor raises."""
        if not self._open:
            self.response, self.error = response, error
            self.give_up()

    def give_up(self) -> None:
        """Wake whoever waits, without an answer."""
        self._open = True
        try:
            self._gate.release()
        except RuntimeError:
            pass  # two came at once: the gate is open already

    def wait(self, timeout: float) -> bool:
        """Wait until there is an answer, or none will come; return whether that is so."""
        if not self._gate.acquire(True, timeout):
            return False
        self._gate.release()
        return True


class _Inbound:
    """One inbound connection, owned by its thread; `close` is for any."""

    def __init__(self, stream: Stream, server: Server) -> None:
        self._connection = Connection(stream, server.runtime)
        self._connection.on_growth = server.look_at_memory
        self._server = server
        self._answer: _Answer | None = None  # of the request that is being answered
        self._closed = False
        self._retired = False
        self._heard_at: float | None = None  # when it was last of use; None in the handshake
        self._frame_at: float | None = None  # since when a request comes in
        self._laps = None if server.delivery.metrics is None else Laps(server.delivery.metrics)

    def run(self) -> None:
        """Serve requests until the peer goes, misbehaves or is sent away."""
        peer = self._connection.stream.peer
        try:
            self._serve()
        except ConnectionLostError as exc:
            logger.debug("inbound connection lost peer=%s error=%s", peer, exc)
        except RaftError as exc:
            self._server.complain(peer, exc)
        finally:
            self.close()
            self._server.forget(self)

    def close(self) -> None:
        """End the connection and let go of a request that is not answered yet."""
        self._closed = True  # before _answer is read: `_handle` looks at it after setting that
        self._connection.close()
        answer = self._answer
        if answer is not None:
            answer.give_up()

    def idle_seconds(self) -> float:
        """Return for how long it has been of no use; endless for one in its handshake.

        A request that comes in, or is answered, is of use; one that trickles is of none.
        """
        heard_at, frame_at = self._heard_at, self._frame_at
        if heard_at is None:
            return math.inf
        if self._answer is not None or (frame_at is not None and not self.is_trickling()):
            return 0.0
        return self._server.runtime.monotonic() - heard_at

    def is_trickling(self) -> bool:
        """Tell whether a request comes in too slowly for an honest peer."""
        frame_at = self._frame_at
        if frame_at is None:
            return False
        seconds = self._server.runtime.monotonic() - frame_at - _TRICKLE_GRACE
        return seconds > 0.0 and self._connection.held() < _TRICKLE_RATE * seconds

    def is_expendable(self) -> bool:
        """Tell whether it gives way to any newcomer."""
        return self.is_trickling() or self.idle_seconds() > _LONG_IDLE

    def memory(self) -> int:
        """Return how many bytes it keeps busy."""
        return self._connection.memory()

    def rate(self) -> float:
        """Return how many bytes a second come of the request that is coming in."""
        frame_at = self._frame_at
        if frame_at is None:
            return math.inf
        return self._connection.held() / max(1e-3, self._server.runtime.monotonic() - frame_at)

    def holder(self) -> object:
        """Return who holds it, as far as that is known: the ids it has proved, or its host."""
        return self._connection.proven or self._connection.stream.peer.rpartition(":")[0]

    def retire(self) -> None:
        """End the connection, once a request that is being answered has its answer."""
        self._retired = True  # before _answer is read: `_handle` looks at it after clearing that
        if self._answer is None:
            self.close()

    def _serve(self) -> None:
        connection, server = self._connection, self._server
        connection.welcome(server.identity, server.handshake_timeout)
        self._heard_at = server.runtime.monotonic()
        while self._await_request():
            self._frame_at = server.runtime.monotonic()
            if self._laps is not None:
                self._laps.lap("raft.net.getRPCType")
            code, payload = connection.receive(server.timeout)
            if not self._handle(code, payload):
                return

    def _await_request(self) -> bool:
        """Wait for the next request; return False when the peer has ended between two."""
        if self._laps is not None:
            self._laps.start()
        while True:
            try:
                return self._connection.await_input(_IDLE_SLICE)
            except RPCTimeoutError:
                pass  # merely idle

    def _handle(self, code: int, payload: bytes) -> bool:
        """Answer one request; return whether another may follow on this connection."""
        connection, server, laps = self._connection, self._server, self._laps
        command = decode_message(code, payload)
        if type(command) not in RPC_TYPES:
            raise ProtocolError(f"a {type(command).__name__} came as a request")
        request = cast(Request, command)
        # Votes and leaders go by this name: one server's certificate must not vote for another.
        check_proof(connection.proven, request.header.id, connection.stream.peer)
        if laps is not None:
            laps.labels = rpc_labels(request)
            laps.lap("raft.net.rpcDecode")
        try:
            # Again, because this server may have learnt its cluster's id since the handshake.
            check_caller(server.identity.cluster_id(), connection.peer.cluster_id, "the sender")
        except ClusterMismatchError as exc:
            connection.send_error(exc, server.timeout)
            raise
        answer = self._answer = _Answer(server.runtime)
        self._frame_at = None
        if self._closed:
            return False
        stream = None
        if isinstance(command, InstallSnapshotRequest):
            stream = SnapshotStream(connection, command.size, server.timeout)
        rpc = RPC(request, answer.give, stream, connection.peer.cluster_id)
        try:
            server.delivery.deliver(rpc, server.timeout)
        except RPCTimeoutError as exc:
            answer.give(None, exc)
        if laps is not None:
            laps.lap("raft.net.rpcEnqueue")
        self._wait(answer, stream)
        if laps is not None:
            laps.lap("raft.net.rpcRespond")
        self._reply(answer)
        fit = stream is None or self._finish(stream)
        self._heard_at = server.runtime.monotonic()
        self._answer = None
        return fit and not self._retired

    def _wait(self, answer: _Answer, stream: SnapshotStream | None) -> None:
        """Wait for the answer as long as the peer does; show it signs of life for a snapshot."""
        progress = -1
        while not answer.wait(WORKING_INTERVAL):
            if self._connection.stream.is_hung_up():
                raise ConnectionLostError("the peer has given up waiting")
            if stream is not None and (stream.is_complete or stream.progress > progress):
                progress = stream.progress
                self._connection.send(WORKING_FRAME, b"", self._server.timeout)

    def _reply(self, answer: _Answer) -> None:
        timeout = self._server.timeout
        if answer.response is not None:
            self._connection.send_message(answer.response, timeout)
        elif answer.error is not None:
            self._connection.send_error(answer.error, timeout)
        else:
            raise ConnectionLostError("the request was let go")

    def _finish(self, stream: SnapshotStream) -> bool:
        """Close the books on a snapshot; return whether the connection is fit for more."""
        stream.detach()
        if stream.is_complete:
            return True
        if isinstance(stream.error, ProtocolError):
            raise stream.error
        # Closing with bytes unread would reset the connection, and the peer might lose the answer.
        self._connection.stream.end_sending()
        deadline = Deadline(self._server.runtime, _DRAIN_LIMIT)
        waste = memoryview(bytearray(256 * 1024))
        while self._connection.stream.receive_into(waste, deadline.remaining()):
            if deadline.is_over():
                break
        return False


class Server:
    """Accepts connections and serves them; starts with `start`, ends with `close`.

    Thread-safe. At most `max_inbound` connections are served at a time, the handshake included; for
    one more another gives way (`_least_useful`), or it is refused. What they receive takes at most
    `max_inbound_bytes` together.
    """

    max_inbound_bytes = 256 * 1024 * 1024  # the largest frame keeps up to 192 MiB busy

    def __init__(
        self,
        layer: StreamLayer,
        delivery: Delivery,
        identity: Identity,
        runtime: Runtime,
        *,
        timeout: float,
        handshake_timeout: float,
        max_inbound: int,
    ) -> None:
        self.delivery = delivery
        self.identity = identity
        self.runtime = runtime
        self.timeout = timeout
        self.handshake_timeout = handshake_timeout
        self._layer = layer
        self._max_inbound = max_inbound
        self._closing = runtime.event()
        self._lock = runtime.lock()  # guards all below
        self._threads: ThreadGroup | None = None
        self._acceptor: Task | None = None
        self._inbound: dict[_Inbound, None] = {}
        self._count = 0
        self._is_full = False
        self._complaints: dict[str, _Complaints] = {}  # by host

    def start(self) -> None:
        """Begin to accept; of the calls that did not fail only the first counts."""
        with self._lock:
            if self._threads is not None or self._closing.is_set():
                return
            name = self.identity.server_id or self._layer.local_addr()
            threads = ThreadGroup(self.runtime, f"raft-{name}")
            threads.on_crash = _report_crash
            self._acceptor = threads.spawn("accept", self._accept)
            self._threads = threads

    def retire_all(self) -> None:
        """End every connection, those on which a request is being answered after that."""
        with self._lock:
            inbound = list(self._inbound)
        for each in inbound:
            each.retire()

    def close(self, timeout: float) -> None:
        """Close the layer, end every connection and thread."""
        deadline = Deadline(self.runtime, timeout)
        self._closing.set()  # first: the accept thread must not take the closing for a failure
        self._layer.close()
        with self._lock:
            threads, acceptor = self._threads, self._acceptor
        if acceptor is not None:
            acceptor.join(deadline.remaining())  # from here on no connection is added
        with self._lock:
            inbound = list(self._inbound)
        for each in inbound:
            each.close()
        if threads is not None:
            left = threads.join_all(deadline)
            if left:
                logger.error("transport threads still running threads=%s", ",".join(left))

    def forget(self, inbound: _Inbound) -> None:
        """Drop a connection that has ended."""
        with self._lock:
            self._inbound.pop(inbound, None)

    def look_at_memory(self) -> None:
        """Close connections that keep too many bytes busy together: the slowest first."""
        with self._lock:
            total = sum(inbound.memory() for inbound in self._inbound)
            victims = []
            for inbound in sorted(self._inbound, key=_Inbound.rate):
                if total <= self.max_inbound_bytes:
                    break
                if inbound.memory():
                    total -= inbound.memory()
                    victims.append(inbound)
                    del self._inbound[inbound]
        for victim in victims:
            victim.close()
        if victims:
            logger.warning(
                "inbound requests hold too many bytes, closed the slowest count=%d limit=%d",
                len(victims),
                self.max_inbound_bytes,
            )

    def complain(self, peer: str, error: RaftError) -> None:
        """Log why a connection was ended: a peer that dials again and again only at debug.

        So is a host that is refused for ever new reasons, from some number in a minute on.
        """
        host = peer.rpartition(":")[0]
        text = str(error).replace(peer, host)
        now = self.runtime.monotonic()
        with self._lock:
            last = self._complaints.get(host)
            if last is None or now - last.since > _COMPLAINT_PERIOD:
                last = _Complaints(last.text if last is not None else "", 0, now)
            is_news = last.text != text and last.number < _MOST_COMPLAINTS
            if is_news:  # else the last one told stands, so that this one can be told later
                last = _Complaints(text, last.number + 1, last.since)
            if host not in self._complaints and len(self._complaints) >= self._max_inbound:
                self._complaints.clear()
            self._complaints[host] = last
        logger.log(
            logging.WARNING if is_news else logging.DEBUG,
            "inbound connection closed peer=%s error=%s",
            peer,
            error,
        )

    def _accept(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                stream = self._layer.accept(_ACCEPT_SLICE)
                if stream is not None:
                    self._admit(stream)
                failures = 0
            except Exception as exc:  # noqa: BLE001 - whatever it is, who ends here is deaf for good
                # Out of descriptors or threads, as a rule: others need a moment to let go of some.
                if self._closing.is_set():
                    return
                failures += 1
                logger.error("accepting a connection failed error=%s", exc)
                self._closing.wait(backoff(_ACCEPT_PAUSE, failures, _ACCEPT_PAUSE_MAX))

    def _admit(self, stream: Stream) -> None:
        inbound = _Inbound(stream, self)
        victim: _Inbound | None = None
        with self._lock:
            is_full = len(self._inbound) >= self._max_inbound
            is_news = is_full and not self._is_full
            self._is_full = is_full
            if is_full:
                victim = self._least_useful()
                is_full = victim is None
            if victim is not None:
                del self._inbound[victim]
            if not is_full:
                self._inbound[inbound] = None
                self._count += 1
            number, threads = self._count, self._threads
        if is_news:
            logger.warning(
                "too many inbound connections, idle ones are closed and others refused"
                " peer=%s limit=%d",
                stream.peer,
                self._max_inbound,
            )
        if victim is not None:
            victim.close()
        if is_full or threads is None or self._closing.is_set():
            inbound.close()
            self.forget(inbound)
            return
        self._spawn(threads, f"conn-{number}", inbound)

    def _least_useful(self) -> _Inbound | None:
        """Return who gives way to a newcomer, None for nobody; holding the lock.

        That is the oldest connection in its handshake, one long idle, or one whose request trickles
        in. Else somebody who holds more than a server needs gives the one up that was of use least
        lately. So a flood of strangers takes places from its own kind, not from peers.
        """
        found = max(self._inbound, key=_Inbound.idle_seconds, default=None)  # of equals the oldest
        if found is not None and found.is_expendable():
            return found
        held = Counter(each.holder() for each in self._inbound)
        if not held:
            return None
        holder, count = held.most_common(1)[0]
        if count <= max(_ENOUGH, self._max_inbound // 4):
            return None
        return max((i for i in self._inbound if i.holder() == holder), key=_Inbound.idle_seconds)

    def _spawn(self, threads: ThreadGroup, name: str, inbound: _Inbound) -> None:
        run: Callable[[], None] = inbound.run
        try:
            threads.spawn(name, run)
        except NoThreadError:
            inbound.close()
            self.forget(inbound)
            raise


def _report_crash(name: str, error: BaseException) -> None:
    logger.critical("transport thread died thread=%s", name, exc_info=error)
