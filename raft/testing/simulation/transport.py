"""The simulated transport: `raft.interfaces.Transport` over a `SimNetwork`, for one incarnation.

Waiting is done on tasks of the calling process; what arrives is handed over on tasks of the
receiving one, heartbeats included, as real transports do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from raft.errors import (
    ConnectionLostError,
    PeerUnreachableError,
    PipelineShutdownError,
    ProtocolError,
    RaftError,
    RPCTimeoutError,
    TransportShutdownError,
)
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Request,
    Response,
    SnapshotReader,
)
from raft.runtime import Queue
from raft.testing.simulation.network import Answer, Frame, SimNetwork
from raft.testing.simulation.runtime import ProcessState, SimRuntime
from raft.transport.calls import Calls, R
from raft.transport.delivery import Delivery, Identity, check_cluster, check_server
from raft.types import ServerAddress, ServerID

_TIMEOUT = 10.0  # seconds; of a call that names none
_DIAL_TIMEOUT = 1.0
_RESET_SECONDS = 2.0  # the longest that a broken connection goes unnoticed
_STREAM_TIMEOUT = 5.0  # between two pieces of a snapshot
_NOTICE_SECONDS = 0.2  # that the end of a connection takes to be heard, and between two tries
_MOST_AHEAD = 0.5  # seconds that the bytes of a snapshot may be on their way
_PIECE_BYTES = 512  # a snapshot travels in pieces this small, so that much can happen meanwhile
_PIECE_SECONDS = 0.01  # the longest a piece takes to be sent


class Call:
    """One request of a task, until it is answered, or given up."""

    def __init__(self, process: SimRuntime) -> None:
        self._scheduler = process.scheduler
        self._task = process.scheduler.current_task()
        self._answer: Answer | None = None
        self._error: RaftError | None = None

    def __str__(self) -> str:
        return "the answer to a call"

    def is_over(self) -> bool:
        """Tell whether there is an outcome."""
        return self._answer is not None or self._error is not None

    def answer(self, answer: Answer) -> None:
        """Take the answer; the first one counts."""
        if not self.is_over():
            self._answer = answer
            self._scheduler.wake(self._task, self)

    def fail(self, error: RaftError) -> None:
        """End the call with an error of this side."""
        if not self.is_over():
            self._error = error
            self._scheduler.wake(self._task, self)

    def wait(self, timeout: float) -> Response:
        """Return the answer or raise it; the timeout is by the clock of the process."""
        if not self.is_over():
            self._scheduler.park(self, timeout, by_clock=True)
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RPCTimeoutError(f"no answer within {timeout:g} s")
        return self._answer.outcome()


class SimTransport(Calls):
    """How one incarnation of a server talks to the others."""

    def __init__(self, network: SimNetwork, process: SimRuntime, address: ServerAddress) -> None:
        self.process = process
        self.address = address
        self.network = network
        self._delivery = Delivery(process)
        self._identity = Identity()
        self._calls: dict[Call, None] = {}
        self._pipelines: dict[SimPipeline, None] = {}
        self._closed = False
        network.hosts[address] = self

    # ---- the contract's plain parts ----

    def local_addr(self) -> ServerAddress:
        """Return the address."""
        return self.address

    def consumer(self) -> Queue[RPC]:
        """Return the queue of requests that came in."""
        return self._delivery.queue

    def set_heartbeat_handler(self, handler: Callable[[RPC], None] | None) -> None:
        """Have heartbeats given to `handler`, on the connection's task."""
        self._delivery.heartbeat_handler = handler

    def deliver_to(self, put: Callable[[RPC], None]) -> None:
        """Give every request to `put` instead of the consumer queue."""
        self._delivery.put = put

    def identify(self, local_id: ServerID, cluster_id: Callable[[], str | None]) -> None:
        """Learn who the local node is."""
        self._identity.learn(local_id, cluster_id)

    def close(self) -> None:
        """Answer nobody any more; calls under way fail at once."""
        self._closed = True
        if self.network.hosts.get(self.address) is self:
            del self.network.hosts[self.address]
        for call in list(self._calls):
            call.fail(TransportShutdownError("transport is closed"))
        for pipeline in list(self._pipelines):
            pipeline.close()

    # ---- calls ----

    def append_entries_pipeline(self, server_id: ServerID, address: ServerAddress) -> SimPipeline:
        """Connect, which takes a way there and back."""
        self._check_open()
        network, scheduler = self.network, self.process.scheduler
        scheduler.sleep(network.delay(address) + network.delay(self.address))
        if network.is_lost(self.address, address) or network.is_lost(address, self.address):
            scheduler.sleep(_DIAL_TIMEOUT)
            raise PeerUnreachableError(f"dialling {address} timed out")
        host = network.host(address)
        if not isinstance(host, SimTransport):
            raise PeerUnreachableError(f"nobody answers at {address}")
        host.check_identity(server_id, self._identity.cluster_id())
        self._check_open()
        pipeline = SimPipeline(self, host, server_id)
        self._pipelines[pipeline] = None
        return pipeline

    def install_snapshot(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: InstallSnapshotRequest,
        reader: SnapshotReader,
        timeout: float | None = None,
    ) -> InstallSnapshotResponse:
        """Send a snapshot in pieces and wait for the answer."""
        stream = _Stream(self, address, request.size)
        call = self._begin(server_id, address, request, stream)
        try:
            while not call.is_over() and (piece := reader.read(_PIECE_BYTES)):
                self._take_time(_PIECE_SECONDS * self.process.random())
                stream.send(piece)
            return self._finish(call, InstallSnapshotResponse, timeout or _STREAM_TIMEOUT)
        finally:
            stream.end()
            self._calls.pop(call, None)

    def _take_time(self, seconds: float) -> None:
        """Sleep for as long as a piece takes, which may become less meanwhile."""
        while seconds > 0.0:
            slowness = self.network.snapshot_slowness
            step = min(seconds * slowness, _NOTICE_SECONDS)
            self.process.scheduler.sleep(step)
            seconds = 0.0 if step < _NOTICE_SECONDS else seconds - step / slowness

    def _call(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        kind: type[R],
        timeout: float | None,
    ) -> R:
        call = self._begin(server_id, address, request, None)
        try:
            return self._finish(call, kind, _TIMEOUT if timeout is None else timeout)
        finally:
            self._calls.pop(call, None)

    def _begin(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        stream: _Stream | None,
    ) -> Call:
        self.process.scheduler.pause()
        self._check_open()
        call = Call(self.process)
        self._calls[call] = None
        frame = self.network.pack(request, server_id, self._identity.cluster_id())
        self.network.send(self, address, frame, call.answer, stream)
        return call

    def _finish(self, call: Call, kind: type[R], timeout: float) -> R:
        response = call.wait(timeout)
        if not isinstance(response, kind):
            raise ProtocolError(f"a {kind.__name__} was expected, not {response!r}")
        return response

    def _check_open(self) -> None:
        if self._closed:
            raise TransportShutdownError("transport is closed")

    # ---- the receiving side ----

    def check_identity(self, wanted: ServerID, cluster_id: str | None) -> None:
        """Raise when another server, or one of another cluster, was meant."""
        check_server(wanted, self._identity.server_id, self.address)
        check_cluster(cluster_id, self._identity.cluster_id(), f"peer {self.address}")

    def receive(
        self,
        frame: Frame,
        respond: Callable[[Answer], None],
        reader: SnapshotReader | None = None,
    ) -> None:
        """Decode a request and hand it over; on a task of this process."""
        try:
            self.check_identity(frame.wanted, frame.cluster_id)
            request = frame.request()
        except RaftError as error:
            respond(Answer.of(None, error))
            return

        def answer(response: Response | None, error: Exception | None) -> None:
            host = self._identity.server_id
            respond(self.network.answered(host, frame.wanted, request, response, error))

        self._delivery.deliver(RPC(request, answer, reader, frame.cluster_id), _TIMEOUT)

    def cluster_id(self) -> str | None:
        """Return the cluster's id as the local node knows it now."""
        return self._identity.cluster_id()

    def forget(self, pipeline: SimPipeline) -> None:
        """Drop a pipeline that is closed."""
        self._pipelines.pop(pipeline, None)


