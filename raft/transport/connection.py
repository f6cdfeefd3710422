"""One connection of the native protocol: its handshake, and frames.

Each side begins with a greeting: magic, length, CRC32, and a CBOR array of the lowest and highest
protocol version it speaks, its cluster's id or null, its own id and the id it wants to talk to. The
greeting's form never changes; the highest version common to both governs what follows. The side
that was dialed speaks second and may refuse, with a kind and a text at the end of its greeting.
Where the stream has proved who the peer is (`tls.py`), its id must be among those proved.

Then come frames: length of the payload, type, CRC32 of both and the payload. Types below 128 are
messages, their payload CBOR (`codec.py`); the rest is listed below. Whatever comes in may be
hostile: memory grows with the bytes that came, never with a length announced.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raft.codec import dumps, encode_message, loads
from raft.errors import (
    ConnectionLostError,
    PeerUnreachableError,
    ProtocolError,
    RaftError,
    RPCTimeoutError,
    TransportError,
    UnsupportedProtocolError,
)
from raft.messages import Request, Response
from raft.runtime import Deadline, Runtime
from raft.transport.delivery import (
    Identity,
    check_caller,
    check_cluster,
    check_proof,
    check_server,
    describe,
    error_kind,
    remote_error,
)
from raft.transport.pacing import UNPACED, Pace
from raft.transport.stream import Stream
from raft.types import ServerID, check_name

LOWEST_VERSION = 1
HIGHEST_VERSION = 1

MAX_FRAME = 64 * 1024 * 1024  # bytes of payload; above max_command_bytes (32 MiB) and its wrapping
ERROR_FRAME = 128  # an error as the answer: CBOR [kind, text]
CHUNK_FRAME = 129  # bytes of a snapshot, as they are
LARGEST_CHUNK = 1024 * 1024  # bytes; four times what we send
END_FRAME = 130  # the end of a snapshot; empty
WORKING_FRAME = 131  # the receiver of a snapshot is still at it; empty

_MAGIC = b"RAFTPY\r\n"  # the line end shows whether something translates text on the way
_TLS_HANDSHAKE = b"\x16\x03"  # what a TLS connection begins with
_GREETING = struct.Struct(">8sHI")  # magic, length, CRC32
_MAX_GREETING = 8 * 1024  # bytes; names of servers and clusters are short
_HEAD = struct.Struct(">IB")  # length, type
_CRC = struct.Struct(">I")
_PREFIX = _HEAD.size + _CRC.size
_BUFFER = 16 * 1024  # bytes a connection holds to receive into, at rest
_BUFFER_KEPT = (
    2 * 1024 * 1024
)  # bytes, for frames of max_append_bytes; a larger buffer is given back once it is empty
_JOINED = 64 * 1024  # bytes; up to here copying is cheaper than a second system call
_PART = 16 * 1024  # bytes of a frame that must come within one timeout
_MAX_ERROR_TEXT = 2000  # characters
# The largest honest payload of each type, in bytes: entries, a snapshot's metadata, ...
_LARGEST = {0: MAX_FRAME, 2: 2 * 1024 * 1024, CHUNK_FRAME: LARGEST_CHUNK}
_LARGEST_OTHER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Greeting:
    """What one side says about itself at the start, and the refusal it may add."""

    lowest: int
    highest: int
    cluster_id: str | None
    server_id: ServerID
    wanted_id: ServerID
    refusal: str = ""
    refusal_text: str = ""

    def encode(self) -> bytes:
        """Return the bytes on the wire."""
        payload = dumps(
            [
                self.lowest,
                self.highest,
                self.cluster_id,
                self.server_id,
                self.wanted_id,
                self.refusal,
                self.refusal_text,
            ]
        )
        return _GREETING.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def decode_greeting(payload: bytes) -> Greeting:
    """Return what a greeting's payload says, or raise `ProtocolError`."""
    fields = loads(payload)
    kinds: tuple[Any, ...] = (int, int, str | None, str, str, str, str)
    if (
        not isinstance(fields, list)
        or len(fields) < len(kinds)
        or not all(isinstance(f, k) for f, k in zip(fields, kinds, strict=False))
    ):
        raise ProtocolError("the peer's greeting is malformed")
    for name in (fields[2], fields[3], fields[4]):
        if name:
            try:
                check_name("a name in the peer's greeting", name)
            except ValueError as exc:
                raise ProtocolError(str(exc)) from None
    return Greeting(*fields[: len(kinds)])


