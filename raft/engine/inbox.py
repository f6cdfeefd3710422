"""The main thread's inbox: what can be asked of a node, and in which order it is heard.

Three lanes. *Control* is what the node tells itself (commits, votes, finished transfers) and comes
first; then expired deadlines; then requests of peers and of clients in turn, so that constant
traffic of either starves nobody. Only clients wait for room: their lane is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from raft.errors import EnqueueTimeoutError, LogCorruptError, RaftError, ShutdownNotAppliedError
from raft.futures import Future, IndexFuture
from raft.messages import RPC, SnapshotReader
from raft.runtime import Deadline, Runtime
from raft.types import (
    Configuration,
    LogType,
    ServerAddress,
    ServerID,
    SnapshotMeta,
    check_cluster_id,
    check_type,
)
from raft.waiting import Waiters, take_out

# ---- what clients ask ----


@dataclass(slots=True)
class Apply:
    """Put one entry into the log: a command, or a barrier. Also what is in flight for it."""

    type: LogType
    data: bytes
    extensions: bytes
    future: IndexFuture[Any]
    budget: ByteBudget | None = None

    def size(self) -> int:
        """Return the bytes counted against `Config.max_pending_bytes`."""
        return len(self.data) + len(self.extensions)

    def succeed(self, value: Any = None) -> None:
        """Answer the caller and give the bytes back."""
        if self.future.respond(value):
            self._give_back()

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error and give the bytes back."""
        if self.future.fail(error):
            self._give_back()

    def _give_back(self) -> None:
        if self.budget is not None:
            self.budget.release(self.size())


class ChangeKind(Enum):
    """The membership changes of the API."""

    ADD_VOTER = "add voter"
    ADD_NONVOTER = "add nonvoter"
    DEMOTE_VOTER = "demote voter"
    REMOVE_SERVER = "remove server"
    PROMOTE = "promote"  # staging to voter; no public method, as in the original


@dataclass(slots=True)
class ChangeConfiguration:
    """Change the membership by one server; waits until the leader's configuration is stable."""

    kind: ChangeKind
    server_id: ServerID
    address: ServerAddress
    prev_index: int
    future: IndexFuture[None]
    deadline: Deadline
    catch_up: bool = False  # a new voter enters as a non-voter, and waits until it has the log

    def __post_init__(self) -> None:
        check_type("server_id", self.server_id, str)
        check_type("address", self.address, str)
        check_type("prev_index", self.prev_index, int)

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


@dataclass(slots=True)
class Bootstrap:
    """Give a blank node its first configuration."""

    configuration: Configuration
    cluster_id: str | None
    future: Future[None]

    def __post_init__(self) -> None:
        check_cluster_id(self.cluster_id)

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


@dataclass(slots=True)
class VerifyLeader:
    """Ask a quorum whether this node still leads."""

    future: Future[None]

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


@dataclass(slots=True)
class ReadBarrier:
    """Confirm leadership as `VerifyLeader`, then wait until the FSM may be read."""

    future: IndexFuture[int]

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


@dataclass(slots=True)
class TransferLeadership:
    """Hand leadership to a server; with an empty id, to the one that has most of the log."""

    server_id: ServerID
    address: ServerAddress
    future: Future[None]

    def __post_init__(self) -> None:
        check_type("server_id", self.server_id, str)
        check_type("address", self.address, str)

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


@dataclass(slots=True)
class UserRestore:
    """Replace the state of the whole cluster by a snapshot of the caller's."""

    meta: SnapshotMeta
    reader: SnapshotReader
    future: IndexFuture[None]

    def __post_init__(self) -> None:
        check_type("meta", self.meta, SnapshotMeta)
        for name in ("index", "size", "version"):
            check_type(f"the snapshot's {name}", getattr(self.meta, name), int)

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self.future.fail(error)


ClientMessage: TypeAlias = (
    Apply
    | ChangeConfiguration
    | Bootstrap
    | VerifyLeader
    | ReadBarrier
    | TransferLeadership
    | UserRestore
)

# ---- what the node tells itself; what belongs to one term or round says which ----


@dataclass(frozen=True, slots=True)
class CommitAdvanced:
    """A quorum has more of the log of this leadership."""

    term: int


@dataclass(frozen=True, slots=True)
class NewerTermSeen:
    """A peer answered the leader of `term` with a newer one: it leads no longer (§5.1)."""

    term: int
    seen: int


