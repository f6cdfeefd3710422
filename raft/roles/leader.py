"""The leader's loop: puts commands into the log, replicates, commits (§5.3, §5.4.2)."""

from __future__ import annotations

from collections import deque

from raft.codec import encode_configuration
from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.disk import Write
from raft.engine.heartbeat import Links
from raft.engine.inbox import (
    Apply,
    BeatAnswered,
    ChangeConfiguration,
    CommitAdvanced,
    FSMPoisoned,
    NewerTermSeen,
    TailWriteFailed,
    VerifyLeader,
)
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.membership import next_configuration
from raft.errors import (
    EnqueueTimeoutError,
    LeadershipLostError,
    RaftError,
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
from raft.roles.base import Role
from raft.roles.lease import Lease, Verifications, quorum_contact
from raft.roles.peers import Peers
from raft.types import Log, LogType, RaftState, log_checksum


class Leader(Role):
    """One leadership, of one term: everything it holds is dropped with it."""

    role = RaftState.LEADER

    def __init__(self, core: Core, snapshots: SnapshotReceiver) -> None:
        super().__init__(core, snapshots)
        # Departure 6: the term is fixed here, whatever anybody changes later.
        self.term = core.hard_state.term
        self.start_index = core.raft_log.last_index() + 1
        self.initial_commit = core.state.commit_index
        self.commitment = Commitment(
            core.runtime, core.membership.latest, self.start_index, self._announce_commit
        )
        self.inflight: deque[tuple[int, Apply]] = deque()
        self.changes: deque[ChangeConfiguration] = deque()  # wait for a stable configuration
        self.verifications = Verifications()
        self.tail_write: Write | None = None
        self.lease = Lease(core.config.leader_lease_timeout, core.runtime.monotonic())
        self.loss: RaftError | None = None  # why leadership ended, for those in flight
        self.handlers |= {
            Apply: self.on_apply,
            ChangeConfiguration: self.on_change,
            VerifyLeader: self.on_verify,
            CommitAdvanced: self.on_commit,
            NewerTermSeen: self.on_newer_term,
            BeatAnswered: self.on_beat,
            TailWriteFailed: self.on_tail_write_failed,
        }
        self.peers = Peers(core, self._links())

    def _links(self) -> Links:
        """Return what all replicators of this leadership share."""
        core = self.core
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
            commit_index=lambda: max(self.initial_commit, self.commitment.commit_index),
            verify_sequence=lambda: self.verifications.sequence,
            post=core.inbox.post,
            emit=core.emit,
        )

    # ---- entering and leaving ----

    def enter(self) -> None:
        """Start replication and commit an entry of our own term (§5.4.2, §8)."""
        core = self.core
        core.leader_ch.put(True)
        self.peers.follow(core.membership.latest)
        self.lease.renew(core.runtime.monotonic(), core.config.leader_lease_timeout)
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
        core.leader_ch.put(False)
        core.raft_log.drop_tail()
        if not core.inbox.closed:
            core.settle()

    def abandon(self) -> None:
        """Answer whatever is in flight with "unknown", and what was not begun with "not done"."""
        lost: RaftError = self.loss or LeadershipLostError("leadership lost while committing log")
        if self.core.inbox.closed:
            lost = ShutdownOutcomeUnknownError("raft was shut down before the entry was committed")
        while self.inflight:
            self.inflight.popleft()[1].fail(lost)
        self.verifications.fail_all(lost if self.core.inbox.closed else self.core.not_leader())
        while self.changes:
            self.changes.popleft().fail(self.core.not_leader())

    def _step_down(self, loss: RaftError | None = None) -> None:
        self.loss = loss
        self.core.become(RaftState.FOLLOWER)

    # ---- commands ----

    def on_apply(self, message: Apply) -> None:
        """Dispatch a command together with what waits behind it: group commit."""
        config = self.core.config
        limit = config.max_append_entries - 1
        rest = self.core.inbox.take_ready(limit, config.max_append_bytes - message.size())
        self._dispatch([message, *rest])

    def _dispatch(self, applies: list[Apply]) -> int:
        """Append entries and hand them to the peers and to our own disk at the same time.

        Return the index of the last one.
        """
        core = self.core
        now = core.runtime.wall_time_ns()
        index = core.raft_log.last_index()
        logs = []
        for apply in applies:
            index += 1
            content = (index, self.term, apply.type, apply.data, apply.extensions, now)
            logs.append(Log(*content, log_checksum(*content)))
            apply.future.set_index(index)
            self.inflight.append((index, apply))
        core.raft_log.append(logs)
        self.peers.kick()  # first: theirs is the longer way
        if self.tail_write is None or self.tail_write.begun:
            # One that has not begun yet takes these along: group commit.
            self.tail_write = core.disk.submit("entries", self._store_tail, self._tail_written)
        core.state.set_last_log(core.raft_log.last())
        return index

    # ---- on the disk thread ----

    def _store_tail(self) -> None:
        """Store all that is not durable yet; dispatches that came meanwhile go along."""
        self.core.raft_log.store_tail()

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

    # ---- committing ----

    def _announce_commit(self) -> None:
        self.core.inbox.post(CommitAdvanced(self.term))

    def on_commit(self, message: CommitAdvanced) -> None:
        """Commit up to what a quorum has, and answer by way of the FSM thread."""
        if message.term != self.term:
            return
        core = self.core
        upto = self.commitment.acknowledge()
        if upto > core.state.commit_index:
            applies = []
            while self.inflight and self.inflight[0][0] <= upto:
                applies.append(self.inflight.popleft())
            core.apply_committed(upto, applies)
        self.verifications.settle(core.membership.latest, core.local_id)
        if core.membership.is_stable() and not core.membership.latest.has_vote(core.local_id):
            self._leave_cluster()
        else:
            self._try_changes()

    def _leave_cluster(self) -> None:
        """Our own vote is gone, and that is committed."""
        core = self.core
        core.log.info("removed ourself, giving up leadership")
        if core.config.shutdown_on_remove:
            core.request_shutdown()
        self._step_down()

    # ---- membership ----

    def on_change(self, message: ChangeConfiguration) -> None:
        """Queue a change; it is made when the configuration is stable (§4.1)."""
        self.changes.append(message)
        self._try_changes()
        self._rearm()

    def _may_change(self) -> bool:
        """One change at a time, and none before an entry of our own term is committed."""
        core = self.core
        return core.membership.is_stable() and core.state.commit_index >= self.start_index

    def _try_changes(self) -> None:
        while self.changes and self._may_change() and self.core.state.role is self.role:
            message = self.changes.popleft()
            if message.deadline.is_over():
                message.fail(EnqueueTimeoutError("timed out waiting for a stable configuration"))
                continue
            self._change(message)

    def _change(self, message: ChangeConfiguration) -> None:
        core = self.core
        members = core.membership
        try:
            configuration = next_configuration(
                members.latest,
                members.latest_index,
                message.kind,
                message.server_id,
                message.address,
                message.prev_index,
            )
        except RaftError as error:
            message.fail(error)
            return
        core.log.info(
            "updating configuration command=%s server=%s servers=%s",
            message.kind.value,
            message.server_id,
            configuration,
        )
        data = encode_configuration(configuration)
        # In force as soon as it is appended (§4.1), so the disk may not report the entry earlier:
        # it commits by the majority it makes itself, not by the one before.
        self.commitment.set_configuration(configuration)
        index = self._dispatch([Apply(LogType.CONFIGURATION, data, b"", message.future)])
        members.append_own(index, configuration)
        core.publish_log()
        self.peers.follow(configuration)

    def _expire_changes(self) -> None:
        for message in list(self.changes):
            if message.deadline.is_over():
                self.changes.remove(message)
                message.fail(EnqueueTimeoutError("timed out waiting for a stable configuration"))

    # ---- leading still? ----

    def on_verify(self, message: VerifyLeader) -> None:
        """Ask all voters, by a heartbeat that begins after now."""
        core = self.core
        self.verifications.add(message)
        self.verifications.settle(core.membership.latest, core.local_id)
        self.peers.beat_now()

    def on_beat(self, message: BeatAnswered) -> None:
        """Count a confirmation."""
        if message.term == self.term:
            self.verifications.confirm(message.server_id, message.sequence)
            self.verifications.settle(self.core.membership.latest, self.core.local_id)

    def on_newer_term(self, message: NewerTermSeen) -> None:
        """Somebody lives in a newer term: lead no longer (§5.1)."""
        if message.term == self.term:
            self.core.log.info("peer has newer term, stepping down newer=%d", message.seen)
            self._step_down()

    def on_deadline(self) -> None:
        """Check lease and disk, and the deadlines of waiting changes."""
        self._expire_changes()
        now = self.core.runtime.monotonic()
        if stalled := self.lease.look(now):
            self.core.log.info("process was stalled seconds=%.3f", stalled)
        if not self.core.disk.is_fit():
            # Departure 8; also when what overran, or failed in the background, has ended.
            self.core.log.error("own disk is not fit, stepping down")
            self._step_down(StorageFailedError("the leader's disk has failed or stalled"))
        elif self.lease.is_over(now):
            self._check_lease()
        self._rearm()

    def _check_lease(self) -> None:
        core = self.core
        now = core.runtime.monotonic()
        in_contact, again = quorum_contact(
            core.membership.latest,
            core.local_id,
            self.peers.last_contacts(),
            now,
            core.config.leader_lease_timeout,
        )
        if in_contact:
            self.lease.renew(now, again)
        else:
            core.log.warning("failed to contact quorum of nodes, stepping down")
            self._step_down()

    def _rearm(self) -> None:
        """Wake up for the lease, or earlier for a change that runs out of time."""
        moments = [m.deadline.at for m in self.changes if m.deadline.at is not None]
        self.deadline = min([self.lease.look_at, *moments])

    # ---- requests of peers ----

    def on_rpc(self, rpc: RPC) -> None:
        """Answer as any role does; but who deposes us is heard once leadership is cleaned up."""
        if self._is_deposed_by(rpc):
            self.core.inbox.put_back(rpc)
            self._step_down()
        else:
            super().on_rpc(rpc)

    def _is_deposed_by(self, rpc: RPC) -> bool:
        request = rpc.command
        if isinstance(request, AppendEntriesRequest | InstallSnapshotRequest):
            if request.term == self.term:
                # §5.2: one leader a term. Nothing of what the other one says may be believed.
                self.core.log.error("another leader of our own term id=%s", request.header.id)
                raise StorageFailedError(f"{self.core.local_id} leads this term already")
            return request.term > self.term
        if isinstance(request, RequestVoteRequest):
            is_member = self.core.membership.latest.server(request.header.id) is not None
            return is_member and request.leadership_transfer and request.term > self.term
        return False

    def on_fsm_poisoned(self, message: FSMPoisoned) -> None:
        """Lead no longer: this node can answer nobody."""
        super().on_fsm_poisoned(message)
        self._step_down()


def run_leader(core: Core, snapshots: SnapshotReceiver) -> None:
    """Lead until deposed or stopped."""
    Leader(core, snapshots).run()
