"""The simulated network: encoded bytes between servers, late, lost, twice, or not at all.

A plain call is one message each way, on a connection of its own: calls overtake each other. A
pipeline is one connection: in order, and once a message is lost nothing more arrives on it. What
was under way when a connection was closed arrives all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Protocol, cast

from raft.codec import decode_message, encode_message
from raft.errors import PeerUnreachableError, ProtocolError
from raft.messages import (
    RPC_TYPES,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
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
from raft.types import NO_INDEX, EntryID, ServerAddress, ServerID

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
    is_large: bool = False  # has entries in it, or stands before a snapshot

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


class Witness:
    """Who knows the servers that answer; this one has nothing to say against them."""

    def has_term(self, _server_id: ServerID, _term: int) -> bool:
        """Tell whether a server that follows a leader has its term on disk."""
        return True

    def has_cluster_id(self, _server_id: ServerID) -> bool:
        """Tell whether a server that acknowledges entries has its cluster's id on disk."""
        return True

    def has_durably(self, _server_id: ServerID, _index: int, _term: int) -> bool:
        """Tell whether a server has an entry on disk that it acknowledges."""
        return True

    def last_entry(self, _server_id: ServerID) -> EntryID:
        """Return where the log of a server that votes ends, on disk."""
        return EntryID()

    def wrong_members(self, _server_id: ServerID, _index: int) -> str:
        """Say what is wrong with the configuration that a server uses, empty for nothing.

        Asked where it has accepted entries or a snapshot, with the index of the one in there.
        """
        return ""


class Stream(SnapshotReader, Protocol):
    """The bytes of a snapshot under way."""

    def again(self) -> SnapshotReader:
        """Return the same bytes for another reader, as they come; before the first was sent."""


