"""A snapshot on its way over one connection (§7): chunks behind the request, then an end frame.

A stall is bounded, not the whole: each chunk has the call's timeout to itself. The receiver may
answer before it has read everything, when it has no use for the snapshot; the sender looks for that
between chunks. Once all is sent the receiver has to make it durable, which may take long and cannot
be told from being stuck by silence: so its side sends a sign of life while it works, and a peer
that died is noticed within seconds, while a slow disk gets the time it needs.
"""

from __future__ import annotations

from raft.errors import (
    ProtocolError,
    RPCTimeoutError,
    SnapshotError,
    TransportError,
)
from raft.messages import InstallSnapshotRequest, SnapshotReader
from raft.runtime import Deadline, Runtime
from raft.transport.connection import (
    CHUNK_FRAME,
    END_FRAME,
    WORKING_FRAME,
    Connection,
)

CHUNK = 256 * 1024  # bytes; large enough for full speed, small enough to hold a few
WORKING_INTERVAL = 1.0  # seconds between two signs of life
_SILENCE = 3 * WORKING_INTERVAL  # seconds; a shorter timeout would take a pause for a death
_ANSWER_LIMIT = 600.0  # seconds for the last step, signs of life or not: nothing waits for ever


def send_snapshot(
    connection: Connection,
    request: InstallSnapshotRequest,
    reader: SnapshotReader,
    timeout: float,
    runtime: Runtime,
) -> tuple[int, bytes]:
    """Send a snapshot and return the answer's frame; what `reader` raises passes through."""
    connection.send_message(request, timeout)
    left = request.size
    while True:
        chunk = reader.read(CHUNK)
        if len(chunk) > left:
            raise SnapshotError(f"snapshot is longer than its size of {request.size} bytes")
        answer = _early_answer(connection, timeout)
        if answer is not None:
            return answer
        if not chunk:
            break
        connection.send(CHUNK_FRAME, chunk, timeout)
        left -= len(chunk)
    if left:
        raise SnapshotError(f"snapshot ended {left} bytes before its size of {request.size}")
    connection.send(END_FRAME, b"", timeout)
    return _final_answer(connection, timeout, runtime)


def _early_answer(connection: Connection, timeout: float) -> tuple[int, bytes] | None:
    while connection.has_input():
        frame = connection.receive_answer(timeout)
        if frame[0] != WORKING_FRAME:
            return frame
    return None


def _final_answer(connection: Connection, timeout: float, runtime: Runtime) -> tuple[int, bytes]:
    limit = Deadline(runtime, max(timeout, _ANSWER_LIMIT))
    while not limit.is_over():
        frame = connection.receive_answer(max(timeout, _SILENCE))
        if frame[0] != WORKING_FRAME:
            return frame
    raise RPCTimeoutError(f"{connection.stream.peer} did not finish installing the snapshot")


class SnapshotStream:
    """The receiving end: reads chunk frames on whatever thread calls, one at a time.

    Invariant: the last byte comes out only when the end frame has come behind it, so whoever has
    read `size` bytes knows that the stream was neither shorter nor longer.
    """

    def __init__(self, connection: Connection, size: int, timeout: float) -> None:
        self.progress = 0
        """Bytes received so far."""
        self.is_complete = False
        """Whether the end has been received: the connection is then between two requests again."""
        self.error: TransportError | None = None
        self._connection = connection
        self._size = size
        self._timeout = timeout
        self._rest = b""  # received and not yet read
        self._detached = False

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, fewer only at the end; a stall raises `RPCTimeoutError`."""
        if self._detached:
            raise TransportError("the snapshot's request has been answered: its stream is over")
        if self.error is not None:
            raise self.error
        try:
            return self._read(size)
        except TransportError as exc:
            self.error = exc  # what follows on the connection has no meaning any more
            raise

    def close(self) -> None:
        """Do nothing: the stream ends when the request is answered."""

    def detach(self) -> None:
        """End the reading: the request has been answered."""
        self._detached = True

    def _read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        wanted = size
        while size < 0 or wanted > 0:
            if not self._rest and not self._next_chunk():
                break
            piece = self._rest if size < 0 else self._rest[:wanted]
            self._rest = self._rest[len(piece) :]
            wanted -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _next_chunk(self) -> bool:
        """Receive the next chunk, and the end behind the last; return False when there is none."""
        if self.is_complete:
            return False
        if self.progress < self._size:
            self._rest = self._receive(CHUNK_FRAME)
            self.progress += len(self._rest)
            if not self._rest or self.progress > self._size:
                raise ProtocolError("a chunk of the snapshot is empty or beyond its size")
        if self.progress == self._size:
            self._receive(END_FRAME)
            self.is_complete = True
        return bool(self._rest)

    def _receive(self, wanted: int) -> bytes:
        code, payload = self._connection.receive(self._timeout)
        if code == wanted:
            return payload
        if code == END_FRAME:
            raise ProtocolError(f"snapshot ended at {self.progress} of {self._size} bytes")
        if code == CHUNK_FRAME:
            raise ProtocolError(f"snapshot is longer than its size of {self._size} bytes")
        raise ProtocolError(f"a frame of type {code} within a snapshot")
