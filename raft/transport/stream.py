"""Streams of bytes between two servers, and the layer that makes them.

`NetworkTransport` knows no socket: it takes streams from a `StreamLayer`, which listens, dials, and
owns every stream it made. `SocketStream` is one over a connected socket. It never blocks in a
socket call, only in `poll`: so each wait has its own bound, a stream may be read by one thread and
written by another, and closing it wakes both.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import socket
import sys
import termios
from collections.abc import Callable
from typing import Protocol

from raft.errors import ConnectionLostError, RPCTimeoutError
from raft.runtime import Deadline, Runtime
from raft.types import ServerAddress, ServerID

_LONGEST_POLL = (2**31 - 1) / 1000  # seconds; with more than fits into a C int `poll` raises
_HUNG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Stream(Protocol):
    """A connection: one thread may send and one other receive at a time; any may close."""

    peer: str
    """The other end's address, for messages."""

    def secure(self, timeout: float | None) -> frozenset[ServerID] | None:
        """Make ready for sending and receiving; return the ids that the peer has proved to hold.

        Called once, before all else, on the thread that is to wait for it; None when the stream can
        prove nothing, so that every id must be believed. Raises what `send` does, or
        `ProtocolError`.
        """

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        """Send all of it, or raise `ConnectionLostError` or `RPCTimeoutError`.

        `timeout` bounds each time without any progress, not the whole.
        """

    def unacknowledged(self) -> int:
        """Return how many bytes have left, and are not known to have arrived; 0 if nobody can tell.

        Costs one system call.
        """

    def wait_for_hang_up(self, timeout: float) -> bool:
        """Wait until the peer is known to be gone; return whether it is."""

    def receive_into(self, buffer: memoryview, timeout: float | None) -> int:
        """Receive at least one byte and return how many; 0 when the peer has ended its side."""

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait until `receive_into` would return at once; return whether it would."""

    def is_hung_up(self) -> bool:
        """Tell whether the peer is known to be gone; costs one system call, reads nothing."""

    def end_sending(self) -> None:
        """Let the peer see the end of what was sent; receiving goes on."""

    def close(self) -> None:
        """Close and wake whoever sends or receives; may be called twice."""


class StreamLayer(Protocol):
    """Listens and dials; the owner of every stream it hands out."""

    def local_addr(self) -> ServerAddress:
        """Return the address that others dial."""

    def accept(self, timeout: float) -> Stream | None:
        """Return the next connection, or None when none came in time.

        Raises `OSError` when accepting fails; it is then tried again after a pause.
        """

    def dial(self, address: ServerAddress, timeout: float) -> Stream:
        """Connect to an address, or raise `PeerUnreachableError`."""

    def close(self) -> None:
        """Stop listening, give up dialing, close every stream; may be called twice."""

    def abandon(self) -> None:
        """Let go of every descriptor in a forked child; takes no lock, touches no peer."""


def _milliseconds(timeout: float | None) -> int | None:
    """Return what `poll` takes: 24 days at most."""
    return None if timeout is None else math.ceil(min(timeout, _LONGEST_POLL) * 1000)


class SocketStream:
    """A stream over a connected, or connecting, socket.

    Invariant: the descriptor stays open while a call uses it, so that its number cannot meanwhile
    come to mean another file: `close` only shuts the connection down, the last user releases it.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        runtime: Runtime,
        on_released: Callable[[SocketStream], None],
    ) -> None:
        sock.setblocking(False)
        self.peer = peer
        self.sock = sock
        self._runtime = runtime
        self._on_released = on_released
        self._lock = runtime.lock()  # guards _users and _closing
        self._users = 0
        self._closing = False
        self._may_hold = False  # may `_try_receive` return bytes that `poll` knows nothing of?

    def secure(self, timeout: float | None) -> frozenset[ServerID] | None:
        """Do nothing: a plain socket is ready, and proves nothing; see `Stream`."""
        return None

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        """Send all of it; see `Stream`."""
        self._enter()
        try:
            sent = self._try_send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], timeout)
        except RPCTimeoutError:
            raise  # is an OSError, too
        except OSError as exc:
            raise self._lost(exc) from exc
        finally:
            self._leave()

    def receive_into(self, buffer: memoryview, timeout: float | None) -> int:
        """Receive at least one byte; see `Stream`."""
        self._enter()
        try:
            deadline = Deadline(self._runtime, timeout)
            while True:
                # Waiting comes first: as a rule there is nothing yet, and the attempt would only
                # cost a system call and an exception.
                if not self._may_hold:
                    self._wait(select.POLLIN, deadline)
                count = self._try_receive(buffer)
                if count is not None:
                    return count
        except RPCTimeoutError:
            raise  # is an OSError, too
        except OSError as exc:
            raise self._lost(exc) from exc
        finally:
            self._leave()

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait for bytes, or for the end; see `Stream`."""
        return self._poll_once(select.POLLIN, timeout) != 0

    def wait_writable(self, timeout: float) -> bool:
        """Wait until bytes can be sent, or until a connecting socket has succeeded or failed."""
        return self._poll_once(select.POLLOUT, timeout) != 0

    def is_hung_up(self) -> bool:
        """Tell whether the peer is known to be gone; see `Stream`."""
        try:
            return self.wait_for_hang_up(0)
        except ConnectionLostError:
            return True

    def wait_for_hang_up(self, timeout: float) -> bool:
        """Wait until the peer is known to be gone; see `Stream`."""
        return self._poll_once(getattr(select, "POLLRDHUP", 0), timeout) & _HUNG_UP != 0

    def unacknowledged(self) -> int:
        """Return how many bytes are not known to have arrived; see `Stream`."""
        self._enter()
        try:
            answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            return int.from_bytes(answer, sys.byteorder)
        except OSError:
            return 0  # this system does not tell
        finally:
            self._leave()

    def end_sending(self) -> None:
        """Let the peer see the end of what was sent; see `Stream`."""
        self._enter()
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._lost(exc) from exc
        finally:
            self._leave()

    def close(self) -> None:
        """Close and wake whoever sends or receives; see `Stream`."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            in_use = self._users > 0
        if in_use:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster, or the last user has released it meanwhile
        else:
            self._release()

    def abandon(self) -> None:
        """Let go of the descriptor in a forked child; the connection is still the parent's."""
        fd = self.sock.detach()
        if fd >= 0:
            os.close(fd)

    # ---- one attempt each; another kind of socket differs here alone ----

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def _try_receive(self, buffer: memoryview) -> int | None:
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None

    # ---- waiting ----

    def _send_rest(self, rest: memoryview, timeout: float | None) -> None:
        while rest:
            self._wait(select.POLLOUT, Deadline(self._runtime, timeout))
            rest = rest[self._try_send(rest) :]

    def _wait(self, events: int, deadline: Deadline) -> None:
        if not self._poll(events, deadline.remaining()):
            raise RPCTimeoutError(f"no progress on the connection with {self.peer} in time")

    def _poll_once(self, events: int, timeout: float | None) -> int:
        self._enter()
        try:
            return self._poll(events, timeout)
        finally:
            self._leave()

    def _poll(self, events: int, timeout: float | None) -> int:
        poller = select.poll()
        poller.register(self.sock.fileno(), events)
        ready = poller.poll(_milliseconds(timeout))
        if self._closing:
            raise self._lost("closed on this side")
        return ready[0][1] if ready else 0

    def _lost(self, cause: object) -> ConnectionLostError:
        cause = "closed on this side" if self._closing else cause
        return ConnectionLostError(f"connection with {self.peer} lost: {cause}")

    # ---- life ----

    def _enter(self) -> None:
        with self._lock:
            if self._closing:
                raise self._lost("closed on this side")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closing and self._users == 0
        if last:
            self._release()

    def _release(self) -> None:
        self.sock.close()
        self._on_released(self)
