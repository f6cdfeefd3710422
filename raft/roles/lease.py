"""Whether a leader still leads: contact with a quorum, and verification (thesis 6.2, 6.4).

Reads without a log write rest on verification, never on a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raft.engine.commitment import majority_index
from raft.engine.core import Core
from raft.engine.inbox import ReadBarrier, VerifyLeader
from raft.metrics import Metrics
from raft.runtime import was_stalled
from raft.types import Configuration, ServerID

SHORTEST_CHECK = 0.01  # seconds between two looks at the lease
_LOOKS = 5  # in each lease
_STALLS = 16  # that are remembered; more than fit into two leases


def quorum_contact(
    configuration: Configuration,
    local_id: ServerID,
    last_contact: Mapping[ServerID, float],
    now: float,
    lease: float,
    stalled_since: Callable[[float], float] = lambda _: 0.0,
) -> tuple[bool, float]:
    """Tell whether a quorum of voters was in contact within the lease, and when to look again.

    This node counts as being in contact with itself, if it is a voter. The time in which this
    process did not run since a contact is taken off.
    """
    contacted = 0
    largest_gap = 0.0
    for server in configuration.voters():
        if server.id == local_id:
            contacted += 1
            continue
        last = last_contact.get(server.id, float("-inf"))
        gap = now - last - stalled_since(last)
        if gap <= lease:
            contacted += 1
            largest_gap = max(largest_gap, gap)
    return contacted >= configuration.quorum(), max(SHORTEST_CHECK, lease - largest_gap)


class Lease:
    """When a leader must have heard from a quorum anew. Main thread only.

    It is looked at more often than it can run out, so that a process that did not run for a while
    (a held GIL, a pause of the machine) is noticed: no answer could be read meanwhile, so the peers
    have one whole lease to be heard again. Until a quorum was in contact, further stalls put it off
    by their own length, by one lease altogether: the gaps alone cost no leadership, and a process
    that hardly runs does not keep it.

    A contact counts from when its answer came: a long way is not silence. The first one has
    `heartbeat_timeout`, as a new connection is three ways there and back. No read rests on this
    (departure 5).
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_STALLS)  # (end, length)
        self.renew(now, seconds)

    def renew(self, now: float, seconds: float) -> None:
        """Run for so long from now on; a quorum is in contact."""
        self._is_excused = False
        self._left = self._seconds  # by which further stalls may put the end off
        self._at = now + seconds
        self._plan_look(now)

    def _plan_look(self, now: float) -> None:
        self._looked_at = now
        self.look_at = min(self._at, now + self._seconds / _LOOKS)

    def look(self, now: float) -> float:
        """Plan the next look; return for how long the process did not run, 0.0 if it did."""
        late = now - self.look_at
        if not was_stalled(late, self._seconds):
            self._plan_look(now)
            return 0.0
        length = now - self._looked_at
        self._stalls.append((now, length))
        if not self._is_excused:
            self._is_excused = True
            self._at = max(self._at, now + self._seconds)
        else:
            longer = min(length, self._left)
            self._left -= longer
            self._at += longer
        self._plan_look(now)
        return late

    def look_for_quorum(
        self,
        configuration: Configuration,
        local_id: ServerID,
        last_contact: Mapping[ServerID, float],
        now: float,
    ) -> tuple[bool, float]:
        """Tell whether a quorum was in contact; see `quorum_contact`."""
        return quorum_contact(
            configuration, local_id, last_contact, now, self._seconds, self.stalled_since
        )

    def stalled_since(self, moment: float) -> float:
        """Return for how long the process did not run since a moment, at most for one lease.

        No answer could be read meanwhile.
        """
        return min(sum(length for end, length in self._stalls if end > moment), self._seconds)

    def is_over(self, now: float) -> bool:
        """Tell whether contact must be checked now."""
        return now >= self._at


def report_contacts(
    metrics: Metrics,
    configuration: Configuration,
    local_id: ServerID,
    last_contact: Mapping[ServerID, float],
) -> None:
    """Emit how long ago each other voter was heard."""
    for server in configuration.voters():
        if server.id != local_id and server.id in last_contact:
            metrics.since("raft.leader.lastContact", last_contact[server.id])


