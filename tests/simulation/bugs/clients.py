"""Bugs of what clients are told: outcomes and reads."""

from __future__ import annotations

from tests.simulation.bugs.model import bug

HEARTBEAT = "raft/engine/heartbeat.py"
LEADER = "raft/roles/leader.py"
LEASE = "raft/roles/lease.py"

BUGS = (
    bug(
        "lost command is called not applied",
        "hashicorp/raft #561, consul #2893: an unknown outcome looks like a refusal",
        LEADER,
        "        self.inflight.fail_all(lost)\n        refusal = self.core.not_leader()\n",
        "        refusal = self.core.not_leader()\n        self.inflight.fail_all(refusal)\n",
    ),
    bug(
        "command aborted by a restore is called not applied",
        "hashicorp/raft #561: an unknown outcome looks like a refusal",
        LEADER,
        'AbortedByRestoreError("a snapshot is restored in place of what was in flight")',
        'RestoreInProgressError("a snapshot is restored")',
    ),
    bug(
        "answered before it is committed",
        "a caller hears of success when its entry is dispatched",
        LEADER,
        "            apply.future.set_index(index)\n",
        "            apply.future.set_index(index)\n            apply.succeed(index)\n",
    ),
    bug(
        "read confirmed by an earlier round",
        "etcd #20418; hashicorp/raft's VerifyLeader: what was sent before counts (H11)",
        HEARTBEAT,
        "            if answer.success and sequence > self._confirmed and self._counts:\n",
        "            sequence = links.verify_sequence()\n"
        "            if answer.success and sequence > self._confirmed and self._counts:\n",
    ),
    bug(
        "read without asking anybody",
        "a leader takes its own word for leading (rqlite PR #1950)",
        LEASE,
        "self.sequence if server.id == local_id else self._confirmed.get(server.id, 0)",
        "self.sequence",
    ),
    bug(
        "read before the term's no-op",
        "etcd #7331, redisraft PR #22: a new leader does not know yet what is committed (H12)",
        LEASE,
        "        is_known = core.state.commit_index >= self._start_index and",
        "        is_known =",
    ),
    bug(
        "read before it is applied",
        "the state machine is read before it has got to the commit index",
        LEASE,
        "                core.fsm.answer_when_applied(core.state.commit_index, read.future)\n",
        "                read.future.respond(core.state.commit_index)\n",
    ),
)
