"""TCP: addresses, listening, dialing; and the transport that most users want."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from functools import partial
from typing import Any

from raft.errors import InvalidConfigError, PeerUnreachableError, TransportError
from raft.interfaces import ServerAddressProvider
from raft.logs import get_logger
from raft.runtime import THREADS, Deadline, Runtime
from raft.transport.network import (
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_MAX_INBOUND,
    DEFAULT_MAX_POOL,
    DEFAULT_TIMEOUT,
    NetworkTransport,
)
from raft.transport.stream import SocketStream
from raft.types import ServerAddress, check_address

logger = get_logger(__name__)

_BACKLOG = 128  # connections that wait to be accepted
_KEEPALIVE = 15  # seconds of silence before probing, and between probes
_KEEPALIVE_PROBES = 4  # unanswered ones until a connection counts as dead
_GONE = (errno.ECONNABORTED, errno.EAGAIN, errno.EINTR)  # the caller left before it was accepted


def split_address(address: ServerAddress) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`, or raise `ValueError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not of the form host:port")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f"{address!r} wants brackets round its IPv6 address, as in [::1]:7000")
    return host, int(port)


def join_address(host: str, port: int) -> ServerAddress:
    """Return `host:port`, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---- names ----

_BIND_PAUSE = 0.05  # seconds between two tries to listen
_LONGEST_BIND = 86400.0

_Candidates = list[tuple[Any, ...]]


class _Lookup:
    """One question to the resolver; `done` is set once there is an answer, or nobody wants it."""

    def __init__(self, runtime: Runtime) -> None:
        self.done = runtime.event()
        self.found: _Candidates = []
        self.error: Exception = PeerUnreachableError("the transport is closed")


class _Resolver:
    """Turns host names into addresses, anew at each dial, in bounded time.

    The system's resolver cannot be interrupted, so it runs on a thread of its own; one thread a
    name at most, however many calls wait for it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()  # guards _pending
        self._pending: dict[tuple[str, int], _Lookup] = {}

    def resolve(self, host: str, port: int, deadline: Deadline) -> _Candidates:
        """Return what `socket.getaddrinfo` returns; raises `OSError` or `PeerUnreachableError`."""
        try:
            return _ask(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name
        with self._lock:
            lookup = self._pending.get((host, port))
            is_new = lookup is None
            if lookup is None:
                lookup = self._pending[host, port] = _Lookup(self._runtime)
        if is_new:
            self._start(host, port, lookup)
        if not lookup.done.wait(deadline.remaining()):
            raise PeerUnreachableError(f"the name {host} was not resolved in time")
        if not lookup.found:
            raise lookup.error
        return lookup.found

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._lock:
            pending = list(self._pending.values())
        for lookup in pending:
            lookup.done.set()

    def _start(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            self._runtime.spawn("raft-resolve", partial(self._run, host, port, lookup))
        except RuntimeError as exc:
            self._finish(host, port, lookup, exc)

    def _run(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            lookup.found = _ask(host, port, 0)
            error: Exception = PeerUnreachableError(f"the name {host} has no address")
        except (OSError, ValueError) as exc:
            error = exc
        self._finish(host, port, lookup, error)

    def _finish(self, host: str, port: int, lookup: _Lookup, error: Exception) -> None:
        lookup.error = error
        with self._lock:
            self._pending.pop((host, port), None)
        lookup.done.set()


def _ask(host: str, port: int, flags: int) -> _Candidates:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


# ---- the layer ----


class TCPStreamLayer:
    """Listens on one address and dials others; owns every socket of a transport.

    `bind` is `host:port`; port 0 takes a free one. `advertise` is what others should dial, for a
    server behind a translated address or bound to all interfaces. For `bind_timeout` seconds it
    waits until nobody else listens there.
    """

    def __init__(
        self,
        bind: ServerAddress,
        advertise: ServerAddress | None,
        runtime: Runtime,
        bind_timeout: float = 0.0,
    ) -> None:
        self._runtime = runtime
        self._resolver = _Resolver(runtime)
        self._lock = runtime.lock()  # guards _streams and _closed
        self._streams: dict[SocketStream, None] = {}
        self._closed = False
        sock = _listen_in_time(bind, bind_timeout, runtime)
        self._listener = SocketStream(sock, bind, runtime, self._released)
        self._streams[self._listener] = None
        try:
            self._local_addr = _advertised(sock, advertise)
        except BaseException:
            self._listener.close()
            raise
        self.warn_unprotected(sock.getsockname()[0])

    def warn_unprotected(self, host: str) -> None:
        """Log that anybody may listen in, unless only this machine can."""
        if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            logger.warning("plain tcp is not protected address=%s", self._local_addr)

    def local_addr(self) -> ServerAddress:
        """Return the address that others dial."""
        return self._local_addr

    def check_address(self, address: ServerAddress) -> None:
        """Raise `ValueError` for an address that nobody could ever dial; asks no resolver."""
        _check_dialable(address)

    def accept(self, timeout: float) -> SocketStream | None:
        """Return the next connection, or None; see `StreamLayer`."""
        if not self._listener.wait_readable(timeout):
            return None
        try:
            sock, name = self._listener.sock.accept()
        except OSError as exc:
            if exc.errno in _GONE:
                return None
            raise
        _tune(sock)
        return self._own(sock, join_address(name[0], name[1]), inbound=True)

    def dial(self, address: ServerAddress, timeout: float) -> SocketStream:
        """Connect to an address, trying all that its name stands for; see `StreamLayer`."""
        deadline = Deadline(self._runtime, timeout)
        reason: object = "it has no address"
        try:
            candidates = self._resolver.resolve(*split_address(address), deadline)
            for tried, candidate in enumerate(candidates):
                share = (deadline.remaining() or 0.0) / (len(candidates) - tried)
                try:
                    return self._connect(address, candidate, share)
                except OSError as exc:
                    reason = exc
        except (OSError, ValueError, TransportError) as exc:
            reason = exc
        raise PeerUnreachableError(f"failed to connect to peer: {address}: {reason}")

    def close(self) -> None:
        """Stop listening, give up dialing, close every stream; see `StreamLayer`."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        self._resolver.close()
        for stream in streams:
            stream.close()

    def abandon(self) -> None:
        """Let go of every descriptor in a forked child; see `StreamLayer`."""
        for stream in list(self._streams):
            stream.abandon()

    def _connect(
        self, address: ServerAddress, candidate: tuple[Any, ...], timeout: float
    ) -> SocketStream:
        family, kind, protocol, _, name = candidate
        sock = socket.socket(family, kind, protocol)
        stream = self._own(sock, address, inbound=False)
        try:
            _tune(sock)
            code = sock.connect_ex(name)
            if code == errno.EINPROGRESS:
                if not stream.wait_writable(timeout):
                    raise TimeoutError(f"no answer within {timeout:.3g} s")
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if sock.getsockname() == sock.getpeername():
                # A dialed port in the range of outgoing ones may meet its own outgoing end.
                raise ConnectionRefusedError("nobody listens there")
        except BaseException:
            stream.close()
            raise
        return stream

    def _own(self, sock: socket.socket, peer: str, *, inbound: bool) -> SocketStream:
        try:
            stream = self._make_stream(sock, peer, inbound=inbound)
        except BaseException:
            sock.close()
            raise
        with self._lock:
            if not self._closed:
                self._streams[stream] = None
                return stream
        stream.close()
        raise PeerUnreachableError("the transport is closed")

    def _make_stream(self, sock: socket.socket, peer: str, *, inbound: bool) -> SocketStream:
        """Return the stream over a socket; another kind of layer differs here."""
        return SocketStream(sock, peer, self._runtime, self._released)

    def _released(self, stream: SocketStream) -> None:
        with self._lock:
            self._streams.pop(stream, None)


