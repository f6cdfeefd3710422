"""The contracts between Raft and what is plugged into it: state machine, stores, transport.

All are `Protocol`s: a class fits by having the methods. Optional abilities are protocols of their
own, recognised once, where the object comes in. Names and meaning follow the original; what is
added beyond it says so. `raft.testing.contracts` has tests that any implementation can run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol, runtime_checkable

from raft.errors import LogNotFoundError
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    SnapshotReader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.metrics import Metrics
from raft.runtime import Queue
from raft.types import Configuration, EntryID, Log, ServerAddress, ServerID, SnapshotMeta

# ---- the application ----


class FSM(Protocol):
    """The application's state machine. Every method is called on the node's FSM thread.

    `apply` must be deterministic, what it raises included. docs/state-machines.md is the guide.
    """

    def apply(self, log: Log) -> Any:
        """Apply one committed command, in log order; what it returns answers the caller.

        An exception is the answer to that command on every replica: the future's `result()` raises
        it, and the node goes on. These name this machine and halt the node instead, before anything
        later is applied (`Config.fsm_halt_on` replaces the list): `MemoryError`; `FSMHaltError`;
        `SystemExit` and `KeyboardInterrupt`; an `OSError` with one of the numbers EIO, ENOSPC,
        EDQUOT, EROFS, EMFILE, ENFILE, ENOMEM, ENODEV, ENXIO, ESTALE, EACCES, EPERM; a `sqlite3`
        error that says busy, locked, out of memory, read-only, I/O error, corrupt, full, cannot
        open or protocol; another driver's `OperationalError`, `InternalError` or `InterfaceError`.
        """

    def snapshot(self) -> FSMSnapshot:
        """Return a view of the state as of now, quickly; writing it is `persist`'s work."""

    def restore(self, reader: BinaryIO) -> None:
        """Replace the whole state by what a snapshot holds; drop all old state first.

        The reader is a buffered file that cannot seek: `pickle.load`, `io.TextIOWrapper` and
        `for line in reader` take it. It is closed when this returns.
        """


@runtime_checkable
class BatchingFSM(Protocol):
    """An FSM that takes several entries at once; `apply` is then not called."""

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Apply commands in order, one answer each; configuration entries come along.

        Look at `log.type`. Raising, or a wrong number of answers, halts the node: catch what a
        command raises, and return it as the answer.
        """


@runtime_checkable
class ConfigurationStore(Protocol):
    """An FSM that wants to know the membership, too."""

    def store_configuration(self, index: int, configuration: Configuration) -> None:
        """Take note of a committed configuration; raising halts the node.

        Each restore is followed by a call with what the snapshot says; raising there fails it.
        """


class FSMSnapshot(Protocol):
    """A view of the state machine's state at one index."""

    def persist(self, sink: SnapshotSink) -> None:
        """Write the state to the sink, on the snapshot thread, while `apply` goes on.

        When this returns the snapshot is complete, unless the sink was cancelled; raise if not.
        The sink need not be closed. Must not wait for a future of its own node (`DeadlockError`).

        Other threads of the process run only when this one lets the interpreter go. One call into C
        that works for longer than `Config.leader_lease_timeout` (`json.dumps` of a large
        structure: a million keys a second) costs a leader its office. Write in pieces, or use
        `pickle.Pickler(sink).dump`; docs/state-machines.md has the figures.
        """

    def release(self) -> None:
        """Let go of the view; called once, whether `persist` succeeded or not.

        What it raises is only logged.
        """


# ---- stores ----


class LogStore(Protocol):
    """Durable log entries. Thread-safe; only the node's disk thread writes.

    When a method that writes has returned, what it wrote survives the loss of power.
    """

    def first_index(self) -> int:
        """Return the first index stored, 0 when empty."""

    def last_index(self) -> int:
        """Return the last index stored, 0 when empty."""

    def get_log(self, index: int) -> Log:
        """Return one entry, or raise `LogNotFoundError`."""

    def store_log(self, log: Log) -> None:
        """Store one entry."""

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries, all or none; entries of the same index are replaced."""

    def delete_range(self, first: int, last: int) -> None:
        """Delete the entries from `first` to `last`, both included; absent ones do not matter.

        All or none: of a log given up for a snapshot, an end that a crash has left would be taken
        for what follows the snapshot.
        """


def oldest_log(store: LogStore) -> Log:
    """Return the entry of the lowest index, or raise `LogNotFoundError`; for the age of the log."""
    while True:
        first = store.first_index()
        try:
            return store.get_log(first)
        except LogNotFoundError:
            if store.first_index() == first:
                raise
            # Compaction was faster: look again.


@runtime_checkable
class SuffixReplacingLogStore(Protocol):
    """A log store that truncates and appends in one transaction (beyond the original)."""

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Delete all entries from `first` on and store `logs`, all of it or nothing."""


