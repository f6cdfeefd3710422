"""Which seed found each bug first when it was last searched for from seed 0, and by what.

A change of the schedule moves these; the search goes on from the recorded seed, so that it costs
time and not the proof. Bugs that are not here have not been found yet: see docs/testing.md.
"""

from __future__ import annotations

RECORDED = {
    "vote record in memory only": (0, "halt"),
    "term without its vote": (3, "invariant"),
    "vote given before it is durable": (1, "invariant"),
    "own candidacy is no vote": (0, "invariant"),
    "second vote of a term": (0, "invariant"),
    "vote for a log that is behind": (0, "invariant"),
    "late votes count": (0, "invariant"),
    "elected by less than a majority": (0, "invariant"),
    "acknowledged before it is stored": (0, "invariant"),
    "previous entry is not compared": (0, "invariant"),
    "overlap is truncated": (4, "halt"),
    "conflicting suffix stays on disk": (0, "invariant"),
    "leader of the past is followed": (5, "halt"),
    "tail outlives its leadership": (0, "invariant"),
    "leadership ends before its write": (6, "invariant"),
    "commit index kept for what no quorum has": (6, "invariant"),
    "spoiled entries are read": (0, "invariant"),
    "commit by counting in an old term": (0, "invariant"),
    "commit over unsorted progress": (0, "invariant"),
    "half of an even cluster commits": (0, "invariant"),
    "follower commits what it has": (7, "invariant"),
    "own match moves at once": (0, "invariant"),
    "own match counts the tail": (2, "invariant"),
    "sent counts as stored": (0, "invariant"),
    "learners count for a majority": (0, "invariant"),
    "uncommitted entries are applied": (0, "invariant"),
    "window of one has no room": (4, "liveness"),
    "install keeps a conflicting log": (11, "invariant"),
    "snapshot claims more than it holds": (0, "halt"),
    "start does not read the snapshot": (0, "oracle"),
    "restart forgets the members in the log": (0, "liveness"),
    "user restore at a used index": (0, "oracle"),
    "two changes at a time": (12, "halt"),
    "old majority commits a change": (0, "invariant"),
    "cluster id is not compared": (14, "liveness"),
    "cluster id is not stored": (8, "liveness"),
    "lost command is called not applied": (0, "oracle"),
    "command aborted by a restore is called not applied": (1, "oracle"),
    "answered before it is committed": (0, "oracle"),
    "read without asking anybody": (3, "oracle"),
    "read before the term's no-op": (0, "oracle"),
    "read before it is applied": (0, "oracle"),
}
