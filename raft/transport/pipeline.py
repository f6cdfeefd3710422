"""Several AppendEntries under way over one connection (thesis 10.2.1), answered in order.

There is no window here: whoever sends counts what is unanswered, in one place, so that sender and
receiver can never wait for each other (`engine/replication.py`). The peer handles requests strictly
in order, so the n-th answer belongs to the n-th request and carries no number.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.codec import decode_message
from raft.errors import (
    ConnectionLostError,
    PipelineShutdownError,
    ProtocolError,
    RaftError,
    RemoteError,
    RPCTimeoutError,
    TransportError,
)
from raft.messages import AppendEntriesRequest, AppendEntriesResponse
from raft.transport.connection import Connection


class StreamPipeline:
    """An `AppendPipeline` that owns one connection: one thread sends, one other receives.

    `explain` turns what a broken connection raises into what the caller should see; it knows
    whether the transport was closed.
    """

    def __init__(
        self,
        connection: Connection,
        timeout: float,
        explain: Callable[[ConnectionLostError], TransportError],
        check_process: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._explain = explain
        self._check_process = check_process
        self._sent = 0  # written by the sending thread alone
        self._answered = 0  # written by the receiving thread alone; invariant: at most _sent
        self._closed = False

    def append_entries(self, request: AppendEntriesRequest) -> None:
        """Send a request without waiting for its answer; any failure ends the pipeline."""
        self._check_process()
        self._sent += 1  # first: the answer may be there before `send_message` returns
        try:
            self._connection.send_message(request, self._timeout)
        except ConnectionLostError as exc:
            raise self._failed(exc) from exc
        except TransportError:
            # Part of a frame may be out: nothing can follow it.
            self._connection.close()
            raise

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        """Return the oldest answer not yet received; one that is an error is raised.

        Waits for a request to be sent, too; `timeout` begins anew as long as bytes of what was
        sent arrive at the peer. `RPCTimeoutError` and `RemoteError` leave the pipeline
        as it was; whatever else is raised has ended it.
        """
        self._check_process()
        timeout = self._timeout if timeout is None else timeout
        try:
            return self._receive_in_time(timeout)
        except ConnectionLostError as exc:
            raise self._failed(exc) from exc
        except (RPCTimeoutError, RemoteError):
            raise
        except RaftError:
            self._connection.close()
            raise

    def acknowledged(self) -> int:
        """Return how many bytes have arrived at the peer's system so far; any thread."""
        try:
            return self._connection.acknowledged()
        except ConnectionLostError:
            return 0

    def close(self) -> None:
        """Close the connection; answers not yet received are dropped."""
        self._check_process()
        self._closed = True
        self._connection.close()

    def _receive_in_time(self, timeout: float) -> AppendEntriesResponse:
        while True:
            # To ask costs a system call, and only large frames take long on their way.
            arrived = self.acknowledged() if self._connection.is_pacing() else 0
            try:
                return self._receive(timeout)
            except RPCTimeoutError:
                if not self._connection.is_pacing() or self.acknowledged() <= arrived:
                    raise

    def _receive(self, timeout: float) -> AppendEntriesResponse:
        try:
            code, payload = self._connection.receive_answer(timeout)
        except RemoteError:
            self._answered += 1
            raise
        self._answered += 1
        if self._answered > self._sent:
            raise ProtocolError("an answer came to a request that was not sent")
        response = decode_message(code, payload)
        if not isinstance(response, AppendEntriesResponse):
            raise ProtocolError(f"AppendEntries was answered by a {type(response).__name__}")
        return response

    def _failed(self, error: ConnectionLostError) -> TransportError:
        if self._closed:
            return PipelineShutdownError("append pipeline closed")
        self._connection.close()
        return self._explain(error)
