"""What every transport does alike: hand requests over, know who is who, turn errors into text.

A transport is between two servers that may both be misconfigured. The checks of identity here are
the law of the wire: an answer counts only for the server id it was asked of, and servers of
different clusters do not talk at all.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.errors import (
    ClusterMismatchError,
    RaftError,
    RemoteError,
    RPCTimeoutError,
    UnsupportedProtocolError,
    WrongServerError,
)
from raft.logs import get_logger
from raft.messages import RPC, AppendEntriesRequest
from raft.metrics import Metrics
from raft.runtime import Queue, QueueFull, Runtime
from raft.types import ServerAddress, ServerID, plain

logger = get_logger(__name__)

CONSUMER_QUEUE_SIZE = 16
"""Requests that wait in a consumer queue before the sender has to, as in the original."""


_NAMED = 5  # ids of a certificate that an error lists


class Delivery:
    """The way in for requests of other servers; safe from any thread.

    Three ways, in this order: heartbeats to the heartbeat handler, on the calling thread;
    everything to the function given by `deliver_to`, which never blocks; else the consumer queue.
    """

    def __init__(self, runtime: Runtime, queue_size: int = CONSUMER_QUEUE_SIZE) -> None:
        self.queue: Queue[RPC] = runtime.queue(queue_size)
        self.heartbeat_handler: Callable[[RPC], None] | None = None
        self.put: Callable[[RPC], None] | None = None
        self.metrics: Metrics | None = None  # set before the first request

    def deliver(self, rpc: RPC, timeout: float | None) -> None:
        """Hand a request over; `RPCTimeoutError` when the consumer queue stays full."""
        command = rpc.command
        handler = self.heartbeat_handler
        if (
            handler is not None
            and isinstance(command, AppendEntriesRequest)
            and command.is_heartbeat()
        ):
            self._give_heartbeat(handler, rpc)
        elif self.put is not None:
            self.put(rpc)
        else:
            try:
                self.queue.put(rpc, timeout=timeout)
            except QueueFull as exc:
                raise RPCTimeoutError("send timed out: the receiver's queue is full") from exc

    def _give_heartbeat(self, handler: Callable[[RPC], None], rpc: RPC) -> None:
        try:
            handler(rpc)
        except Exception as exc:  # the handler's fault must not end the sender's thread
            logger.exception("heartbeat handler failed")
            rpc.respond(None, exc)


class Identity:
    """Who the local server is, as far as the node has told (`identify`)."""

    def __init__(self) -> None:
        self.server_id: ServerID = ""
        self._ask: Callable[[], str | None] = lambda: None

    def learn(self, server_id: ServerID, cluster_id: Callable[[], str | None]) -> None:
        """Take note of the local server's id and of where to ask for its cluster's."""
        self.server_id = server_id
        self._ask = cluster_id

    def cluster_id(self) -> str | None:
        """Return the cluster's id as of now, None while there is none."""
        return self._ask()


def check_server(wanted: ServerID, actual: ServerID, address: ServerAddress) -> None:
    """Raise `WrongServerError` when another server answers; an unknown id matches all."""
    if wanted and actual and wanted != actual:
        raise WrongServerError(f"server {actual} answers at {address}, where {wanted} was expected")


def check_proof(proven: frozenset[ServerID] | None, claimed: ServerID, peer: str) -> None:
    """Raise `WrongServerError` unless the peer has proved its id; None asks for no proof."""
    if proven is not None and claimed not in proven:
        named = plain(", ".join(sorted(proven)[:_NAMED])) or "none"
        raise WrongServerError(
            f"the certificate of {peer} does not name server {claimed or 'without an id'}:"
            f" it names {named}"
        )


def check_cluster(ours: str | None, theirs: str | None, peer: str) -> None:
    """Raise `ClusterMismatchError` when both sides name a cluster, and not the same."""
    if ours and theirs and ours != theirs:
        raise ClusterMismatchError(f"{peer} belongs to cluster {theirs}, this server to {ours}")


def check_caller(ours: str | None, theirs: str | None, peer: str) -> None:
    """Raise `ClusterMismatchError` unless who asks names this server's cluster.

    A blank server takes every caller: it is about to be added, by a leader that has a cluster.
    """
    check_cluster(ours, theirs, peer)
    if ours and not theirs:
        raise ClusterMismatchError(f"{peer} names no cluster, and this server belongs to {ours}")


# ---- errors as answers ----

_KINDS: dict[str, type[RaftError]] = {
    "cluster-mismatch": ClusterMismatchError,
    "unsupported-protocol": UnsupportedProtocolError,
    "wrong-server": WrongServerError,
}


def error_kind(error: BaseException) -> str:
    """Return the word that stands for an error in an answer; empty for most."""
    for kind, error_type in _KINDS.items():
        if isinstance(error, error_type):
            return kind
    return ""


def remote_error(kind: str, text: str) -> RaftError:
    """Return the error to raise for an answer that is one.

    Few types survive the way: whatever else went wrong over there must not be taken for a fault of
    this side (a peer's `RaftShutdownError`, for one), so it becomes a `RemoteError`. Nor does more
    of the text than a line of a log can bear, nor what cannot be printed.
    """
    return _KINDS.get(kind, RemoteError)(plain(text))


def describe(error: BaseException) -> str:
    """Return an error's text, never empty."""
    return str(error) or type(error).__name__