def common_version(ours: tuple[int, int], peer: Greeting) -> int:
    """Return the highest version that both sides speak, or raise `UnsupportedProtocolError`."""
    version = min(ours[1], peer.highest)
    if version < max(ours[0], peer.lowest):
        raise UnsupportedProtocolError(
            f"no common protocol version: this side speaks {ours[0]} to {ours[1]}, server"
            f" {peer.server_id or 'unknown'} speaks {peer.lowest} to {peer.highest}"
        )
    return version


class Connection:
    """A stream with frames on it; whoever holds it owns it (see `Stream` for the threads)."""

    def __init__(self, stream: Stream, runtime: Runtime) -> None:
        self.stream = stream
        self.version = 0
        self.said_cluster_id: str | None = None
        self.peer = Greeting(0, 0, None, "", "")
        self.proven: frozenset[ServerID] | None = None  # ids of who dialed, if it proved any
        self.round_trip = 0.0  # seconds, of the greetings; of the side that dialed
        self.pace: Pace | None = None  # of large frames that are sent, where they have any
        self._runtime = runtime
        self._buffer = bytearray(_BUFFER)
        self._start = 0  # invariant: 0 <= _start <= _end <= len(_buffer);
        self._end = 0  # what was received and not yet taken lies between them
        self._taken = 0  # bytes of the frame that was taken last
        self.on_growth: Callable[[], None] = lambda: None  # the buffer has become larger

    def close(self) -> None:
        """Close the stream; any thread, any number of times."""
        self.stream.close()

    # ---- handshake ----

    def greet(
        self,
        identity: Identity,
        wanted: ServerID,
        timeout: float,
        versions: tuple[int, int] = (LOWEST_VERSION, HIGHEST_VERSION),
    ) -> None:
        """Do the dialing side's handshake; raises what keeps the two from talking."""
        deadline = Deadline(self._runtime, timeout)
        self.said_cluster_id = identity.cluster_id()
        mine = Greeting(*versions, self.said_cluster_id, identity.server_id, wanted)
        try:
            proven = self.stream.secure(timeout)
            if wanted:  # before a stranger is told anything
                check_proof(proven, wanted, self.stream.peer)
            began = self._runtime.monotonic()
            self.stream.send(mine.encode(), deadline.remaining())
            self.peer = self._receive_greeting(deadline)
            self.round_trip = self._runtime.monotonic() - began
        except ConnectionLostError as exc:
            raise PeerUnreachableError(
                f"{self.stream.peer} closed the connection during the handshake: it speaks another"
                " protocol, TLS is on at one end only or refused us, or it has too many"
                f" connections ({exc})"
            ) from exc
        if self.peer.refusal_text:
            raise remote_error(self.peer.refusal, self.peer.refusal_text)
        self.version = common_version(versions, self.peer)
        check_server(wanted, self.peer.server_id, self.stream.peer)
        check_proof(proven, self.peer.server_id or wanted, self.stream.peer)
        check_cluster(self.said_cluster_id, self.peer.cluster_id, f"server {self.peer.server_id}")

    def welcome(
        self,
        identity: Identity,
        timeout: float,
        versions: tuple[int, int] = (LOWEST_VERSION, HIGHEST_VERSION),
    ) -> None:
        """Do the dialed side's handshake; a refusal is sent to the peer and raised here."""
        deadline = Deadline(self._runtime, timeout)
        proven = self.proven = self.stream.secure(timeout)
        self.peer = self._receive_greeting(deadline)
        self.said_cluster_id = identity.cluster_id()
        refusal: RaftError | None = None
        try:
            check_proof(proven, self.peer.server_id, self.stream.peer)
            self.version = common_version(versions, self.peer)
            check_server(self.peer.wanted_id, identity.server_id, "the address dialed")
            check_caller(
                self.said_cluster_id, self.peer.cluster_id, f"server {self.peer.server_id}"
            )
        except RaftError as exc:
            refusal = exc
        kind, text = ("", "") if refusal is None else (error_kind(refusal), describe(refusal))
        mine = Greeting(
            *versions, self.said_cluster_id, identity.server_id, self.peer.server_id, kind, text
        )
        self.stream.send(mine.encode(), deadline.remaining())
        if refusal is not None:
            raise refusal

    def _receive_greeting(self, deadline: Deadline) -> Greeting:
        # The magic is judged first: a peer of another protocol may never send more than that.
        magic = self._take(len(_MAGIC), deadline, drop=False)
        if magic.startswith(_TLS_HANDSHAKE):
            raise ProtocolError(f"{self.stream.peer} begins with TLS, which this side does not use")
        if magic != _MAGIC:
            raise ProtocolError(f"{self.stream.peer} does not speak this protocol")
        _, length, crc = _GREETING.unpack(self._take(_GREETING.size, deadline))
        if length > _MAX_GREETING:
            raise ProtocolError(f"the greeting of {self.stream.peer} is too long: {length} bytes")
        payload = self._take(length, deadline)
        if zlib.crc32(payload) != crc:
            raise ProtocolError(f"the greeting of {self.stream.peer} is damaged")
        return decode_greeting(payload)

    # ---- frames ----

    def send_message(self, message: Request | Response, timeout: float | None) -> None:
        """Send a request or a response."""
        code, payload = encode_message(message)
        self.send(code, payload, timeout)

    def send_error(self, error: BaseException, timeout: float | None) -> None:
        """Send an error as the answer."""
        text = describe(error)[:_MAX_ERROR_TEXT]
        self.send(ERROR_FRAME, dumps([error_kind(error), text]), timeout)

    def send(self, code: int, payload: bytes, timeout: float | None) -> None:
        """Send one frame; `timeout` bounds each time without progress, not the whole."""
        if len(payload) > MAX_FRAME:
            raise TransportError(f"a message of {len(payload)} bytes is too large to send")
        head = _HEAD.pack(len(payload), code)
        head += _CRC.pack(zlib.crc32(payload, zlib.crc32(head)))
        pieces = (head + payload,) if len(payload) <= _JOINED else (head, payload)
        pace = self.pace
        before = 0 if pace is None else pace.sent
        try:
            for piece in pieces:
                if pace is not None and len(piece) > UNPACED:
                    pace.send(piece, timeout)
                else:
                    self.stream.send(piece, timeout)
                    if pace is not None:
                        pace.note_sent(len(piece))
        except RPCTimeoutError as exc:
            arrived = max(0, self.acknowledged() - before)
            raise self._stalled(exc, "sent", arrived, len(payload), timeout) from exc

    def acknowledged(self) -> int:
        """Return how many bytes of paced frames, and those between, have arrived; any thread."""
        return 0 if self.pace is None else self.pace.acknowledged()

    def is_pacing(self) -> bool:
        """Tell whether a paced frame may be on its way yet; any thread."""
        return self.pace is not None and self.pace.is_flying

    def receive(self, timeout: float | None) -> tuple[int, bytes]:
        """Return the type and the payload of the next frame.

        `timeout` bounds the frame, and of a large one each part of it. After `RPCTimeoutError` the
        call may be repeated and goes on where it was; after any other error the connection is of no
        more use.
        """
        self._taken = 0
        self._fill(_PREFIX, Deadline(self._runtime, timeout))
        length, code = _HEAD.unpack_from(self._buffer, self._start)
        if length > _LARGEST.get(code, _LARGEST_OTHER):
            raise ProtocolError(
                f"{self.stream.peer} announced a frame of type {code} and {length} bytes"
            )
        self._fill_frame(_PREFIX + length, timeout)
        begin = self._start + _PREFIX
        with memoryview(self._buffer) as view:
            crc = zlib.crc32(view[self._start : self._start + _HEAD.size])
            crc = zlib.crc32(view[begin : begin + length], crc)
            expected = _CRC.unpack_from(view, begin - _CRC.size)[0]
            payload = bytes(view[begin : begin + length])
        if crc != expected:
            raise ProtocolError(f"a frame from {self.stream.peer} is damaged")
        self._taken = length
        self._drop(_PREFIX + length)
        return code, payload

    def receive_answer(self, timeout: float | None) -> tuple[int, bytes]:
        """Return the next frame; one that is an error is raised."""
        code, payload = self.receive(timeout)
        if code == ERROR_FRAME:
            raise_error(payload)
        return code, payload

    def has_input(self) -> bool:
        """Tell whether bytes, or the end of the stream, are there to be received; does not wait."""
        return self._end > self._start or self.stream.wait_readable(0)

    def await_input(self, timeout: float | None) -> bool:
        """Wait for the first bytes of the next frame; return False when the peer has ended.

        Raises `RPCTimeoutError` when neither came in time.
        """
        return self._end > self._start or self._receive_some(timeout) > 0

    def memory(self) -> int:
        """Return how many bytes it keeps busy beyond those at rest; any thread.

        A frame that was taken counts until the next one: it is being decoded, and handled.
        """
        return len(self._buffer) - _BUFFER + self._taken

    def held(self) -> int:
        """Return how many bytes have come of what is being received; any thread."""
        return self._end - self._start

    # ---- the buffer ----

    def _take(self, count: int, deadline: Deadline, *, drop: bool = True) -> bytes:
        self._fill(count, deadline)
        data = bytes(self._buffer[self._start : self._start + count])
        if drop:
            self._drop(count)
        return data

    def _fill(self, count: int, deadline: Deadline) -> None:
        """Receive until so many bytes are there to be taken."""
        while self._end - self._start < count:
            if self._receive_some(deadline.remaining()) == 0:
                raise ConnectionLostError(f"{self.stream.peer} closed the connection")

    def _fill_frame(self, size: int, timeout: float | None) -> None:
        """Receive a whole frame; each part of it has the timeout to itself, so a trickle ends."""
        try:
            while (held := self._end - self._start) < size:
                self._fill(min(size, held + _PART), Deadline(self._runtime, timeout))
        except RPCTimeoutError as exc:
            held = self._end - self._start
            raise self._stalled(exc, "received", held, size, timeout) from exc

    def _stalled(
        self, error: RPCTimeoutError, what: str, count: int, size: int, timeout: float | None
    ) -> RPCTimeoutError:
        """Return the error of a frame that is stuck, with what is known of it."""
        if size <= _PART:
            return error
        return RPCTimeoutError(
            f"{error}: {what} {count} of {size} bytes, then too little for {timeout:g} s (the"
            " transport's `timeout`)"
        )

    def _receive_some(self, timeout: float | None) -> int:
        if self._end == len(self._buffer):
            self._make_room()
        with memoryview(self._buffer) as view, view[self._end :] as free:
            count = self.stream.receive_into(free, timeout)
        self._end += count
        return count

    def _make_room(self) -> None:
        held = self._end - self._start
        # Doubles, and only once it is full: a length announced costs nothing until bytes follow.
        size = len(self._buffer) * (2 if held > len(self._buffer) // 2 else 1)
        buffer = bytearray(size)
        buffer[:held] = memoryview(self._buffer)[self._start : self._end]
        self._buffer, self._start, self._end = buffer, 0, held
        self.on_growth()

    def _drop(self, count: int) -> None:
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_KEPT:
                self._buffer = bytearray(_BUFFER)


def raise_error(payload: bytes) -> None:
    """Raise what an error frame says."""
    fields = loads(payload)
    if not isinstance(fields, list) or len(fields) < 2:
        raise ProtocolError("an error frame is malformed")
    raise remote_error(str(fields[0]), str(fields[1]))
