"""What a node tells its application about itself, without ever waiting for it.

Observers, their filters and the callbacks of futures are user code: all run on the node's events
thread, so that none of them can hold up consensus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from raft.logs import get_logger
from raft.messages import RequestPreVoteRequest, RequestVoteRequest
from raft.runtime import THREADS, Deadline, Queue, QueueEmpty, QueueFull, Runtime
from raft.types import RaftState, Server, ServerAddress, ServerID

_log = get_logger(__name__)

_MOST_WAITING = 65_536  # observations kept for a blocking observer that does not read
_ESCAPE_PERIOD = 0.1  # seconds between looks at the stop flag while an observer blocks


@dataclass(frozen=True, slots=True)
class LeaderObservation:
    """The known leader changed; empty texts when none is known."""

    leader_address: ServerAddress
    leader_id: ServerID


@dataclass(frozen=True, slots=True)
class PeerObservation:
    """The leader began, or ended (`removed`), to replicate to a server."""

    removed: bool
    peer: Server


@dataclass(frozen=True, slots=True)
class FailedHeartbeatObservation:
    """A heartbeat failed; `last_contact` is the runtime's monotonic clock, in seconds."""

    peer_id: ServerID
    last_contact: float


@dataclass(frozen=True, slots=True)
class ResumedHeartbeatObservation:
    """The first heartbeat was answered after some that failed."""

    peer_id: ServerID


@dataclass(frozen=True, slots=True)
class FailedCommandObservation:
    """The FSM answered the command at `index` with an exception, which it must do on every node.

    `is_answered`: a caller on this node got it.
    """

    index: int
    term: int
    error: BaseException
    is_answered: bool


@dataclass(frozen=True, slots=True)
class VoterReplacedObservation:
    """A voter has another data directory than the one counted on: it counts no more.

    Remove the server and add it again.
    """

    server_id: ServerID
    expected: str
    found: str


ObservationData: TypeAlias = (
    RaftState
    | LeaderObservation
    | PeerObservation
    | RequestVoteRequest
    | RequestPreVoteRequest
    | FailedHeartbeatObservation
    | ResumedHeartbeatObservation
    | FailedCommandObservation
    | VoterReplacedObservation
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that happened at `raft`, the node."""

    raft: Any
    data: ObservationData


class Observer:
    """Puts observations into a queue of the application.

    With `blocking` the events thread waits until there is room, which delays other observers and
    callbacks but nothing else; without, what finds no room is dropped and counted.
    """

    def __init__(
        self,
        channel: Queue[Observation] | None,
        blocking: bool = False,
        filter: Callable[[Observation], bool] | None = None,
    ) -> None:
        self.channel = channel
        self.blocking = blocking
        self.filter = filter
        self.observed = 0
        self.dropped = 0


class Events:
    """The events thread: runs user code in the order it was handed over, and survives it.

    Without a lock, see `raft.waiting`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._news = runtime.gate()  # for the events thread
        self._waiting: deque[Callable[[], None]] = deque()
        self._observers: dict[int, Observer] = {}  # by identity
        self._closed = False
        self._has_ended = False

    def register(self, observer: Observer) -> None:
        """Add an observer."""
        self._observers[id(observer)] = observer

    def deregister(self, observer: Observer) -> None:
        """Remove an observer; one that is absent does not matter."""
        self._observers.pop(id(observer), None)

    def emit(self, observation: Observation) -> None:
        """Hand an observation to the observers; never blocks."""
        if not self._observers or self._closed:
            return
        if len(self._waiting) >= _MOST_WAITING:
            for observer in list(self._observers.values()):
                observer.dropped += 1
            return
        self._waiting.append(lambda: self._deliver(observation))
        self._news.open()

    def run_callback(self, callback: Callable[[], None]) -> None:
        """Run a future's callback on the events thread, or here once that is to end."""
        if self._closed:
            self._run_one(callback)
            return
        self._waiting.append(callback)
        self._news.open()
        if self._has_ended:
            self._run_all()

    def close(self) -> None:
        """Let the thread end once everything handed over has run."""
        self._closed = True
        self._news.open()

    def run(self) -> None:
        """Be the events thread."""
        while not self._closed:
            self._run_all()
            self._news.wait()
        self._run_all()
        self._has_ended = True
        self._run_all()  # what came at the last moment, from one who did not know that

    def _run_all(self) -> None:
        while self._waiting:
            try:
                callback = self._waiting.popleft()
            except IndexError:
                return  # somebody else runs it
            self._run_one(callback)

    def _run_one(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except (Exception, SystemExit):  # noqa: BLE001 - user code: report, go on
            _log.exception("callback or observer failed")

    def _deliver(self, observation: Observation) -> None:
        for observer in list(self._observers.values()):
            self._run_one(partial(self._tell, observer, observation))

    def _tell(self, observer: Observer, observation: Observation) -> None:
        if observer.filter is not None and not observer.filter(observation):
            return
        if observer.channel is not None:
            self._put(observer, observer.channel, observation)

    def _put(
        self, observer: Observer, channel: Queue[Observation], observation: Observation
    ) -> None:
        while True:
            try:
                channel.put(observation, observer.blocking, _ESCAPE_PERIOD)
            except QueueFull:
                if observer.blocking and self._is_registered(observer):
                    continue  # one taken off the list has nobody left who reads
                observer.dropped += 1
            else:
                observer.observed += 1
            return

    def _is_registered(self, observer: Observer) -> bool:
        return not self._closed and id(observer) in self._observers


class LatestValue:
    """A one-slot channel for a level: an unread value is replaced, the producer never waits.

    A consumer always gets the latest value; one that missed a change and its reversal gets the
    same value again.
    """

    def __init__(self, runtime: Runtime = THREADS) -> None:
        self._runtime = runtime
        self._news = runtime.gate()
        self._values: deque[bool] = deque(maxlen=1)

    def put(self, value: bool) -> None:
        """Replace the value."""
        self._values.append(value)
        self._news.open()

    def get(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the value, waiting up to `timeout` seconds for one; else raise `QueueEmpty`."""
        deadline = Deadline(self._runtime, timeout if block else 0.0)
        while True:
            try:
                return self._values.popleft()
            except IndexError:
                pass
            remaining = deadline.remaining()
            if remaining == 0.0:
                raise QueueEmpty
            self._news.wait(remaining)
