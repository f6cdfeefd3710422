"""InmemTransport: servers of one process, joined by hand, for tests and for trying things out.

Requests are handed over by reference; they are immutable. Who reaches whom is a one-way table:
two-way traffic wants `connect` on both sides, and a partition wants `disconnect` on both. All
waiting goes through the runtime, so a simulated one may run it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

from raft.errors import (
    PeerUnreachableError,
    PipelineShutdownError,
    ProtocolError,
    RaftError,
    RPCTimeoutError,
    SnapshotError,
    TransportError,
    TransportShutdownError,
)
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Request,
    Response,
    SnapshotReader,
    TimeoutNowRequest,
)
from raft.runtime import THREADS, Condition, Queue, Runtime
from raft.transport.calls import Calls, R
from raft.transport.delivery import (
    CONSUMER_QUEUE_SIZE,
    Delivery,
    Identity,
    check_cluster,
    check_server,
    describe,
    error_kind,
    remote_error,
)
from raft.types import ServerAddress, ServerID

_SLOW = (InstallSnapshotRequest, TimeoutNowRequest)  # a snapshot may stall, a campaign be late
_SLOW_FACTOR = 10  # timeouts that these may take


def random_address(runtime: Runtime = THREADS) -> ServerAddress:
    """Return a new address nobody else has: 16 random bytes in hexadecimal, grouped by dashes."""
    text = runtime.random_bytes(16).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class _Exchange:
    """One request under way, from one transport to another, until it is answered or given up.

    Invariant: the first outcome counts. `changed` guards the outcome; exchanges of one pipeline
    share it, so that whoever waits for the oldest hears of a closing, too.
    """

    def __init__(self, runtime: Runtime, changed: Condition, target: InmemTransport) -> None:
        self._runtime = runtime
        self._changed = changed
        self._target = target
        self._heard = runtime.monotonic()
        self._response: Response | None = None
        self._error: BaseException | None = None
        self.is_over = False

    def touch(self) -> None:
        """Let the wait begin anew: the other side has made progress."""
        self._heard = self._runtime.monotonic()

    def answer(self, response: Response | None, error: BaseException | None) -> None:
        """Take the other side's answer; any thread."""
        if error is not None:
            raised = remote_error(error_kind(error), describe(error))
            raised.__cause__ = error
            error = raised
        self.end(response, error)

    def end(self, response: Response | None, error: BaseException | None) -> None:
        """End the exchange, with an answer or because one side closes; any thread."""
        with self._changed:
            if self.is_over:
                return
            self.is_over = True
            self._response = response
            self._error = error
            self._changed.notify_all()
        self._target.forget(self)

    def remaining(self, timeout: float) -> float:
        """Return the seconds left of a timeout that counts from the last progress."""
        return self._heard + timeout - self._runtime.monotonic()

    def wait(self, timeout: float) -> Response:
        """Return the answer, or raise it; `RPCTimeoutError` after so long without progress."""
        with self._changed:
            while not self.is_over:
                left = self.remaining(timeout)
                if left <= 0:
                    break
                self._changed.wait(left)
        self.end(None, RPCTimeoutError(f"command timed out after {timeout:g} s"))
        return self.outcome()

    def outcome(self) -> Response:
        """Return the answer of an exchange that is over, or raise it."""
        if self._error is not None:
            raise self._error
        return cast(Response, self._response)