def _listen_in_time(bind: ServerAddress, timeout: float, runtime: Runtime) -> socket.socket:
    """Listen, once whoever did before has ended."""
    if not 0.0 <= timeout <= _LONGEST_BIND:
        raise InvalidConfigError(f"bind_timeout is from 0 to {_LONGEST_BIND:g} s, not {timeout}")
    deadline, pause = Deadline(runtime, timeout), runtime.event()
    while True:
        try:
            return _listen(bind)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            if deadline.is_over():
                raise OSError(
                    exc.errno,
                    f"{bind} is in use: another process listens there. Where that is about to end,"
                    " as in a restart, give it time: bind_timeout=30. A reloader (flask --debug,"
                    " runserver) runs a program twice: start the node in the child alone",
                ) from exc
        pause.wait(_BIND_PAUSE)


def _listen(bind: ServerAddress) -> socket.socket:
    try:
        host, port = split_address(bind)
    except ValueError as exc:
        raise InvalidConfigError(f"bind address: {exc}") from exc
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
        )
    try:
        family, _, _, _, name = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:  # which does not say what was asked for
        raise socket.gaierror(exc.errno, f"bind address {bind!r}: {exc.strerror}") from exc
    return socket.create_server(name[:2], family=family, backlog=_BACKLOG)


def _check_dialable(address: ServerAddress) -> None:
    """Raise `ValueError` for an address that means nobody, or whoever dials it."""
    check_address(address)
    split_address(address)


def _advertised(sock: socket.socket, advertise: ServerAddress | None) -> ServerAddress:
    """Return the address for others, or raise `InvalidConfigError` when nobody could dial it."""
    if advertise is None:
        advertise = join_address(*sock.getsockname()[:2])
        hint = "local bind address is not advertisable: pass advertise='host:port' that others dial"
    else:
        hint = "advertise is no address that others can dial"
    try:
        _check_dialable(advertise)
    except ValueError as exc:
        raise InvalidConfigError(f"{hint}: {exc}") from exc
    return advertise


def _tune(sock: socket.socket) -> None:
    """Send small frames at once, and notice within minutes that a peer's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE),
        ("TCP_KEEPINTVL", _KEEPALIVE),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class TCPTransport(NetworkTransport):
    """The native protocol over plain TCP: `TCPTransport("10.0.0.1:7000")`.

    Binds at once; unprotected, so bind it to loopback or to a network you trust.

    Args:
        bind: `host:port` to listen on; port 0 takes a free one, see `local_addr()`.
        advertise: `host:port` that others dial, when it is not the one bound.
        timeout: seconds for each step of a call: dialing, sending, the answer; of what is large,
            each time without progress.
        max_pool: idle connections kept for each server.
        server_address_provider: finds servers whose addresses move.
        max_inbound: connections served at a time; for one more an idle one gives way.
        handshake_timeout: seconds a connection has to say who it is.
        bind_timeout: seconds to wait for another process to leave the address.

    Raises:
        InvalidConfigError: no other server could dial the address, give `advertise`; a timeout or
            a count is out of range.
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        bind: ServerAddress,
        advertise: ServerAddress | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_pool: int = DEFAULT_MAX_POOL,
        server_address_provider: ServerAddressProvider | None = None,
        runtime: Runtime = THREADS,
        *,
        max_inbound: int = DEFAULT_MAX_INBOUND,
        handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
        bind_timeout: float = 0.0,
    ) -> None:
        super().__init__(
            TCPStreamLayer(bind, advertise, runtime, bind_timeout),
            timeout=timeout,
            max_pool=max_pool,
            server_address_provider=server_address_provider,
            max_inbound=max_inbound,
            handshake_timeout=handshake_timeout,
            runtime=runtime,
        )
