"""What the tests of the transports share: peers that keep the protocol, or break it on cue."""

import os
import socket
import threading
from contextlib import contextmanager

from raft.messages import AppendEntriesRequest, AppendEntriesResponse, RPCHeader
from raft.runtime import THREADS
from raft.transport.connection import Connection
from raft.transport.delivery import Identity
from raft.transport.stream import SocketStream

PATIENCE = 8.0
REQUEST = AppendEntriesRequest(RPCHeader("a", "a:1"), 3, 1, 1)
HEARTBEAT = AppendEntriesRequest(RPCHeader("a", "a:1"), 3)
RESPONSE = AppendEntriesResponse(RPCHeader("b", "b:1"), 3, 7, True)


def identity(server_id, cluster_id=None):
    who = Identity()
    who.learn(server_id, lambda: cluster_id)
    return who


def connection(sock, peer="peer:1"):
    return Connection(SocketStream(sock, peer, THREADS, lambda _: None), THREADS)


@contextmanager
def connected():
    """Two connections with each other, and nothing said yet."""
    left, right = socket.socketpair()
    ours, theirs = connection(left), connection(right)
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextmanager
def bare():
    """A connection, and the plain socket at its other end."""
    left, right = socket.socketpair()
    right.settimeout(PATIENCE)
    ours = connection(left)
    try:
        yield ours, right
    finally:
        ours.close()
        right.close()


def dial(transport):
    """A plain socket connected with a transport that serves."""
    host, _, port = transport.local_addr().rpartition(":")
    sock = socket.create_connection((host, int(port)), PATIENCE)
    sock.settimeout(PATIENCE)
    return sock


def is_closed_by_peer(sock):
    """Wait for the other side to close; False when it sends something or keeps silent."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@contextmanager
def address_without_listener():
    """An address that is taken, so that nobody else can begin to listen there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


class FakePeer:
    """A listener that runs a script on each connection, one after the other."""

    def __init__(self, *scripts):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._scripts = scripts
        self._thread = threading.Thread(target=self._run, name="fake peer", daemon=True)

    def __enter__(self):
        self._listener.settimeout(PATIENCE)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self):
        for script in self._scripts:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            link = connection(sock)
            try:
                script(link)
            finally:
                link.close()


def answer(link, times=1):
    """Script: keep the protocol for so many requests."""
    link.welcome(identity("b"), PATIENCE)
    for _ in range(times):
        link.receive(PATIENCE)
        link.send_message(RESPONSE, PATIENCE)


def transport_threads():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("raft-"))


def open_descriptors():
    return len(os.listdir("/dev/fd"))


def telling(event, call):
    """The same call, which sets an event when it has returned."""

    def call_and_tell(*args, **options):
        result = call(*args, **options)
        event.set()
        return result

    return call_and_tell
