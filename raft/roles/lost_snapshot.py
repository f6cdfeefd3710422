"""A leader that has no snapshot to send: its directory is gone, say, or one bit of it has flipped.

A follower that needs one stays out until there is one, and with it perhaps the majority. The
leader's state machine still has everything, so it takes another one; a leader that cannot hands
over to a voter that has the whole log.
"""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.inbox import SnapshotAttempted, SnapshotWanted
from raft.roles.peers import Peers
from raft.roles.transfer import Transfers
from raft.roles.user_restore import UserRestores

_PATIENCE = 10.0  # election timeouts between two attempts


class LostSnapshot:
    """What one leadership does about it. Main thread only."""

    def __init__(
        self, core: Core, term: int, peers: Peers, transfers: Transfers, restores: UserRestores
    ) -> None:
        self._core = core
        self._term = term
        self._peers = peers
        self._transfers = transfers
        self._restores = restores
        self._next_at = float("-inf")

    def wanted(self, message: SnapshotWanted) -> None:
        """Take a snapshot, unless that was tried just now: the state may be large."""
        core = self._core
        now = core.runtime.monotonic()
        if message.term != self._term or now < self._next_at:
            return
        self._next_at = now + core.config.election_timeout * _PATIENCE
        core.log.error("no snapshot that a peer needs can be read, taking another one")
        core.take_snapshot(lambda error: core.inbox.post(SnapshotAttempted(self._term, error)))

    def attempted(self, message: SnapshotAttempted) -> None:
        """Send it at once; or have a server lead that needs none."""
        if message.term != self._term:
            return
        if message.error is None:
            self._peers.probe_again()
            return
        self._core.log.error("snapshot failed, too error=%s", message.error)
        if self._restores.refusal() is None:  # a user restore goes first
            self._transfers.hand_over("no snapshot can be sent or taken here")
