"""A leader whose disk gets full: it refuses client entries and tries to hand leadership over.

What must go on has space kept back by the store: votes, no-ops, memberships, compaction. So an
entry is refused before it is written or sent anywhere, and certainly has no effect. It ends when
the store has room again; what fails to be written all the same is another matter (departure 8).
"""

from __future__ import annotations

from raft.engine.core import Core
from raft.errors import DiskFullError
from raft.roles.transfer import Transfers

# Election timeouts of leading before a full disk hands over, and between two tries.
_PATIENCE = 10.0


class FullDisk:
    """What one leadership makes of its disk's being full. Main thread only."""

    def __init__(self, core: Core, transfers: Transfers) -> None:
        self._core = core
        self._transfers = transfers
        self._may_hand_over_at = self._later()

    def _later(self) -> float:
        """Return when leadership may be handed over next."""
        return self._core.runtime.monotonic() + self._core.config.election_timeout * _PATIENCE

    def refusal(self) -> DiskFullError | None:
        """Return what client entries are refused with, None while there is room."""
        if not self._core.disk.is_full:
            return None
        return DiskFullError(
            f"the disk of {self._core.local_id} is almost full: free some space there"
        )

    def look(self, now: float, *, is_busy: bool) -> None:
        """While the disk is full: see whether that is over, and let somebody else lead.

        Not while the leader is busy with a transfer or a user restore. A leader that has just been
        elected waits: where every disk is full, leadership would only go round.
        """
        core = self._core
        if not core.disk.is_full:
            return
        core.disk.look_for_room()
        if now >= self._may_hand_over_at and not is_busy:
            self._may_hand_over_at = self._later()
            self._transfers.hand_over("own disk is full")
