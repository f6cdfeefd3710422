"""What two or more roles need: the collaborators and the transitions of one node.

No loop, no RPC, no peer; nothing that one role alone needs. The main thread owns it, but for the
collaborators that say otherwise themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raft.config import Config
from raft.engine.damage import Damage
from raft.engine.disk import Disk, Write
from raft.engine.elections import Elections
from raft.engine.fsm_runner import FsmRunner
from raft.engine.inbox import Apply, Bootstrap, ClientMessage, Inbox, Message, SnapshotReceived
from raft.engine.incarnations import Incarnations
from raft.engine.membership import Membership, configurations_in
from raft.engine.plausible import check_term
from raft.engine.raft_log import RaftLog
from raft.engine.settling import Unsettled
from raft.engine.state import CLUSTER_ID_KEY, HardState, NodeState, load_cluster_id
from raft.engine.told import Told
from raft.errors import (
    ClusterMismatchError,
    LogCorruptError,
    LogGapError,
    NotLeaderError,
    RaftInternalError,
    ShutdownNotAppliedError,
    ShutdownOutcomeUnknownError,
    StorageFailedError,
)
from raft.interfaces import LogStore, SnapshotStore, StableStore, Transport
from raft.logs import Logger
from raft.messages import RPC, RPCHeader
from raft.metrics import Metrics, Saturation, timed, timed_steps
from raft.observer import LatestValue, LeaderObservation, ObservationData
from raft.runtime import Event, Runtime, ThreadGroup
from raft.types import (
    EntryID,
    Peer,
    RaftState,
    ServerAddress,
    ServerID,
    SnapshotMeta,
)

_SLOW_VOTE = 4  # parts of an election timeout; a vote that takes longer to store is warned of


class StoppingError(ShutdownOutcomeUnknownError):
    """Unwinds the main thread out of a wait for its disk, when the node is being shut down.

    The write may still happen: that is what a caller whose request it was is told.
    """


class NodeLogger(Logger):
    """Puts the node's id and term before every message."""

    __slots__ = ("_node", "_state")

    def __init__(self, logger: logging.Logger, node: ServerID, state: NodeState) -> None:
        super().__init__(logger)
        self._node = node.replace("%", "_")  # the message is a format
        self._state = state

    def prefix(self) -> str:
        return f"node={self._node} term={self._state.term} "


