"""A node's numbers as an operator reads them: texts, by the original's names.

Beyond the original, `latest_configuration_index` is the real one, and `applied_index` what the FSM
has really applied.
"""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.state import Published
from raft.interfaces import WithCertificate
from raft.types import PROTOCOL_VERSION, SNAPSHOT_VERSION, Peer, RaftState


def describe(core: Core) -> dict[str, str]:
    """Return the numbers of one moment; any thread."""
    now = core.state.published()
    return {
        "state": str(now.role),
        "term": str(now.term),
        "last_log_index": str(now.last_log.index),
        "last_log_term": str(now.last_log.term),
        "commit_index": str(now.commit_index),
        "applied_index": str(now.applied_index),
        "fsm_pending": str(core.fsm.pending()),
        "fsm_failed_commands": str(core.fsm.failed_commands()),
        "last_snapshot_index": str(now.last_snapshot.index),
        "last_snapshot_term": str(now.last_snapshot.term),
        "protocol_version": str(PROTOCOL_VERSION),
        "protocol_version_min": str(PROTOCOL_VERSION),
        "protocol_version_max": str(PROTOCOL_VERSION),
        "snapshot_version_min": str(SNAPSHOT_VERSION),
        "snapshot_version_max": str(SNAPSHOT_VERSION),
        "latest_configuration_index": str(now.configuration_index),
        "latest_configuration": str(now.configuration),
        "replaced_voters": ", ".join(core.incarnations.replaced()),
        "peers": "; ".join(map(str, describe_peers(core))),
        "last_lost_election": _lost_election(core, now),
        "certificate_days_left": _days_left(core),
        "num_peers": str(_count_peers(core, now)),
        "last_contact": _contact(core, now),
    }


def describe_peers(core: Core) -> list[Peer]:
    """Return what is known of each other member; any thread, without a lock."""
    now, known = core.state.published(), {peer.id: peer for peer in core.peers()}
    lost = core.elections.last
    reasons = lost.refusals if lost is not None and not now.leader_id else {}
    return [
        known.get(s.id) or Peer(s.id, s.address, s.suffrage, last_error=reasons.get(s.id, ""))
        for s in now.configuration.servers
        if s.id != core.local_id
    ]


def certificate_seconds(core: Core) -> float | None:
    """Return how long this server's certificate is valid yet, None without one."""
    transport = core.transport
    end = transport.certificate_end() if isinstance(transport, WithCertificate) else None
    return None if end is None else end - core.runtime.wall_time_ns() / 1e9


def _days_left(core: Core) -> str:
    seconds = certificate_seconds(core)
    return "" if seconds is None else f"{seconds / 86400:.1f}"


def _lost_election(core: Core, now: Published) -> str:
    """Return how this server's last try to lead went, while there is no leader."""
    return "" if now.leader_id or core.elections.last is None else str(core.elections.last)


def _count_peers(core: Core, now: Published) -> int:
    """Count the other voters; 0 for who is none itself, as in the original."""
    if not now.configuration.has_vote(core.local_id):
        return 0
    return len(now.configuration.voters()) - 1


def _contact(core: Core, now: Published) -> str:
    """Return how long ago the leader was heard."""
    if now.role is RaftState.LEADER:
        return "0"
    if now.last_contact is None:
        return "never"
    return f"{core.runtime.monotonic() - now.last_contact:.3f}s"