@runtime_checkable
class RangeLogStore(Protocol):
    """A log store that reads many entries at once (beyond the original)."""

    def get_range(self, first: int, last: int, max_bytes: int) -> list[Log]:
        """Return entries from `first` on, cut at `last` and `max_bytes`, always at least one.

        Raises `LogNotFoundError` when `first` is absent; stops before a gap.
        """


@runtime_checkable
class MonotonicLogStore(Protocol):
    """A log store that may refuse gaps."""

    def is_monotonic(self) -> bool:
        """Tell whether a gap between indexes is an error."""


@runtime_checkable
class CommitTrackingLogStore(Protocol):
    """A log store that remembers how far the log is committed."""

    def stage_commit_index(self, index: int) -> None:
        """Remember the commit index; it becomes durable with the next `store_logs` only."""

    def get_commit_index(self) -> int:
        """Return the durable commit index, 0 for none; never above the last index."""


@runtime_checkable
class MaintainedStore(Protocol):
    """A store with housekeeping to do between writes (beyond the original)."""

    def maintain(self) -> None:
        """Do a few milliseconds of upkeep; called on the disk thread after answers have left."""


@runtime_checkable
class MeasuredStore(Protocol):
    """A store that knows what it takes on its disk, for metrics (beyond the original)."""

    def stats(self) -> Mapping[str, int]:
        """Return bytes: `live_bytes` in use, `free_bytes` in the file, `wal_bytes` besides.

        Any of them may be missing. Called every ten seconds, on a thread that may wait for it.
        """


@runtime_checkable
class ReopenableStore(Protocol):
    """A store that can start over after a failed write (beyond the original)."""

    def reopen(self) -> None:
        """Open the files anew and make everything in them durable, or raise."""


@runtime_checkable
class ReservingStore(Protocol):
    """A store that notices in time that its disk gets full (beyond the original)."""

    def is_full(self) -> bool:
        """Tell whether client entries shall be refused; asked on the disk thread after writes.

        Votes, no-ops, memberships and compaction go on, so some space is to be kept for them.
        """


class StableStore(Protocol):
    """Durable keys and values. Thread-safe; a write that returned survives the loss of power."""

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""

    def get(self, key: bytes) -> bytes:
        """Return a value, or raise `KeyNotFoundError`."""

    def set_uint64(self, key: bytes, value: int) -> None:
        """Store a number from 0 to 2**64-1; numbers have keys of their own."""

    def get_uint64(self, key: bytes) -> int:
        """Return a number, or raise `KeyNotFoundError`."""


class SnapshotSink(Protocol):
    """A snapshot being written. `close` or `cancel` after the first of either does nothing."""

    def write(self, data: bytes, /) -> int:
        """Append bytes to the snapshot."""

    def close(self) -> None:
        """Make the snapshot durable and visible."""

    def cancel(self) -> None:
        """Throw the snapshot away."""

    def id(self) -> str:
        """Return the snapshot's id, known from the start."""


class SnapshotStore(Protocol):
    """Durable snapshots. Thread-safe; reading one never blocks creating another."""

    def create(
        self,
        version: int,
        index: int,
        term: int,
        configuration: Configuration,
        configuration_index: int,
        *,
        unsettled: bool = False,
    ) -> SnapshotSink:
        """Begin a snapshot; it is listed once its sink is closed.

        An `unsettled` one may yet turn out never to have happened: it takes no other's place, and
        no other takes its, until `settle` or `remove`.
        """

    def list(self) -> Sequence[SnapshotMeta]:
        """Return the snapshots kept, newest first: by term, index, id."""

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, SnapshotReader]:
        """Return a snapshot's metadata and content, its checksum verified; else raise."""

    def settle(self, snapshot_id: str) -> None:
        """Take the mark off an unsettled snapshot, durably; one without it stays as it is."""

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is absent does not matter."""


@runtime_checkable
class WithLostSnapshots(Protocol):
    """A snapshot store that can tell what it has lost; such snapshots are not listed."""

    def lost(self) -> Sequence[EntryID]:
        """Return where finished snapshots ended that the disk has spoiled beyond listing.

        A node that has nothing else up to there does not vote before it has it again.
        """


@runtime_checkable
class WithRoom(Protocol):
    """A snapshot store that knows how much it could take."""

    def check_room(self, size: int) -> None:
        """Raise `SnapshotError` if a snapshot of so many bytes would leave too little to others.

        Asked before one of a peer's or a user's is taken in, with the size that was announced.
        """


# ---- transports ----


class AppendPipeline(Protocol):
    """Several AppendEntries under way to one peer, answered in order.

    One thread sends and one other receives; both calls end soon after `close`.
    """

    def append_entries(self, request: AppendEntriesRequest) -> None:
        """Send a request without waiting for its answer; raises `TransportError`."""

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        """Return the answer to the oldest request not yet answered; raises `TransportError`."""

    def close(self) -> None:
        """Close the connection; may be called twice and from any thread."""


class Transport(Protocol):
    """How nodes talk. Calls block until answered and raise `TransportError`; thread-safe.

    `timeout` is in seconds, None for the transport's default. An answer counts only when it comes
    from `server_id` (law of the wire, docs/architecture.md).
    """

    def local_addr(self) -> ServerAddress:
        """Return the address that others reach this transport at."""

    def consumer(self) -> Queue[RPC]:
        """Return the queue of requests that came in."""

    def set_heartbeat_handler(self, handler: Callable[[RPC], None] | None) -> None:
        """Have heartbeats given to `handler` on the transport's thread, not to the consumer."""

    def append_entries(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: AppendEntriesRequest,
        timeout: float | None = None,
    ) -> AppendEntriesResponse: ...

    def append_entries_pipeline(
        self, server_id: ServerID, address: ServerAddress
    ) -> AppendPipeline:
        """Open a pipeline, or raise `PipelineNotSupportedError`."""

    def request_vote(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: RequestVoteRequest,
        timeout: float | None = None,
    ) -> RequestVoteResponse: ...

    def install_snapshot(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: InstallSnapshotRequest,
        reader: SnapshotReader,
        timeout: float | None = None,
    ) -> InstallSnapshotResponse:
        """Send a snapshot of `request.size` bytes; `timeout` bounds a stall, not the whole."""

    def timeout_now(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: TimeoutNowRequest,
        timeout: float | None = None,
    ) -> TimeoutNowResponse: ...


