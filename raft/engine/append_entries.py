"""The receiver of AppendEntries (Figure 3.1; §5.3), and the heartbeat fast path.

Departures 1, 3, 4, 6 and 16 of docs/architecture.md have their place here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raft.engine.core import Core
from raft.engine.membership import configuration_of
from raft.errors import (
    CommittedConflictError,
    LogNotFoundError,
    RemoteError,
    StorageFailedError,
    UnsettledSnapshotError,
)
from raft.messages import RPC, AppendEntriesRequest, AppendEntriesResponse
from raft.metrics import measure
from raft.types import NO_INDEX, PROTOCOL_VERSION, Log, RaftState, SnapshotMeta


def answer_heartbeat(core: Core, rpc: RPC) -> None:
    """Answer a heartbeat on the transport's thread if only the contact time changes by it.

    Anything else goes to the main thread, like every other request.
    """
    request = rpc.command
    if (
        isinstance(request, AppendEntriesRequest)
        and request.header.protocol_version == PROTOCOL_VERSION  # else it is refused, as all are
        and not core.inbox.closed
        and core.state.contact(
            request.term, request.header.id, request.header.address, core.runtime.monotonic()
        )
    ):
        last = core.raft_log.last_index()
        rpc.respond(AppendEntriesResponse(core.header, request.term, last, success=True))
        return
    core.inbox.deliver(rpc)


def receive_append_entries(core: Core, rpc: RPC, request: AppendEntriesRequest) -> None:
    """Answer AppendEntries as a follower; what it acknowledges is durable."""
    refusal = AppendEntriesResponse(core.header, core.state.term, core.raft_log.last_index())
    if request.term < core.state.term:  # §5.1: a leader of the past
        rpc.respond(refusal)
        return
    if core.fault is not None:
        rpc.respond(None, StorageFailedError(f"the disk of {core.local_id} failed: {core.fault}"))
        return
    if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:
        core.become_follower(request.term)
    core.set_leader(request.header.id, request.header.address)
    # Any request of the current term counts as contact, accepted or not (H16).
    core.state.touch(core.runtime.monotonic())
    if not request.is_heartbeat():
        core.adopt_cluster_id(rpc)
    if request.notes and (learn := core.incarnations.plan_learned(request.notes)):
        core.write("incarnations", learn)
    has_previous = _has_previous(core, request)
    is_behind = request.leader_commit > request.prev_log_index + len(request.entries)
    if (is_behind or not has_previous) and (note := core.told.hear_request(request)):
        core.write("committed as told", note)
    if not has_previous:
        core.log.debug("refusing entries prev_index=%d", request.prev_log_index)
        rpc.respond(
            replace(
                refusal,
                term=request.term,
                last_log=core.raft_log.last_index(),
                no_retry_backoff=True,
            )
        )
        return
    # Departure 1: only what this request has shown to match may be committed, never less than is.
    commit = min(request.leader_commit, request.prev_log_index + len(request.entries))
    _store(core, _new_entries(core, request), commit)
    # What was committed before our own disk had it (law 3) may have come back only now.
    core.fsm.commit(core.state.commit_index)
    if commit > core.state.commit_index:
        with measure(core.metrics, "raft.rpc.appendEntries.processLogs"):
            core.apply_committed(commit)
    core.state.touch(core.runtime.monotonic())
    last = core.raft_log.last_index()
    rpc.respond(AppendEntriesResponse(core.header, request.term, last, success=True))


def _has_previous(core: Core, request: AppendEntriesRequest) -> bool:
    """The consistency check of log matching (§5.3): is the entry before the new ones ours, too?"""
    index, term = request.prev_log_index, request.prev_log_term
    unsettled = core.unsettled.meta
    if unsettled is not None and index < unsettled.index:
        return _may_go_back(unsettled, request)
    try:
        own_term = core.raft_log.term_at(index)
    except LogNotFoundError:
        # Departure 4: what is compacted is committed, so it matches. Above our end it is unknown.
        return index <= core.raft_log.boundary().index
    if own_term == term:
        return True
    _halt_on_conflict(core, index, own_term, term)
    return False


def _may_go_back(unsettled: SnapshotMeta, request: AppendEntriesRequest) -> bool:
    """Departure 19: a leader goes back to before a user restore that we hold, and it may not.

    It is refused until it sends a snapshot, or shows by entries from the first on that its whole
    log lacks the restore: a later leader that lacks it proves that it never happened.
    """
    if request.prev_log_index > NO_INDEX or not request.entries:
        return request.prev_log_index == NO_INDEX
    if request.term > unsettled.term:
        raise UnsettledSnapshotError(
            f"snapshot {unsettled.id} was restored here by hand, but never committed, and the"
            " cluster went on without it: remove this server, empty its directory, add it again"
        )
    return False


def _halt_on_conflict(core: Core, index: int, own_term: int, term: int) -> None:
    """Departure 3: committed entries are never truncated; who asks for it lives in another past.

    A configuration that another follows is committed, too: one change begins after the other (4.1).
    """
    if index <= max(core.settled_index(), core.membership.committed_index):
        raise CommittedConflictError(
            f"the leader has entry {index} with term {term}, but here it is committed with term"
            f" {own_term}: two clusters were mixed up, or a disk lost what it had acknowledged."
            " Rebuild this node from its peers (docs/stores.md)"
        )


def _new_entries(core: Core, request: AppendEntriesRequest) -> Sequence[Log]:
    """Return the entries from the first that is not here on: missing, or in conflict (H8)."""
    boundary = core.raft_log.boundary().index
    for position, log in enumerate(request.entries):
        if log.index < boundary:
            continue  # the snapshot covers it
        try:
            own_term = core.raft_log.term_at(log.index)
        except LogNotFoundError:
            return _checked(request.entries[position:])
        if own_term != log.term:
            _halt_on_conflict(core, log.index, own_term, log.term)
            core.log.info("truncating conflicting suffix first=%d", log.index)
            return _checked(request.entries[position:])
    return ()


def _checked(logs: Sequence[Log]) -> Sequence[Log]:
    """Return the entries with checksums; one that does not match its own is refused.

    A leader of the original sends none: it is computed on receipt.
    """
    for log in logs:
        if log.checksum and not log.is_intact():
            raise RemoteError(f"entry {log.index} was changed on its way: checksum mismatch")
    return [log.sealed() for log in logs]


def _store(core: Core, logs: Sequence[Log], commit: int) -> None:
    """Make new entries durable, in place of whatever stood at and behind the first of them."""
    if not logs:
        return
    first = logs[0].index
    configurations = [
        (log, configuration) for log in logs if (configuration := configuration_of(log)) is not None
    ]
    members = core.membership
    with measure(core.metrics, "raft.rpc.appendEntries.storeLogs"):
        core.write("entries", lambda: core.raft_log.replace_suffix(first, logs, commit))
    members.truncate(first)
    for log, configuration in configurations:
        # Law 3: one committed before our own disk had it comes back, and is known already.
        if log.index > members.committed_index:
            members.append(log.index, configuration)
            core.incarnations.learn_pin(log)
    core.damage.look()
    core.publish_log()
