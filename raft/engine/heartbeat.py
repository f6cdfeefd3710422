"""Heartbeats to one peer: heard whatever disk, FSM and large frames do (§5.2).

They have a thread and, in the transport, a connection of their own. An answer is also what confirms
that the leader still leads (§6.4 of the thesis).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from raft.config import Config
from raft.engine.inbox import BeatAnswered, ControlMessage, NewerTermSeen, PeerMet
from raft.engine.plausible import check_term
from raft.engine.raft_log import RaftLog
from raft.errors import RaftError, describe_error
from raft.interfaces import SnapshotStore, Transport
from raft.logs import get_logger
from raft.messages import AppendEntriesRequest, Note, RPCHeader
from raft.metrics import Metrics, count_for_peer
from raft.observer import (
    FailedHeartbeatObservation,
    ObservationData,
    ResumedHeartbeatObservation,
)
from raft.runtime import Deadline, Event, Runtime, ThreadGroup, backoff, random_timeout
from raft.types import Server, ServerID

_log = get_logger(__name__)

_BEATS_PER_TIMEOUT = 10  # heartbeats go out every heartbeat_timeout / 10, up to twice as long
_BACKOFF_BASE = 0.01  # seconds after the first failure, doubling


class Progress(Protocol):
    """What a replicator reports to: the leader's `Commitment`."""

    def match(self, server_id: ServerID, index: int, source: object, incarnation: str = "") -> None:
        """Note that this incarnation of a server has the log up to `index` on disk."""

    def retire(self, source: object) -> None:
        """Count no more reports of a source."""


@dataclass(frozen=True, slots=True)
class Links:
    """What all replicators of one leadership share."""

    runtime: Runtime
    config: Config
    threads: ThreadGroup
    log: RaftLog
    snapshots: SnapshotStore
    transport: Transport
    header: RPCHeader
    term: int
    progress: Progress
    commit_index: Callable[[], int]
    verify_sequence: Callable[[], int]
    post: Callable[[ControlMessage], None]
    emit: Callable[[ObservationData], None]
    notes: Callable[[], tuple[Note, ...]] = lambda: ()
    metrics: Metrics | None = None


class Heartbeats:
    """The beat thread of one peer in one leadership; ends when `stopped` is set."""

    def __init__(
        self, links: Links, server: Server, stopped: Event, on_resumed: Callable[[], None]
    ) -> None:
        self._links = links
        self._stopped = stopped
        self._on_resumed = on_resumed
        self._changed = links.runtime.condition()  # guards all below
        self._server = server
        self._wanted = False
        self._is_back = False
        self._counts = True
        self._met = ""  # the incarnation that answered last
        self.last_contact = links.runtime.monotonic()
        self.last_error = ""  # of entries or heartbeats, whichever failed last
        # The beat thread's own, without the lock; any thread may look.
        self.failures = 0
        self._failed_at = 0.0
        self._confirmed = 0

    def beat_now(self) -> None:
        """Ask for a round that begins after this call; any thread."""
        with self._changed:
            self._wanted = True
            self._changed.notify()

    def end_backoff(self) -> None:
        """Try again now if heartbeats fail: the peer has answered something else; any thread.

        What is sent to it next may be much, and a heartbeat's new connection would be made behind.
        """
        with self._changed:
            self._is_back = True
            self._changed.notify()

    def wake(self) -> None:
        """Look at `stopped` now; any thread."""
        with self._changed:
            self._changed.notify()

    def move(self, server: Server) -> None:
        """Use another address from now on; any thread."""
        with self._changed:
            self._server = server

    def discount(self) -> None:
        """Let no answer confirm a leadership from now on; any thread."""
        with self._changed:
            self._counts = False

    def touch(self, peer: RPCHeader) -> None:
        """Note contact: an answer of the peer has come, however long its way was; any thread.

        It may be older than that, so nothing but the lease may rest on it (`roles/lease.py`). The
        main thread is told when it comes from another data directory than the one before.
        """
        with self._changed:
            self.last_contact = self._links.runtime.monotonic()
            is_new, self._met = peer.incarnation != self._met, peer.incarnation
        if is_new:
            self._links.post(PeerMet(self._links.term, self._server.id, peer.incarnation))

    def run(self) -> None:
        """Be the beat thread."""
        links = self._links
        request = AppendEntriesRequest(links.header, links.term)
        while self._wait():
            # Read before the round begins: only what was asked before counts (departure 5).
            sequence = links.verify_sequence()
            began = links.runtime.monotonic()
            server = self._server
            try:
                answer = links.transport.append_entries(
                    server.id, server.address, request, links.config.heartbeat_timeout
                )
                check_term(links.term, answer.term)
            except (RaftError, OSError) as error:
                self._failed(error)
                continue
            if links.metrics is not None:
                links.metrics.peer_since("raft.replication.heartbeat", began, server.id)
            if answer.term > links.term:
                links.post(NewerTermSeen(links.term, answer.term))
                return
            self._answered(answer.header)
            if answer.success and sequence > self._confirmed and self._counts:
                self._confirmed = sequence
                incarnation = answer.header.incarnation
                links.post(BeatAnswered(links.term, server.id, sequence, incarnation))

    def _wait(self) -> bool:
        """Wait for the next round; False to end."""
        timeout = self._links.config.heartbeat_timeout
        if self.failures:
            # H17: a peer that is back must hear us before it starts an election.
            delay = backoff(_BACKOFF_BASE, self.failures, timeout / 2)
        else:
            delay = random_timeout(self._links.runtime, timeout / _BEATS_PER_TIMEOUT)
        deadline = Deadline(self._links.runtime, delay)
        with self._changed:
            while not self._stopped.is_set() and not deadline.is_over():
                if self._is_back if self.failures else self._wanted:
                    break
                self._changed.wait(deadline.remaining())
            self._wanted = self._is_back = False
            return not self._stopped.is_set()

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        self._failed_at = self._links.runtime.monotonic()
        self.last_error = describe_error(error)
        count_for_peer(self._links.metrics, "raft.replication.failedHeartbeats", self._server.id)
        if self.failures == 1 and not self._stopped.is_set():
            _log.warning("heartbeat failed peer=%s error=%s", self._server.id, error)
        self._links.emit(FailedHeartbeatObservation(self._server.id, self.last_contact))

    def _answered(self, peer: RPCHeader) -> None:
        was_heard = self.last_contact > self._failed_at  # entries were answered: they go on
        self.touch(peer)
        if self.failures:
            self.failures = 0
            if not was_heard:
                self._on_resumed()
            self._links.emit(ResumedHeartbeatObservation(self._server.id))
