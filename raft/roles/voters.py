"""Which data directory of each voter counts in one leadership (departure 21)."""

from __future__ import annotations

from collections.abc import Callable

from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.disk import Write
from raft.engine.inbox import PeerMet, TailWriteFailed
from raft.engine.incarnations import Verdict
from raft.types import Configuration, ServerID


class Voters:
    """What each peer answers from, and whether that counts. Main thread only.

    Invariant: a voter whose incarnation is known counts only once the note on it is durable here.
    """

    def __init__(
        self, core: Core, term: int, commitment: Commitment, tell_notes: Callable[[], None]
    ) -> None:
        self._core = core
        self._tell_notes = tell_notes
        self._term = term
        self._commitment = commitment
        self._told = core.incarnations.notes
        self._met: dict[ServerID, str] = {}
        self._counted: dict[ServerID, str] = {}
        self.strangers: set[ServerID] = set()  # voters that do not count

    def met(self, message: PeerMet) -> None:
        """Decide about what a peer answers from; its reports so far wait for that."""
        if message.term == self._term:
            self._met[message.server_id] = message.incarnation
            self._decide(message.server_id)

    def follow(self, configuration: Configuration) -> None:
        """Decide anew: there are other voters."""
        for server in configuration.voters():
            if server.id in self._met:
                self._decide(server.id)

    def pin(self, server_id: ServerID, configuration: Configuration) -> bytes:
        """Return what the entry of a configuration says of a server that gets its vote by it."""
        incarnation = self._met.get(server_id)
        gets_vote = configuration.has_vote(server_id) and not self._core.membership.latest.has_vote(
            server_id
        )
        if not incarnation or not gets_vote:
            return b""
        return self._core.incarnations.pin(server_id, incarnation)

    def counts(self, server_id: ServerID, incarnation: str) -> bool:
        """Tell whether an answer confirms anything."""
        return not incarnation or self._counted.get(server_id) == incarnation

    def _decide(self, server_id: ServerID) -> None:
        core, incarnation = self._core, self._met[server_id]
        if not core.membership.latest.has_vote(server_id):
            return  # what a non-voter has counts for nothing yet
        verdict = core.incarnations.verdict(server_id, incarnation)
        if verdict is Verdict.NEW:
            message = PeerMet(self._term, server_id, incarnation)
            core.disk.submit(
                "incarnation",
                core.incarnations.plan(server_id, incarnation),
                lambda write: self._noted(write, message),
            )
        elif verdict is Verdict.KNOWN:
            self.strangers.discard(server_id)
            self._counted[server_id] = incarnation
            self._commitment.admit(server_id, incarnation)
            if self._told is not core.incarnations.notes:
                self._told = core.incarnations.notes
                self._tell_notes()
        else:
            self.strangers.add(server_id)
            self._counted.pop(server_id, None)
            self._commitment.admit(server_id, None)
            core.incarnations.report(server_id, incarnation)

    def _noted(self, write: Write, message: PeerMet) -> None:
        """On the disk thread."""
        if write.error is not None:
            self._core.inbox.post(TailWriteFailed(write.error))
        else:
            self._core.inbox.post(message)
