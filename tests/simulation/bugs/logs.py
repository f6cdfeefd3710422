"""Bugs of the log: log matching, what is acknowledged, the parallel write, damage."""

from __future__ import annotations

from tests.patching import Change
from tests.simulation.bugs.model import Bug, bug

APPEND = "raft/engine/append_entries.py"
CORE = "raft/engine/core.py"
DAMAGE = "raft/engine/damage.py"
LEADER = "raft/roles/leader.py"
RAFT_LOG = "raft/engine/raft_log.py"
STATE = "raft/engine/state.py"
VOTE = "raft/engine/request_vote.py"

BUGS = (
    bug(
        "acknowledged before it is stored",
        "nats-server #7564, etcd #14143: fsync after the acknowledgement (S6)",
        APPEND,
        'core.write("entries", lambda: core.raft_log.replace_suffix(first, logs, commit))',
        'core.disk.submit("entries", lambda: core.raft_log.replace_suffix(first, logs, commit))',
    ),
    bug(
        "previous entry is not compared",
        "log matching is taken for granted (§5.3)",
        APPEND,
        "    if own_term == term:\n        return True\n",
        "    if own_term >= 0:\n        return True\n",
    ),
    bug(
        "overlap is truncated",
        "hashicorp/raft PR #113: entries that are there and match are cut off and stored anew (H8)",
        APPEND,
        "        if own_term != log.term:\n            _halt_on_conflict(",
        "        if own_term != log.term or position == 0:\n            own_term == log.term or"
        " _halt_on_conflict(",
    ),
    bug(
        "conflicting suffix stays on disk",
        "the end of the log is not cut off with the first conflict (H8, H10)",
        RAFT_LOG,
        "        elif self._replacing is not None:\n"
        "            self._replacing.replace_suffix(first, logs)\n"
        "        else:\n"
        "            self._store.delete_range(first, last_index)\n"
        "            self._store.store_logs(logs)\n",
        "        else:\n            self._store.store_logs(logs)\n",
    ),
    bug(
        "leader of the past is followed",
        "an older term is not refused (§5.1)",
        APPEND,
        "    if request.term < core.state.term:  # §5.1: a leader of the past\n",
        "    if False:\n",
    ),
    bug(
        "nothing is read anew after an error",
        "hashicorp/raft: a TODO says that the last index is then wrong (H10)",
        CORE,
        "            self._reread()\n        except",
        "            pass\n        except",
    ),
    bug(
        "tail outlives its leadership",
        "law 5: what was never durable still counts as the log's end",
        RAFT_LOG,
        "                self._recent.reset(EntryID(last_log.term, last), last + 1)",
        "                pass",
    ),
    bug(
        "leadership ends before its write",
        "law 5: a write under way is not waited for",
        LEADER,
        "        if not core.inbox.closed:\n            core.settle()",
        "        if not core.inbox.closed:\n            core.raft_log.reload()",
    ),
    Bug(
        "leader with a failed disk leads on",
        "hashicorp/raft #614, #503: it is the first to be elected, and cannot store (H1, H2)",
        (
            Change(
                LEADER,
                "        super().on_tail_write_failed(message)\n"
                "        self._step_down(StorageFailedError(f\"the leader's disk failed:"
                ' {message.error}"))\n',
                "        super().on_tail_write_failed(message)\n",
            ),
            Change(
                LEADER,
                "        if not self.core.disk.is_fit():\n            # Departure 8",
                "        if False:\n            # Departure 8",
            ),
        ),
    ),
    bug(
        "commit index kept for what no quorum has",
        "the store's commit index runs ahead of what is counted (hashicorp/raft PR #613)",
        RAFT_LOG,
        "self._tracking.stage_commit_index(min(commit_index, logs[-1].index))",
        "self._tracking.stage_commit_index(logs[-1].index)",
    ),
    bug(
        "heartbeat of an old leader is answered",
        "the fast path does not look at the term (T1)",
        STATE,
        "            if self.role is not RaftState.FOLLOWER or self.term != term:\n"
        "                return False\n"
        "            if self._leader != (address, leader_id):\n"
        "                return False\n",
        "            if self.role is not RaftState.FOLLOWER:\n                return False\n",
    ),
    bug(
        "spoiled entries are read",
        "Jepsen NATS 2.12.1: one flipped bit is sent and applied (S5)",
        RAFT_LOG,
        "            if not log.is_intact():\n                if position == 0:",
        "            if False:\n                if position == 0:",
    ),
    bug(
        "damage is forgotten",
        "Protocol-Aware Recovery, FAST '18: a checksum error truncates, and the node votes (S7)",
        DAMAGE,
        "        self._mark(max(self.upto, last), max(self.after_term, term))\n",
        "",
    ),
    bug(
        "damage is forgotten by a restart",
        "a damaged node votes once it was started again (S7)",
        "raft/engine/start_up.py",
        "    core.damage.load()\n",
        "",
    ),
)
