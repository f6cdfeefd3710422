"""What a node does before its threads run: snapshot into the FSM, log, vote, configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft.codec import decode_configuration
from raft.engine.core import Core
from raft.engine.damage import replaced_by
from raft.engine.fsm_faults import note_halt
from raft.engine.incarnations import keep_incarnation
from raft.engine.state import HardState, load_cluster_id
from raft.errors import FSMFailedError, LogCorruptError, LogGapError, SnapshotError
from raft.interfaces import LogStore, SnapshotStore, WithLostSnapshots
from raft.logs import get_logger
from raft.types import (
    EMPTY_CONFIGURATION,
    NO_ENTRY,
    NO_INDEX,
    Configuration,
    EntryID,
    LogType,
    SnapshotMeta,
)

_log = get_logger(__name__)


def load_state(core: Core) -> None:
    """Bring a new node's memory to what its stores hold; the constructing thread.

    Raises:
        IncompatibleLogStoreError: the log store cannot do what `restore_committed_logs` needs.
        SnapshotError: there are snapshots, but none can be read, or only one older than what this
            node went on from, and there is no other voter.
        LogGapError: the log does not join the newest snapshot that can be read.
        LogCorruptError: an entry does not match its checksum, and there is no other voter, or it
            is needed to tell whether a user's restore took hold.
        FSMFailedError: the FSM halted at an entry that is known to be committed.
    """
    if core.config.restore_committed_logs:
        core.raft_log.track_commits()
    core.cluster_id = load_cluster_id(core.stable)
    core.incarnations.load()
    meta, lost = _restore_newest(core)
    if meta is not None:
        last = EntryID(meta.term, meta.index)
        core.raft_log.set_boundary(last)
        core.state.set_last_snapshot(last)
        if meta.unsettled:
            core.unsettled.meta = meta
        else:
            core.state.set_commit_index(meta.index)  # what a snapshot covers is committed
            _replace_restores(core, meta)
    core.damage.load()
    core.told.load()
    while True:
        try:
            _load_log(core, meta)
            break
        except LogCorruptError as error:
            _give_up(core, error)
        except LogGapError as error:
            raise _explain_gap(error, lost) from error
    if lost is not None and core.raft_log.durable_index() == NO_INDEX:
        _fall_back(core, lost)
    core.damage.look()
    keep_incarnation(core.stable, core.header.incarnation)
    _apply_committed(core)
    core.publish_log()
    core.log.info(
        "initial configuration index=%d servers=%s",
        core.membership.latest_index,
        core.membership.latest,
    )


def _replace_restores(core: Core, meta: SnapshotMeta) -> None:
    """Finish what a crash interrupted: this snapshot takes the place of an older user restore.

    If it ends before that, it is a later leader's. So the restore never happened (departure 19),
    nor did what came behind it, and with an entry of that leader at its end the snapshot has all
    that was committed before.
    """
    last = EntryID(meta.term, meta.index)
    for other in core.snapshots.list():
        if other.unsettled and EntryID(other.term, other.index) < last:
            if other.index > meta.index and core.logs.first_index() == other.index + 1:
                core.log.warning("restored snapshot never took hold id=%s", other.id)
                core.logs.delete_range(other.index + 1, core.logs.last_index())
            core.unsettled.forget(other)


def _load_log(core: Core, meta: SnapshotMeta | None) -> None:
    """Read log and vote record; every entry behind the snapshot is looked at."""
    if meta is not None:
        core.membership.reset(meta.configuration_index, meta.configuration)
    else:
        core.membership.reset(NO_INDEX, EMPTY_CONFIGURATION)
    core.raft_log.reload()
    if core.raft_log.must_drop():
        core.log.warning("dropping log that the newest snapshot has replaced")
        core.raft_log.drop_all(core.raft_log.boundary())
    _load_term(core)
    core.scan_configurations(core.raft_log.boundary().index + 1)


def _explain_gap(error: LogGapError, lost: EntryID | None) -> LogGapError:
    """Name the snapshot that could not be restored, where that is why the log has a gap."""
    if lost is None:
        return error
    return LogGapError(
        f"the newest snapshot, of term {lost.term} at {lost.index}, is gone or could not be"
        f" restored, and what is left does not do without it: {error}"
    )


def _give_up(core: Core, error: LogCorruptError) -> None:
    """Let go of a spoiled entry, or raise if no other server is known to have it."""
    if error.index == NO_INDEX:
        raise error  # a store that does not say which one
    if error.index <= core.raft_log.boundary().index:
        core.log.warning("dropping damaged entries that a snapshot covers upto=%d", error.index)
        core.logs.delete_range(core.logs.first_index(), error.index)
    elif _members_before(core, error.index).has_other_voter(core.local_id):
        core.damage.cut_off(error.index)
    else:
        raise error


def _fall_back(core: Core, lost: EntryID) -> None:
    """Go on from an older snapshot without a log: the newest stood for all that was acknowledged.

    A log that is not empty either reaches as far, or was never dropped in favour of the newest.
    """
    if not core.membership.latest.has_other_voter(core.local_id):
        raise SnapshotError(
            f"the snapshot of term {lost.term} at {lost.index} is gone or cannot be restored, and"
            " neither the log nor another voter that is known here has what it covers. See whether"
            " the snapshots' directory is where it was; the log above shows more. Else rebuild this"
            " node from its peers (docs/stores.md), or restore a backup"
        )
    core.damage.fell_back(lost)


def _members_before(core: Core, index: int) -> Configuration:
    """Return the configuration in force before an entry."""
    members = core.membership.latest
    # Where the snapshot before the log is lost, too, the log begins later.
    for at in range(max(core.raft_log.boundary().index + 1, core.logs.first_index()), index):
        log = core.logs.get_log(at)
        if log.type is LogType.CONFIGURATION and log.is_intact():
            members = decode_configuration(log.data)
    return members


def _load_term(core: Core) -> None:
    """Read the vote record. It may lack behind the log only when a bootstrap was cut short."""
    hard_state = HardState.load(core.stable)
    last_term = core.raft_log.last().term
    if hard_state.term < last_term:
        hard_state = HardState(last_term)
        hard_state.save(core.stable)
    core.hard_state = hard_state
    core.state.set_term(hard_state.term)


def _apply_committed(core: Core) -> None:
    """Apply what the store says was committed, before anybody reads the FSM."""
    upto = core.raft_log.tracked_commit_index()
    if upto > core.state.commit_index:
        try:
            core.fsm.apply_upto(upto)
        except FSMFailedError as error:
            raise note_halt(core.stable, lambda action: action(), error) from error.__cause__
        core.apply_committed(upto)


def _restore_newest(core: Core) -> tuple[SnapshotMeta | None, EntryID | None]:
    """Return the snapshot that was restored, and where the newest ends, if that could not be."""
    read = not core.config.no_snapshot_restore_on_start
    # Listed once: what a second look shows and the first did not is no reason to remove anything.
    listed = core.snapshots.list()
    usable = usable_snapshots(listed, core.logs)
    for meta in listed:
        if meta not in usable:
            core.unsettled.forget(meta)
    restored = restore_newest(usable, lambda meta: core.fsm.start_from(meta, read=read), core.logs)
    newest = max(newest_end(usable, core.snapshots), replaced_by(core.stable))
    is_newest = restored is not None and EntryID(restored.term, restored.index) >= newest
    return restored, None if is_newest or newest == NO_ENTRY else newest


def usable_snapshots(listed: Sequence[SnapshotMeta], logs: LogStore) -> list[SnapshotMeta]:
    """Return those of the listed snapshots that a node may start from, newest first."""
    return [meta for meta in listed if not _never_happened(meta, logs)]


def newest_end(usable: Sequence[SnapshotMeta], snapshots: SnapshotStore) -> EntryID:
    """Return where the newest snapshot ends, whether or not it can be read; or `NO_ENTRY`."""
    ends = [EntryID(meta.term, meta.index) for meta in usable]
    if isinstance(snapshots, WithLostSnapshots):
        ends += snapshots.lost()
    return max(ends, default=NO_ENTRY)


def restore_newest(
    listed: Sequence[SnapshotMeta], restore: Callable[[SnapshotMeta], None], logs: LogStore
) -> SnapshotMeta | None:
    """Restore the first of these snapshots that can be read; None when there is none at all."""
    for meta in listed:
        try:
            restore(meta)
        except Exception:  # noqa: BLE001 - stores and user code: the next older one may do
            _log.exception("failed to restore snapshot id=%s", meta.id)
        else:
            return meta
    if not listed:
        return None
    problem = f"none of {len(listed)} snapshots can be restored, the newest is {listed[0].id}"
    if logs.first_index() == 1 and logs.last_index() >= listed[0].index:
        # The state machine may hold half of one by now: only a fresh one can begin with the log.
        raise SnapshotError(
            f"{problem}: the log above shows why. The log of this node reaches back to its first"
            " entry, so nothing is lost: move the directory of the snapshots away, and start again"
        )
    raise SnapshotError(
        f"{problem}: the log above shows why. Rebuild this node from its peers (docs/stores.md)"
    )


def _never_happened(meta: SnapshotMeta, logs: LogStore) -> bool:
    """Tell whether the log proves that an unsettled user restore did not take hold (departure 19).

    It does when it has entries of a later leader and yet begins before the restore, for such a
    leader would have had to replace it.
    """
    last = logs.last_index()
    if not meta.unsettled or not last or logs.first_index() > meta.index:
        return False
    own_entry = meta.index <= last and _proven_term(meta.index, logs) >= meta.term
    if _proven_term(last, logs) <= meta.term and not own_entry:
        return False
    _log.warning("ignoring a restored snapshot that never took hold id=%s", meta.id)
    return True


def _proven_term(index: int, logs: LogStore) -> int:
    log = logs.get_log(index)
    if not log.is_intact():
        raise LogCorruptError(
            f"entry {index} is damaged, so nothing tells whether a restore by hand took hold:"
            " rebuild this node from its peers (docs/stores.md)",
            index,
        )
    return log.term
