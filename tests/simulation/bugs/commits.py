"""Bugs of what counts as committed, and of the leader's own disk beside the peers'."""

from __future__ import annotations

from tests.patching import Change
from tests.simulation.bugs.model import Bug, bug

APPEND = "raft/engine/append_entries.py"
COMMITMENT = "raft/engine/commitment.py"
FSM_RUNNER = "raft/engine/fsm_runner.py"
LEADER = "raft/roles/leader.py"
REPLICATION = "raft/engine/replication.py"
STALL = "raft/roles/stall.py"

BUGS = (
    bug(
        "commit by counting in an old term",
        "thesis, Figure 3.7; logcabin #44 (H30)",
        COMMITMENT,
        "        if index <= self.commit_index or index < self._start_index:",
        "        if index <= self.commit_index:",
    ),
    bug(
        "commit over unsorted progress",
        "openraft #1802: the quorum is computed over an unsorted list (H30)",
        COMMITMENT,
        "    ascending = sorted(match_indexes)",
        "    ascending = list(match_indexes)",
    ),
    bug(
        "leader that commits nothing leads on",
        "heartbeats pass where entries do not (an MTU that nobody tells): nobody else has a try",
        STALL,
        "        if self._seconds < core.config.commit_stall_timeout:",
        "        if True:",
    ),
    bug(
        "heartbeats count as progress",
        "the same: that something is answered is taken for getting on",
        STALL,
        "        if self._have_moved(commit_index) or not is_waiting or is_alone:",
        "        if not is_waiting or is_alone or self._peers.last_contacts():",
    ),
    bug(
        "half of an even cluster commits",
        "a quorum that is rounded the wrong way",
        COMMITMENT,
        "    return ascending[(len(ascending) - 1) // 2]",
        "    return ascending[len(ascending) // 2]",
    ),
    bug(
        "follower commits what it has",
        "hashicorp/raft: up to its own last index, not to what the request has shown (H9)",
        APPEND,
        "    commit = min(request.leader_commit, request.prev_log_index + len(request.entries))",
        "    shown = request.prev_log_index + len(request.entries)\n"
        "    commit = min(request.leader_commit, max(shown, core.raft_log.last_index()))",
    ),
    bug(
        "own match moves at once",
        "law 3: the leader counts before its own disk has the entry (thesis 10.2.1, gone wrong)",
        LEADER,
        "        self.peers.kick()  # first: theirs is the longer way\n",
        "        self.peers.kick()  # first: theirs is the longer way\n"
        "        self.commitment.match(core.local_id, index)\n",
    ),
    bug(
        "own match counts the tail",
        "law 3: a write that has returned counts for what came after it",
        LEADER,
        "            self.commitment.match(self.core.local_id, self.core.raft_log.durable_index())",
        "            self.commitment.match(self.core.local_id, self.core.raft_log.last_index())",
    ),
    bug(
        "own match moves though the write failed",
        "law 3: a failed write counts (H2)",
        LEADER,
        "            self.core.inbox.post(TailWriteFailed(write.error))\n        else:\n"
        "            self.commitment.match(self.core.local_id, self.core.raft_log.durable_index())",
        "            self.commitment.match(self.core.local_id, self.core.raft_log.last_index())\n"
        "            self.core.inbox.post(TailWriteFailed(write.error))\n"
        "        else:\n"
        "            self.commitment.match(self.core.local_id, self.core.raft_log.durable_index())",
    ),
    Bug(
        "sent counts as stored",
        "a match is reported when the request leaves, not with its answer",
        (
            Change(
                REPLICATION,
                "        try:\n            pipeline.append_entries(request)\n",
                "        self._links.progress.match(self._server.id, last, self)\n"
                "        try:\n            pipeline.append_entries(request)\n",
            ),
        ),
    ),
    Bug(
        "learners count for a majority",
        "non-voters count like voters (hashicorp/raft #477 and others, H14)",
        (
            Change(
                COMMITMENT,
                "{s.id: NO_INDEX for s in configuration.voters()}",
                "{s.id: NO_INDEX for s in configuration.servers}",
            ),
            Change(
                COMMITMENT,
                "self._match = {s.id: self._match.get(s.id, NO_INDEX) for s in"
                " configuration.voters()}",
                "self._match = {s.id: self._match.get(s.id, NO_INDEX) for s in"
                " configuration.servers}",
            ),
        ),
    ),
    bug(
        "uncommitted entries are applied",
        "the FSM follows the log, not the commit index",
        FSM_RUNNER,
        "        return min(self._commit_index, self._log.last_index())",
        "        return self._log.last_index()",
    ),
    bug(
        "window of one has no room",
        "hashicorp/raft #612, pyroscope PR #5518: sender and receiver wait for each other (H5)",
        REPLICATION,
        "                if len(self._unanswered) < self._links.config.max_inflight_appends and (",
        "                if len(self._unanswered) + 1 < self._links.config.max_inflight_appends"
        " and (",
    ),
)
