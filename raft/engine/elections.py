"""Why there is no leader: how this node's campaigns went, for the log and for `Raft.stats`.

A lost round says who gave its vote and what became of each other request. That is said at once, and
then at most every ten seconds: without a quorum a candidate loses one round after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raft.logs import Logger
from raft.runtime import Runtime, Throttle
from raft.types import Configuration, ServerID

_PERIOD = 10.0  # seconds between two warnings
_LONGEST_REASON = 200  # characters; peers may send anything


@dataclass(frozen=True, slots=True)
class LostRound:
    """One round of a candidate that nobody won in time."""

    votes: int
    voters: int
    refusals: Mapping[ServerID, str]  # of each voter that gave no vote, why

    def __str__(self) -> str:
        count = f"{self.votes} of {self.voters} votes"
        reasons = ", ".join(f"{peer} {reason}" for peer, reason in self.refusals.items())
        return f"{count}: {reasons}" if reasons else count


class Elections:
    """Keeps the last lost round. The main thread replaces `last`; any thread reads it.

    `last` says nothing while a leader is known.
    """

    def __init__(self, runtime: Runtime, log: Logger) -> None:
        self._log = log
        self._throttle = Throttle(runtime, _PERIOD)
        self.last: LostRound | None = None
        self.rounds = 0  # of all candidacies: a late answer to an earlier one must not count

    def lost(
        self,
        configuration: Configuration,
        granted: Collection[ServerID],
        reasons: Mapping[ServerID, str],
        *,
        is_warned_of: bool,
    ) -> None:
        """Note that a round was lost; `reasons` of those who refused or could not be asked."""
        voters = [server.id for server in configuration.voters()]
        refusals = {
            peer: _in_one_line(reasons.get(peer, "")) or "no answer"
            for peer in voters
            if peer not in granted
        }
        self.last = LostRound(len(voters) - len(refusals), len(voters), refusals)
        is_loud = is_warned_of and self._throttle.admits()
        say = self._log.warning if is_loud else self._log.debug
        say("election timeout reached, restarting election: %s", self.last)


def _in_one_line(reason: str) -> str:
    return " ".join(reason.split())[:_LONGEST_REASON]