class SimPipeline:
    """One connection for AppendEntries; a task at the other end answers in order."""

    def __init__(self, source: SimTransport, target: SimTransport, server_id: ServerID) -> None:
        self._source = source
        self._target = target
        self._server_id = server_id
        self._scheduler = source.process.scheduler
        self._requests: Queue[Frame | None] = target.process.queue()
        self._answers: deque[Answer] = deque()
        self._waiter: Any = None
        self._arrives_at = [0.0, 0.0]  # the last message there, and back
        self._is_stuck = False  # a message was lost: nothing comes through any more
        self._is_reset = False  # and this side has heard of it
        self._closed = False
        source.network.start(target, source, self._serve)

    def __str__(self) -> str:
        return "an answer of a pipeline"

    def append_entries(self, request: AppendEntriesRequest) -> None:
        """Send a request without waiting for its answer."""
        self._scheduler.pause()
        self._check_open()
        source = self._source
        frame = source.network.pack(request, self._server_id, source.cluster_id())
        self._send(
            0, source.address, self._target.address, frame, lambda: self._requests.put(frame)
        )

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        """Return the oldest answer not yet received, or raise it."""
        scheduler = self._scheduler
        scheduler.pause()
        until = scheduler.now + (_TIMEOUT if timeout is None else timeout)
        while not self._answers:
            self._check_open()
            if scheduler.now >= until:
                raise RPCTimeoutError("no answer in time")
            self._waiter = scheduler.current_task()
            scheduler.park(self, until - scheduler.now)
            self._waiter = None
        self._check_open()
        response = self._answers.popleft().outcome()
        if not isinstance(response, AppendEntriesResponse):
            raise ProtocolError(f"AppendEntries was answered by {response!r}")
        return response

    def close(self) -> None:
        """Close the connection; what is under way still arrives at the other end."""
        if not self._closed:
            self._closed = True
            self._source.forget(self)
            self._scheduler.call_later(1.0, lambda: self._requests.put(None))
            if self._waiter is not None:
                self._scheduler.wake(self._waiter, self)

    def _check_open(self) -> None:
        if self._closed:
            raise PipelineShutdownError("append pipeline closed")
        if self._is_reset:
            raise ConnectionLostError("the connection was reset")

    def _send(
        self,
        way: int,
        source: ServerAddress,
        target: ServerAddress,
        frame: Frame | None,
        action: Callable[[], None],
    ) -> None:
        """Have something happen at the other end, behind what was sent before."""
        network = self._source.network
        if self._is_stuck:
            return
        if network.is_lost(source, target, large=frame is not None and frame.is_large):
            self._lose()
            return
        size = 0 if frame is None else len(frame.payload)
        took = network.travel(source, target, size)
        arrives_at = max(self._arrives_at[way], self._scheduler.now + took)
        self._arrives_at[way] = arrives_at

        def arrive() -> None:
            if network.host(target) is None or not network.is_open(source, target):
                self._lose()
            elif not self._is_stuck:
                action()

        self._scheduler.call_later(arrives_at - self._scheduler.now, arrive)

    def _lose(self) -> None:
        """Let nothing through any more; this side hears of it after a while."""
        if not self._is_stuck:
            self._is_stuck = True
            delay = _RESET_SECONDS * self._source.process.random()
            self._scheduler.call_later(delay, self._reset)

    def _reset(self) -> None:
        self._is_reset = True
        if self._waiter is not None:
            self._scheduler.wake(self._waiter, self)

    def _take(self, answer: Answer) -> None:
        self._answers.append(answer)
        if self._waiter is not None:
            self._scheduler.wake(self._waiter, self)

    def _serve(self) -> None:
        """Be the other end's task: answer one request after the other."""
        target, source = self._target, self._source
        while (frame := self._requests.get()) is not None:
            answered = target.process.event()
            answers: list[Answer] = []

            def respond(answer: Answer, to: list[Answer] = answers, done: Any = answered) -> None:
                to.append(answer)
                done.set()

            target.receive(frame, respond)
            answered.wait()
            self._send(1, target.address, source.address, None, partial(self._take, answers[0]))


