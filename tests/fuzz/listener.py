"""A whole node behind a listener, on the caller's own thread, and what must hold whatever comes in.

The streams are in memory and time is virtual, so a connection costs less than a millisecond; all
else is the shipped code: accepting, greetings, frames, codec, inbox, roles, stores of memory.
"""

from __future__ import annotations

import logging
import random
import tracemalloc

from raft.codec import decode_message
from raft.engine.append_entries import answer_heartbeat
from raft.engine.core import StoppingError
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.state import HardState
from raft.errors import CommittedConflictError, UnsettledSnapshotError
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    Response,
    RPCHeader,
)
from raft.node import _ROLES
from raft.roles.follower import Follower
from raft.runtime import QueueEmpty
from raft.testing.manual import ManualQueue, ManualRuntime
from raft.testing.script import ScriptedNode, entries
from raft.transport.connection import Greeting
from raft.transport.delivery import Delivery, Identity
from raft.transport.server import Server
from raft.types import RaftState, ServerID
from tests.fuzz.inputs import CLUSTER, message_frame

GREETING = Greeting(1, 1, CLUSTER, "n2", "n1").encode()
HALTS = (CommittedConflictError, UnsettledSnapshotError)  # what a node says to a second past
FAR = 4  # a term that few inputs reach
PATIENCE = 120.0  # virtual seconds in which a connection whose peer has gone must be over
MEMORY_FACTOR = 60  # bytes that one byte received may cost, as decoded CBOR
MEMORY_BASE = 1 << 20  # bytes that a connection may cost whatever comes in


class ViolationError(AssertionError):
    """Something happened that no input may cause."""


class GateLock:
    """A lock that others may wait for: an answer's gate is one."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self._free = ManualQueue(runtime)
        self._free.put(None)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        try:
            self._free.get(blocking, None if timeout < 0 else timeout)
        except QueueEmpty:
            return False
        return True

    def release(self) -> None:
        if self._free.qsize():
            raise RuntimeError("released twice")
        self._free.put(None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class FuzzRuntime(ManualRuntime):
    """A `ManualRuntime` whose locks can be waited for."""

    def lock(self) -> GateLock:
        return GateLock(self)


class ByteStream:
    """An inbound stream whose peer has said all it will ever say."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        self.peer = "hostile:1"
        self.sent = bytearray()
        self.is_closed = False
        self._data = memoryview(data)
        self._chance = chance

    def secure(self, timeout: float | None) -> frozenset[ServerID] | None:
        return None

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        self.sent += data

    def receive_into(self, buffer: memoryview, timeout: float | None) -> int:
        count = min(len(buffer), len(self._data), self._chance.choice((1, 7, 100, 1 << 20)))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def wait_readable(self, timeout: float | None) -> bool:
        return True

    def is_hung_up(self) -> bool:
        return not self._data

    def wait_for_hang_up(self, timeout: float) -> bool:
        return self.is_hung_up()

    def unacknowledged(self) -> int:
        return 0

    def end_sending(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class MemoryLayer:
    """Hands out the streams that it is given."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self.streams = ManualQueue(runtime)

    def local_addr(self) -> str:
        return "n1:1"

    def accept(self, timeout: float) -> ByteStream | None:
        try:
            stream: ByteStream = self.streams.get(timeout=timeout)
        except QueueEmpty:
            return None
        return stream

    def dial(self, address: str, timeout: float) -> ByteStream:
        raise NotImplementedError("nobody dials here")

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class CriticalRecords(logging.Handler):
    """Keeps what was logged as critical: a thread died."""

    def __init__(self) -> None:
        super().__init__(logging.CRITICAL)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record with its trace."""
        self.texts.append(logging.Formatter().format(record))


class Target:
    """A follower of three with a few entries, and its listener."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.requests = 0  # that got as far as the node
        self.successes = 0  # of those, the ones that it granted or carried out
        self._begin()

    def _begin(self) -> None:
        self._runtime = FuzzRuntime()
        self._node = node = ScriptedNode(
            log=entries(2, terms=(1, 2, 2)), hard_state=HardState(2), runtime=self._runtime
        )
        core = node.core
        core.state.set_role(RaftState.FOLLOWER)
        delivery = Delivery(self._runtime)
        delivery.heartbeat_handler = lambda rpc: answer_heartbeat(core, rpc)
        delivery.put = self._deliver
        identity = Identity()
        identity.learn("n1", lambda: CLUSTER)
        self._layer = MemoryLayer(self._runtime)
        server = Server(
            self._layer,
            delivery,
            identity,
            self._runtime,
            timeout=10.0,
            handshake_timeout=5.0,
            max_inbound=16,
        )
        server.start()
        core.threads.spawn("main", self._run_main)
        self._runtime.run()

    def _deliver(self, rpc: RPC) -> None:
        def respond(response: Response | None, error: Exception | None = None) -> None:
            is_granted = getattr(response, "success", False) or getattr(response, "granted", False)
            self.requests += 1
            self.successes += is_granted
            rpc.respond(response, error)

        self._node.core.inbox.deliver(RPC(rpc.command, respond, rpc.reader, rpc.cluster_id))

    def _run_main(self) -> None:
        core = self._node.core
        receiver = SnapshotReceiver(core)
        try:
            while not core.inbox.closed:
                _ROLES.get(core.state.role, Follower)(core, receiver).run()
        except StoppingError:
            pass

    def feed(self, data: bytes) -> bool:
        """Take a connection with these bytes in; tell whether the node halted, as it may.

        Raises `ViolationError` for anything that no input may cause.
        """
        stream = self._connect(data)
        crashes = self._node.crashes
        if crashes and not isinstance(crashes[0], HALTS):
            raise ViolationError(f"the node died: {crashes[0]!r}") from crashes[0]
        if crashes:
            self._begin()  # a node that shuts down closes its transport, with all connections
        elif not stream.is_closed:
            raise ViolationError("the connection is still open though its peer has gone")
        elif self._node.core.state.term > FAR:
            self._begin()  # almost all of what follows would be of the past
        return bool(crashes)

    def feed_measured(self, data: bytes) -> bool:
        """Feed, and raise when that took more memory than the bytes can account for."""
        tracemalloc.start()
        try:
            halted = self.feed(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak > MEMORY_BASE + MEMORY_FACTOR * len(data):
            raise ViolationError(f"{len(data)} bytes took {peak} bytes of memory")
        return halted

    def check_service(self) -> None:
        """Raise unless an honest peer is served still."""
        term = self._node.core.state.term
        request = AppendEntriesRequest(RPCHeader("n2", "n2:1"), term)
        stream = self._connect(GREETING + message_frame(request))
        answers = bytes(stream.sent)[len(Greeting(1, 1, CLUSTER, "n1", "n2").encode()) :]
        if not answers:
            raise ViolationError("an honest peer got no answer")
        code, payload = answers[4], answers[9:]
        answer = decode_message(code, payload)
        if not isinstance(answer, AppendEntriesResponse) or not answer.success:
            raise ViolationError(f"an honest peer was answered {answer}")

    def _connect(self, data: bytes) -> ByteStream:
        stream = ByteStream(data, self._chance)
        self._layer.streams.put(stream)
        self._runtime.run()
        if not stream.is_closed:  # it waits for an answer, or for the node's disk
            self._runtime.advance(PATIENCE)
        return stream
