"""NetworkTransport: the native protocol over any `StreamLayer` (docs/transports.md).

Here is the outbound side and the contract's public face; `server.py` is the inbound side,
`connection.py` the bytes. All methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.codec import decode_message
from raft.config import long_durations
from raft.errors import (
    ConnectionLostError,
    InvalidConfigError,
    ProtocolError,
    RemoteError,
    TransportError,
    TransportShutdownError,
)
from raft.interfaces import ServerAddressProvider, WithAddressCheck
from raft.logs import get_logger
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Request,
    Response,
    SnapshotReader,
)
from raft.metrics import Metrics
from raft.runtime import (
    THREADS,
    ForkGuard,
    Queue,
    Runtime,
    after_fork_in_child,
    refuse_green_threads,
)
from raft.transport.calls import Calls, R
from raft.transport.connection import Connection
from raft.transport.delivery import Delivery, Identity
from raft.transport.pacing import QUEUE_SECONDS, Pace
from raft.transport.pipeline import StreamPipeline
from raft.transport.pool import ConnectionPool, Target
from raft.transport.server import Server
from raft.transport.snapshot_stream import send_snapshot
from raft.transport.stream import StreamLayer
from raft.types import ServerAddress, ServerID, check_type

logger = get_logger(__name__)

DEFAULT_TIMEOUT = 10.0  # seconds, as the original's examples
DEFAULT_MAX_POOL = 3  # a caller each for entries, heartbeats and elections
DEFAULT_MAX_INBOUND = 256  # far above what a cluster needs, far below a process's descriptors
DEFAULT_HANDSHAKE_TIMEOUT = 5.0  # seconds; an honest peer needs one round trip
_LONGEST_TIMEOUT = 86400.0  # seconds; an operating system counts milliseconds in 32 bits
_CLOSE_LIMIT = 5.0  # seconds to wait for the threads when closing


class NetworkTransport(Calls):
    """A transport over streams; serves from the first `deliver_to` or `consumer` on.

    Until then connections wait to be accepted. Call `identify` first, so that no request is taken
    in for another server. `timeout`, in seconds, bounds each step of a call: dialing, sending,
    waiting for the answer; of what is large, each time without progress. An address provider's word
    wins over the address given in a call. The layer is the transport's from now on: it is closed
    with it, or when an argument is refused.
    """

    def __init__(
        self,
        layer: StreamLayer,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_pool: int = DEFAULT_MAX_POOL,
        server_address_provider: ServerAddressProvider | None = None,
        max_inbound: int = DEFAULT_MAX_INBOUND,
        handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
        runtime: Runtime = THREADS,
    ) -> None:
        try:
            refuse_green_threads()
            _check_bounds(timeout, handshake_timeout, max_pool, max_inbound)
        except Exception:
            layer.close()
            raise
        for doubt in long_durations({"timeout": timeout, "handshake_timeout": handshake_timeout}):
            logger.warning("transport: %s", doubt)
        self._guard = ForkGuard("transport")
        self._runtime = runtime
        self._layer = layer
        self._timeout = timeout
        self._provider = server_address_provider
        self._identity = Identity()
        self._delivery = Delivery(runtime)
        self._pool = ConnectionPool(max_pool, runtime)
        # One that entries never take: a new one would have to be made behind them.
        self._hearts = ConnectionPool(min(1, max_pool), runtime)
        self._server = Server(
            layer,
            self._delivery,
            self._identity,
            runtime,
            timeout=timeout,
            handshake_timeout=handshake_timeout,
            max_inbound=max_inbound,
        )
        self._queue_seconds = QUEUE_SECONDS
        self._closed = False
        after_fork_in_child(self._abandon)

    # ---- the inbound side ----

    def local_addr(self) -> ServerAddress:
        """Return the address that others reach this transport at."""
        self._guard.check()
        return self._layer.local_addr()

    def identify(self, local_id: ServerID, cluster_id: Callable[[], str | None]) -> None:
        """Learn who the local node is; requests for another id or cluster are refused."""
        self._guard.check()
        self._identity.learn(local_id, cluster_id)

    def check_address(self, address: ServerAddress) -> None:
        """Raise `ValueError` for an address that nobody could ever dial; asks nobody.

        With an address provider any will do: it is the provider that is asked.
        """
        if self._provider is None and isinstance(self._layer, WithAddressCheck):
            self._layer.check_address(address)

    def measure_with(self, metrics: Metrics) -> None:
        """Emit how long requests from others take here, step by step."""
        self._guard.check()
        self._delivery.metrics = metrics

    def bound_queues(self, seconds: float) -> None:
        """Let no more stand in the queue of a slow link than it carries in so many seconds."""
        self._guard.check()
        self._queue_seconds = seconds

    def set_heartbeat_handler(self, handler: Callable[[RPC], None] | None) -> None:
        """Have heartbeats given to `handler` on their connection's thread."""
        self._guard.check()
        self._delivery.heartbeat_handler = handler

    def deliver_to(self, put: Callable[[RPC], None]) -> None:
        """Give every request to `put`, which never blocks, and begin to serve."""
        self._guard.check()
        self._delivery.put = put
        self._server.start()

    def consumer(self) -> Queue[RPC]:
        """Return the queue of requests that came in, and begin to serve."""
        self._guard.check()
        self._server.start()
        return self._delivery.queue

    # ---- calls ----

    def append_entries_pipeline(
        self, server_id: ServerID, address: ServerAddress
    ) -> StreamPipeline:
        """Open a pipeline, over a connection of its own."""
        self._guard.check()
        target = self._target(server_id, address)
        connection = self._pool.take(target, self._identity.cluster_id())
        if connection is None:
            connection = self._dial(target, self._timeout)
        return StreamPipeline(connection, self._timeout, self._explain, self._guard.check)

    def install_snapshot(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: InstallSnapshotRequest,
        reader: SnapshotReader,
        timeout: float | None = None,
    ) -> InstallSnapshotResponse:
        """Send a snapshot over a connection of its own; `timeout` bounds a stall, not the whole.

        What `reader` raises passes through; a stream that is not `request.size` bytes long is a
        `SnapshotError`.
        """
        self._guard.check()
        timeout = self._timeout if timeout is None else timeout
        connection = self._dial(self._target(server_id, address), timeout)
        try:
            frame = send_snapshot(connection, request, reader, timeout, self._runtime)
            return _decode(frame, request, InstallSnapshotResponse)
        except ConnectionLostError as exc:
            raise self._explain(exc) from exc
        finally:
            connection.close()

    # ---- life ----

    def close_streams(self) -> None:
        """Close every idle connection, in and out; those in use end with the request under way.

        A pipeline from here stays open; one to here ends, and the peer opens another.
        """
        self._guard.check()
        self._pool.clear()
        self._hearts.clear()
        self._server.retire_all()

    def close(self) -> None:
        """Close every connection and thread; calls under way fail at once. May be called twice."""
        self._guard.check()
        self._closed = True
        self._pool.close()
        self._hearts.close()
        self._server.close(_CLOSE_LIMIT)

    def _abandon(self) -> None:
        self._layer.abandon()

    # ---- the outbound side ----

    def _call(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        kind: type[R],
        timeout: float | None,
    ) -> R:
        self._guard.check()
        timeout = self._timeout if timeout is None else timeout
        target = self._target(server_id, address)
        is_heartbeat = isinstance(request, AppendEntriesRequest) and request.is_heartbeat()
        pool = self._hearts if is_heartbeat else self._pool
        place = pool, pool.generation
        cluster_id = self._identity.cluster_id()
        connection = pool.take(target, cluster_id) or self._pool.take(target, cluster_id)
        if connection is not None:
            try:
                return self._exchange(target, connection, place, request, kind, timeout)
            except ConnectionLostError:
                # The peer restarted while the connection was idle, in a way that did not show
                # until now. All RPCs of Raft may come twice, so a fresh connection is tried.
                pass
        connection = self._dial(target, timeout)
        try:
            return self._exchange(target, connection, place, request, kind, timeout)
        except ConnectionLostError as exc:
            raise self._explain(exc) from exc

    def _exchange(
        self,
        target: Target,
        connection: Connection,
        place: tuple[ConnectionPool, int],
        request: Request,
        kind: type[R],
        timeout: float,
    ) -> R:
        """Send a request and return its answer; the connection is kept only when it is in order."""
        fit = False
        try:
            connection.send_message(request, timeout)
            frame = connection.receive_answer(timeout)
            response = _decode(frame, request, kind)
            fit = True
        except RemoteError:
            fit = True
            raise
        finally:
            if fit:
                pool, generation = place
                pool.give_back(target, connection, generation)
            else:
                connection.close()
        return response

    def _dial(self, target: Target, timeout: float) -> Connection:
        server_id, address = target
        if self._closed:
            raise TransportShutdownError("transport is closed")
        self._pool.sweep()
        self._hearts.sweep()
        try:
            connection = Connection(self._layer.dial(address, timeout), self._runtime)
            try:
                connection.greet(self._identity, server_id, timeout)
                connection.pace = Pace(
                    connection.stream, self._runtime, connection.round_trip, self._queue_seconds
                )
            except BaseException:
                connection.close()
                raise
        except TransportError as exc:
            if self._closed:
                raise TransportShutdownError("transport is closed") from exc
            raise
        return connection

    def _target(self, server_id: ServerID, address: ServerAddress) -> Target:
        if self._provider is None:
            return server_id, address
        try:
            found = self._provider.server_addr(server_id)
            if not isinstance(found, str):
                raise TypeError(f"an address is a text, not {found!r}")
            return server_id, found
        except Exception as exc:  # noqa: BLE001 - the user's code; the call goes on without it
            logger.warning(
                "address provider failed, using the address given server=%s address=%s error=%s",
                server_id,
                address,
                exc,
            )
            return server_id, address

    def _explain(self, error: ConnectionLostError) -> TransportError:
        if self._closed:
            return TransportShutdownError("transport is closed")
        return error


def _check_bounds(
    timeout: float, handshake_timeout: float, max_pool: int, max_inbound: int
) -> None:
    for name, seconds in (("timeout", timeout), ("handshake_timeout", handshake_timeout)):
        if not 0.0 < seconds <= _LONGEST_TIMEOUT:
            raise InvalidConfigError(
                f"{name} must be more than 0 s and at most {_LONGEST_TIMEOUT:.0f} s, not {seconds}"
            )
    for name, count, least in (("max_pool", max_pool, 0), ("max_inbound", max_inbound, 1)):
        check_type(name, count, int)
        if count < least:
            raise InvalidConfigError(f"{name} must be at least {least}, not {count}")


def _decode(frame: tuple[int, bytes], request: Request, kind: type[R]) -> R:
    response: Request | Response = decode_message(*frame)
    if not isinstance(response, kind):
        raise ProtocolError(
            f"a {type(request).__name__} was answered by a {type(response).__name__}"
        )
    return response