@dataclass(frozen=True, slots=True)
class BeatAnswered:
    """A voter answered a heartbeat whose round began when `sequence` had been asked for."""

    term: int
    server_id: ServerID
    sequence: int
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class PeerMet:
    """A peer answers from this data directory, or the note on it is durable by now."""

    term: int
    server_id: ServerID
    incarnation: str


@dataclass(frozen=True, slots=True)
class ServerReached:
    """A server has the log up to `index`, for which the leader of `term` has waited."""

    term: int
    server_id: ServerID
    index: int


@dataclass(frozen=True, slots=True)
class TransferAnswered:
    """The target of a transfer was told to campaign, or could not be (`error`)."""

    term: int
    transfer: object
    error: Exception | None


@dataclass(frozen=True, slots=True)
class RestoreStored:
    """A user's snapshot is durable on the leader of `term`, or could not be stored (`error`)."""

    term: int
    restore: object
    meta: SnapshotMeta | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class RestoreTried:
    """The leader's FSM holds a user's snapshot, or could not restore it (`error`)."""

    term: int
    restore: object
    error: RaftError | None


@dataclass(frozen=True, slots=True)
class LogReplaced:
    """The log is gone that a user's snapshot replaces, on the leader of `term`."""

    term: int
    restore: object


@dataclass(frozen=True, slots=True)
class ConfigReloaded:
    """Timeouts were changed: what waits by the old ones looks again."""


@dataclass(frozen=True, slots=True)
class TailWriteFailed:
    """The leader's own log write raised; it counts in whatever role that is heard."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class LogCorrupted:
    """Somebody has read an entry that the disk has changed."""

    error: LogCorruptError


@dataclass(frozen=True, slots=True)
class VoteReceived:
    """The answer of one voter in one round of a candidate; or why there is none, in `reason`."""

    round: int
    server_id: ServerID
    pre_vote: bool
    term: int
    granted: bool
    incarnation: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The snapshot thread has made a snapshot of our own durable."""

    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """A peer of the leader of `term` needs a snapshot, and none can be read."""

    term: int


@dataclass(frozen=True, slots=True)
class SnapshotAttempted:
    """The snapshot that the leader of `term` wanted is there, or could not be taken (`error`)."""

    term: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class SnapshotReceived:
    """A leader's snapshot is durable here, or was not received (`error`)."""

    rpc: RPC
    meta: SnapshotMeta | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class FSMPoisoned:
    """The FSM could not be restored: it must not apply, and this node must not lead."""

    error: BaseException


ControlMessage: TypeAlias = (
    CommitAdvanced
    | NewerTermSeen
    | BeatAnswered
    | PeerMet
    | ServerReached
    | TransferAnswered
    | RestoreStored
    | RestoreTried
    | LogReplaced
    | ConfigReloaded
    | TailWriteFailed
    | LogCorrupted
    | VoteReceived
    | SnapshotTaken
    | SnapshotReceived
    | SnapshotWanted
    | SnapshotAttempted
    | FSMPoisoned
)
Message: TypeAlias = ControlMessage | ClientMessage | RPC


class ByteBudget:
    """Bytes of commands not answered yet (`Config.max_pending_bytes`); safe from any thread.

    Nobody waits for the lock, see `raft.waiting`: who does not get it leaves his change to the one
    who has it. Of several that find the same room each may get it, so the limit is a soft one.
    """

    def __init__(self, runtime: Runtime, limit: int) -> None:
        self._limit = limit
        self._room = Waiters(runtime)
        self._lock = runtime.lock()  # guards _used; only ever tried
        self._used = 0
        self._changes: deque[int] = deque()  # not in _used yet
        self._closed = False

    def acquire(self, size: int, deadline: Deadline) -> bool:
        """Wait for room; False when the deadline passed. A lone command always finds room."""

        def is_blocked() -> bool:
            return 0 < self._used > self._limit - size and not self._closed

        while is_blocked():
            if deadline.remaining() == 0.0:
                return False
            self._room.wait(is_blocked, deadline)
        self._count(size)
        return True

    def release(self, size: int) -> None:
        """Give bytes back."""
        self._count(-size)
        self._room.wake_all()  # several may fit where one was

    def close(self) -> None:
        """Let everybody through; the inbox refuses them."""
        self._closed = True
        self._room.wake_all()

    def _count(self, change: int) -> None:
        self._changes.append(change)
        while self._changes and self._lock.acquire(False):
            try:
                while self._changes:
                    self._used += self._changes.popleft()
            finally:
                self._lock.release()


@dataclass(slots=True)
class Leftovers:
    """What nobody will hear any more, to be answered."""

    clients: list[ClientMessage] = field(default_factory=list)
    rpcs: list[RPC] = field(default_factory=list)
    control: list[ControlMessage] = field(default_factory=list)


