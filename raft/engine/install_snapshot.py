"""The receiver of InstallSnapshot (§7, Figure 5.3), with departures 4 and 14.

The bytes are taken in on a thread of their own; the main thread decides at the start, and again,
looking anew at term and log, at the end.
"""

from __future__ import annotations

from dataclasses import replace

from raft.engine.core import Core
from raft.engine.inbox import SnapshotReceived
from raft.errors import LogNotFoundError, SnapshotError, StorageFailedError
from raft.interfaces import SnapshotSink, SnapshotStore, WithRoom
from raft.messages import RPC, InstallSnapshotRequest, InstallSnapshotResponse, SnapshotReader
from raft.types import (
    NO_TERM,
    SNAPSHOT_VERSION,
    EntryID,
    RaftState,
    SnapshotMeta,
    check_configuration,
)

CHUNK_BYTES = 256 * 1024


class SnapshotReceiver:
    """Takes in one snapshot at a time of each leader. Owned by the main thread.

    One of an earlier leader, who may be gone, comes to nothing (§5.1): it keeps nobody waiting.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._receiving: RPC | None = None  # the latest, until it is there or has failed
        self._leader_term = NO_TERM  # of whoever sends that
        self._began = 0.0  # when what is being received was announced

    def begin(self, rpc: RPC, request: InstallSnapshotRequest) -> None:
        """Decide whether to take a snapshot; what is known already is acknowledged at once."""
        core = self._core
        refusal = InstallSnapshotResponse(core.header, core.state.term)
        if request.term < core.state.term:
            rpc.respond(refusal)
            return
        if core.fault is not None or rpc.reader is None:
            rpc.respond(None, StorageFailedError(f"{core.local_id} cannot take a snapshot now"))
            return
        if not 0 <= request.snapshot_version <= SNAPSHOT_VERSION:
            rpc.respond(
                None, SnapshotError(f"unsupported snapshot version {request.snapshot_version}")
            )
            return
        try:
            check_configuration(request.configuration)
        except ValueError as exc:
            # Of version 0, say, whose peers another protocol carries where this one has nothing.
            rpc.respond(None, SnapshotError(f"the snapshot names no usable peers: {exc}"))
            return
        if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:
            core.become_follower(request.term)
        core.set_leader(request.header.id, request.header.address)
        core.state.touch(core.runtime.monotonic())
        core.adopt_cluster_id(rpc)
        last = EntryID(request.last_log_term, request.last_log_index)
        if not request.unsettled and (note := core.told.hear(last)):
            core.write("committed as told", note)
        if self._is_known(request):
            rpc.respond(replace(refusal, term=request.term, success=True))
            return
        if self._receiving is not None and self._leader_term == request.term:
            rpc.respond(replace(refusal, term=request.term))
            return
        core.log.info("receiving snapshot index=%d size=%d", request.last_log_index, request.size)
        core.threads.spawn("install", lambda: self._receive(rpc, request))
        self._receiving, self._leader_term = rpc, request.term
        self._began = core.runtime.monotonic()

    def finish(self, received: SnapshotReceived) -> None:
        """Install a snapshot that is durable here, unless it has been overtaken meanwhile."""
        if received.rpc is self._receiving:
            self._receiving = None
        self._finish(received)
        if self._core.metrics is not None:
            self._core.metrics.since("raft.rpc.installSnapshot", self._began)

    def _finish(self, received: SnapshotReceived) -> None:
        core, rpc, meta = self._core, received.rpc, received.meta
        request = rpc.command
        if meta is None or not isinstance(request, InstallSnapshotRequest):
            core.log.warning("snapshot not received error=%s", received.error)
            rpc.respond(None, received.error or SnapshotError("snapshot was not received"))
            return
        if request.term < core.state.term or core.state.role is not RaftState.FOLLOWER:
            self._discard(meta)
            rpc.respond(InstallSnapshotResponse(core.header, core.state.term))
            return
        if core.fault is not None:
            self._discard(meta)
            rpc.respond(None, StorageFailedError(f"the disk of {core.local_id} failed"))
            return
        if not self._is_known(request):
            self._install(meta)
        core.state.touch(core.runtime.monotonic())
        rpc.respond(InstallSnapshotResponse(core.header, core.state.term, success=True))

    def _discard(self, meta: SnapshotMeta) -> None:
        """Let go of what is not installed: a settled one may stay, it was committed anyway."""
        if meta.unsettled:
            self._core.unsettled.forget(meta)

    def _is_known(self, request: InstallSnapshotRequest) -> bool:
        """What is committed or snapshotted here already needs no snapshot (H4).

        While we hold a user restore, nothing before it is here. An older snapshot of a later
        leader then proves that it never happened (departure 19); one of the same leader is late.
        """
        core, index = self._core, request.last_log_index
        own = core.unsettled.meta
        if own is None:
            # What is committed our own disk may have lost again, or not had yet (law 3): if this
            # were acknowledged, what follows it would be refused, and sent for ever.
            return index <= min(core.settled_index(), core.raft_log.last().index)
        if (index, request.last_log_term) == (own.index, own.term):
            return True
        return index < own.index and request.term <= own.term

    def _install(self, meta: SnapshotMeta) -> None:
        """Put a durable snapshot in the place of what is here."""
        core, own = self._core, self._core.unsettled.meta
        if own is not None and meta.index < own.index:
            self._go_back(meta, own)
        else:
            self._go_on(meta, may_go_back=own is not None)
        if not meta.unsettled:
            core.state.set_commit_index(max(core.state.commit_index, meta.index))
            core.damage.look()  # an unsettled one may yet be given up
        core.publish_log()
        core.log.info("installed snapshot id=%s index=%d", meta.id, meta.index)

    def _go_on(self, meta: SnapshotMeta, *, may_go_back: bool) -> None:
        """Law 4: keep the log only if it holds the snapshot's last entry; else drop it whole.

        The log is looked at first: if it is spoiled there, nothing has changed yet. It is dropped
        last: should that fail, reading it anew makes up for it, and what is in memory holds.
        """
        core, last = self._core, EntryID(meta.term, meta.index)
        is_held = self._holds(last)
        # The FSM is told before entries are gone that it still wanted. One that is further than
        # the log was does not go back.
        core.fsm.restore(meta, may_go_back=may_go_back)
        core.unsettled.replace(meta)
        core.raft_log.set_boundary(last)
        core.state.set_last_snapshot(last)
        if is_held:
            core.membership.restore(meta.configuration_index, meta.configuration)
            core.compact(meta.index)
        else:
            core.membership.reset(meta.configuration_index, meta.configuration)
            core.drop_log(last)

    def _go_back(self, meta: SnapshotMeta, own: SnapshotMeta) -> None:
        """Give a user restore up, which a later leader does not know (departure 19).

        The FSM is told last: before, it would be ahead of a log with nothing in it.
        """
        core, last = self._core, EntryID(meta.term, meta.index)
        core.write("mark", lambda: core.damage.went_back(EntryID(own.term, own.index)))
        core.drop_log(last)
        core.membership.reset(meta.configuration_index, meta.configuration)
        core.fsm.restore(meta)
        core.unsettled.replace(meta)
        core.state.set_last_snapshot(last, replaces=True)

    def _holds(self, last: EntryID) -> bool:
        try:
            return self._core.raft_log.term_at(last.index) == last.term
        except LogNotFoundError:
            return False

    # ---- on the receiving thread ----

    def _receive(self, rpc: RPC, request: InstallSnapshotRequest) -> None:
        meta: SnapshotMeta | None = None
        error: Exception | None = None
        try:
            meta = self._store(request, rpc.reader)
        except Exception as exc:  # noqa: BLE001 - stores and streams: handed to the main thread
            error = exc
        self._core.inbox.post(SnapshotReceived(rpc, meta, error))

    def _store(
        self, request: InstallSnapshotRequest, reader: SnapshotReader | None
    ) -> SnapshotMeta:
        if reader is None:
            raise SnapshotError("the request came without a snapshot")
        meta = SnapshotMeta(
            "",
            request.last_log_index,
            request.last_log_term,
            request.configuration,
            request.configuration_index,
            request.size,
            unsettled=request.unsettled,
        )
        return store_snapshot(self._core.snapshots, meta, reader)


def store_snapshot(
    snapshots: SnapshotStore, meta: SnapshotMeta, reader: SnapshotReader
) -> SnapshotMeta:
    """Make a snapshot of exactly `meta.size` bytes durable; return what describes it, with its id.

    Raises `SnapshotError` when there are fewer or more, or no room for so many; then nothing is
    kept.
    """
    if isinstance(snapshots, WithRoom):
        snapshots.check_room(meta.size)
    sink = snapshots.create(
        SNAPSHOT_VERSION,
        meta.index,
        meta.term,
        meta.configuration,
        meta.configuration_index,
        unsettled=meta.unsettled,
    )
    try:
        _copy(reader, sink, meta.size)
        sink.close()
    except BaseException:
        sink.cancel()
        raise
    return replace(meta, id=sink.id())


def _copy(reader: SnapshotReader, sink: SnapshotSink, size: int) -> None:
    copied = 0
    while chunk := reader.read(CHUNK_BYTES):
        copied += len(chunk)
        if copied > size:
            break
        sink.write(chunk)
    if copied != size:
        raise SnapshotError(f"snapshot has {copied} bytes instead of {size}")
