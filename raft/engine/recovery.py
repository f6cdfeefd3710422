"""Recovery of a cluster that has lost its majority for good: what is done to one survivor's stores.

Everything is looked at and replayed before anything is written. Then, in this order, each step
durable before the next: the new cluster id, the snapshot, the end of the log. Whatever a crash
leaves of that can be started, and recovered once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from raft.codec import dumps, encode_configuration, loads
from raft.config import Config
from raft.engine.damage import DAMAGE_KEY, damage_mark, note_replaced, replaced_by
from raft.engine.incarnations import forget_incarnations
from raft.engine.raft_log import RaftLog
from raft.engine.snapshotter import persist_held
from raft.engine.start_up import newest_end, restore_newest, usable_snapshots
from raft.engine.state import CLUSTER_ID_KEY, load_cluster_id
from raft.engine.state_machine import StateMachine, release_view
from raft.engine.told import forget_told
from raft.errors import CantRecoverError, KeyNotFoundError, SnapshotError
from raft.interfaces import (
    FSM,
    ConfigurationStore,
    FSMSnapshot,
    LogStore,
    SnapshotSink,
    SnapshotStore,
    StableStore,
)
from raft.logs import get_logger
from raft.runtime import THREADS
from raft.types import NO_ENTRY, SNAPSHOT_VERSION, Configuration, EntryID, SnapshotMeta

RECOVERY_KEY = b"Recovery"

_REPLAY_COUNT = 1024  # entries read at once
_REPLAY_BYTES = 4 * 1024 * 1024

_log = get_logger(__name__)


def recover(
    config: Config,
    fsm: FSM,
    logs: LogStore,
    stable: StableStore,
    snapshots: SnapshotStore,
    configuration: Configuration,
    cluster_id: str | None,
) -> None:
    """Make one snapshot of all there is, with a configuration of the caller's, in place of the log.

    Raises what `raft.recover_cluster` says.
    """
    log = RaftLog(THREADS, logs, memory_bytes=0)
    machine = StateMachine(_OnlyCommands(fsm), snapshots, config.fsm_halt_on)
    usable = usable_snapshots(snapshots.list(), logs)
    last = _replay(log, logs, machine, usable, newest_end(usable, snapshots))
    gone = replaced_by(stable)
    if gone > last:
        _log.warning("going on without a lost snapshot term=%d index=%d", gone.term, gone.index)
    if isinstance(fsm, ConfigurationStore):
        fsm.store_configuration(last.index, configuration)  # before the view: it may be part of it
    view = fsm.snapshot()
    try:
        # In force as of the snapshot's own index: no older entry can claim to be newer.
        sink = snapshots.create(SNAPSHOT_VERSION, last.index, last.term, configuration, last.index)
        try:
            _persist(view, sink)
            _change_cluster_id(stable, last, configuration, cluster_id)
            sink.close()
        except BaseException:
            sink.cancel()
            raise
    finally:
        release_view(view)
    for meta in snapshots.list():
        if meta.unsettled:
            snapshots.remove(meta.id)  # a user restore: part of the new one, or never happened
    if [meta.id for meta in snapshots.list()[:1]] != [sink.id()]:
        raise SnapshotError(
            f"the store does not list snapshot {sink.id()} as its newest: check the clock, and"
            " that the store keeps what it is given; the log was left as it is"
        )
    forget_incarnations(stable)
    forget_told(stable)
    note_replaced(stable, last)
    log.drop_all(last)
    _forget_damage(stable)
    _log.info("recovered index=%d term=%d configuration=%s", last.index, last.term, configuration)


class _OnlyCommands:
    """The FSM as it is seen here: no batches and no configurations, which are replaced anyway."""

    def __init__(self, fsm: FSM) -> None:
        self.apply = fsm.apply
        self.snapshot = fsm.snapshot
        self.restore = fsm.restore


def _replay(
    log: RaftLog,
    logs: LogStore,
    machine: StateMachine,
    usable: Sequence[SnapshotMeta],
    newest: EntryID,
) -> EntryID:
    """Bring the FSM to the end of the log, committed or not; return that end."""
    if restore_newest(usable, machine.restore, logs) is not None:
        log.set_boundary(machine.position)
    log.reload()
    end = machine.position.index if log.must_drop() else log.durable_index()
    while machine.position.index < end:
        machine.apply(log.entries(machine.position.index + 1, _REPLAY_COUNT, _REPLAY_BYTES))
    last = machine.position
    if last == NO_ENTRY:
        raise CantRecoverError(
            "no initial state to recover: there is a term, but neither an entry nor a snapshot"
        )
    if newest > last:
        raise SnapshotError(
            f"the snapshot of term {newest.term} at {newest.index} cannot be read, and the log ends"
            f" before it, at {last.index}: what is between would be lost. Recover from another"
            " server; if there is none, move that snapshot away to go on without"
        )
    return last


def _persist(view: FSMSnapshot, sink: SnapshotSink) -> None:
    try:
        persist_held(view, sink)
    except Exception as error:
        raise SnapshotError(f"failed to persist snapshot: {error}") from error


def _forget_damage(stable: StableStore) -> None:
    """Let a server vote that waited for spoiled entries: who could have sent them is given up."""
    upto, _ = damage_mark(stable)
    if upto:
        _log.warning("recovered a log that was damaged, and whole up to index=%d before", upto)
        stable.set(DAMAGE_KEY, b"0")


# ---- the next cluster id (departure 15) ----


def derive_cluster_id(old: str, configuration: Configuration) -> str:
    """Return the id of the cluster that goes on with these members: the same on each of them."""
    in_order = Configuration(sorted(configuration.servers, key=lambda server: server.id))
    content = b"recovered\0" + old.encode() + b"\0" + encode_configuration(in_order)
    return hashlib.sha256(content).hexdigest()[:32]


def _change_cluster_id(
    stable: StableStore, last: EntryID, configuration: Configuration, given: str | None
) -> None:
    """Store the next id, before the snapshot with the next configuration can be seen.

    A server with the new id and the old configuration finds nobody to talk to but servers that
    were recovered likewise. One with the old id and the new configuration would still be heard by
    the servers left behind.
    """
    old = _id_before(stable, last)
    stable.set(RECOVERY_KEY, dumps([old, last.term, last.index]))
    stable.set(CLUSTER_ID_KEY, (given or derive_cluster_id(old, configuration)).encode())


def _id_before(stable: StableStore, last: EntryID) -> str:
    """Return the id that the cluster had before it was recovered.

    As long as nothing was appended since, recovering once more counts as the same recovery: it
    gives the id that it gives on a server where it is done only once.
    """
    try:
        old, term, index = loads(stable.get(RECOVERY_KEY))
    except KeyNotFoundError:
        return load_cluster_id(stable) or ""
    return str(old) if EntryID(term, index) == last else load_cluster_id(stable) or ""