class _Stream:
    """The bytes of a snapshot under way; the receiver reads at its own pace."""

    def __init__(self, source: SimTransport, target: ServerAddress, size: int) -> None:
        self._source = source
        self._target = target
        self._scheduler = source.process.scheduler
        self._left = size
        self._arrived = bytearray()
        self._arrives_at = 0.0
        self._is_broken = False
        self._reader: Any = None
        self._size = size
        self._echo: _Stream | None = None

    def __str__(self) -> str:
        return "bytes of a snapshot"

    def again(self) -> _Stream:
        """Return the same bytes for another reader, as they come; before the first was sent."""
        self._echo = _Stream(self._source, self._target, self._size)
        return self._echo

    def send(self, piece: bytes) -> None:
        """Send the next piece; a lost one breaks the stream.

        Waits while much is on its way: a window bounds that.
        """
        while self._arrives_at - self._scheduler.now > _MOST_AHEAD:
            self._scheduler.sleep(_NOTICE_SECONDS)
        network, source = self._source.network, self._source.address
        self._is_broken = self._is_broken or network.is_lost(source, self._target, large=True)
        took = network.travel(source, self._target, len(piece))
        self._arrives_at = max(self._arrives_at, self._scheduler.now + took)
        if not self._is_broken:
            delay = self._arrives_at - self._scheduler.now
            self._scheduler.call_later(delay, lambda: self._feed(piece))

    def end(self) -> None:
        """Send no more; a reader that still wants something finds the stream broken.

        That is as soon as word of it gets through.
        """
        self._hang_up(self._scheduler.now + _STREAM_TIMEOUT)

    def read(self, size: int = -1, /) -> bytes:
        """Return what has arrived, waiting for something; nothing at the end."""
        until = self._scheduler.now + _STREAM_TIMEOUT
        self._scheduler.pause()
        while self._left and not self._arrived:
            is_reset = self._source.process.state is ProcessState.DEAD
            if self._is_broken or is_reset or self._scheduler.now >= until:
                raise ConnectionLostError("the stream of the snapshot broke off")
            self._reader = self._scheduler.current_task()
            self._scheduler.park(self, min(until - self._scheduler.now, _RESET_SECONDS))
            self._reader = None
        wanted = len(self._arrived) if size < 0 else size
        data = bytes(self._arrived[:wanted])
        del self._arrived[:wanted]
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Do nothing: the sender notices by itself."""

    def _feed(self, piece: bytes) -> None:
        self._arrived += piece
        self._wake()
        if self._echo is not None:
            self._echo._feed(piece)

    def _hang_up(self, until: float) -> None:
        network, now = self._source.network, self._scheduler.now
        if network.gets_through(self._source.address, self._target) or now >= until:
            self._scheduler.call_later(max(self._arrives_at - now, _NOTICE_SECONDS), self._break)
        else:
            self._scheduler.call_later(_NOTICE_SECONDS, lambda: self._hang_up(until))

    def _break(self) -> None:
        self._is_broken = True
        self._wake()
        if self._echo is not None:
            self._echo._break()

    def _wake(self) -> None:
        if self._reader is not None:
            self._scheduler.wake(self._reader, self)