class Inbox:
    """The one queue of the main thread. Any thread posts; only the main thread takes.

    Without a lock, see `raft.waiting`. Invariant: a client whose `submit` raised is never heard;
    one whose `submit` returned is answered by whoever takes the message.
    """

    def __init__(self, runtime: Runtime, client_limit: int) -> None:
        self._runtime = runtime
        self._limit = client_limit
        self._news = runtime.gate()  # for the main thread
        self._room = Waiters(runtime)
        self._control: deque[ControlMessage] = deque()
        self._rpcs: deque[RPC] = deque()
        self._clients: deque[ClientMessage] = deque()
        self._poked = False
        self._rpcs_turn = True
        self.closed = False  # set once

    # ---- any thread ----

    def post(self, message: ControlMessage) -> None:
        """Tell the main thread something; never blocks."""
        self._control.append(message)
        self._news.open()

    def deliver(self, rpc: RPC) -> None:
        """Hand a peer's request over; never blocks."""
        self._rpcs.append(rpc)
        self._news.open()
        if self.closed:  # perhaps nobody looks any more
            for left in take_out(self._rpcs):
                left.respond(None, ShutdownNotAppliedError("node is shut down"))

    def submit(self, message: ClientMessage, deadline: Deadline) -> None:
        """Hand a client's request over, waiting for room until the deadline.

        Raises:
            EnqueueTimeoutError: there was no room in time.
            ShutdownNotAppliedError: the node is shut down.
        """
        while self._is_full() and not self.closed:
            if deadline.remaining() == 0.0:
                raise EnqueueTimeoutError("timed out enqueuing operation")
            self._room.wait(lambda: self._is_full() and not self.closed, deadline)
        if self.closed:
            raise ShutdownNotAppliedError("raft is already shut down")
        self._clients.append(message)
        self._news.open()
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        """Answer clients if the inbox was closed meanwhile: perhaps nobody looks any more."""
        if self.closed:
            for left in take_out(self._clients):
                left.fail(ShutdownNotAppliedError("raft is already shut down"))

    def _is_full(self) -> bool:
        return len(self._clients) >= self._limit

    def poke(self) -> None:
        """Make the current or next `take` return None."""
        self._poked = True
        self._news.open()

    def close(self) -> None:
        """Take nothing more in; the main thread ends its loop."""
        self.closed = True
        self._news.open()
        self._room.wake_all()

    def drain(self) -> Leftovers:
        """Take everything out, after `close`, to answer it."""
        return Leftovers(take_out(self._clients), take_out(self._rpcs), take_out(self._control))

    # ---- main thread ----

    def take(self, until: float | None, *, only_clients: bool = False) -> Message | None:
        """Return the next message; None at `until` (monotonic), when poked, and when closed.

        With `only_clients` everything else stays where it is: the main thread waits for its disk.
        """
        while not self.closed:
            if self._poked:
                self._poked = False
                return None
            now = self._runtime.monotonic()
            try:
                if self._control and not only_clients:
                    return self._control.popleft()
                if until is not None and now >= until:
                    return None
                if self._rpcs and not only_clients and (self._rpcs_turn or not self._clients):
                    self._rpcs_turn = False
                    return self._rpcs.popleft()
                if self._clients:
                    self._rpcs_turn = True
                    return self._pop_client()
            except IndexError:
                continue  # the inbox is being closed, and somebody else has answered it
            self._news.wait(None if until is None else until - now)
        return None

    def put_back(self, rpc: RPC) -> None:
        """Have a request heard first, by the role that comes next."""
        self._rpcs.appendleft(rpc)
        self._rpcs_turn = True

    def put_clients_back(self, messages: Sequence[ClientMessage]) -> None:
        """Have these heard first, in this order, once the main thread takes clients again."""
        self._clients.extendleft(reversed(messages))
        self._refuse_if_closed()

    def take_ready(self, limit: int, max_bytes: int) -> list[Apply]:
        """Return the applies that stand in front, without waiting: group commit."""
        batch: list[Apply] = []
        size = 0
        while self._clients and len(batch) < limit and size < max_bytes:
            try:
                message = self._pop_client()
            except IndexError:
                break  # the inbox is being closed, and somebody else has answered it
            if not isinstance(message, Apply):
                self._clients.appendleft(message)
                break
            batch.append(message)
            size += message.size()
        return batch

    def _pop_client(self) -> ClientMessage:
        message = self._clients.popleft()
        self._room.wake()
        return message
