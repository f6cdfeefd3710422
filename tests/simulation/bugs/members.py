"""Bugs of membership, and of who is who."""

from __future__ import annotations

from tests.patching import Change
from tests.simulation.bugs.model import Bug, bug

APPEND = "raft/engine/append_entries.py"
CHANGES = "raft/roles/changes.py"
CORE = "raft/engine/core.py"
DELIVERY = "raft/transport/delivery.py"
LEADER = "raft/roles/leader.py"
TRANSFER = "raft/roles/transfer.py"

BUGS = (
    bug(
        "two changes at a time",
        "a change begins before the one before is committed (§4.1)",
        LEADER,
        "        is_ready = core.membership.is_stable() and core.state.commit_index >="
        " self.start_index\n",
        "        is_ready = core.state.commit_index >= self.start_index\n",
    ),
    bug(
        "change before an entry of the term",
        "raft-dev 2015; braft #182, copycat #23: a change before the term's no-op (H27)",
        LEADER,
        "        is_ready = core.membership.is_stable() and core.state.commit_index >="
        " self.start_index\n",
        "        is_ready = core.membership.is_stable()\n",
    ),
    bug(
        "old majority commits a change",
        "a configuration is not in force when it is appended (§4.1)",
        CHANGES,
        "        self._commitment.set_configuration(configuration)\n",
        "",
    ),
    bug(
        "cluster id is not compared",
        "hashicorp/raft #122, seaweedfs #10880: two clusters become one (H29)",
        DELIVERY,
        "    if ours and theirs and ours != theirs:\n",
        "    if False:\n",
    ),
    bug(
        "cluster id is not stored",
        "a server forgets in a restart whose data it has (H29)",
        CORE,
        'self.write("cluster id", lambda: self.stable.set(CLUSTER_ID_KEY, theirs.encode()))\n',
        "pass\n",
    ),
    bug(
        "answer of another server counts",
        "after an address moved one machine answers for two (law of the wire)",
        DELIVERY,
        "    if wanted and actual and wanted != actual:\n",
        "    if False:\n",
    ),
    bug(
        "truncated configuration stays",
        "members are not rolled back with the log (H27)",
        APPEND,
        "    members.truncate(first)\n",
        "",
    ),
    Bug(
        "transfer flag outlives leadership",
        "hashicorp/raft #696: no more writes when that node leads again (H3)",
        (
            Change(
                TRANSFER,
                "        if current is None:\n            return\n        if current.phase",
                "        if current is None:\n            return\n"
                "        self._core.fsm.is_transferring = True\n        if current.phase",
            ),
            Change(
                TRANSFER,
                "        if self._current is None:\n            return None\n"
                "        return LeadershipTransferInProgressError",
                "        if not (self._current or hasattr(self._core.fsm, 'is_transferring')):\n"
                "            return None\n        return LeadershipTransferInProgressError",
            ),
        ),
    ),
)
