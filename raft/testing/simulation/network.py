"""The simulated network: encoded bytes between servers, late, lost, twice, or not at all.

A plain call is one message each way, on a connection of its own: calls overtake each other. A
pipeline is one connection: in order, and once a message is lost nothing more arrives on it. What
was under way when a connection was closed arrives all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, cast

from raft.codec import decode_message, encode_message
from raft.errors import PeerUnreachableError, ProtocolError
from raft.messages import (
    RPC_TYPES,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotResponse,
    Request,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    SnapshotReader,
)
from raft.testing.invariants import Invariants
from raft.testing.simulation.runtime import ProcessState, Scheduler, SimRuntime
from raft.transport.delivery import describe, error_kind, remote_error
from raft.types import EntryID, ServerAddress, ServerID

_SHORTEST_DELAY = 0.0003  # seconds one way
_USUAL_DELAY = 0.004
_LONGEST_DELAY = 0.15
_LONG_DELAY_CHANCE = 0.02
_LATEST_ECHO = 3.0  # a message that arrives twice is late by a factor of up to 4 ** (1 + this)


class Frame(NamedTuple):
    """A message as it travels."""

    code: int
    payload: bytes
    cluster_id: str | None = None
    wanted: ServerID = ""

    def request(self) -> Request:
        """Return the request inside, or raise `ProtocolError`."""
        message = decode_message(self.code, self.payload)
        if type(message) not in RPC_TYPES:
            raise ProtocolError(f"a {type(message).__name__} came as a request")
        return cast(Request, message)


class Answer(NamedTuple):
    """An answer as it travels: a message, or what went wrong as a kind and a text."""

    frame: Frame | None
    kind: str = ""
    text: str = ""

    @classmethod
    def of(cls, response: Response | None, error: BaseException | None) -> Answer:
        """Pack an answer."""
        if response is not None:
            return cls(Frame(*encode_message(response)))
        error = error or ProtocolError("no answer")
        kind = "unreachable" if isinstance(error, PeerUnreachableError) else error_kind(error)
        return cls(None, kind, describe(error))

    def outcome(self) -> Response:
        """Return the response, or raise the error."""
        if self.frame is None:
            if self.kind == "unreachable":
                raise PeerUnreachableError(self.text)
            raise remote_error(self.kind, self.text)
        return cast(Response, decode_message(self.frame.code, self.frame.payload))


class Host(Protocol):
    """What the network needs of a transport."""

    process: SimRuntime
    address: ServerAddress

    def receive(
        self, frame: Frame, respond: Callable[[Answer], None], reader: SnapshotReader | None
    ) -> None:
        """Take a request in; on a task of the host's process."""


