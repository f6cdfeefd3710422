"""Which data directory of each voter this server has counted on (departure 21).

A voter that lost its disk and comes back empty, under its old id, has forgotten what it
acknowledged and whom it voted for: an acknowledged write can be lost by it. So each data directory
has an *incarnation*: random, made at the first start, kept in the stable store, and named in the
header of every message. A server notes the incarnation of each voter that it counts on, durably and
before it does. Another one under the same id counts for nothing, neither for a vote nor for a
match, a confirmation or the lease, until a configuration has removed the id and added it again. It
still gets the log.

Leaders send their notes along, so that a server that has never heard the voter itself knows them.
An incarnation "" says nothing (another protocol, an older version): it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from raft.codec import dumps, loads, unpack_notes
from raft.engine.disk import Disk
from raft.engine.membership import Membership
from raft.errors import KeyNotFoundError, ProtocolError
from raft.interfaces import StableStore
from raft.logs import Logger
from raft.messages import Note, RPCHeader
from raft.metrics import Metrics, count
from raft.observer import ObservationData, VoterReplacedObservation
from raft.runtime import Runtime, Throttle
from raft.types import NO_INDEX, Log, ServerID

INCARNATION_KEY = b"Incarnation"
NOTES_KEY = b"Incarnations"

_BYTES = 8  # of chance in an incarnation: two directories of one id never share one
_PERIOD = 60.0  # seconds between two log records about one voter


def load_incarnation(stable: StableStore, runtime: Runtime) -> str:
    """Return the incarnation of a data directory, drawn for a blank one: see `keep_incarnation`.

    A store that was written by an older version has none: it gets one now, and keeps its data.
    """
    try:
        return stable.get(INCARNATION_KEY).decode()
    except KeyNotFoundError:
        return runtime.random_bytes(_BYTES).hex()


def keep_incarnation(stable: StableStore, incarnation: str) -> None:
    """Make an incarnation durable if it was drawn just now; before the node runs.

    Not before all else could be read: what a newer version has written stays as it is.
    """
    try:
        stable.get(INCARNATION_KEY)
    except KeyNotFoundError:
        stable.set(INCARNATION_KEY, incarnation.encode())


def forget_incarnations(stable: StableStore) -> None:
    """Count on nobody any more: a recovery by hand has given the cluster new members."""
    stable.set(NOTES_KEY, dumps([]))


class Verdict(Enum):
    """What a server makes of an incarnation."""

    KNOWN = "it is the one that was counted on"
    NEW = "none was counted on: it may be noted, and counts once that is durable"
    ANOTHER = "another one was counted on: it counts for nothing"


class Incarnations:
    """The notes of one server. Main thread only, but `notes`, which any thread may read."""

    def __init__(
        self,
        local_id: ServerID,
        stable: StableStore,
        disk: Disk,
        runtime: Runtime,
        membership: Membership,
        emit: Callable[[ObservationData], None],
        log: Logger,
        metrics: Metrics | None,
    ) -> None:
        self._local_id = local_id
        self._stable = stable
        self._disk = disk
        self._runtime = runtime
        self._membership = membership
        self._emit = emit
        self._log = log
        self._metrics = metrics
        self._planned: dict[ServerID, Note] = {}  # durable, or about to be
        self._reports: dict[tuple[ServerID, str], Throttle] = {}
        self.notes: tuple[Note, ...] = ()  # durable; replaced as a whole

    def load(self) -> None:
        """Read the notes; before the node runs."""
        try:
            self.notes = unpack_notes(loads(self._stable.get(NOTES_KEY)), "notes")
        except KeyNotFoundError:
            self.notes = ()
        self._planned = {note.server_id: note for note in self.notes}

    def verdict(self, server_id: ServerID, incarnation: str) -> Verdict:
        """Tell what may be made of a server's messages."""
        noted = self._noted(server_id)
        if not incarnation or (noted is not None and noted.incarnation == incarnation):
            return Verdict.KNOWN
        if noted is None or self._is_everybody_needed():
            return Verdict.NEW
        return Verdict.ANOTHER

    def _noted(self, server_id: ServerID) -> Note | None:
        """Return the note on a server; one of before it was removed and added again is void."""
        for note in self.notes:
            if note.server_id == server_id and note.since >= self._membership.added_at(server_id):
                return note
        return None

    def _is_everybody_needed(self) -> bool:
        """Tell whether every quorum, now and before, has all voters, as with one or two of them.

        Whatever one of them has lost the others have then, and it cannot vote without them: so it
        may come back at once. Without this a cluster of two could not go on.
        """
        members = self._membership
        return all(
            configuration.quorum() >= len(configuration.voters())
            for configuration in (members.latest, members.committed)
        )

    def told(self, leader: RPCHeader) -> tuple[Note, ...]:
        """Return what a leader tells the others: its notes, and that they count on itself.

        Any thread. A server that was added while it led has heard nobody else.
        """
        own = Note(leader.id, leader.incarnation, self._membership.latest_index)
        return (*self.notes, own) if leader.incarnation else self.notes

    # ---- noting: what these return writes, and is called on the disk thread ----

    def plan(self, server_id: ServerID, incarnation: str) -> Callable[[], None]:
        """Note a voter that is to be counted on from now on."""
        since = self._membership.latest_index
        self._planned[server_id] = Note(server_id, incarnation, since)
        return self._write(self._planned.values())

    def plan_learned(self, notes: Iterable[Note]) -> Callable[[], None] | None:
        """Take over what a leader has noted and we have not, or of before; None for nothing new."""
        learned = [note for note in notes if self._is_news(note)]
        self._planned.update((note.server_id, note) for note in learned)
        return self._write(self._planned.values()) if learned else None

    def _is_news(self, note: Note) -> bool:
        own = self._planned.get(note.server_id)
        return note.server_id != self._local_id and (own is None or note.since > own.since)

    def pin(self, server_id: ServerID, incarnation: str) -> bytes:
        """Return the extensions of the entry that gives a server its vote: what will count.

        So a server that knows of the vote knows the data directory, and no moment lies between.
        """
        return dumps([[server_id, incarnation, NO_INDEX]])

    def learn_pin(self, log: Log) -> None:
        """Note what the entry of a configuration pins; it holds at once, as the entry is durable.

        It is written down for the time when the entry is compacted.
        """
        try:
            pins = unpack_notes(loads(log.extensions), "pins") if log.extensions else ()
        except ProtocolError:
            return  # somebody else's
        if learn := self.plan_learned(pin._replace(since=log.index) for pin in pins):
            self.notes = tuple(self._planned.values())
            self._disk.submit("incarnations", learn)

    def _write(self, planned: Iterable[Note]) -> Callable[[], None]:
        notes = tuple(planned)

        def action() -> None:
            self._stable.set(NOTES_KEY, dumps([list(note) for note in notes]))
            self.notes = notes

        return action

    # ---- telling ----

    def report(self, server_id: ServerID, incarnation: str) -> None:
        """Say that a voter has come back with another data directory, and what to do."""
        count(self._metrics, "raft.voter.replaced")
        throttle = self._reports.setdefault(
            (server_id, incarnation), Throttle(self._runtime, _PERIOD)
        )
        if not throttle.admits():
            return
        noted = self._noted(server_id)
        expected = noted.incarnation if noted is not None else ""
        self._emit(VoterReplacedObservation(server_id, expected, incarnation))
        self._log.error(
            "voter has another data directory than before and forgot what it acknowledged: its"
            " votes and acknowledgements do not count. Remove the server and add it again"
            " (remove_server, then add_voter with catch_up=True) peer=%s expected=%s found=%s",
            server_id,
            expected,
            incarnation,
        )

    def replaced(self) -> list[ServerID]:
        """Return the voters that were reported and are not removed yet; any thread."""
        return sorted(
            {
                server_id
                for server_id, incarnation in list(self._reports)
                if self._membership.latest.has_vote(server_id)
                and self.verdict(server_id, incarnation) is Verdict.ANOTHER
            }
        )
