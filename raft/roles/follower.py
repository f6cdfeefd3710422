"""The follower's loop: answers, and campaigns when it hears nobody (§5.2)."""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.inbox import ConfigReloaded, Message, NewerTermSeen
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.request_vote import may_campaign
from raft.metrics import count
from raft.roles.base import Role
from raft.runtime import backoff, random_timeout, was_stalled
from raft.types import NO_INDEX, RaftState

_FIRST_PROBE = 0.1  # seconds after the disk has failed, doubling up to
_LONGEST_PROBE = 5.0


class Follower(Role):
    """Waits for a leader to be heard of; campaigns when none was for `heartbeat_timeout`."""

    role = RaftState.FOLLOWER

    def __init__(self, core: Core, snapshots: SnapshotReceiver) -> None:
        super().__init__(core, snapshots)
        self.handlers[NewerTermSeen] = self.on_newer_term
        self._excused: tuple[float | None, ...] = ()  # the contact before a stall that was excused
        self._campaign_at = 0.0
        self._probe_at: float | None = None  # while the disk is not fit
        self._probes = 0  # in a row that did not make it fit
        self._warned = False  # one warning a stay that this node does not campaign, and why

    def enter(self) -> None:
        """Give a leader the time to be heard."""
        count(self.core.metrics, "raft.state.follower")
        self._arm(self.core.runtime.monotonic())

    def _arm(self, since: float) -> None:
        timeout = self.core.config.heartbeat_timeout
        self._campaign_at = since + random_timeout(self.core.runtime, timeout)
        self._plan()

    def _plan(self) -> None:
        """Wait for what is due first. An unfit disk is probed soon, and later each time.

        With or without a leader: until then this node can acknowledge nothing.
        """
        if self.core.fault is None and self.core.disk.is_fit():
            self._probe_at, self._probes = None, 0
        elif self._probe_at is None:
            pause = backoff(_FIRST_PROBE, self._probes + 1, _LONGEST_PROBE)
            self._probe_at = self.core.runtime.monotonic() + pause
        self.deadline = min(self._campaign_at, self._probe_at or self._campaign_at)

    def handle(self, message: Message) -> None:
        """Answer as any role does; then see whether the disk has failed by that."""
        super().handle(message)
        self._plan()

    def on_deadline(self) -> None:
        """Probe a disk that is not fit; campaign if nothing was heard for long, and if we may."""
        core = self.core
        now = core.runtime.monotonic()
        late = now - (self.deadline or now)
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at, self._probes = None, self._probes + 1
            core.recover_disk()
            now = core.runtime.monotonic()
        if now < self._campaign_at:
            self._plan()
            return
        contact = core.state.last_contact
        if contact is not None and now - contact < core.config.heartbeat_timeout:
            self._arm(contact)
            return
        self._arm(now)
        if was_stalled(late, core.config.leader_lease_timeout) and self._excused != (contact,):
            # The process did not run (a held GIL, a pause of the machine): what the leader sent
            # meanwhile has yet to be read. The gap alone costs no election, once until then.
            self._excused = (contact,)
            self.report_stall(late)
            return
        core.set_leader("", "")
        if self._may_campaign():
            core.log.warning("heartbeat timeout reached, starting election")
            core.become(RaftState.CANDIDATE)

    def _may_campaign(self) -> bool:
        core, members = self.core, self.core.membership
        if members.latest_index == NO_INDEX:
            return self._warn("no known peers, aborting election")
        may_lead = members.may_lead(core.local_id)
        if not may_lead and members.is_stable():
            return self._warn("not a voter in the committed configuration, aborting election")
        count(core.metrics, "raft.transition.heartbeat_timeout")
        if not may_lead:
            return self._warn("heartbeat timeout reached, not a voter in the latest configuration")
        if not may_campaign(core):
            return self._warn("disk or fsm is not fit, aborting election")
        if core.runtime.monotonic() < core.rest_until:
            return self._warn("committed nothing as the leader, leaving the election to others")
        return True

    def _warn(self, reason: str) -> bool:
        if not self._warned:
            self._warned = True
            self.core.log.warning(reason)
        return False

    def on_reload(self, message: ConfigReloaded) -> None:
        """Count the new timeout from the last contact."""
        now = self.core.runtime.monotonic()
        self._arm(self.core.state.last_contact or now)
        self._campaign_at = max(now, self._campaign_at)
        self._plan()

    def on_newer_term(self, message: NewerTermSeen) -> None:
        """Take over a term that an answer to us as the leader has shown (§5.1).

        Else whoever lives in it, and has no vote to be asked for, would depose one leader after the
        other until their terms got there.
        """
        if message.seen > self.core.state.term:
            self.core.become_follower(message.seen)


def run_follower(core: Core, snapshots: SnapshotReceiver) -> None:
    """Follow until the role changes or the node stops."""
    Follower(core, snapshots).run()