@dataclass(frozen=True, slots=True)
class _Waiting:
    sequence: int
    message: VerifyLeader | ReadBarrier


class Verifications:
    """Callers who want to know whether this node still leads. Main thread only, but `sequence`.

    A heartbeat round confirms only what was asked before it began, and only voters count
    (departure 5). All callers that wait share the same rounds.
    """

    def __init__(self) -> None:
        self.sequence = 0  # of the newest request; read by the beat threads
        self._confirmed: dict[ServerID, int] = {}
        self._waiting: deque[_Waiting] = deque()

    def add(self, message: VerifyLeader | ReadBarrier) -> None:
        """Take a request; the caller then asks all peers for a heartbeat."""
        self.sequence += 1
        self._waiting.append(_Waiting(self.sequence, message))

    def start_over(self) -> None:
        """Believe no round that began before now: the process did not run for a while."""
        if self._waiting:
            self.sequence += 1
            self._waiting = deque(_Waiting(self.sequence, w.message) for w in self._waiting)

    def confirm(self, server_id: ServerID, sequence: int) -> None:
        """Note that a server answered a round that began after request `sequence`."""
        self._confirmed[server_id] = max(self._confirmed.get(server_id, 0), sequence)

    def settle(
        self, configuration: Configuration, local_id: ServerID
    ) -> list[VerifyLeader | ReadBarrier]:
        """Return the requests that a quorum of voters has confirmed, to be answered."""
        settled: list[VerifyLeader | ReadBarrier] = []
        if not self._waiting:
            return settled
        confirmed = majority_index(
            [
                self.sequence if server.id == local_id else self._confirmed.get(server.id, 0)
                for server in configuration.voters()
            ]
        )
        while self._waiting and self._waiting[0].sequence <= confirmed:
            settled.append(self._waiting.popleft().message)
        return settled

    def fail_all(self, error: BaseException) -> None:
        """Answer everybody with an error: leadership is over."""
        while self._waiting:
            self._waiting.popleft().message.fail(error)


class Reads:
    """Whoever wants to read or to know that this node leads, in one leadership (thesis 6.4).

    Main thread only. A read goes on to the FSM once a quorum has confirmed it and an entry of this
    leadership is committed: until then more may be committed than this node knows of. A user
    restore that is not committed is not read.
    """

    def __init__(self, core: Core, start_index: int, beat_now: Callable[[], None]) -> None:
        self._core = core
        self._start_index = start_index
        self._beat_now = beat_now
        self._confirmed: list[ReadBarrier] = []
        self.verifications = Verifications()

    def add(self, message: VerifyLeader | ReadBarrier) -> None:
        """Ask all voters, by a heartbeat that begins after now."""
        self.verifications.add(message)
        self.settle()
        self._beat_now()

    def confirm(self, server_id: ServerID, sequence: int) -> None:
        """Note that a server answered a round that began after request `sequence`."""
        self.verifications.confirm(server_id, sequence)
        self.settle()

    def start_over(self) -> None:
        """Have everything confirmed by rounds that begin after now."""
        self.verifications.start_over()
        self._beat_now()

    def settle(self) -> None:
        """Answer whom a quorum has confirmed, or hand them to the FSM thread."""
        core = self._core
        for message in self.verifications.settle(core.membership.latest, core.local_id):
            if isinstance(message, ReadBarrier):
                self._confirmed.append(message)
            else:
                message.future.respond(None)
        is_known = core.state.commit_index >= self._start_index and core.unsettled.meta is None
        if self._confirmed and is_known:
            for read in self._confirmed:
                core.fsm.answer_when_applied(core.state.commit_index, read.future)
            self._confirmed.clear()

    def fail_all(self, error: BaseException) -> None:
        """Answer everybody with an error: leadership is over."""
        self.verifications.fail_all(error)
        while self._confirmed:
            self._confirmed.pop().fail(error)
