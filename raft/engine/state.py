"""The numbers of a node: the durable vote record, and what everybody may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from raft.codec import decode_hard_state, encode_hard_state
from raft.errors import KeyNotFoundError, RaftInternalError
from raft.interfaces import StableStore
from raft.runtime import Deadline, Runtime
from raft.types import (
    EMPTY_CONFIGURATION,
    NO_ENTRY,
    NO_INDEX,
    NO_TERM,
    Configuration,
    EntryID,
    RaftState,
    ServerAddress,
    ServerID,
)
from raft.waiting import Waiters

HARD_STATE_KEY = b"HardState"
CLUSTER_ID_KEY = b"ClusterID"

# The original's keys, read once when a store was filled by an importer.
LEGACY_TERM_KEY = b"CurrentTerm"
LEGACY_VOTE_TERM_KEY = b"LastVoteTerm"
LEGACY_VOTE_KEY = b"LastVoteCand"

_MOST_READINGS = 10  # of all numbers, until two are alike

UNKNOWN_CANDIDATE = "\x00unknown"
"""Stands for a vote whose candidate cannot be told: no server has this id."""


@dataclass(frozen=True, slots=True)
class HardState:
    """Term and vote: one durable record, written before any answer that rests on it (§5.2).

    A vote belongs to its term: a record with a new term and no vote is how the vote is cleared.
    """

    term: int = NO_TERM
    voted_for: ServerID = ""
    voted_for_address: ServerAddress = ""

    def save(self, stable: StableStore) -> None:
        """Make the record durable; runs on the disk thread."""
        stable.set(
            HARD_STATE_KEY, encode_hard_state(self.term, self.voted_for, self.voted_for_address)
        )

    @classmethod
    def load(cls, stable: StableStore) -> HardState:
        """Return the durable record; that of a blank store has term 0."""
        try:
            data = stable.get(HARD_STATE_KEY)
        except KeyNotFoundError:
            return cls._load_legacy(stable)
        return cls(*decode_hard_state(data)) if data else cls._load_legacy(stable)

    @classmethod
    def _load_legacy(cls, stable: StableStore) -> HardState:
        """Read the original's three keys. Its vote names an address only: cast for nobody known."""
        term = _get_uint64(stable, LEGACY_TERM_KEY)
        if term and _get_uint64(stable, LEGACY_VOTE_TERM_KEY) == term:
            return cls(term, UNKNOWN_CANDIDATE)
        return cls(term)


def _get_uint64(stable: StableStore, key: bytes) -> int:
    try:
        return stable.get_uint64(key)
    except KeyNotFoundError:
        return 0


def load_cluster_id(stable: StableStore) -> str | None:
    """Return the id of the cluster this data belongs to, None when it has none yet."""
    try:
        return stable.get(CLUSTER_ID_KEY).decode() or None
    except KeyNotFoundError:
        return None


class Published(NamedTuple):
    """What a node says about itself at one moment."""

    role: RaftState = RaftState.FOLLOWER
    term: int = NO_TERM
    leader_id: ServerID = ""
    leader_address: ServerAddress = ""
    commit_index: int = NO_INDEX
    applied_index: int = NO_INDEX
    last_log: EntryID = NO_ENTRY
    last_snapshot: EntryID = NO_ENTRY
    last_contact: float | None = None
    configuration: Configuration = EMPTY_CONFIGURATION
    configuration_index: int = NO_INDEX