class Ways:
    """What is special about the ways from and to single servers; empty for nothing."""

    def __init__(self) -> None:
        self.lag: dict[ServerAddress, float] = {}  # seconds by which all to somebody is later
        # From where large messages vanish, or from where to where.
        self.swallowing: dict[ServerAddress | tuple[ServerAddress, ServerAddress], None] = {}
        self.rates: dict[ServerAddress, float] = {}  # bytes a second that leave on each way
        self._free_at: dict[tuple[ServerAddress, ServerAddress], float] = {}  # when they have left

    def clear(self) -> None:
        """Make all ways plain."""
        self.lag.clear()
        self.swallowing.clear()
        self.rates.clear()

    def swallow(self, source: ServerAddress, target: ServerAddress) -> bool:
        """Tell whether large messages vanish on this way."""
        return source in self.swallowing or (source, target) in self.swallowing

    def queue(self, source: ServerAddress, target: ServerAddress, size: int, now: float) -> float:
        """Return how long a message waits for what the same way has to carry before, and itself."""
        rate = self.rates.get(source)
        if rate is None:
            return 0.0
        leaves = max(now, self._free_at.get((source, target), now)) + size / rate
        self._free_at[source, target] = leaves
        return leaves - now


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
        self.ways = Ways()
        self.snapshot_slowness = 1.0  # and this the time that a snapshot takes to send
        self.witness = Witness()
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

    def gets_through(self, source: ServerAddress, target: ServerAddress) -> bool:
        """Tell whether nothing gets lost on this way now."""
        return self.is_open(source, target) and not self.loss

    def host(self, address: ServerAddress) -> Host | None:
        """Return who answers at an address, None when nobody does."""
        host = self.hosts.get(address)
        return None if host is None or host.process.state is ProcessState.DEAD else host

    # ---- messages ----

    def delay(self, target: ServerAddress) -> float:
        """Draw how long a message travels to somebody."""
        chance = self.scheduler.chance.random
        longest = _LONGEST_DELAY if chance() < _LONG_DELAY_CHANCE else _USUAL_DELAY
        return (_SHORTEST_DELAY + (longest - _SHORTEST_DELAY) * chance()) * self.slowness + (
            self.ways.lag.get(target, 0.0)
        )

    def travel(self, source: ServerAddress, target: ServerAddress, size: int) -> float:
        """Draw how long a message is on its way, behind what the same way has to carry before."""
        queued = self.ways.queue(source, target, size, self.scheduler.now)
        return queued + self.delay(target)

    def is_lost(self, source: ServerAddress, target: ServerAddress, *, large: bool = False) -> bool:
        """Draw whether a message gets lost; always on a closed way, and where large ones vanish."""
        self.messages += 1
        passes = self.is_open(source, target) and not (large and self.ways.swallow(source, target))
        if passes and (not self.loss or self.scheduler.chance.random() >= self.loss):
            return False
        self.lost += 1
        return True

    def send(
        self,
        source: Host,
        target: ServerAddress,
        frame: Frame,
        on_answer: Callable[[Answer], None],
        stream: Stream | None = None,
    ) -> None:
        """Send a plain request; `on_answer` is called on no task, or never."""
        if self.is_lost(source.address, target, large=frame.is_large):
            return

        def respond(answer: Answer) -> None:
            if not self.is_lost(target, source.address):
                self.scheduler.call_later(self.delay(source.address), lambda: on_answer(answer))

        def arrive(reader: SnapshotReader | None) -> None:
            host = self.host(target)
            if not self.is_open(source.address, target):
                self.lost += 1
            elif host is None:
                respond(Answer.of(None, PeerUnreachableError(f"nobody answers at {target}")))
            else:
                self.start(host, source, lambda: host.receive(frame, respond, reader))

        way = self.travel(source.address, target, len(frame.payload))
        self.scheduler.call_later(way, partial(arrive, stream))
        if self.duplication and self.scheduler.chance.random() < self.duplication:
            echo = None if stream is None else stream.again()
            lateness = 4.0 ** (1.0 + _LATEST_ECHO * self.scheduler.chance.random())
            self.scheduler.call_later(self.delay(target) * lateness, partial(arrive, echo))

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
                self.invariants.decided(request.header.id, request.term, last)
        is_large = isinstance(request, InstallSnapshotRequest) or (
            isinstance(request, AppendEntriesRequest) and bool(request.entries)
        )
        return Frame(*encode_message(request), cluster_id, wanted, is_large)

    def answered(
        self,
        host: ServerID,
        wanted: ServerID,
        request: Request,
        response: Response | None,
        error: Exception | None,
    ) -> Answer:
        """Encode an answer that is about to be sent, and report what it says."""
        if host not in self.strangers and response is not None:
            if wanted and wanted != host:
                self.invariants.fail(f"identity: {host} answers what is meant for {wanted}")
            self._look(host, request, response)
        return Answer.of(response, error)

    def _look(self, host: ServerID, request: Request, response: Response) -> None:
        """Report what an answer says."""
        if isinstance(request, RequestVoteRequest):
            if isinstance(response, RequestVoteResponse) and response.granted:
                self.invariants.voted(host, response.term, request.header.id)
                self.invariants.decided(host, response.term, self.witness.last_entry(host))
                self.on_vote(host)
        elif isinstance(request, AppendEntriesRequest):
            if isinstance(response, AppendEntriesResponse) and response.success:
                if not self.witness.has_term(host, request.term):
                    text = f"{host} follows a leader of term {request.term}, not on its disk"
                    self.invariants.fail(text)
                if not request.is_heartbeat():
                    self._look_at_entries(host, request)
        elif isinstance(response, InstallSnapshotResponse) and response.success:
            self.installs += 1
            if isinstance(request, InstallSnapshotRequest):
                self._look_at_members(host, request.configuration_index)

    def _look_at_entries(self, host: ServerID, request: AppendEntriesRequest) -> None:
        index, term = request.prev_log_index, request.prev_log_term
        if request.entries:
            index, term = request.entries[-1].index, request.entries[-1].term
        if index:
            if not self.witness.has_cluster_id(host):
                self.invariants.fail(f"identity: {host} has no cluster's id on its disk")
            self.invariants.acknowledged(host, EntryID(term, index), request.term)
            if not self.witness.has_durably(host, index, term):
                self.invariants.fail(f"{host} acknowledged entry {index}, not on its disk")
        self._look_at_members(host, NO_INDEX)

    def _look_at_members(self, host: ServerID, index: int) -> None:
        if wrong := self.witness.wrong_members(host, index):
            self.invariants.fail(f"membership: {host} {wrong}")
