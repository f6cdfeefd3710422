"""What every role does alike: the loop, and what it answers to everybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from raft.engine.append_entries import receive_append_entries
from raft.engine.core import Core, StoppingError
from raft.engine.first_start import bootstrap_here
from raft.engine.inbox import (
    Apply,
    BeatAnswered,
    Bootstrap,
    ChangeConfiguration,
    ClientMessage,
    CommitAdvanced,
    ConfigReloaded,
    FSMPoisoned,
    LogCorrupted,
    LogReplaced,
    Message,
    NewerTermSeen,
    PeerMet,
    ReadBarrier,
    RestoreStored,
    RestoreTried,
    ServerReached,
    SnapshotAttempted,
    SnapshotReceived,
    SnapshotTaken,
    SnapshotWanted,
    TailWriteFailed,
    TransferAnswered,
    TransferLeadership,
    UserRestore,
    VerifyLeader,
    VoteReceived,
)
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.plausible import check_request
from raft.engine.request_vote import (
    receive_request_pre_vote,
    receive_request_vote,
    receive_timeout_now,
)
from raft.errors import (
    LogCorruptError,
    RaftError,
    RaftInternalError,
    ShutdownOutcomeUnknownError,
    UnsupportedProtocolError,
)
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    InstallSnapshotRequest,
    Request,
    RequestPreVoteRequest,
    RequestVoteRequest,
)
from raft.metrics import measure
from raft.types import PROTOCOL_VERSION, RaftState

Handler = Callable[[Any], None]


class Role:
    """One stay in a role: built on entering it, dropped on leaving. Main thread only."""

    role: ClassVar[RaftState]

    def __init__(self, core: Core, snapshots: SnapshotReceiver) -> None:
        self.core = core
        self.snapshots = snapshots
        self.deadline: float | None = None
        self.handlers: dict[type[Any], Handler] = {
            RPC: self.on_rpc,
            Apply: core.refuse,
            ChangeConfiguration: core.refuse,
            VerifyLeader: core.refuse,
            ReadBarrier: core.refuse,
            TransferLeadership: core.refuse,
            UserRestore: core.refuse,
            Bootstrap: self.on_bootstrap,
            SnapshotTaken: self.on_snapshot_taken,
            SnapshotReceived: snapshots.finish,
            FSMPoisoned: self.on_fsm_poisoned,
            TailWriteFailed: self.on_tail_write_failed,
            LogCorrupted: self.on_log_corrupted,
            # Left over from another role or term.
            CommitAdvanced: self.ignore,
            NewerTermSeen: self.ignore,
            BeatAnswered: self.ignore,
            PeerMet: self.ignore,
            ServerReached: self.ignore,
            TransferAnswered: self.ignore,
            RestoreStored: self.on_restore_stored,
            RestoreTried: self.ignore,
            SnapshotWanted: self.ignore,
            SnapshotAttempted: self.ignore,
            LogReplaced: self.ignore,
            ConfigReloaded: self.on_reload,
            VoteReceived: self.ignore,
        }

    def run(self) -> None:
        """Answer messages until the role ends; then clean up whatever the role held."""
        core = self.core
        take = core.inbox.take
        if core.saturation is not None:
            take = core.saturation.asleep_in(take)
        try:
            self.enter()
            while self.core.state.role is self.role and not self.core.inbox.closed:
                message = take(until=self.deadline)
                if message is not None:
                    self.handle(message)
                elif self.is_due():
                    self.on_deadline()
        finally:
            self.leave()

    def on_bootstrap(self, message: Bootstrap) -> None:
        """Give this node its first configuration, if it is blank; or it has that already."""
        bootstrap_here(self.core, message.configuration, message.cluster_id)
        message.future.respond(None)

    def is_due(self) -> bool:
        """Tell whether the deadline has passed."""
        return self.deadline is not None and self.core.runtime.monotonic() >= self.deadline

    def handle(self, message: Message) -> None:
        """Have a message answered; a request is answered whatever goes wrong."""
        try:
            self.handlers[type(message)](message)
        except RaftError as error:
            if isinstance(message, SnapshotReceived):
                message.rpc.respond(None, error)
            elif isinstance(message, RPC):
                message.respond(None, error)
            elif isinstance(message, ClientMessage):
                message.fail(error)
            if isinstance(error, (StoppingError, RaftInternalError)):
                raise
            if isinstance(error, LogCorruptError):
                self.on_log_corrupted(LogCorrupted(error))
            self.core.log.warning("request failed error=%s", error)
        except Exception as error:
            # The node halts. Only this caller is in nobody's hands any more.
            if isinstance(message, ClientMessage):
                message.fail(
                    ShutdownOutcomeUnknownError(f"the node failed on this request: {error!r}")
                )
            raise

    def enter(self) -> None:
        """Begin the role."""

    def leave(self) -> None:
        """Let go of everything the role held."""

    def on_deadline(self) -> None:
        """Act on the deadline having passed, and set the next."""

    # ---- requests of peers ----

    def on_rpc(self, rpc: RPC) -> None:
        """Answer a peer's request."""
        request = rpc.command
        self.check_sender(request)
        if isinstance(request, AppendEntriesRequest):
            with measure(self.core.metrics, "raft.rpc.appendEntries"):
                receive_append_entries(self.core, rpc, request)
        elif isinstance(request, RequestVoteRequest):
            with measure(self.core.metrics, "raft.rpc.requestVote"):
                receive_request_vote(self.core, rpc, request)
        elif isinstance(request, RequestPreVoteRequest):
            with measure(self.core.metrics, "raft.rpc.requestPreVote"):
                receive_request_pre_vote(self.core, rpc, request)
        elif isinstance(request, InstallSnapshotRequest):
            self.snapshots.begin(rpc, request)
        else:
            receive_timeout_now(self.core, rpc, request)

    def check_sender(self, request: Request) -> None:
        """Raise for what no honest server of this protocol sends; it decides nothing."""
        version = request.header.protocol_version
        if version != PROTOCOL_VERSION:
            raise UnsupportedProtocolError(
                f"unsupported protocol version {version}: only {PROTOCOL_VERSION} is spoken"
            )
        check_request(self.core.state.term, request)

    # ---- the rest ----

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        """Compact the log behind a snapshot of our own."""
        self.core.snapshot_taken(message.meta)

    def on_restore_stored(self, message: RestoreStored) -> None:
        """Leadership ended while a user's snapshot was copied: it is not used."""
        if message.meta is not None:
            self.core.unsettled.forget(message.meta)

    def on_fsm_poisoned(self, message: FSMPoisoned) -> None:
        """A node whose FSM is broken neither campaigns nor leads."""
        self.core.log.error("fsm is poisoned error=%s", message.error)

    def on_tail_write_failed(self, message: TailWriteFailed) -> None:
        """Trust the stores no more until they are read anew, also when leadership ended first.

        What such a write has left may look like durable entries (law 6).
        """
        self.core.fault = message.error

    def on_log_corrupted(self, message: LogCorrupted) -> None:
        """Give a spoiled entry up (departure 16): a snapshot covers it, or a leader sends it again.

        The follower does, as after a write that failed. Without another voter the node halts.
        """
        core, error = self.core, message.error
        if error.index <= core.raft_log.boundary().index:
            core.damage.drop_covered(error.index)
        elif not core.membership.latest.has_other_voter(core.local_id):
            raise RaftInternalError(f"{error}, and no other voter has it: restore a backup")
        else:
            core.fault = error
        core.log.error("log is damaged error=%s", error)

    def on_reload(self, message: ConfigReloaded) -> None:
        """Timeouts were changed: wait by the new ones, from now on."""

    def report_stall(self, seconds: float) -> None:
        """Say that this process did not run for a while, and what is likely to have held it."""
        core = self.core
        if core.was_persisting(core.runtime.monotonic() - seconds):
            cause = "FSMSnapshot.persist held the interpreter, see docs/state-machines.md"
        else:
            cause = "the interpreter was held, or the machine paused or is overloaded"
        core.log.warning("process was stalled seconds=%.3f likely_cause=%s", seconds, cause)

    def ignore(self, message: Message) -> None:
        """Drop what belongs to another role or term."""
