"""A TLS listener's streams, and what a hostile peer says to them before it has proved who it is.

What comes after the handshake is the native protocol again, from a peer whose id is known.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from raft.errors import ConnectionLostError, ProtocolError
from raft.runtime import THREADS
from raft.transport.certificates import MutualTLS
from raft.transport.tls import TLSStream
from tests.fuzz.inputs import Inputs
from tests.fuzz.listener import ViolationError
from tests.unit.transport.certificates import Authority

PATIENCE = 10.0  # seconds
RECORD_TYPES = (20, 21, 22, 23, 24, 0, 255)


class TLSTarget:
    """Server `n1` with mutual certificates; use it with `with`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        authority = Authority(Path(self._folder.name))
        self._contexts = authority.contexts("n1")
        self._honest = authority.contexts("n2")
        self._descriptors = len(os.listdir("/dev/fd"))

    def __enter__(self) -> TLSTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def hello(self) -> bytes:
        """Return what an honest client says first."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._honest.client.wrap_bio(incoming, outgoing)
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return outgoing.read()

    def feed(self, data: bytes) -> None:
        """Take a connection with these bytes in: it must be refused, and leave nothing behind."""
        stream, peer = self._stream(self._contexts, inbound=True)
        with peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            try:
                stream.secure(PATIENCE)
            except (ProtocolError, ConnectionLostError):
                pass
            except Exception as error:
                raise ViolationError(f"refused by {error!r}") from error
            else:
                raise ViolationError("a peer without a certificate was let in")
            finally:
                stream.close()

    def check_service(self) -> None:
        """Raise unless an honest peer is let in, and no descriptor is left."""
        ours, peer = self._stream(self._contexts, inbound=True)
        theirs = TLSStream(peer, "n1:1", THREADS, _nothing, self._honest.client, inbound=False)
        thread = threading.Thread(target=theirs.secure, args=[PATIENCE])
        thread.start()
        try:
            if ours.secure(PATIENCE) != {"n2"}:
                raise ViolationError("an honest peer was not known")
        finally:
            thread.join()
            ours.close()
            theirs.close()
        if len(os.listdir("/dev/fd")) > self._descriptors:
            raise ViolationError("descriptors are left")

    @staticmethod
    def _stream(contexts: MutualTLS, *, inbound: bool) -> tuple[TLSStream, socket.socket]:
        near, far = socket.socketpair()
        near.setblocking(False)
        context = contexts.server if inbound else contexts.client
        return TLSStream(near, "hostile:1", THREADS, _nothing, context, inbound=inbound), far


def _nothing(_: object) -> None:
    """Stand in for the layer, which would forget the stream."""


def hostile_tls(chance: random.Random, target: TLSTarget) -> bytes:
    """Return what one hostile connection says."""
    if chance.random() < 0.2:
        return Inputs(chance).draw()
    hello = target.hello()
    spoil: Callable[[], bytes] = chance.choice(
        (
            lambda: _flipped(chance, hello),
            lambda: hello[: chance.randrange(len(hello))],
            lambda: hello + chance.randbytes(chance.randrange(1, 300)),
            lambda: hello + hello,
            lambda: _record(chance, hello[5:]),
            lambda: hello + _record(chance, chance.randbytes(chance.randrange(200))),
            lambda: _record(chance, chance.randbytes(chance.randrange(200))),
        )
    )
    return spoil()


def _flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _record(chance: random.Random, payload: bytes) -> bytes:
    length = len(payload) if chance.random() < 0.5 else chance.randrange(1 << 16)
    version = chance.choice((0x0300, 0x0301, 0x0303, 0x0304, 0xFFFF))
    head = bytes([chance.choice(RECORD_TYPES)]) + version.to_bytes(2, "big")
    return head + length.to_bytes(2, "big") + payload