class SimNetwork:
    """All ways between servers. Closed ways and rates may be changed at any time."""

    def __init__(self, scheduler: Scheduler, invariants: Invariants) -> None:
        self.scheduler = scheduler
        self.invariants = invariants
        self.hosts: dict[ServerAddress, Host] = {}
        self.closed_ways: dict[tuple[ServerAddress, ServerAddress], None] = {}
        self.loss = 0.0  # chance of each message to be lost
        self.duplication = 0.0  # chance of each plain request to arrive twice
        self.slowness = 1.0  # multiplies every delay
        # Asked at each acknowledgement of entries: does this server have that entry on disk?
        self.has_durably: Callable[[ServerID, int, int], bool] = lambda *_: True
        # Asked at each vote: where does this server's log end, on disk?
        self.last_entry: Callable[[ServerID], EntryID] = lambda _: EntryID()
        self.on_vote: Callable[[ServerID], None] = lambda _: None
        self.strangers: dict[ServerID, None] = {}  # servers of another cluster: not looked at
        self.messages = 0
        self.lost = 0
        self.installs = 0  # snapshots acknowledged

    # ---- ways ----

    def partition(self, *groups: Iterable[ServerAddress]) -> None:
        """Close all ways between different groups, in place of all that was closed."""
        sides = [list(group) for group in groups]
        self.heal()
        for side in sides:
            for other in sides:
                if other is not side:
                    self.closed_ways.update({(a, b): None for a in side for b in other})

    def bridge(
        self, middle: ServerAddress, left: Iterable[ServerAddress], right: Iterable[ServerAddress]
    ) -> None:
        """Let two sides talk to the one in the middle, but not to each other."""
        self.partition([side for side in left if side != middle], [s for s in right if s != middle])

    def close_way(self, source: ServerAddress, target: ServerAddress) -> None:
        """Close one way; the way back stays open."""
        self.closed_ways[source, target] = None

    def heal(self) -> None:
        """Open all ways."""
        self.closed_ways.clear()

    def is_open(self, source: ServerAddress, target: ServerAddress) -> bool:
        """Tell whether messages pass this way now."""
        return (source, target) not in self.closed_ways

    def host(self, address: ServerAddress) -> Host | None:
        """Return who answers at an address, None when nobody does."""
        host = self.hosts.get(address)
        return None if host is None or host.process.state is ProcessState.DEAD else host

    # ---- messages ----

    def delay(self) -> float:
        """Draw how long a message travels."""
        chance = self.scheduler.chance.random
        longest = _LONGEST_DELAY if chance() < _LONG_DELAY_CHANCE else _USUAL_DELAY
        return (_SHORTEST_DELAY + (longest - _SHORTEST_DELAY) * chance()) * self.slowness

    def is_lost(self, source: ServerAddress, target: ServerAddress) -> bool:
        """Draw whether a message gets lost; always on a closed way."""
        self.messages += 1
        if self.is_open(source, target) and (
            not self.loss or self.scheduler.chance.random() >= self.loss
        ):
            return False
        self.lost += 1
        return True

    def send(
        self,
        source: Host,
        target: ServerAddress,
        frame: Frame,
        on_answer: Callable[[Answer], None],
        stream: SnapshotReader | None = None,
    ) -> None:
        """Send a plain request; `on_answer` is called on no task, or never."""
        if self.is_lost(source.address, target):
            return

        def respond(answer: Answer) -> None:
            if not self.is_lost(target, source.address):
                self.scheduler.call_later(self.delay(), lambda: on_answer(answer))

        def arrive() -> None:
            host = self.host(target)
            if not self.is_open(source.address, target):
                self.lost += 1
            elif host is None:
                respond(Answer.of(None, PeerUnreachableError(f"nobody answers at {target}")))
            else:
                self.start(host, source, lambda: host.receive(frame, respond, stream))

        self.scheduler.call_later(self.delay(), arrive)
        if (
            self.duplication
            and stream is None
            and self.scheduler.chance.random() < self.duplication
        ):
            lateness = 4.0 ** (1.0 + _LATEST_ECHO * self.scheduler.chance.random())
            self.scheduler.call_later(self.delay() * lateness, arrive)

    def start(self, host: Host, source: Host, target: Callable[[], None]) -> None:
        """Run something on a connection's task at a host; may be called on no task."""
        name = f"{host.process.name}-conn-{source.process.name}"
        self.scheduler.add_task(name, host.process, target)

    def pack(self, request: Request, wanted: ServerID, cluster_id: str | None) -> Frame:
        """Encode a request that is about to be sent, and report it."""
        if request.header.id not in self.strangers:
            self.invariants.sent(request)
            if isinstance(request, RequestVoteRequest):
                last = EntryID(request.last_log_term, request.last_log_index)
                self.invariants.decided(request.header.id, last)
        return Frame(*encode_message(request), cluster_id, wanted)

    def answered(
        self, host: ServerID, request: Request, response: Response | None, error: Exception | None
    ) -> Answer:
        """Encode an answer that is about to be sent, and report what it says."""
        if host in self.strangers:
            return Answer.of(response, error)
        is_vote = isinstance(request, RequestVoteRequest)
        if is_vote and isinstance(response, RequestVoteResponse) and response.granted:
            self.invariants.voted(host, response.term, request.header.id)
            self.invariants.decided(host, self.last_entry(host))
            self.on_vote(host)
        if isinstance(request, AppendEntriesRequest) and not request.is_heartbeat():
            index, term = request.prev_log_index, request.prev_log_term
            if request.entries:
                index, term = request.entries[-1].index, request.entries[-1].term
            if isinstance(response, AppendEntriesResponse) and response.success and index:
                self.invariants.acknowledged(host, EntryID(term, index))
                if not self.has_durably(host, index, term):
                    self.invariants.fail(f"{host} acknowledged entry {index}, not on its disk")
        if isinstance(response, InstallSnapshotResponse) and response.success:
            self.installs += 1
        return Answer.of(response, error)
