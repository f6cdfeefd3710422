"""The safety properties of Raft (Figure 3.2 of the thesis), checked while a cluster runs.

Hooks in transport, store and FSM report what they see; each report is checked against all earlier
ones, by its own size and not by the log's. Nothing here reaches into a node, so the same checks
serve clusters on threads and simulated ones.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raft.messages import AppendEntriesRequest, InstallSnapshotRequest, Request
from raft.types import NO_ENTRY, NO_INDEX, NO_TERM, EntryID, Log, LogType, ServerID


class InvariantViolation(AssertionError):  # noqa: N818 - it says what it is
    """A safety property of Raft did not hold."""


class Vote(NamedTuple):
    """What a vote record says: the candidate's id, empty for nobody."""

    term: int
    candidate: ServerID


class _Seen(NamedTuple):
    """What is known of an entry, by its index and term."""

    checksum: int
    prev_term: int | None  # None when the entry before it was not seen


@dataclass(slots=True)
class _Committed:
    """What is known of an index that some FSM has applied."""

    term: int
    data: bytes
    node: ServerID


class Invariants:
    """Remembers what was seen of one cluster and finds contradictions. Safe from any thread.

    Reports never raise: a hook must not change how the node under it runs. Whoever drives the
    cluster looks at `violations` or calls `check`.
    """

    def __init__(self, *, sees_commits: bool = False) -> None:
        self._sees_commits = sees_commits  # by `committed_own`; without, changes are not checked
        self._lock = threading.Lock()  # guards all below; nothing waits while holding it
        self.violations: list[str] = []
        self.leaders: dict[int, ServerID] = {}  # by term
        # What each server has acknowledged, by the term of the leader to whom.
        self._acknowledged: dict[ServerID, dict[int, EntryID]] = {}
        self._votes: dict[tuple[ServerID, int], ServerID] = {}
        self._entries: dict[tuple[int, int], _Seen] = {}  # by index and term
        self._entry_terms: dict[int, int] = {NO_TERM: NO_INDEX}  # first index seen of each term
        self._committed: dict[int, _Committed] = {}
        self._committed_upto: dict[int, int] = {}  # highest index seen applied, by the term then
        self._commits: set[int] = set()  # terms whose leader was seen to commit something
        self._progress: dict[tuple[ServerID, int], tuple[int, int]] = {}

    def check(self) -> None:
        """Raise `InvariantViolation` naming everything found so far."""
        if self.violations:
            raise InvariantViolation("; ".join(self.violations))

    def fail(self, text: str) -> None:
        """Note a violation found elsewhere."""
        self.violations.append(text)

    # ---- reports ----

    def sent(self, request: Request) -> None:
        """Report a request on its way from a leader."""
        if isinstance(request, AppendEntriesRequest):
            self.led(request.header.id, request.term)
            if request.entries:
                self.stored(request.header.id, request.prev_log_term, request.entries)
        elif isinstance(request, InstallSnapshotRequest):
            self.led(request.header.id, request.term)

    def led(self, node: ServerID, term: int) -> None:
        """Report that a node acts as the leader of a term: one a term (election safety, §5.2)."""
        with self._lock:
            leader = self.leaders.setdefault(term, node)
            if leader != node:
                self.fail(f"election safety: {leader} and {node} both lead term {term}")

    def voted(self, voter: ServerID, term: int, candidate: ServerID) -> None:
        """Report a vote on its way: one a term, also over restarts (§5.2)."""
        with self._lock:
            chosen = self._votes.setdefault((voter, term), candidate)
            if chosen != candidate:
                self.fail(f"vote: {voter} voted for {chosen} and {candidate} in term {term}")

    def acknowledged(self, node: ServerID, entry: EntryID, term: int) -> None:
        """Report that a server acknowledges entries, up to this one, to the leader of a term."""
        with self._lock:
            acknowledged = self._acknowledged.setdefault(node, {})
            acknowledged[term] = max(entry, acknowledged.get(term, NO_ENTRY))

    def overruled(self, node: ServerID, term: int, last: EntryID) -> None:
        """Report that a server in `term` has cut its log back, so that it ends with `last`.

        A later leader than the one to whom it had acknowledged more may have it do so: then that
        was not committed (§5.3).
        """
        with self._lock:
            acknowledged = self._acknowledged.get(node, {})
            for earlier in acknowledged:
                if earlier < term:
                    acknowledged[earlier] = min(acknowledged[earlier], last)

    def decided(self, node: ServerID, term: int, last: EntryID) -> None:
        """Report the end of the log by which a server votes in a term, or asks for votes.

        It is no earlier than what the server has acknowledged to leaders of earlier terms: else it
        may help somebody to lead who lacks what was committed by that (§5.4.1).
        """
        with self._lock:
            acknowledged = self._acknowledged.get(node, {})
            most = max((acknowledged[t] for t in acknowledged if t < term), default=NO_ENTRY)
            if last < most:
                self.fail(f"vote: {node} decides by {last}, but has acknowledged {most}")

    def recorded(self, node: ServerID, before: Vote, after: Vote) -> None:
        """Report that a vote record replaces another: no term and no vote is taken back."""
        with self._lock:
            if after.term < before.term:
                self.fail(f"vote: the term of {node} fell from {before.term} to {after.term}")
            elif after.term == before.term and before.candidate not in ("", after.candidate):
                self.fail(
                    f"vote: {node} voted for {before.candidate} in term {before.term}, and now its"
                    f" record says {after.candidate or 'nobody'}"
                )

    def elected(self, node: ServerID, term: int, voters: Sequence[ServerID]) -> bool:
        """Tell whether a majority of these voters was seen to vote for a server, itself included.

        Votes that never left their voter, and votes that never arrived, are not known apart.
        """
        with self._lock:
            votes = [v for v in voters if v == node or self._votes.get((v, term)) == node]
            return len(votes) * 2 > len(voters)

    def stored(self, node: ServerID, prev_term: int | None, logs: Sequence[Log]) -> None:
        """Report consecutive entries in a log or on their way, and the term before the first.

        Log matching (§5.3): an index and term mean the same entry everywhere, after the same log.
        """
        with self._lock:
            for log in logs:
                self._check_entry(node, prev_term, log)
                if log.term not in self._entry_terms:
                    self._check_leader_completeness(log)
                    self._entry_terms[log.term] = log.index
                prev_term = log.term

    def applied(self, node: ServerID, term: int | None, log: Log) -> None:
        """Report that a node in `term` has applied an entry, or knows it to be committed.

        State machine safety: no other node applies another entry at this index. None for a
        command that was restored.
        """
        with self._lock:
            first = self._committed.setdefault(log.index, _Committed(log.term, log.data, node))
            if (first.term, first.data) != (log.term, log.data):
                self.fail(
                    f"state machine safety: at {log.index} {first.node} applied {first.data!r} of"
                    f" term {first.term}, {node} {log.data!r} of term {log.term}"
                )
            if term is not None:
                upto = self._committed_upto.get(term, NO_INDEX)
                self._committed_upto[term] = max(upto, log.index)

    def committed_own(self, term: int) -> None:
        """Report that the leader of a term has found an entry of that term to be committed."""
        with self._lock:
            self._commits.add(term)

    def progressed(self, node: ServerID, incarnation: int, term: int, commit_index: int) -> None:
        """Report a node's numbers: neither falls while it runs, terms not even over a restart."""
        with self._lock:
            old_term, old_commit = self._progress.get((node, incarnation), (NO_TERM, NO_INDEX))
            if term < old_term:
                self.fail(f"{node}: term fell from {old_term} to {term}")
            if commit_index < old_commit:
                self.fail(f"{node}: commit index fell from {old_commit} to {commit_index}")
            self._progress[node, incarnation] = (term, commit_index)

    def rebuilt(self, node: ServerID) -> None:
        """Report that a server was emptied after its removal: it is another voter from now on."""
        with self._lock:
            self._acknowledged.pop(node, None)
            self._votes = {key: vote for key, vote in self._votes.items() if key[0] != node}

    # ---- checks; the lock is held ----

    def _check_entry(self, node: ServerID, prev_term: int | None, log: Log) -> None:
        key = (log.index, log.term)
        seen = self._entries.get(key)
        if seen is None or (seen.prev_term is None and seen.checksum == log.checksum):
            self._entries[key] = _Seen(log.checksum, prev_term)
            if seen is None and log.type is LogType.CONFIGURATION:
                self._check_change(log)
            return
        if seen.checksum != log.checksum:
            self.fail(f"log matching: {node} has another entry {log.index} of term {log.term}")
        if prev_term is not None and seen.prev_term != prev_term:
            self.fail(
                f"log matching: at {node} entry {log.index} of term {log.term} follows one of term"
                f" {prev_term}, elsewhere one of term {seen.prev_term}"
            )

    def _check_change(self, log: Log) -> None:
        """Check that a leader changes the membership only once it has committed in its term.

        Else a change of a former leader, not committed and not known here, may come back; the two
        majorities then need not overlap (§4.1, and the correction of it from 2015).
        """
        if self._sees_commits and log.term not in self._commits and log.index > 1:
            self.fail(
                f"membership: entry {log.index} changes it, but nothing of term {log.term} was"
                " committed before"
            )

    def _check_leader_completeness(self, first: Log) -> None:
        """Check a leader's first entry: what was committed in earlier terms lies before it (§5.4).

        An entry that was applied by a node in an earlier term had been committed by then.
        """
        earlier = [upto for term, upto in self._committed_upto.items() if term < first.term]
        upto = max(earlier, default=NO_INDEX)
        if upto >= first.index:
            self.fail(
                f"leader completeness: the leader of term {first.term} begins at {first.index} but"
                f" {upto} was committed before"
            )
            return
        term = self._term_before((first.index, first.term), upto)
        if term is not None and upto in self._committed and self._committed[upto].term != term:
            self.fail(
                f"leader completeness: the leader of term {first.term} has term {term} at {upto},"
                f" where term {self._committed[upto].term} was committed before"
            )

    def _term_before(self, key: tuple[int, int], index: int) -> int | None:
        """Follow the chain of entries back to an index; None where it was not seen whole."""
        while key[0] > index:
            seen = self._entries.get(key)
            if seen is None or seen.prev_term is None:
                return None
            key = (key[0] - 1, seen.prev_term)
        return key[1]
