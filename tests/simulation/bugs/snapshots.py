"""Bugs of snapshots: installing, starting from one, and restores by users."""

from __future__ import annotations

from tests.patching import Change
from tests.simulation.bugs.model import Bug, bug

FSM_RESTORES = "raft/engine/fsm_restores.py"
FSM_RUNNER = "raft/engine/fsm_runner.py"
INSTALL = "raft/engine/install_snapshot.py"
LEASE = "raft/roles/lease.py"
LOST_SNAPSHOT = "raft/roles/lost_snapshot.py"
RAFT_LOG = "raft/engine/raft_log.py"
SEND_SNAPSHOT = "raft/engine/send_snapshot.py"
SNAPSHOTTER = "raft/engine/snapshotter.py"
START_UP = "raft/engine/start_up.py"
USER_RESTORE = "raft/roles/user_restore.py"

BUGS = (
    bug(
        "install keeps a conflicting log",
        "hashicorp/raft #697: Figure 3.13's last rules are missing (H4)",
        INSTALL,
        "            return self._core.raft_log.term_at(last.index) == last.term",
        "            return self._core.raft_log.term_at(last.index) > 0",
    ),
    bug(
        "start keeps a conflicting log",
        "the same after a crash between snapshot and log (H4, H24)",
        RAFT_LOG,
        "        return log.term != boundary.term\n",
        "        return False\n",
    ),
    Bug(
        "stale snapshot is installed",
        "hashicorp/raft: a snapshot that comes too late takes the place of newer entries (H4)",
        (
            Change(
                INSTALL,
                "            return index <= min(core.settled_index(),"
                " core.raft_log.last().index)\n",
                "            return False\n",
            ),
            Change(
                INSTALL,
                "        core.fsm.restore(meta, may_go_back=may_go_back)\n",
                "        core.fsm.restore(meta)\n",
            ),
        ),
    ),
    bug(
        "snapshot claims more than it holds",
        "rqlite #2747: an index is adopted that the state machine has not reached",
        SNAPSHOTTER,
        "                SNAPSHOT_VERSION,\n                view.last.index,\n",
        "                SNAPSHOT_VERSION,\n                self._log.durable_index(),\n",
    ),
    bug(
        "start does not read the snapshot",
        "rqlite #2747: its index is adopted, its content is not",
        FSM_RUNNER,
        "            self._machine.restore(meta, self._runtime)\n        else:",
        "            self._machine.move_to(meta)\n        else:",
    ),
    bug(
        "half restored state machine goes on",
        "rqlite #2759, hashicorp/raft: a failed restore is only logged (H23)",
        FSM_RESTORES,
        "            self._failed(meta, error)\n"
        "            self._tell_refused(error)\n"
        "            raise\n",
        "            self._machine.move_to(meta)\n",
    ),
    bug(
        "backup is not tried first",
        "a snapshot that no state machine can read takes the place of the log (departure 19)",
        USER_RESTORE,
        "        core.fsm.restores.try_out(current.trial)\n",
        "        core.inbox.post(RestoreTried(self._term, current, None))\n",
    ),
    bug(
        "refused backup stays on the disk",
        "a restart starts from what its caller was told to have no effect (departure 19)",
        USER_RESTORE,
        "            error = self._take_back(restore.meta, error)\n",
        "            pass\n",
    ),
    Bug(
        "no snapshot in place of a lost one",
        "a follower that needs what its leader has lost stays out for ever",
        (
            Change(
                LOST_SNAPSHOT,
                "        core.take_snapshot("
                "lambda error: core.inbox.post(SnapshotAttempted(self._term, error)))\n",
                "        pass\n",
            ),
            Change(
                SNAPSHOTTER,
                "        return grown >= self._config.snapshot_threshold or self._is_lost()\n",
                "        return grown >= self._config.snapshot_threshold\n",
            ),
        ),
    ),
    bug(
        "restart forgets the members in the log",
        "configurations behind the snapshot are not read at start",
        START_UP,
        "    core.scan_configurations(core.raft_log.boundary().index + 1)\n",
        "",
    ),
    bug(
        "installed snapshot brings no members",
        "the configuration of a snapshot is not taken over (hashicorp/raft #617, H20)",
        INSTALL,
        "            core.membership.reset(meta.configuration_index, meta.configuration)\n"
        "            core.drop_log(last)\n",
        "            core.drop_log(last)\n",
    ),
    bug(
        "user restore at a used index",
        "hashicorp/raft #159: a restore needs an index that no entry has (H26)",
        USER_RESTORE,
        "            max(core.raft_log.last_index(), theirs.index) + 1,\n",
        "            core.raft_log.last_index(),\n",
    ),
    bug(
        "user restore counts at once",
        "hashicorp/raft: it shows before it is committed; its leader dies (departure 19)",
        USER_RESTORE,
        "            unsettled=True,\n",
        "            unsettled=False,\n",
    ),
    bug(
        "user restore counts at its receivers",
        "the mark of an uncommitted restore is not sent along (departure 19)",
        SEND_SNAPSHOT,
        "                unsettled=meta.unsettled,\n",
        "                unsettled=False,\n",
    ),
    bug(
        "user restore counts after a restart",
        "the mark of an uncommitted restore is not looked at when a node starts (departure 19)",
        START_UP,
        "        if meta.unsettled:\n            core.unsettled.meta = meta\n",
        "        if False:\n            core.unsettled.meta = meta\n",
    ),
    Bug(
        "reads show an uncommitted restore",
        "what may never have happened is read (departure 19)",
        (
            Change(
                LEASE,
                " and core.unsettled.meta is None\n",
                "\n",
            ),
            Change(
                FSM_RUNNER,
                "        if not meta.unsettled:\n            self._answer_readers()",
                "        if True:\n            self._answer_readers()",
            ),
        ),
    ),
)
