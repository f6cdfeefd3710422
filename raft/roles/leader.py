"""The leader's loop: puts commands into the log, replicates, commits (§5.3, §5.4.2)."""

from __future__ import annotations

from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.disk import Write
from raft.engine.heartbeat import Links
from raft.engine.inbox import (
    Apply,
    BeatAnswered,
    ChangeConfiguration,
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
    SnapshotWanted,
    TailWriteFailed,
    TransferAnswered,
    TransferLeadership,
    UserRestore,
    VerifyLeader,
)
from raft.engine.install_snapshot import SnapshotReceiver
from raft.errors import (
    AbortedByRestoreError,
    LeadershipLostError,
    NotAppliedError,
    RaftError,
    RestoreInProgressError,
    ShutdownOutcomeUnknownError,
    StorageFailedError,
)
from raft.futures import IndexFuture
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    InstallSnapshotRequest,
    RequestVoteRequest,
)
from raft.metrics import count
from raft.roles.base import Role
from raft.roles.changes import Changes
from raft.roles.full_disk import FullDisk
from raft.roles.inflight import InFlight
from raft.roles.lease import Lease, Reads, report_contacts
from raft.roles.lost_snapshot import LostSnapshot
from raft.roles.peers import Peers
from raft.roles.stall import CommitWatch
from raft.roles.transfer import Transfers
from raft.roles.user_restore import UserRestores
from raft.types import Log, LogType, RaftState, ServerID, log_checksum


