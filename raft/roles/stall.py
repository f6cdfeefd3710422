"""A leader that is heard but commits nothing: it lets go, so that another one may try.

Heartbeats are small and take a way of their own, so they may pass where entries do not: a link
whose MTU nobody tells, a proxy that limits the size of messages, a peer that fails on each entry.
Such a leader would keep its lease for ever while nobody is answered.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.replication import Reach
from raft.errors import LeadershipLostError
from raft.metrics import count
from raft.roles.peers import Peers
from raft.runtime import backoff
from raft.types import NO_INDEX, ServerID

_TURNS = 4  # election timeouts that the others have to themselves, twice as many each time


@dataclass(slots=True)
class _Peer:
    """The best that was seen of one voter, and where its way stood when it began."""

    match_index: int
    way: object
    base: float
    best: float = 0.0

    def take(self, now: Reach) -> bool:
        """Tell whether the voter has got further than ever."""
        if now.match_index != self.match_index:
            is_further = now.match_index > self.match_index
            self.match_index, self.way = now.match_index, now.way
            self.base, self.best = now.arrived, 0.0
            return is_further
        if now.way is not self.way:
            # What is sent once more is news only where it gets further than before.
            self.way, self.base = now.way, now.arrived
        is_further = now.arrived - self.base > self.best
        self.best = max(self.best, now.arrived - self.base)
        return is_further


class CommitWatch:
    """For how long something has waited to be committed without any progress. Main thread only.

    Progress is a higher commit index, or that a voter gets on which lacks the next entry: it has
    acknowledged more, more bytes of what is on its way have arrived, or a snapshot is sent for
    longer than any before. So a slow link, or a long way to catch up, is no stall. Time in which
    this process did not run does not count.
    """

    def __init__(self, core: Core, commitment: Commitment, peers: Peers) -> None:
        self._core = core
        self._commitment = commitment
        self._peers = peers
        self._commit_index = NO_INDEX
        self._voters: dict[ServerID, _Peer] = {}
        self._looked_at = core.runtime.monotonic()
        self._seconds = 0.0

    def look(self, now: float) -> LeadershipLostError | None:
        """Return why leadership ends, if nothing was committed for `commit_stall_timeout`."""
        core = self._core
        # A look comes several times a lease.
        step = min(now - self._looked_at, core.config.leader_lease_timeout)
        self._looked_at = now
        commit_index = self._commitment.commit_index
        is_waiting = core.raft_log.last_index() > commit_index
        is_alone = not core.membership.latest.has_other_voter(core.local_id)
        if self._have_moved(commit_index) or not is_waiting or is_alone:
            self._seconds = 0.0
            return None
        self._seconds += step
        if self._seconds < core.config.commit_stall_timeout:
            return None
        return self._give_up(commit_index)

    def _have_moved(self, commit_index: int) -> bool:
        has_moved = commit_index > self._commit_index
        self._commit_index = commit_index
        matches = self._commitment.match_indexes()
        for server_id, reach in self._peers.reach().items():
            if matches.get(server_id, commit_index + 1) > commit_index:
                continue  # the next entry does not wait for this one
            peer = self._voters.get(server_id)
            if peer is None:
                self._voters[server_id] = _Peer(*reach)
            elif peer.take(reach):
                has_moved = True
        return has_moved

    def _give_up(self, commit_index: int) -> LeadershipLostError:
        core = self._core
        config = core.config
        longest = max(config.commit_stall_timeout, _TURNS * config.election_timeout)
        core.stalls += 1
        pause = backoff(_TURNS * config.election_timeout, core.stalls, longest)
        core.rest_until = core.runtime.monotonic() + pause
        count(core.metrics, "raft.transition.commit_stall")
        lacking = [i for i, m in self._commitment.match_indexes().items() if m <= commit_index]
        reason = (
            f"nothing was committed for {self._seconds:.1f} s though heartbeats are answered: entry"
            f" {commit_index + 1} does not get to {', '.join(lacking)}"
        )
        core.log.error(
            "commit stalled, stepping down reason=%s stalls=%d others_have_seconds=%.1f"
            " (does the network lose large packets? see commit_stall_timeout)",
            reason,
            core.stalls,
            pause,
        )
        return LeadershipLostError(f"leadership given up: {reason}")
