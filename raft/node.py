"""Raft: one node. Wires the parts together; each public method posts a message and returns."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import TracebackType

from raft.config import Config, ReloadableConfig, doubts, validate_config
from raft.engine.append_entries import answer_heartbeat
from raft.engine.assembly import NodeHost, assemble
from raft.engine.claims import Claim
from raft.engine.core import Core, StoppingError
from raft.engine.fsm_check import check_fsm
from raft.engine.inbox import (
    Apply,
    Bootstrap,
    ByteBudget,
    ChangeConfiguration,
    ChangeKind,
    ClientMessage,
    ConfigReloaded,
    Inbox,
    ReadBarrier,
    SnapshotTaken,
    TransferLeadership,
    UserRestore,
    VerifyLeader,
)
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.lifecycle import Lifecycle
from raft.engine.snapshotter import Snapshotter
from raft.engine.start_up import load_state
from raft.engine.stats import describe, describe_peers
from raft.errors import (
    CommandTooLargeError,
    DeadlockError,
    EnqueueTimeoutError,
    ForkedProcessError,
    InvalidConfigurationError,
    LeadershipTransferError,
    NothingNewToSnapshotError,
    OutcomeUnknownError,
    RaftError,
    ShutdownNotAppliedError,
    SnapshotError,
)
from raft.futures import ApplyFuture, ConfigurationFuture, Future, IndexFuture, SnapshotFuture
from raft.interfaces import (
    FSM,
    LogStore,
    SnapshotStore,
    StableStore,
    Transport,
    WithAddressCheck,
    WithIdentity,
)
from raft.messages import SnapshotReader
from raft.metrics import count, timed
from raft.observer import Events, LatestValue, Observation, ObservationData, Observer
from raft.roles.base import Role
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.roles.leader import Leader
from raft.runtime import THREADS, Deadline, ForkGuard, Runtime, refuse_green_threads
from raft.snapshots.crc64 import CheckedReader
from raft.types import (
    NO_INDEX,
    Configuration,
    EntryID,
    Log,
    LogType,
    Peer,
    RaftState,
    ServerAddress,
    ServerID,
    SnapshotMeta,
    check_type,
)

_ROLES: dict[RaftState, type[Role]] = {
    RaftState.FOLLOWER: Follower,
    RaftState.CANDIDATE: Candidate,
    RaftState.LEADER: Leader,
}
_RELOAD_LIMIT = 5.0  # seconds; it takes microseconds, unless the thread waits for itself
_CALLS = {LogType.COMMAND: "raft.apply", LogType.BARRIER: "raft.barrier"}  # metrics


class Raft:
    """A node of a Raft cluster. Every method may be called from any thread, or a signal handler.

    The exception is `reload_config` in a handler that has interrupted it: `DeadlockError`.

    The constructor loads the stores, restores the newest snapshot into the FSM, and starts the
    threads. The node owns `fsm`, stores and transport until `shutdown`, which `with` calls; it
    closes the transport, never the stores. What blocks says so; futures are answered on every path.

    Raises:
        InvalidConfigError: eventlet has patched threads, a field of `config` is out of range.
        TypeError: `fsm` lacks a method, or one takes other arguments.
        FSMFailedError: the FSM halted at an entry that was applied here (`restore_committed_logs`).
        IncompatibleLogStoreError: the log store cannot do what `restore_committed_logs` needs.
        SnapshotError, LogGapError, LogCorruptError: the stores do not make a whole.
        UnsupportedProtocolError: the log is that of a protocol version below 3.
        NoThreadError: the system has no thread left; none of the node's runs on.
        StoreLockedError: another node of this process uses a store.
    """

    def __init__(
        self,
        config: Config,
        fsm: FSM,
        logs: LogStore,
        stable: StableStore,
        snapshots: SnapshotStore,
        transport: Transport,
        *,
        runtime: Runtime = THREADS,
    ) -> None:
        refuse_green_threads()
        validate_config(config)
        check_fsm(fsm)
        config = replace(config)
        self._guard = ForkGuard(f"node {config.local_id}")
        self._runtime = runtime
        self._config = config
        self._events = Events(runtime)
        self._host = NodeHost(runtime, self._events, self._guard)
        self._budget = ByteBudget(runtime, config.max_pending_bytes)
        self._reload_lock = runtime.lock()  # one reload at a time
        self._role: Role | None = None  # the main thread's, and what shutdown must answer for
        self._claim = Claim(config.local_id, logs, stable)
        try:
            self._start(fsm, logs, stable, snapshots, transport)
        except BaseException:
            self._claim.release()
            raise

    def _start(
        self,
        fsm: FSM,
        logs: LogStore,
        stable: StableStore,
        snapshots: SnapshotStore,
        transport: Transport,
    ) -> None:
        runtime, config = self._runtime, self._config
        self._core = core = self._assemble(fsm, logs, stable, snapshots, transport)
        load_state(core)
        self._snapshotter = Snapshotter(
            runtime=runtime,
            config=config,
            host=self._host,
            fsm=core.fsm,
            log=core.raft_log,
            snapshots=snapshots,
            on_taken=self._snapshot_taken,
            metrics=core.metrics,
        )
        self._host.is_fsm_code = self._is_fsm_code
        core.was_persisting = self._snapshotter.was_persisting
        core.take_snapshot = self._snapshotter.take_now
        self._lifecycle = Lifecycle(
            core=core,
            events=self._events,
            snapshotter=self._snapshotter,
            budget=self._budget,
            host=self._host,
            abandon_role=self._abandon_role,
            on_down=self._claim.release,
        )
        if isinstance(transport, WithIdentity):
            transport.identify(config.local_id, lambda: core.cluster_id)
        answer = timed(core.metrics, "raft.rpc.processHeartbeat", answer_heartbeat)
        transport.set_heartbeat_handler(lambda rpc: answer(core, rpc))
        self._doubt(config)
        self._lifecycle.start(self._run_main)

    def _assemble(
        self,
        fsm: FSM,
        logs: LogStore,
        stable: StableStore,
        snapshots: SnapshotStore,
        transport: Transport,
    ) -> Core:
        runtime, config = self._runtime, self._config
        return assemble(
            runtime=runtime,
            config=config,
            inbox=Inbox(runtime, config.max_append_entries),
            fsm=fsm,
            logs=logs,
            stable=stable,
            snapshots=snapshots,
            transport=transport,
            emit=self._emit,
            logger=config.logger or logging.getLogger("raft"),
        )

    # ---- the main thread ----

    @property
    def _mine(self) -> Core:
        """The parts, for a call from outside: not in a forked child, which has no threads."""
        self._guard.check()
        return self._core

    def _doubt(self, config: Config) -> None:
        for doubt in doubts(config):
            self._core.log.warning(doubt)

    def _run_main(self) -> None:
        core = self._core
        receiver = SnapshotReceiver(core)
        try:
            while not core.inbox.closed:
                self._role = _ROLES[core.state.role](core, receiver)
                self._role.run()
        except StoppingError:
            pass
        finally:
            core.inbox.close()
            core.become(RaftState.SHUTDOWN)
            core.refuse_leftovers()
            core.main_ended.set()

    def _snapshot_taken(self, message: SnapshotTaken) -> None:
        """Publish a snapshot before its caller hears of it; the main thread does the rest."""
        meta = message.meta
        self._core.state.set_last_snapshot(EntryID(meta.term, meta.index))
        self._core.inbox.post(message)

    def _is_fsm_code(self) -> bool:
        return self._core.fsm.is_current() or self._snapshotter.is_in_fsm_code()

    def _abandon_role(self) -> None:
        if isinstance(self._role, Leader):
            self._role.abandon()

    def _emit(self, data: ObservationData) -> None:
        self._events.emit(Observation(self, data))

    # ---- commands ----

    def apply(self, command: bytes, timeout: float | None = None) -> ApplyFuture:
        """Have a command applied by every FSM; the result is what this node's FSM returned.

        Blocks while the queue is full, at most `timeout` seconds (0: not at all, None: no limit).
        The future fails with a `NotAppliedError` (certainly no effect: `NotLeaderError`,
        `EnqueueTimeoutError`, `CommandTooLargeError`, ...), an `OutcomeUnknownError` (may or may
        not take effect), or what `FSM.apply` raised.
        """
        return self._submit_apply(LogType.COMMAND, command, b"", timeout)

    def apply_log(self, log: Log, timeout: float | None = None) -> ApplyFuture:
        """Have a command with extensions applied: bytes for whoever wraps the FSM or the store.

        Only `data` and `extensions` of the given entry are used. Else as `apply`.
        """
        return self._submit_apply(LogType.COMMAND, log.data, log.extensions, timeout)

    def barrier(self, timeout: float | None = None) -> IndexFuture[None]:
        """Wait, by the future, until this leader's FSM has applied all that was sent before.

        Takes a place in the log; `timeout` as in `apply`.
        """
        return self._submit_apply(LogType.BARRIER, b"", b"", timeout)

    def _submit_apply(
        self, kind: LogType, data: bytes, extensions: bytes, timeout: float | None
    ) -> ApplyFuture:
        core = self._mine
        if core.metrics is not None:
            count(core.metrics, _CALLS[kind])
        if not isinstance(data, bytes):
            raise TypeError(f"a command is bytes, not {type(data).__name__}: encode it first")
        check_type("extensions", extensions, bytes)
        future = ApplyFuture(self._host)
        limit = self._config.max_command_bytes
        if len(data) + len(extensions) > limit:
            future.fail(
                CommandTooLargeError(
                    f"command has {len(data) + len(extensions)} bytes, more than"
                    f" max_command_bytes ({limit})"
                )
            )
            return future
        # FSM code never waits for room: nobody but the FSM thread can make any.
        deadline = self._deadline(timeout, waits=not core.fsm.is_current())
        message = Apply(kind, data, extensions, future)
        if self._leads_not():
            message.fail(core.not_leader())  # and not only once a slow FSM gives bytes back
            return future
        if not self._budget.acquire(message.size(), deadline):
            future.fail(EnqueueTimeoutError("timed out: too many bytes are unanswered"))
            return future
        message.budget = self._budget
        self._submit(message, deadline)
        return future

    def _deadline(self, timeout: float | None, *, waits: bool = True) -> Deadline:
        if not waits:
            return Deadline(self._runtime, 0.0)
        return Deadline(self._runtime, timeout)

    def _submit(self, message: ClientMessage, deadline: Deadline) -> None:
        """Post a request of the leader's, or answer it at once where there is none."""
        core = self._mine
        if self._leads_not():
            message.fail(core.not_leader())
            return
        try:
            core.inbox.submit(message, deadline)
        except RaftError as error:
            message.fail(error)
        except BaseException:  # a signal handler's: the caller gets no future, but his bytes back
            message.fail(OutcomeUnknownError("interrupted while it was handed over"))
            raise

    def _leads_not(self) -> bool:
        """Tell whether requests of the leader's are refused here; a node shut down says so."""
        core = self._core
        is_elsewhere = core.state.role not in (RaftState.LEADER, RaftState.SHUTDOWN)
        return is_elsewhere and not core.inbox.closed

    # ---- membership ----

    def bootstrap_cluster(
        self, configuration: Configuration, cluster_id: str | None = None
    ) -> Future[None]:
        """Give this blank, running node its first configuration; it must be a voter there.

        Succeeds too where it has that configuration already, of this `cluster_id` if one is given:
        all servers may be bootstrapped alike, and one's entry reach another first.
        """
        future: Future[None] = Future(self._host)
        self._guard.check()
        if not isinstance(configuration, Configuration):
            raise TypeError(f"not a Configuration: {type(configuration).__name__}")
        try:
            message = Bootstrap(configuration, cluster_id, future)
            self._core.inbox.submit(message, self._deadline(None))
        except RaftError as error:
            future.fail(error)
        return future

    def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: int = NO_INDEX,
        timeout: float | None = None,
        *,
        catch_up: bool = False,
    ) -> IndexFuture[None]:
        """Add a server with a vote, give a non-voter one, or change a server's address.

        The change waits until the one before is committed, at most `timeout` seconds (0:
        not at all, None: no limit). `prev_index` makes it fail if the configuration is another one
        by then.

        With `catch_up` a new server enters as a non-voter and gets its vote when it has the log
        (thesis 4.2.1), so that a slow or wrong one never counts for a majority; `timeout` covers
        that, too. If it fails with `CatchUpError`, which names the last error, the server stays
        as a non-voter. One that does not answer is given up after ten `election_timeout`.
        """
        return self._change(ChangeKind.ADD_VOTER, server_id, address, prev_index, timeout, catch_up)

    def add_nonvoter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: int = NO_INDEX,
        timeout: float | None = None,
    ) -> IndexFuture[None]:
        """Add a server that gets the log but has no vote; a voter keeps its vote."""
        return self._change(ChangeKind.ADD_NONVOTER, server_id, address, prev_index, timeout)

    def demote_voter(
        self, server_id: ServerID, prev_index: int = NO_INDEX, timeout: float | None = None
    ) -> IndexFuture[None]:
        """Take a server's vote; it goes on getting the log. Unknown: `NoSuchServerError`."""
        return self._change(ChangeKind.DEMOTE_VOTER, server_id, "", prev_index, timeout)

    def remove_server(
        self, server_id: ServerID, prev_index: int = NO_INDEX, timeout: float | None = None
    ) -> IndexFuture[None]:
        """Remove a server; a leader that removes itself leads until that is committed.

        Fails with `NoSuchServerError` if no member has this id.
        """
        return self._change(ChangeKind.REMOVE_SERVER, server_id, "", prev_index, timeout)

    def _change(
        self,
        kind: ChangeKind,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: int,
        timeout: float | None,
        catch_up: bool = False,
    ) -> IndexFuture[None]:
        future: IndexFuture[None] = IndexFuture(self._host)
        deadline = self._deadline(timeout)
        message = ChangeConfiguration(
            kind, server_id, address, prev_index, future, deadline, catch_up
        )
        try:
            if kind in (ChangeKind.ADD_VOTER, ChangeKind.ADD_NONVOTER):
                self._check_address(address)
        except InvalidConfigurationError as error:
            message.fail(error)
            return future
        self._submit(message, deadline)
        return future

    def _check_address(self, address: ServerAddress) -> None:
        """Refuse an address that nobody could ever dial, if the transport can tell."""
        transport = self._mine.transport
        if not isinstance(transport, WithAddressCheck):
            return
        try:
            transport.check_address(address)
        except ValueError as error:
            raise InvalidConfigurationError(f"the address {error}") from error

    def get_configuration(self) -> ConfigurationFuture:
        """Return the latest configuration, committed or not, answered already."""
        future = ConfigurationFuture(self._host)
        now = self._mine.state.published()
        future.set_index(now.configuration_index)
        future.respond(now.configuration)
        return future

    # ---- who leads ----

    def verify_leader(self) -> Future[None]:
        """Ask a quorum whether this node still leads; rounds begun before this call do not count.

        Ends at the latest when the lease runs out and the node steps down.
        """
        future: Future[None] = Future(self._host)
        count(self._mine.metrics, "raft.verify_leader")
        self._submit(VerifyLeader(future), self._deadline(None))
        return future

    def read_barrier(self, timeout: float | None = None) -> IndexFuture[int]:
        """Make a linearizable read possible, without a log entry (thesis 6.4).

        Once the future is done, this leader's FSM holds every write that was answered before this
        call, wherever: read it now. The result is the index it holds at least. Callers share
        rounds of heartbeats, and only rounds that begin after the call count. `timeout` as in
        `apply`; all errors mean that nothing may be concluded from what is read.
        """
        future: IndexFuture[int] = IndexFuture(self._host)
        self._submit(ReadBarrier(future), self._deadline(timeout))
        return future

    def leadership_transfer(self) -> Future[None]:
        """Hand leadership to the voter that has most of the log (thesis 3.10).

        Does not block. Until it has ended, writes and changes fail with
        `LeadershipTransferInProgressError`. The future is answered when this node leads no longer,
        or fails with `LeadershipTransferError` after at most twice `election_timeout`.
        """
        return self._transfer("", "")

    def leadership_transfer_to_server(
        self, server_id: ServerID, address: ServerAddress
    ) -> Future[None]:
        """Hand leadership to one voter, asked at `address`; else as `leadership_transfer`."""
        return self._transfer(server_id, address)

    def _transfer(self, server_id: ServerID, address: ServerAddress) -> Future[None]:
        future: Future[None] = Future(self._host)
        if server_id == self._config.local_id:
            future.fail(LeadershipTransferError("cannot transfer leadership to itself"))
        else:
            at_once = self._deadline(None, waits=False)
            self._submit(TransferLeadership(server_id, address, future), at_once)
        return future

    def wait_for_leader(self, timeout: float | None = None) -> tuple[ServerAddress, ServerID]:
        """Block until a leader is known, and return its address and id.

        Raises:
            TimeoutError: none was known within `timeout` seconds.
            RaftShutdownError: the node is shut down.
        """
        found = self._mine.state.wait_for_leader(timeout)
        if found is None:
            if self._core.state.role is RaftState.SHUTDOWN:
                raise ShutdownNotAppliedError("raft is already shut down")
            raise TimeoutError(f"no leader was known within {timeout} s")
        return found

    def leader_with_id(self) -> tuple[ServerAddress, ServerID]:
        """Return the address and id of the leader as known here, empty texts for none."""
        return self._mine.state.leader()

    def leader_ch(self) -> LatestValue:
        """Return the channel that holds True when this node has become leader, then False.

        A level: an unread value is replaced, so a change and its reversal show as the same value
        again. There is one per node, for one reader.
        """
        return self._mine.leader_ch

    # ---- snapshots ----

    def snapshot(self) -> SnapshotFuture:
        """Take a snapshot now; the result is its id. `open()` of the future reads it, once."""
        self._guard.check()
        future = SnapshotFuture(self._host)
        if self._core.inbox.closed:
            future.fail(ShutdownNotAppliedError("raft is already shut down"))
        else:
            self._snapshotter.request(future)
        return future

    def restore(
        self, meta: SnapshotMeta, reader: SnapshotReader, timeout: float | None = None
    ) -> None:
        """Replace the state of the whole cluster by a snapshot; on the leader.

        `meta` and `reader` are what `snapshot().open()`, a store's `open` or `raft.backup` gave, of
        this cluster or another; `meta.size` bytes are read and compared with `meta.checksum`, if it
        is known; the reader stays open. Blocks until a majority has it; `timeout` (seconds) is only
        for the wait in the queue, as in `apply`. Meanwhile writes fail with
        `RestoreInProgressError`.

        First this node takes a snapshot of its own. Then its state machine restores the one given,
        and only if that succeeds anything is recorded or sent: if not, it goes back to its own.

        Raises:
            RestoreFailedError: the state machine could not restore it. Nothing was changed.
            SnapshotCorruptError: size or checksum do not match. Nothing was changed.
            NotAppliedError, SnapshotError, DeadlockError: nothing was changed.
            OutcomeUnknownError: leadership was lost; look at the state first.
        """
        count(self._mine.metrics, "raft.restore")
        self._host.check_may_wait()
        UserRestore(meta, reader, IndexFuture())  # what is of another type is refused at once
        self.read_barrier(timeout).result()  # an entry of this leadership is applied
        self._keep_state()
        future: IndexFuture[None] = IndexFuture(self._host)
        if meta.checksum:
            reader = CheckedReader(reader, meta)
        self._submit(UserRestore(meta, reader, future), self._deadline(timeout))
        future.result()

    def _keep_state(self) -> None:
        """Take the snapshot that the state machine goes back to if it cannot restore another."""
        try:
            self.snapshot().result()
        except NothingNewToSnapshotError:
            pass  # what it was restored from at start is there
        except Exception as error:
            raise SnapshotError(
                f"the state as it is could not be kept, so nothing was replaced: {error}"
            ) from error

    # ---- numbers: none of these blocks ----

    def state(self) -> RaftState:
        """Return the role."""
        return self._mine.state.role

    def current_term(self) -> int:
        """Return the term."""
        return self._mine.state.term

    def last_index(self) -> int:
        """Return the last index of log or snapshot."""
        return self._mine.state.published().last_log.index

    def commit_index(self) -> int:
        """Return the last index known to be committed."""
        return self._mine.state.commit_index

    def applied_index(self) -> int:
        """Return the last index that the FSM has really applied."""
        return self._mine.state.applied_index

    def last_contact(self) -> float | None:
        """Return when the leader was last heard, on the monotonic clock; None for never."""
        return self._mine.state.last_contact

    def cluster_id(self) -> str | None:
        """Return the id of the cluster this node's data belongs to, None before it has one."""
        return self._mine.cluster_id

    @property
    def failure(self) -> BaseException | None:
        """What one of the node's threads died of; None for a healthy node."""
        self._guard.check()
        return self._lifecycle.failure

    def peers(self) -> list[Peer]:
        """Return what this node knows of each other member: all of it on the leader.

        A copy of one moment, made without waiting for anybody; any thread may ask, at any time.
        """
        return describe_peers(self._mine)

    def stats(self) -> dict[str, str]:
        """Return the numbers an operator wants to see, as texts, by the original's names."""
        return describe(self._mine)

    # ---- settings, observers, shutdown ----

    def reload_config(self, settings: ReloadableConfig) -> None:
        """Take other settings over at once, in all running threads, or none of them.

        Raises:
            InvalidConfigError: nothing was changed; see `validate_config`.
        """
        self._guard.check()
        if not self._reload_lock.acquire(True, _RELOAD_LIMIT):
            raise DeadlockError(
                "a signal handler has interrupted another reload_config: set a flag"
            )
        try:
            validate_config(settings.overlay(self._config))
            for name in settings.__slots__:
                setattr(self._config, name, getattr(settings, name))
        finally:
            self._reload_lock.release()
        self._doubt(self._config)
        self._core.inbox.post(ConfigReloaded())
        self._snapshotter.look_again()

    def reloadable_config(self) -> ReloadableConfig:
        """Return the current values of the settings that `reload_config` changes."""
        self._guard.check()
        return ReloadableConfig.of(self._config)

    def register_observer(self, observer: Observer) -> None:
        """Have an observer told of what happens; see `Observer`."""
        self._guard.check()
        self._events.register(observer)

    def deregister_observer(self, observer: Observer) -> None:
        """Tell an observer no more."""
        self._guard.check()
        self._events.deregister(observer)

    def shutdown(self, *, transfer: bool = False) -> Future[None]:
        """Stop the node; waiting for the future waits for its threads.

        Bounded by `Config.shutdown_timeout` even if user code or a disk call never returns. All
        other futures are answered by then, and their callbacks have run, but for those that take
        longer than a second. May be called again. The transport is closed.
        With `transfer` a leader hands over to another voter first, in at most three
        `election_timeout`, so that the cluster need not wait for an election; leaving `with` does
        so. A signal handler may call it, and wait.
        """
        self._guard.check()
        return self._lifecycle.shutdown(transfer=transfer)

    def __enter__(self) -> Raft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.shutdown(transfer=True).result()
        except ForkedProcessError:
            pass  # a child that leaves the block it was forked in has nothing to shut down

    def __str__(self) -> str:
        return f"Node at {self._core.header.address} [{self._core.state.role}]"