class Leader(Role):
    """One leadership, of one term: everything it holds is dropped with it."""

    role = RaftState.LEADER

    def __init__(self, core: Core, snapshots: SnapshotReceiver) -> None:
        super().__init__(core, snapshots)
        # Departure 6: the term is fixed here, whatever anybody changes later.
        self.term = core.hard_state.term
        self.start_index = core.raft_log.last_index() + 1
        self.commitment = Commitment(
            core.runtime,
            core.membership.latest,
            self.start_index,
            self._announce_commit,
            self._announce_reached,
        )
        self.inflight = InFlight(core.metrics)
        self.tail_write: Write | None = None
        self.lease = Lease(core.config.leader_lease_timeout, core.runtime.monotonic())
        self.loss: RaftError | None = None  # why leadership ended, for those in flight
        self.peers = Peers(core, self._links(), self.commitment)
        self.reads = Reads(core, self.start_index, self.peers.beat_now)
        self.watch = CommitWatch(core, self.commitment, self.peers)
        self.transfers = Transfers(core, self.term, self.commitment, self.peers)
        self.full_disk = FullDisk(core, self.transfers)
        self.restores = UserRestores(core, self.term, self._dispatch_one)
        lost_snapshot = LostSnapshot(core, self.term, self.peers, self.transfers, self.restores)
        self.changes = Changes(
            core, self.commitment, self.peers, self._dispatch_one, self._may_change
        )
        self.handlers |= {
            Apply: self.on_apply,
            ChangeConfiguration: self.on_change,
            VerifyLeader: self.reads.add,
            ReadBarrier: self.reads.add,
            TransferLeadership: self.on_transfer,
            UserRestore: self.on_user_restore,
            CommitAdvanced: self.on_commit,
            ServerReached: self.on_reached,
            TransferAnswered: self.transfers.answered,
            SnapshotWanted: lost_snapshot.wanted,
            SnapshotAttempted: lost_snapshot.attempted,
            RestoreTried: self.restores.tried,
            LogReplaced: self.restores.replaced,
            ConfigReloaded: self.on_reload,
            NewerTermSeen: self.on_newer_term,
            BeatAnswered: self.on_beat,
            PeerMet: self.peers.voters.met,
            TailWriteFailed: self.on_tail_write_failed,
        }

    def _links(self) -> Links:
        """Return what all replicators of this leadership share."""
        core = self.core
        initial_commit = core.state.commit_index
        return Links(
            runtime=core.runtime,
            config=core.config,
            threads=core.threads,
            log=core.raft_log,
            snapshots=core.snapshots,
            transport=core.transport,
            header=core.header,
            term=self.term,
            progress=self.commitment,
            commit_index=lambda: max(initial_commit, self.commitment.commit_index),
            verify_sequence=lambda: self.reads.verifications.sequence,
            post=core.inbox.post,
            emit=core.emit,
            notes=lambda: core.incarnations.told(core.header),
            metrics=core.metrics,
        )

    # ---- entering and leaving ----

    def enter(self) -> None:
        """Start replication and commit an entry of our own term (§5.4.2, §8)."""
        core = self.core
        count(core.metrics, "raft.state.leader")
        core.announce_leadership(True)
        self.peers.follow(core.membership.latest)
        self.lease.renew(core.runtime.monotonic(), core.config.heartbeat_timeout)
        self._rearm()
        self._dispatch([Apply(LogType.NOOP, b"", b"", IndexFuture())])

    def leave(self) -> None:
        """Stop replication, answer everybody, and wait until no write is under way (law 5)."""
        core = self.core
        self.peers.stop()
        self.abandon()
        core.state.touch(core.runtime.monotonic())  # be patient as a follower
        address, server_id = core.state.leader()
        if (address, server_id) == (core.header.address, core.local_id):
            core.set_leader("", "")
        core.announce_leadership(False)
        core.raft_log.drop_tail()
        if not core.inbox.closed:
            core.settle()

    def abandon(self) -> None:
        """Answer whatever is in flight with "unknown", and what was not begun with "not done"."""
        lost: RaftError = self.loss or LeadershipLostError("leadership lost while committing log")
        if self.core.inbox.closed:
            lost = ShutdownOutcomeUnknownError("raft was shut down before the entry was committed")
        self.inflight.fail_all(lost)
        refusal = self.core.not_leader()
        self.changes.abandon(refusal, lost)
        self.reads.fail_all(lost if self.core.inbox.closed else refusal)
        self.transfers.leave(lost)
        self.restores.leave(lost)

    def _step_down(self, loss: RaftError | None = None) -> None:
        self.loss = loss
        self.core.become(RaftState.FOLLOWER)

    def handle(self, message: Message) -> None:
        """Answer as any role does; then see what may go on, and wait for what is due next."""
        super().handle(message)
        if self.core.state.role is self.role:
            self.changes.advance()
        self._rearm()

    # ---- commands ----

    def on_apply(self, message: Apply) -> None:
        """Dispatch a command together with what waits behind it: group commit."""
        config = self.core.config
        limit = config.max_append_entries - 1
        rest = self.core.inbox.take_ready(limit, config.max_append_bytes - message.size())
        refusal = self._refusal() or self.full_disk.refusal()
        if refusal is None:
            self._dispatch([message, *rest])
            return
        for apply in (message, *rest):
            apply.fail(refusal)

    def _dispatch_one(self, apply: Apply) -> int:
        return self._dispatch([apply])

    def _dispatch(self, applies: list[Apply]) -> int:
        """Append entries and hand them to the peers and to our own disk at the same time.

        Return the index of the last one.
        """
        core, waiting = self.core, self.inflight.entries
        began = self.inflight.begin()
        now = core.runtime.wall_time_ns()
        first = core.raft_log.last_index() + 1
        waiting.extend(enumerate(applies, first))  # first: whatever fails, all are answered
        logs = []
        for index, apply in enumerate(applies, first):
            content = (index, self.term, apply.type, apply.data, apply.extensions, now)
            logs.append(Log(*content, log_checksum(*content)))
            apply.future.set_index(index)
        core.raft_log.append(logs)
        self.peers.kick()  # first: theirs is the longer way
        if self.tail_write is None or self.tail_write.begun:
            # One that has not begun yet takes these along: group commit.
            self.tail_write = core.disk.submit("entries", self._store_tail, self._tail_written)
        core.state.set_last_log(core.raft_log.last())
        self.inflight.dispatched(began, index, len(logs))
        return index

    # ---- on the disk thread ----

    def _store_tail(self) -> None:
        """Store all that is not durable yet; dispatches that came meanwhile go along."""
        self.core.raft_log.store_tail(self.commitment.commit_index)

    def _tail_written(self, write: Write) -> None:
        """Law 3: our own match moves when the transaction has returned, in this leadership only."""
        if write.error is not None:
            self.core.inbox.post(TailWriteFailed(write.error))
        else:
            self.commitment.match(self.core.local_id, self.core.raft_log.durable_index())

    def on_tail_write_failed(self, message: TailWriteFailed) -> None:
        """Law 4: leave, and append nothing more in this term."""
        super().on_tail_write_failed(message)
        self._step_down(StorageFailedError(f"the leader's disk failed: {message.error}"))

    def on_log_corrupted(self, message: LogCorrupted) -> None:
        """Leave: a follower gets the entry from the next leader."""
        super().on_log_corrupted(message)
        if self.core.fault is not None:
            self._step_down(StorageFailedError(f"the leader's disk failed: {message.error}"))

    # ---- committing ----

    def _announce_commit(self) -> None:
        self.core.inbox.post(CommitAdvanced(self.term))

    def _announce_reached(self, server_id: ServerID, index: int) -> None:
        self.core.inbox.post(ServerReached(self.term, server_id, index))

    def on_commit(self, message: CommitAdvanced) -> None:
        """Commit up to what a quorum has, and answer by way of the FSM thread."""
        if message.term != self.term:
            return
        core = self.core
        upto = self.commitment.acknowledge()
        if upto > core.state.commit_index:
            core.apply_committed(upto, self.inflight.committed(upto))
        self.reads.settle()
        if core.membership.is_stable() and not core.membership.latest.has_vote(core.local_id):
            self._leave_cluster()

    def _leave_cluster(self) -> None:
        """Our own vote is gone, and that is committed."""
        core = self.core
        if core.config.shutdown_on_remove:
            core.request_shutdown()
        self._step_down()
        core.log.info("removed ourself, gave up leadership")

    # ---- membership, transfer, user restore ----

    def _may_change(self) -> bool:
        """One change at a time, and none before an entry of our own term is committed (§4.1)."""
        core = self.core
        is_ready = core.membership.is_stable() and core.state.commit_index >= self.start_index
        return is_ready and self._refusal() is None

    def on_change(self, message: ChangeConfiguration) -> None:
        """Queue a change; it is made when the configuration is stable (§4.1)."""
        if refusal := self._refusal():
            message.fail(refusal)
        else:
            self.changes.add(message)

    def on_transfer(self, message: TransferLeadership) -> None:
        """Begin to hand leadership over; until that has ended nothing new is taken in."""
        if refusal := self._refusal():
            message.fail(refusal)
            return
        self.transfers.begin(message)
        if refusal := self._refusal():
            self.changes.refuse_all(refusal)

    def on_reached(self, message: ServerReached) -> None:
        """Go on with what waited for a server to have the log."""
        if message.term == self.term:
            self.transfers.reached(message.server_id, message.index)
            self.changes.reached(message.server_id, message.index)

    def _refusal(self) -> NotAppliedError | None:
        """Return what new entries are refused with, None when they are taken."""
        return self.transfers.refusal() or self.restores.refusal()

    def on_user_restore(self, message: UserRestore) -> None:
        """Begin to replace everything; what is in flight is not waited for."""
        if refusal := self._refusal() or self.full_disk.refusal():
            message.fail(refusal)
            return
        self.restores.check(message)
        self.inflight.fail_all(
            AbortedByRestoreError("a snapshot is restored in place of what was in flight")
        )
        self.restores.begin(message)
        self.changes.refuse_all(RestoreInProgressError("a snapshot is being restored"))

    def on_restore_stored(self, message: RestoreStored) -> None:
        """Go on with the restore, if it is one of this leadership."""
        if message.term != self.term or not self.restores.stored(message):
            super().on_restore_stored(message)

    # ---- leading still? ----

    def on_beat(self, message: BeatAnswered) -> None:
        """Count a confirmation."""
        if message.term == self.term:
            self._look_for_stall()  # an answer of before does not confirm what comes after
            if self.peers.voters.counts(message.server_id, message.incarnation):
                self.reads.confirm(message.server_id, message.sequence)

    def _look_for_stall(self) -> None:
        """Have reads confirmed anew after a time in which this process did not run."""
        now = self.core.runtime.monotonic()
        if now < self.lease.look_at:
            return
        if stalled := self.lease.look(now):
            self.reads.start_over()
            self.report_stall(stalled)

    def on_newer_term(self, message: NewerTermSeen) -> None:
        """Somebody lives in a newer term: lead no longer (§5.1)."""
        if message.term == self.term:
            self.core.inbox.post(message)  # the follower takes it over, once all is cleaned up
            self._step_down()
            self.core.log.info("peer has newer term, stepped down newer=%d", message.seen)

    def on_deadline(self) -> None:
        """Check lease and disk, and the deadlines of waiting changes."""
        self.changes.expire()
        now = self.core.runtime.monotonic()
        self._look_for_stall()
        self.peers.try_again()
        self.transfers.expire(now)
        self.full_disk.look(now, is_busy=self._refusal() is not None)
        if not self.core.disk.is_fit():
            # Departure 8; also when what overran, or failed in the background, has ended.
            self._step_down(StorageFailedError("the leader's disk has failed or stalled"))
            self.core.log.error("own disk is not fit, stepped down")
        elif stall := self.watch.look(now):
            self._step_down(stall)
        elif self.lease.is_over(now):
            self._check_lease()
        self._rearm()

    def _check_lease(self) -> None:
        core, latest = self.core, self.core.membership.latest
        now = core.runtime.monotonic()
        contacts = self.peers.last_contacts()
        in_contact, again = self.lease.look_for_quorum(latest, core.local_id, contacts, now)
        if core.metrics is not None:
            report_contacts(core.metrics, latest, core.local_id, contacts)
        if in_contact:
            self.lease.renew(now, again)
        else:
            self._step_down()
            core.log.warning("failed to contact quorum of nodes, stepped down")
            count(core.metrics, "raft.transition.leader_lease_timeout")

    def _rearm(self) -> None:
        """Wake up for the lease, or earlier for what runs out of time."""
        moments = [self.lease.look_at, *self.changes.moments()]
        if self.transfers.deadline is not None:
            moments.append(self.transfers.deadline)
        self.deadline = min(moments)

    def on_reload(self, message: ConfigReloaded) -> None:
        """Beat at the new rate from now on."""
        self.peers.beat_now()

    # ---- requests of peers ----

    def on_rpc(self, rpc: RPC) -> None:
        """Answer as any role does; but who deposes us is heard once leadership is cleaned up."""
        self.check_sender(rpc.command)
        if _deposes(self.core, self.term, rpc):
            self.core.inbox.put_back(rpc)
            self._step_down()
        else:
            super().on_rpc(rpc)

    def on_fsm_poisoned(self, message: FSMPoisoned) -> None:
        """Lead no longer: this node can answer nobody."""
        self._step_down()
        super().on_fsm_poisoned(message)


def _deposes(core: Core, term: int, rpc: RPC) -> bool:
    """Tell whether a request ends the leadership of a term."""
    request = rpc.command
    if isinstance(request, AppendEntriesRequest | InstallSnapshotRequest):
        if request.term == term:
            # §5.2: one leader a term. Nothing of what the other one says may be believed.
            core.log.error("another leader of our own term id=%s", request.header.id)
            raise StorageFailedError(f"{core.local_id} leads this term already")
        return request.term > term
    if isinstance(request, RequestVoteRequest):
        is_member = core.membership.latest.server(request.header.id) is not None
        return is_member and request.leadership_transfer and request.term > term
    return False


def run_leader(core: Core, snapshots: SnapshotReceiver) -> None:
    """Lead until deposed or stopped."""
    Leader(core, snapshots).run()