class _SharedReader:
    """A sender's snapshot as the receiver reads it, on the receiver's thread.

    Keeps the sender waiting while bytes move, and holds the stream to the size announced: the last
    byte comes out only when the stream is known to end behind it.
    """

    def __init__(self, reader: SnapshotReader, size: int, exchange: _Exchange) -> None:
        self._reader = reader
        self._left = size
        self._exchange = exchange

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._pull(wanted)
        self._left -= len(data)
        if len(data) < wanted:
            raise self._broken(f"snapshot ended {self._left} bytes early")
        if self._left == 0 and size != 0 and self._pull(1):
            raise self._broken("snapshot is longer than announced")
        return data

    def _broken(self, text: str) -> TransportError:
        """Tell the sender that its snapshot is at fault, and return what the reader raises."""
        self._exchange.end(None, SnapshotError(text))
        return ProtocolError(text)

    def _pull(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            if self._exchange.is_over:
                raise TransportError("the sender of the snapshot has given up")
            self._exchange.touch()
            try:
                piece = self._reader.read(size)
            except Exception as exc:
                # The sender's fault, so it hears of it; unless it has given up and closed the file.
                self._exchange.end(None, exc)
                raise TransportError(f"snapshot cannot be read: {describe(exc)}") from exc
            self._exchange.touch()
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Do nothing: the reader is the sender's, and open until the call returns."""


class InmemTransport(Calls):
    """A transport within one process: connected by `connect`, gone with `close`.

    `timeout` bounds each call, in seconds; `install_snapshot` and `timeout_now` may take ten times
    as long by default. Closing is final. Thread-safe; no user code runs under its lock.
    """

    def __init__(
        self,
        address: ServerAddress = "",
        timeout: float = 0.5,
        runtime: Runtime = THREADS,
        *,
        queue_size: int = CONSUMER_QUEUE_SIZE,
    ) -> None:
        self._runtime = runtime
        self._address = address or random_address(runtime)
        self._timeout = timeout
        self._delivery = Delivery(runtime, queue_size)
        self._identity = Identity()
        self._lock = runtime.lock()  # guards all below; dictionaries, so that order is kept
        self._peers: dict[ServerAddress, InmemTransport] = {}
        self._pipelines: dict[_InmemPipeline, None] = {}
        self._calls: dict[_Exchange, None] = {}  # begun here
        self._inbound: dict[_Exchange, None] = {}  # begun elsewhere, to be answered here
        self._closed = False

    # ---- the contract's plain parts ----

    def local_addr(self) -> ServerAddress:
        """Return the address that `connect` on other transports gives to this one."""
        return self._address

    def consumer(self) -> Queue[RPC]:
        """Return the queue of requests that came in."""
        return self._delivery.queue

    def set_heartbeat_handler(self, handler: Callable[[RPC], None] | None) -> None:
        """Have heartbeats given to `handler` on the sender's thread."""
        self._delivery.heartbeat_handler = handler

    def deliver_to(self, put: Callable[[RPC], None]) -> None:
        """Give every request to `put`, which never blocks, instead of the consumer queue."""
        self._delivery.put = put

    def identify(self, local_id: ServerID, cluster_id: Callable[[], str | None]) -> None:
        """Learn who the local node is; from now on requests for another id are refused."""
        self._identity.learn(local_id, cluster_id)

    # ---- connections ----

    def connect(self, address: ServerAddress, transport: Any) -> None:
        """Reach `transport` at `address` from here on; one way only."""
        if not isinstance(transport, InmemTransport):
            raise TypeError("an InmemTransport connects to its own kind only")
        with self._lock:
            self._check_open()
            self._peers[address] = transport

    def disconnect(self, address: ServerAddress) -> None:
        """Cut the way to `address`, pipelines included; the way back stays as it is."""
        with self._lock:
            self._peers.pop(address, None)
            cut = [p for p in self._pipelines if p.address == address]
        for pipeline in cut:
            pipeline.close()

    def disconnect_all(self) -> None:
        """Cut every way from here."""
        with self._lock:
            self._peers.clear()
            cut = list(self._pipelines)
        for pipeline in cut:
            pipeline.close()

    def close(self) -> None:
        """Cut every way, to here too; calls under way fail at once, those of others included."""
        with self._lock:
            self._closed = True
            calls, inbound = list(self._calls), list(self._inbound)
        self.disconnect_all()
        for exchange in calls:
            exchange.end(None, TransportShutdownError("transport is closed"))
        for exchange in inbound:
            exchange.end(None, PeerUnreachableError("peer closed the connection"))

    # ---- calls ----

    def append_entries_pipeline(
        self, server_id: ServerID, address: ServerAddress
    ) -> _InmemPipeline:
        """Open a pipeline; it lives until it or the transport is closed, or disconnected."""
        with self._lock:
            self._find(address)
            pipeline = _InmemPipeline(self, server_id, address)
            self._pipelines[pipeline] = None
        return pipeline

    def install_snapshot(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: InstallSnapshotRequest,
        reader: SnapshotReader,
        timeout: float | None = None,
    ) -> InstallSnapshotResponse:
        """Let the receiver read a snapshot, on its own thread, until it answers.

        `timeout` bounds the time between two reads, and from the last one to the answer.
        """
        return self._call(server_id, address, request, InstallSnapshotResponse, timeout, reader)

    def _call(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        kind: type[R],
        timeout: float | None,
        reader: SnapshotReader | None = None,
    ) -> R:
        if timeout is None:
            timeout = self._timeout * (_SLOW_FACTOR if isinstance(request, _SLOW) else 1)
        exchange = self.begin(
            server_id, address, request, self._runtime.condition(), timeout, reader
        )
        with self._lock:
            self._calls[exchange] = None
            closed = self._closed
        try:
            if closed:
                exchange.end(None, TransportShutdownError("transport is closed"))
            response = exchange.wait(timeout)
        finally:
            with self._lock:
                self._calls.pop(exchange, None)
        if not isinstance(response, kind):
            raise ProtocolError(f"a {type(request).__name__} was answered by {response!r}")
        return response

    # ---- for exchanges and pipelines ----

    @property
    def timeout(self) -> float:
        """The default timeout of a call."""
        return self._timeout

    @property
    def runtime(self) -> Runtime:
        """The runtime that this transport waits on."""
        return self._runtime

    def begin(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        changed: Condition,
        timeout: float,
        reader: SnapshotReader | None = None,
    ) -> _Exchange:
        """Hand a request to the transport at `address`; the exchange returned has the answer."""
        with self._lock:
            target = self._find(address)
        exchange = _Exchange(self._runtime, changed, target)
        shared = None
        if isinstance(request, InstallSnapshotRequest) and reader is not None:
            shared = _SharedReader(reader, request.size, exchange)
        rpc = RPC(request, exchange.answer, shared, self._identity.cluster_id())
        target.admit(rpc, exchange, server_id, timeout)
        return exchange

    def admit(self, rpc: RPC, exchange: _Exchange, wanted: ServerID, timeout: float) -> None:
        """Take a request in from another transport, on its thread."""
        check_server(wanted, self._identity.server_id, self._address)
        check_cluster(rpc.cluster_id, self._identity.cluster_id(), f"peer {self._address}")
        with self._lock:
            if self._closed:
                raise PeerUnreachableError(f"failed to connect to peer: {self._address}")
            self._inbound[exchange] = None
        try:
            self._delivery.deliver(rpc, timeout)
        except RaftError:
            self.forget(exchange)
            raise

    def forget(self, exchange: _Exchange) -> None:
        """Drop an exchange that is over."""
        with self._lock:
            self._inbound.pop(exchange, None)

    def forget_pipeline(self, pipeline: _InmemPipeline) -> None:
        """Drop a pipeline that is closed."""
        with self._lock:
            self._pipelines.pop(pipeline, None)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportShutdownError("transport is closed")

    def _find(self, address: ServerAddress) -> InmemTransport:
        """Return the transport connected at an address; the lock is held."""
        self._check_open()
        target = self._peers.get(address)
        if target is None:
            raise PeerUnreachableError(f"failed to connect to peer: {address}")
        return target


class _InmemPipeline:
    """AppendEntries under way to one peer, answered in order; see `AppendPipeline`."""

    def __init__(
        self, transport: InmemTransport, server_id: ServerID, address: ServerAddress
    ) -> None:
        self.address = address
        self._transport = transport
        self._server_id = server_id
        self._changed = transport.runtime.condition()  # guards all below, and the exchanges
        self._pending: deque[_Exchange] = deque()
        self._closed = False

    def append_entries(self, request: AppendEntriesRequest) -> None:
        """Send a request without waiting for its answer."""
        self._check_open()
        transport = self._transport
        exchange = transport.begin(
            self._server_id, self.address, request, self._changed, transport.timeout
        )
        with self._changed:
            if not self._closed:
                self._pending.append(exchange)
                self._changed.notify_all()
                return
        error = PipelineShutdownError("append pipeline closed")
        exchange.end(None, error)
        raise error

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        """Return the oldest answer not yet received; one that is an error is raised.

        Waits for a request to be sent, too. After `RPCTimeoutError` the request is still due.
        """
        limit = self._transport.timeout if timeout is None else timeout
        runtime = self._transport.runtime
        until = runtime.monotonic() + limit
        with self._changed:
            while not self._closed and not (self._pending and self._pending[0].is_over):
                left = until - runtime.monotonic()
                if left <= 0:
                    raise RPCTimeoutError(f"no answer within {limit:g} s")
                self._changed.wait(left)
            self._check_open()
            exchange = self._pending.popleft()
        response = exchange.outcome()
        if not isinstance(response, AppendEntriesResponse):
            raise ProtocolError(f"AppendEntries was answered by {response!r}")
        return response

    def close(self) -> None:
        """Close the pipeline; answers not yet received are dropped."""
        error = PipelineShutdownError("append pipeline closed")
        with self._changed:
            self._closed = True
            dropped = list(self._pending)
            self._pending.clear()
            self._changed.notify_all()
        for exchange in dropped:
            exchange.end(None, error)
        self._transport.forget_pipeline(self)

    def _check_open(self) -> None:
        if self._closed:
            raise PipelineShutdownError("append pipeline closed")