@dataclass(slots=True)
class Core:
    """The parts of one node, and the transitions that any role may make. Main thread only.

    `fault` holds the error of a write that failed: until the stores have been read anew nothing
    is decided that rests on what they hold.
    """

    runtime: Runtime
    config: Config
    log: NodeLogger
    threads: ThreadGroup
    inbox: Inbox
    state: NodeState
    disk: Disk
    logs: LogStore  # written on the disk thread only; read through raft_log
    raft_log: RaftLog
    stable: StableStore
    snapshots: SnapshotStore
    transport: Transport
    fsm: FsmRunner
    leader_ch: LatestValue
    emit: Callable[[ObservationData], None]
    header: RPCHeader
    membership: Membership
    main_ended: Event
    unsettled: Unsettled
    damage: Damage
    incarnations: Incarnations
    told: Told
    elections: Elections
    hard_state: HardState = field(default_factory=HardState)  # as it is on disk
    cluster_id: str | None = None
    fault: BaseException | None = None
    transfer_candidacy: bool = False  # set by TimeoutNow for the next campaign only (3.10)
    stalls: int = 0  # leaderships of this node since the last commit that committed nothing
    rest_until: float = 0.0  # after one, the others have the first try
    request_shutdown: Callable[[], None] = lambda: None
    peers: Callable[[], tuple[Peer, ...]] = lambda: ()  # a leader's; any thread
    take_snapshot: Callable[[Callable[[BaseException | None], None]], None] = lambda _: None
    was_persisting: Callable[[float], bool] = lambda _: False  # since then, a view of the FSM
    metrics: Metrics | None = None
    saturation: Saturation | None = None  # of the main thread

    @property
    def local_id(self) -> ServerID:
        """This server's id."""
        return self.header.id

    # ---- transitions ----

    def become(self, role: RaftState) -> None:
        """Change the role; the known leader is forgotten. Every transition is logged here."""
        if self.state.set_role(role):
            self.emit(role)
            self.log.info("entering state role=%s", role)

    def become_follower(self, term: int, voted_for: RPCHeader | None = None) -> None:
        """Follow in a term, made durable first if it is new (§5.1), with the vote given in it."""
        self.adopt_term(term, voted_for)
        self.become(RaftState.FOLLOWER)

    def adopt_term(self, term: int, voted_for: RPCHeader | None = None) -> None:
        """Make a newer term durable; the same write clears the vote, or has the one in it."""
        check_term(self.hard_state.term, term)
        vote = ("", "") if voted_for is None else (voted_for.id, voted_for.address)
        if term > self.hard_state.term:
            self.save_hard_state(HardState(term, *vote))

    def save_hard_state(self, hard_state: HardState) -> None:
        """Make term and vote durable, then known. Raises `StorageFailedError`: nothing changed."""
        began = self.runtime.monotonic()
        self.write("vote record", lambda: hard_state.save(self.stable))
        seconds = self.runtime.monotonic() - began
        if seconds > self.config.election_timeout / _SLOW_VOTE:
            self.log.warning(
                "slow disk: storing term and vote took seconds=%.3f election_timeout=%.3f:"
                " nobody can be elected where it takes longer than that",
                seconds,
                self.config.election_timeout,
            )
        self.hard_state = hard_state
        self.state.set_term(hard_state.term)

    def set_leader(self, server_id: ServerID, address: ServerAddress) -> None:
        """Note who leads; empty texts for nobody."""
        if self.state.set_leader(server_id, address):
            self.emit(LeaderObservation(address, server_id))

    def announce_leadership(self, leads: bool) -> None:
        """Tell the application's channels whether this node leads; never blocks."""
        self.leader_ch.put(leads)
        if self.config.notify_ch is not None:
            self.config.notify_ch.put(leads)

    # ---- writing: the main thread waits on its inbox, so that shutdown gets through ----

    def write(self, name: str, action: Callable[[], None]) -> None:
        """Have the disk thread do something, and wait until it is durable.

        Raises:
            StorageFailedError: it failed; `fault` is set until the stores are read anew.
            StoppingError: the node is being shut down; the write may still happen.
        """
        write = self._wait_for(self.disk.submit(name, action, self._write_done))
        if write.error is not None:
            self.fault = write.error
            raise StorageFailedError(f"{name} could not be stored: {write.error}") from write.error

    def settle(self) -> None:
        """Wait until all writes have ended, and forget what is not durable (law 5)."""
        self.raft_log.drop_tail()
        self._wait_for(self.disk.submit("settle", lambda: None, self._write_done))
        if self.fault is None:
            self.fault = self._try_reread()

    def recover_disk(self) -> bool:
        """Probe an unfit disk and read everything anew; tell whether it is fit now."""
        write = self._wait_for(self.disk.probe(self.stable, self._write_done))
        if write.error is not None:
            self.log.warning("disk probe failed error=%s", write.error)
            return False
        self.fault = self._try_reread()
        if self.fault is not None:
            return False
        self.log.info("disk is fit again last_index=%d", self.raft_log.last_index())
        return True

    def _try_reread(self) -> Exception | None:
        """Read everything anew; return what is wrong with the stores, to be tried again later."""
        try:
            self._reread()
        except (RaftInternalError, LogGapError, StoppingError):
            raise
        except Exception as error:  # noqa: BLE001 - a store is foreign code
            self.log.warning("stores cannot be read error=%s", error)
            return error
        return None

    def _write_done(self, _: Write) -> None:
        self.inbox.poke()

    def _wait_for(self, write: Write) -> Write:
        bootstraps: list[Bootstrap] = []  # the write may bring what they ask for
        try:
            while not write.done:
                message = self.inbox.take(None, only_clients=True)
                if self.inbox.closed and not write.done:
                    raise StoppingError("raft is being shut down")
                if isinstance(message, Bootstrap):
                    bootstraps.append(message)
                elif message is not None:
                    self.refuse(message)
        finally:
            if bootstraps:
                self.inbox.put_clients_back(bootstraps)
        return write

    def _reread(self) -> None:
        """Take last index, cluster id, vote and latest configuration from the stores."""
        fault = self.fault
        if isinstance(fault, LogCorruptError):
            self.write("cut off damage", lambda: self.damage.cut_off(fault.index))
        self.raft_log.reload()
        self.cluster_id = load_cluster_id(self.stable)
        hard_state = HardState.load(self.stable)
        if hard_state.term < self.hard_state.term:
            raise RaftInternalError("the vote record fell back: the disk lost a durable write")
        self.hard_state = hard_state
        self.state.set_term(hard_state.term)
        if hard_state.term < self.raft_log.last().term:  # a bootstrap was cut short
            self.save_hard_state(HardState(self.raft_log.last().term))
        if self.raft_log.must_drop():
            self.drop_log(self.raft_log.boundary())
        self.membership.truncate(self.membership.committed_index + 1)
        self.scan_configurations(self.membership.committed_index + 1)
        self.publish_log()

    def drop_log(self, boundary: EntryID) -> None:
        """Delete the whole log, in whose place a durable snapshot stands (law 3)."""
        drop = timed(self.metrics, "raft.removeOldLogs", lambda: self.raft_log.drop_all(boundary))
        self.write("drop log", drop)

    def scan_configurations(self, first: int) -> None:
        """Take configurations over from the log, from an index on; checks every entry it reads."""
        for log, configuration in configurations_in(self.raft_log, first):
            self.membership.append(log.index, configuration)
            self.incarnations.learn_pin(log)

    def publish_log(self) -> None:
        """Publish the end of the log and the latest configuration."""
        self.state.set_last_log(self.raft_log.last())
        self.state.set_configuration(self.membership.latest, self.membership.latest_index)

    # ---- the cluster's identity (departure 15) ----

    def adopt_cluster_id(self, rpc: RPC) -> None:
        """Before acknowledging a leader's entries: take its cluster's id, or refuse another's."""
        theirs = rpc.cluster_id
        if theirs is None or theirs == self.cluster_id:
            return
        if self.cluster_id is not None:
            raise ClusterMismatchError(
                f"this server belongs to cluster {self.cluster_id}, the sender to {theirs}:"
                " check addresses and data directories"
            )
        self.write("cluster id", lambda: self.stable.set(CLUSTER_ID_KEY, theirs.encode()))
        self.cluster_id = theirs

    # ---- committing, snapshots ----

    def apply_committed(self, upto: int, applies: Sequence[tuple[int, Apply]] = ()) -> None:
        """Publish a commit index and have the FSM thread go there; never waits for it."""
        self.state.set_commit_index(upto)
        self.stalls = 0
        self.membership.commit(upto)
        self.unsettled.committed(upto)
        self.fsm.commit(upto, applies)

    def settled_index(self) -> int:
        """Return up to where this node knows the log to be committed."""
        if self.unsettled.meta is not None:
            return self.state.commit_index
        return max(self.state.commit_index, self.raft_log.boundary().index)

    def snapshot_taken(self, meta: SnapshotMeta) -> None:
        """Note a snapshot of our own, and let the disk thread compact the log behind it."""
        last = EntryID(meta.term, meta.index)
        self.raft_log.set_boundary(last)  # before any deletion: replication looks it up
        self.state.set_last_snapshot(last)
        if self.raft_log.ends_before_boundary():
            # It was taken of a tail that was lost meanwhile: what comes next would leave a hole.
            self.drop_log(self.raft_log.boundary())
            self.publish_log()
        self.damage.look()
        self.compact(meta.index)

    def compact(self, snapshot_index: int) -> None:
        """Delete entries that a snapshot covers, but for the trailing ones."""
        upto = min(snapshot_index, self.raft_log.durable_index() - self.config.trailing_logs)
        if upto >= self.raft_log.first_index() > 0:
            first = self.raft_log.first_index()
            self.disk.submit_background(
                timed_steps(
                    self.metrics, "raft.compactLogs", lambda: self.raft_log.compact_step(upto)
                )
            )
            self.log.info("compacting log first=%d last=%d", first, upto)

    # ---- refusing ----

    def not_leader(self) -> NotLeaderError:
        """Return the refusal that names the leader, if one is known."""
        address, server_id = self.state.leader()
        return NotLeaderError(leader_id=server_id, leader_address=address)

    def refuse(self, message: Message) -> None:
        """Answer a client that asked another node than the leader."""
        if isinstance(message, ClientMessage):
            message.fail(self.not_leader())

    def refuse_leftovers(self) -> None:
        """Answer whatever is still in the closed inbox."""
        left = self.inbox.drain()
        error = ShutdownNotAppliedError("raft is already shut down")
        for message in left.clients:
            message.fail(error)
        for rpc in [*left.rpcs, *(m.rpc for m in left.control if isinstance(m, SnapshotReceived))]:
            rpc.respond(None, error)
