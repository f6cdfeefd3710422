"""What leaders have told this server to be committed, after the end of its log (departure 21).

A server that was emptied, and added again under its id, has voted and acknowledged before. An old
member that never heard of its removal may still count on it, and had it not counted on it yet it
cannot know that the directory is another one. But once it has heard a leader, the emptied server
knows more than its log shows. A server that may lead has everything that is committed (leader
completeness, 3.6.3), so its log ends no earlier, in index and in term.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.engine.raft_log import RaftLog
from raft.errors import KeyNotFoundError
from raft.interfaces import StableStore
from raft.messages import AppendEntriesRequest
from raft.types import NO_ENTRY, NO_INDEX, NO_TERM, EntryID

TOLD_KEY = b"CommittedAsTold"


def forget_told(stable: StableStore) -> None:
    """Forget it: a recovery by hand has decided anew what is committed."""
    stable.set(TOLD_KEY, b"0 0")


class Told:
    """The highest index and the highest term of what was told to be committed. Main thread only."""

    def __init__(self, stable: StableStore, raft_log: RaftLog) -> None:
        self._stable = stable
        self._raft_log = raft_log
        self.upto = NO_ENTRY  # each of its numbers by itself

    def load(self) -> None:
        """Read what was stored; before the node runs."""
        try:
            term, index = self._stable.get(TOLD_KEY).split()
        except KeyNotFoundError:
            return
        self.upto = EntryID(int(term), int(index))

    def hear_request(self, request: AppendEntriesRequest) -> Callable[[], None] | None:
        """Take note of the commit index in a request; return what is to be stored, or None."""
        is_committed = NO_INDEX < request.prev_log_index <= request.leader_commit
        term = request.prev_log_term if is_committed else NO_TERM
        return self.hear(EntryID(term, request.leader_commit))

    def hear(self, committed: EntryID) -> Callable[[], None] | None:
        """Take note of a committed entry; return what is to be stored, or None.

        Stored is what a blank server hears: with the first entry it begins to have a log that
        speaks for itself, and what comes later is a matter of one run.
        """
        upto = EntryID(max(self.upto.term, committed.term), max(self.upto.index, committed.index))
        if upto == self.upto:
            return None
        self.upto = upto
        if self._raft_log.last() != NO_ENTRY:
            return None
        return lambda: self._stable.set(TOLD_KEY, b"%d %d" % (upto.term, upto.index))

    def refusal(self, last: EntryID) -> str | None:
        """Return why a log with this end cannot be a leader's, None if it can."""
        if last.term < self.upto.term or last.index < self.upto.index:
            return f"log ends before what is committed at index {self.upto.index}"
        return None
