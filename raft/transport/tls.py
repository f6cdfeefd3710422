"""TLS: both sides show a certificate, and a certificate names the servers that may use it.

What is bound is the server's id, not a host name: the dialing side wants the id it dials among
those in the certificate shown, the dialed side the id that the greeting claims (`connection.py`
asks for both). An id stands in the certificate's subject alternative names, as a URI
`raft:server:<id>` with the id percent-encoded (docs/transports.md).

TLS runs on buffers in memory beside the plain socket (`ssl.MemoryBIO`). So the socket keeps its
descriptor, its timeouts and its ways to be closed, and OpenSSL, which must not be entered by two
threads at once, is held by a lock for no longer than it takes to code what is at hand.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Collection
from typing import TypeAlias, cast

from raft.errors import (
    ConnectionLostError,
    InvalidConfigError,
    ProtocolError,
    RPCTimeoutError,
    WrongServerError,
)
from raft.interfaces import ServerAddressProvider
from raft.logs import get_logger
from raft.runtime import THREADS, Deadline, Runtime
from raft.transport.certificates import MutualTLS, certificate_ids, end_of, reason_of
from raft.transport.network import (
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_MAX_INBOUND,
    DEFAULT_MAX_POOL,
    DEFAULT_TIMEOUT,
    NetworkTransport,
)
from raft.transport.stream import SocketStream
from raft.transport.tcp import TCPStreamLayer
from raft.types import ServerAddress, ServerID, plain

logger = get_logger(__name__)

_RECEIVED = 32 * 1024  # bytes taken off the socket at a time: two records of TLS
_ENCODED = 64 * 1024  # bytes encoded at a time: four records, one system call
_DAY = 86400.0  # seconds
_SOON = 14 * _DAY  # seconds before its end from which a certificate is warned of
_FAREWELL = 1.0  # seconds for a peer to read why it was refused

Authorize: TypeAlias = Collection[ServerID] | Callable[[ServerID], bool]


# ---- streams ----


class TLSStream(SocketStream):
    """A stream whose bytes are encoded on their way to the socket and back.

    After an error in `send` it is of no more use, as bytes may have been encoded that never left.
    It ends without TLS's own farewell: a message says how long it is, so nobody can cut one short.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        runtime: Runtime,
        on_released: Callable[[SocketStream], None],
        context: ssl.SSLContext,
        authorize: Callable[[ServerID], bool] = lambda _: True,
        *,
        inbound: bool,
    ) -> None:
        super().__init__(sock, peer, runtime, on_released)
        self._authorize = authorize
        self._end: float | None = None  # of the peer's certificate, in seconds since 1970
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=inbound)
        # Guards the three above, once hands are shaken; held while they code, never while waiting.
        self._tls_lock = runtime.lock()
        # The receiving thread's: what came off the socket, and a byte that was only looked for.
        self._raw = memoryview(bytearray(_RECEIVED))
        self._ahead = b""
        # The sending thread's. Invariant: while _encoded is not empty, it is the rest of what the
        # first _taken bytes of the current `send` were encoded to.
        self._encoded = memoryview(b"")
        self._taken = 0

    def secure(self, timeout: float | None) -> frozenset[ServerID]:
        """Shake hands; return the ids in the peer's certificate, see `Stream`."""
        self._enter()
        try:
            deadline = Deadline(self._runtime, timeout)
            try:
                self._shake_hands(deadline)
                certificate = self._tls.getpeercert() or {}
            except (ssl.SSLError, ValueError) as exc:
                self._say_farewell()
                reason = reason_of(exc) if isinstance(exc, ssl.SSLError) else str(exc)
                raise ProtocolError(f"no TLS with {self.peer}: {reason}") from exc
            self._may_hold = True
            self._end = end_of(certificate)
            return self._authorized(certificate_ids(certificate))
        except RPCTimeoutError:
            raise  # is an OSError, too
        except OSError as exc:
            raise self._lost(exc) from exc
        finally:
            self._leave()

    def _authorized(self, ids: frozenset[ServerID]) -> frozenset[ServerID]:
        """Return which of the ids proved may come in; `WrongServerError` if none of them may."""
        allowed = frozenset(filter(self._authorize, ids))
        if ids and not allowed:
            named = plain(", ".join(sorted(ids)))
            raise WrongServerError(f"the certificate of {self.peer} is not authorized: {named}")
        return allowed

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait for bytes, or for the end; see `Stream`.

        What comes may be TLS's own affair, a session ticket for one, so it is looked into.
        """
        self._enter()
        try:
            deadline = Deadline(self._runtime, timeout)
            byte = bytearray(1)
            while not self._ahead:
                if not self._may_hold and not self._poll(select.POLLIN, deadline.remaining()):
                    return False
                count = self._try_receive(memoryview(byte))
                if count == 0:
                    return True
                if count is not None:
                    self._ahead = bytes(byte)
                    self._may_hold = True
            return True
        except OSError as exc:
            raise self._lost(exc) from exc
        finally:
            self._leave()

    # ---- one attempt each ----

    def _try_send(self, data: bytes | memoryview) -> int:
        if not self._encoded:
            with self._tls_lock:
                self._taken = self._encode(memoryview(data)[:_ENCODED])
                self._encoded = memoryview(self._outgoing.read())
        self._encoded = self._encoded[super()._try_send(self._encoded) :]
        return 0 if self._encoded else self._taken

    def _encode(self, data: memoryview) -> int:
        taken = 0
        while taken < len(data):
            taken += self._tls.write(data[taken:])  # one record at a time
        return taken

    def _try_receive(self, buffer: memoryview) -> int | None:
        if self._end is not None and self._runtime.wall_time_ns() > self._end * 1e9:
            raise ConnectionLostError(f"the certificate of {self.peer} has expired meanwhile")
        if self._ahead:
            buffer[:1] = self._ahead
            self._ahead = b""
            return 1
        if not self._may_hold:
            count = super()._try_receive(self._raw)
            if not count:
                return count  # nothing, or the end
            with self._tls_lock:
                self._incoming.write(self._raw[:count])
        with self._tls_lock:
            try:
                count = cast(int, self._tls.read(len(buffer), buffer))
                self._may_hold = self._tls.pending() > 0 or self._incoming.pending > 0
            except ssl.SSLWantReadError:
                count = None  # less than a record, or no data in it
                self._may_hold = False
            except ssl.SSLZeroReturnError:
                count = 0
        return count

    # ---- the handshake, on one thread ----

    def _shake_hands(self, deadline: Deadline) -> None:
        while True:
            try:
                self._tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                is_done = False
            self._send_outgoing(deadline)
            if is_done:
                return
            self._wait(select.POLLIN, deadline)
            count = super()._try_receive(self._raw)
            if count == 0:
                raise self._lost("closed during the TLS handshake")
            self._incoming.write(self._raw[: count or 0])

    def _send_outgoing(self, deadline: Deadline) -> None:
        rest = memoryview(self._outgoing.read())
        while rest := rest[super()._try_send(rest) :]:
            self._wait(select.POLLOUT, deadline)

    def _say_farewell(self) -> None:
        """Send what OpenSSL has to say about the failure, and let the peer read it.

        Closing with bytes unread would reset the connection, and the peer not learn the reason.
        """
        deadline = Deadline(self._runtime, _FAREWELL)
        try:
            self._send_outgoing(deadline)
            self.sock.shutdown(socket.SHUT_WR)
            while not deadline.is_over() and super()._try_receive(self._raw) != 0:
                self._wait(select.POLLIN, deadline)
        except (OSError, ConnectionLostError):
            pass  # the reason is known; this was courtesy

    def _lost(self, cause: object) -> ConnectionLostError:
        return super()._lost(reason_of(cause) if isinstance(cause, ssl.SSLError) else cause)


# ---- the layer and the transport ----


class TLSStreamLayer(TCPStreamLayer):
    """A `TCPStreamLayer` whose streams are `TLSStream`s; `reload` changes the contexts."""

    def __init__(
        self,
        bind: ServerAddress,
        advertise: ServerAddress | None,
        runtime: Runtime,
        contexts: MutualTLS,
        bind_timeout: float = 0.0,
        authorize: Authorize | None = None,
    ) -> None:
        self._contexts = _checked(contexts)
        self._authorize = authorize
        self.end: float | None = None  # of the certificate's time, since 1970
        self._warned_at = 0.0
        super().__init__(bind, advertise, runtime, bind_timeout)
        try:
            self.end = end_of(contexts.own_certificate())
        except InvalidConfigError:
            pass  # contexts of the caller's own; each connection will say so
        self._warn_of_end()

    def warn_unprotected(self, host: str) -> None:
        """Say nothing: what goes over the wire is protected."""

    def reload(self, contexts: MutualTLS) -> None:
        """Use other contexts from the next connection on; any thread."""
        self.end = end_of(_checked(contexts).own_certificate())
        self._contexts = contexts
        self._warned_at = 0.0
        self._warn_of_end()
        logger.info("certificates replaced address=%s", self.local_addr())

    def _warn_of_end(self) -> None:
        """Warn of a certificate that ends within two weeks, once a day."""
        now = self._runtime.wall_time_ns() / 1e9
        if self.end is not None and self.end - now < _SOON and now - self._warned_at > _DAY:
            self._warned_at = now
            logger.warning(
                "certificate expires soon, replace it address=%s days_left=%.1f",
                self.local_addr(),
                (self.end - now) / _DAY,
            )

    def accept(self, timeout: float) -> SocketStream | None:
        """Return the next connection, or None; see `StreamLayer`."""
        self._warn_of_end()  # asked every second, whether somebody comes or not
        return super().accept(timeout)

    def _make_stream(self, sock: socket.socket, peer: str, *, inbound: bool) -> SocketStream:
        contexts = self._contexts
        contexts.check()  # again: somebody may have weakened them
        context = contexts.server if inbound else contexts.client
        return TLSStream(
            sock, peer, self._runtime, self._released, context, self._is_authorized, inbound=inbound
        )

    def _is_authorized(self, server_id: ServerID) -> bool:
        authorize = self._authorize
        if authorize is None:
            return True
        if not callable(authorize):
            return server_id in authorize
        try:
            return bool(authorize(server_id))
        except Exception:  # the user's code: nobody comes in by its fault
            logger.exception("authorize failed, refusing server=%s", server_id)
            return False


def _check_authorize(authorize: Authorize | None) -> None:
    is_set = isinstance(authorize, Collection) and not isinstance(authorize, str | bytes)
    if authorize is not None and not is_set and not callable(authorize):
        raise InvalidConfigError(
            "authorize must be a set of server ids, or a function that takes one and returns"
            f" whether it may come in, not {authorize!r}"
        )


def _checked(contexts: MutualTLS) -> MutualTLS:
    if not isinstance(contexts, MutualTLS):
        raise InvalidConfigError(
            "ssl_context must be a MutualTLS, as one ssl.SSLContext cannot both dial and be dialed:"
            " see MutualTLS.from_files"
        )
    return contexts


class TLSTransport(NetworkTransport):
    """The native protocol over TLS: `TLSTransport("10.0.0.1:7000", ssl_context=contexts)`.

    `contexts` is a `MutualTLS`; the other arguments and errors are those of `TCPTransport`. Both
    sides show a certificate, and each must name the id of the server that shows it. Who does not
    is refused before any request of it is read.

    `authorize` says which of the ids that the authority has certified may be talked to, in either
    direction: a set of ids, or a function of one id. It is asked after each handshake, on a thread
    of the transport, and must not block; one that raises refuses. Without it all may.
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
        ssl_context: MutualTLS,
        max_inbound: int = DEFAULT_MAX_INBOUND,
        handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
        bind_timeout: float = 0.0,
        authorize: Authorize | None = None,
    ) -> None:
        _check_authorize(authorize)
        self._tls = TLSStreamLayer(bind, advertise, runtime, ssl_context, bind_timeout, authorize)
        super().__init__(
            self._tls,
            timeout=timeout,
            max_pool=max_pool,
            server_address_provider=server_address_provider,
            max_inbound=max_inbound,
            handshake_timeout=handshake_timeout,
            runtime=runtime,
        )

    def certificate_end(self) -> float | None:
        """Return when this server's certificate ends, in seconds since 1970, None if unknown."""
        return self._tls.end

    def reload(self, ssl_context: MutualTLS) -> None:
        """Show and trust other certificates from the next connection on, without a restart.

        Connections that are open go on as they are; `close_streams` afterwards ends them, so that
        the next calls make new ones. What is wrong with the contexts or their files is
        raised where they are made, and the old ones stay.

        Raises:
            InvalidConfigError: nobody would accept them: they have expired, are not valid yet, are
                of another authority than the one given, or do not name this server.
        """
        self._guard.check()
        ids = certificate_ids(_checked(ssl_context).own_certificate())
        local_id = self._identity.server_id
        if local_id and local_id not in ids:
            raise InvalidConfigError(
                f"the certificate names {', '.join(sorted(ids)) or 'no server'}, not {local_id}"
            )
        self._tls.reload(ssl_context)
