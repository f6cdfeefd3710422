"""A leader whose disk gets full: it refuses client entries and tries to hand leadership over.

What must go on has space kept back by the store: votes, no-ops, memberships, compaction. So an
entry is refused before it is written or sent anywhere, and certainly has no effect.
"""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.inbox import TransferLeadership
from raft.errors import DiskFullError, LeadershipTransferError
from raft.futures import Future
from raft.roles.transfer import Transfers

_PATIENCE = 10.0  # election timeouts of leading before a full disk hands over, and between tries


class FullDisk:
    """What one leadership makes of its disk's being full. Main thread only."""

    def __init__(self, core: Core, transfers: Transfers) -> None:
        self._core = core
        self._transfers = transfers
        # Where every disk is full, leadership must not go round and round.
        self._may_hand_over_at = self._later()

    def _later(self) -> float:
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

        Not while the leader is busy with a transfer or a user restore.
        """
        core = self._core
        if not core.disk.is_full:
            return
        core.disk.look_for_room()
        is_alone = not core.membership.latest.has_other_voter(core.local_id)
        if now < self._may_hand_over_at or is_alone or is_busy:
            return
        self._may_hand_over_at = self._later()
        try:
            self._transfers.begin(TransferLeadership("", "", Future()))
        except LeadershipTransferError as error:
            core.log.warning("own disk is full, and nobody can lead instead error=%s", error)
        else:
            core.log.warning("own disk is full, handing leadership over")