@runtime_checkable
class WithPreVote(Protocol):
    """A transport that knows pre-votes; without it the node does without them."""

    def request_pre_vote(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: RequestPreVoteRequest,
        timeout: float | None = None,
    ) -> RequestPreVoteResponse: ...


@runtime_checkable
class WithClose(Protocol):
    """A transport that the node closes when it shuts down."""

    def close(self) -> None: ...


@runtime_checkable
class WithDelivery(Protocol):
    """A transport that can hand requests over directly, saving a thread (beyond the original)."""

    def deliver_to(self, put: Callable[[RPC], None]) -> None:
        """Give every request to `put`, which never blocks, instead of the consumer queue."""


@runtime_checkable
class WithIdentity(Protocol):
    """A transport whose handshake names the servers and the cluster (beyond the original)."""

    def identify(self, local_id: ServerID, cluster_id: Callable[[], str | None]) -> None:
        """Learn who the local node is, before the first call; `cluster_id` may be asked often."""


@runtime_checkable
class WithStoreBelow(Protocol):
    """A log store that wraps another one, so that the node can tell whose that is."""

    def store_below(self) -> object:
        """Return the store that is wrapped."""


@runtime_checkable
class WithAddressCheck(Protocol):
    """A transport, or stream layer, that knows what an address is (beyond the original).

    A new server counts for the majority at once, so a mistyped address can cost a cluster's.
    """

    def check_address(self, address: ServerAddress) -> None:
        """Raise `ValueError` for an address that nobody could ever dial; asks nobody."""


@runtime_checkable
class WithCertificate(Protocol):
    """A transport that shows a certificate which ends one day (beyond the original)."""

    def certificate_end(self) -> float | None:
        """Return when it ends, in seconds since 1970, None if nobody knows; any thread."""


@runtime_checkable
class WithMetrics(Protocol):
    """A transport that has something to measure (beyond the original)."""

    def measure_with(self, metrics: Metrics) -> None:
        """Emit through `metrics`, from any thread; called before the first request is taken in."""


@runtime_checkable
class WithQueueBound(Protocol):
    """A transport that sends large messages no faster than a link takes them (beyond the original).

    Heartbeats go the same way and would stand behind them.
    """

    def bound_queues(self, seconds: float) -> None:
        """Let no more stand in a link's queue than it carries in so many seconds.

        Called before the first call.
        """


@runtime_checkable
class WithProgress(Protocol):
    """A pipeline that knows how much of a large request has arrived (beyond the original)."""

    def acknowledged(self) -> int:
        """Return how many bytes have arrived at the peer since it was opened; any thread."""


@runtime_checkable
class WithPeers(Protocol):
    """A transport whose connections are made by hand, for tests."""

    def connect(self, address: ServerAddress, transport: Any) -> None: ...
    def disconnect(self, address: ServerAddress) -> None: ...
    def disconnect_all(self) -> None: ...


class ServerAddressProvider(Protocol):
    """Finds a server's current address by its id; for clusters whose addresses move."""

    def server_addr(self, server_id: ServerID) -> ServerAddress:
        """Return the address, or raise; the configured address is then used."""