class NodeState:
    """The published numbers. The main thread writes; any thread reads, without a lock.

    Exceptions to the one writer: `contact` (a transport's thread) and `set_applied` (the FSM
    thread). A signal handler may read, too: nobody waits for the lock but threads of the node.
    Invariants: term and commit index never fall; nor does the last snapshot, unless it was a user
    restore that turned out never to have happened.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()  # held while role, term, leader or contact change
        self.role = RaftState.FOLLOWER
        self.term = NO_TERM  # the latest that is durable
        self.commit_index = NO_INDEX
        self.applied_index = NO_INDEX  # how far the FSM has really got
        self.last_contact: float | None = None  # when the leader was last heard; None for never
        self._leader: tuple[ServerAddress, ServerID] = ("", "")
        self._last_log = NO_ENTRY
        self._last_snapshot = NO_ENTRY
        self._latest: tuple[Configuration, int] = (EMPTY_CONFIGURATION, NO_INDEX)
        self._waiters = Waiters(runtime)  # for a leader

    def published(self) -> Published:
        """Return everything as of one moment.

        That is what two readings in a row agree on; somebody who writes all the time gets no more
        than a few of them.
        """
        now = self._read()
        for _ in range(_MOST_READINGS):
            before, now = now, self._read()
            if now == before:
                break
        return now

    def _read(self) -> Published:
        (address, server_id), (configuration, index) = self._leader, self._latest
        return Published(
            self.role,
            self.term,
            server_id,
            address,
            self.commit_index,
            self.applied_index,
            self._last_log,
            self._last_snapshot,
            self.last_contact,
            configuration,
            index,
        )

    def leader(self) -> tuple[ServerAddress, ServerID]:
        """Return the known leader's address and id, empty when there is none."""
        return self._leader

    def set_role(self, role: RaftState) -> bool:
        """Change the role; the known leader is forgotten always. Tell whether the role changed."""
        with self._lock:
            changed = self.role is not role
            self.role = role
            self._leader = ("", "")
        self._waiters.wake_all()
        return changed

    def set_leader(self, server_id: ServerID, address: ServerAddress) -> bool:
        """Change the known leader; tell whether it is another one."""
        with self._lock:
            if self._leader == (address, server_id):
                return False
            self._leader = (address, server_id)
        self._waiters.wake_all()
        return True

    def set_term(self, term: int) -> None:
        """Publish a term that is durable."""
        with self._lock:
            if term < self.term:
                raise RaftInternalError(f"term would fall from {self.term} to {term}")
            self.term = term

    def set_commit_index(self, index: int) -> None:
        """Publish how far the log is committed."""
        if index < self.commit_index:
            raise RaftInternalError(f"commit index would fall: {self.commit_index} to {index}")
        self.commit_index = index

    def set_applied(self, index: int) -> None:
        """Publish how far the FSM has really got; a failed restore takes it back to 0."""
        self.applied_index = index

    def set_last_log(self, last: EntryID) -> None:
        """Publish the end of the log."""
        self._last_log = last

    def set_last_snapshot(self, last: EntryID, *, replaces: bool = False) -> None:
        """Publish the newest snapshot; an older one changes nothing, unless it `replaces` it."""
        if replaces or last.index > self._last_snapshot.index:
            self._last_snapshot = last

    def set_configuration(self, configuration: Configuration, index: int) -> None:
        """Publish the latest configuration, committed or not."""
        self._latest = (configuration, index)

    def touch(self, now: float) -> None:
        """Note contact with the leader."""
        with self._lock:
            self.last_contact = now

    def contact(self, term: int, leader_id: ServerID, address: ServerAddress, now: float) -> bool:
        """Note a heartbeat if nothing else would change by it; any thread.

        False means that the main thread must look at it: other term, other role, other leader.
        """
        with self._lock:
            if self.role is not RaftState.FOLLOWER or self.term != term:
                return False
            if self._leader != (address, leader_id):
                return False
            self.last_contact = now
            return True

    def wait_for_leader(self, timeout: float | None) -> tuple[ServerAddress, ServerID] | None:
        """Wait until a leader is known; None when there was none in time, or the node is down."""

        def is_unknown() -> bool:
            return not self._leader[1] and self.role is not RaftState.SHUTDOWN

        deadline = Deadline(self._runtime, timeout)
        while is_unknown() and deadline.remaining() != 0.0:
            self._waiters.wait(is_unknown, deadline)
        leader = self.leader()
        return leader if leader[1] else None
