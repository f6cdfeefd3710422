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
    """The published numbers. The main thread writes; any thread reads.

    Exceptions to the one writer: `contact` (a transport's thread) and `set_applied` (the FSM
    thread). All are one object that never changes and is replaced under a lock, which only threads
    of the node take: a reader needs none, nor does a signal handler. Invariants: term and commit
    index never fall; nor does the last snapshot, unless it was a user restore that turned out never
    to have happened.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()  # held while _now is replaced
        self._now = Published()
        self._waiters = Waiters(runtime)  # for a leader

    def published(self) -> Published:
        """Return everything as of now."""
        return self._now

    @property
    def role(self) -> RaftState:
        """What the node is."""
        return self._now.role

    @property
    def term(self) -> int:
        """The latest term that is durable."""
        return self._now.term

    @property
    def commit_index(self) -> int:
        """How far the log is committed."""
        return self._now.commit_index

    @property
    def applied_index(self) -> int:
        """How far the FSM has really got."""
        return self._now.applied_index

    @property
    def last_contact(self) -> float | None:
        """When the leader was last heard; None for never."""
        return self._now.last_contact

    def leader(self) -> tuple[ServerAddress, ServerID]:
        """Return the known leader's address and id, empty when there is none."""
        now = self._now
        return now.leader_address, now.leader_id

    def set_role(self, role: RaftState) -> bool:
        """Change the role; the known leader is forgotten always. Tell whether the role changed."""
        with self._lock:
            changed = self._now.role is not role
            self._now = self._now._replace(role=role, leader_id="", leader_address="")
        self._waiters.wake_all()
        return changed

    def set_leader(self, server_id: ServerID, address: ServerAddress) -> bool:
        """Change the known leader; tell whether it is another one."""
        with self._lock:
            if self.leader() == (address, server_id):
                return False
            self._now = self._now._replace(leader_id=server_id, leader_address=address)
        self._waiters.wake_all()
        return True

    def set_term(self, term: int) -> None:
        """Publish a term that is durable."""
        with self._lock:
            if term < self.term:
                raise RaftInternalError(f"term would fall from {self.term} to {term}")
            self._now = self._now._replace(term=term)

    def set_commit_index(self, index: int) -> None:
        """Publish how far the log is committed."""
        with self._lock:
            if index < self.commit_index:
                raise RaftInternalError(f"commit index would fall: {self.commit_index} to {index}")
            self._now = self._now._replace(commit_index=index)

    def set_applied(self, index: int) -> None:
        """Publish how far the FSM has really got; a failed restore takes it back to 0."""
        with self._lock:
            self._now = self._now._replace(applied_index=index)

    def set_last_log(self, last: EntryID) -> None:
        """Publish the end of the log."""
        with self._lock:
            self._now = self._now._replace(last_log=last)

    def set_last_snapshot(self, last: EntryID, *, replaces: bool = False) -> None:
        """Publish the newest snapshot; an older one changes nothing, unless it `replaces` it."""
        with self._lock:
            if replaces or last.index > self._now.last_snapshot.index:
                self._now = self._now._replace(last_snapshot=last)

    def set_configuration(self, configuration: Configuration, index: int) -> None:
        """Publish the latest configuration, committed or not."""
        with self._lock:
            self._now = self._now._replace(configuration=configuration, configuration_index=index)

    def touch(self, now: float) -> None:
        """Note contact with the leader."""
        with self._lock:
            self._now = self._now._replace(last_contact=now)

    def contact(self, term: int, leader_id: ServerID, address: ServerAddress, now: float) -> bool:
        """Note a heartbeat if nothing else would change by it; any thread.

        False means that the main thread must look at it: other term, other role, other leader.
        """
        with self._lock:
            if self.role is not RaftState.FOLLOWER or self.term != term:
                return False
            if self.leader() != (address, leader_id):
                return False
            self._now = self._now._replace(last_contact=now)
            return True

    def wait_for_leader(self, timeout: float | None) -> tuple[ServerAddress, ServerID] | None:
        """Wait until a leader is known; None when there was none in time, or the node is down."""

        def is_unknown() -> bool:
            now = self._now
            return not now.leader_id and now.role is not RaftState.SHUTDOWN

        deadline = Deadline(self._runtime, timeout)
        while is_unknown() and deadline.remaining() != 0.0:
            self._waiters.wait(is_unknown, deadline)
        leader = self.leader()
        return leader if leader[1] else None
