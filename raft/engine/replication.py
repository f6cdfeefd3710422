"""One leader's work for one peer in one term: entries and snapshots (§5.3, §7).

Two threads: *repl* finds where the logs agree and sends what is missing; *pipe* takes the answers
of the requests that repl keeps on the way. What they learn goes to `Commitment` and, by message, to
the main thread. Heartbeats have a thread of their own (`heartbeat.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from raft.engine.heartbeat import Heartbeats, Links
from raft.engine.inbox import LogCorrupted, NewerTermSeen
from raft.engine.plausible import check_term
from raft.engine.send_snapshot import SnapshotSender, SupersededError
from raft.errors import (
    LogCompactedError,
    LogCorruptError,
    NoThreadError,
    PipelineNotSupportedError,
    RaftError,
    RaftInternalError,
    SnapshotError,
    TransportError,
    describe_error,
)
from raft.interfaces import AppendPipeline, WithProgress
from raft.logs import get_logger
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    RPCHeader,
)
from raft.metrics import count_for_peer
from raft.runtime import Deadline, backoff, random_timeout
from raft.types import NO_INDEX, NO_TERM, Server

_log = get_logger(__name__)

_BACKOFF_BASE = 0.01  # seconds after the first failure, doubling
_BACKOFF_CAP = 10.0  # a heartbeat that is answered ends it earlier (departure 12)


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known about a peer, as a copy. `failures` are those in a row, of whatever is sent."""

    server: Server
    match_index: int
    next_index: int
    last_contact: float
    failures: int
    last_error: str
    activity: str


class Reach(NamedTuple):
    """How far a peer has got: its match, and what of its next message has arrived by some way.

    That is in bytes, or in seconds that a snapshot is sent for. It begins anew on another way.
    """

    match_index: int
    way: object
    arrived: float


class PeerReplicator:
    """Replicates to one peer until stopped. Each thread's own state is marked as such.

    Invariants: `match_index < next_index`; at most `max_inflight_appends` requests are unanswered;
    no entry of a later term than this leadership's is ever sent.
    """

    def __init__(self, links: Links, server: Server, next_index: int) -> None:
        self._links = links
        self._stopped = links.runtime.event()
        self._changed = links.runtime.condition()  # guards all below
        self._server = server
        self._next_index = next_index
        self._match_index = NO_INDEX
        self._failures = 0
        self._told_commit = NO_INDEX
        self._kicked = True
        self._farewell: tuple[int, Deadline] | None = None  # a removed peer's last chance
        # The pipeline in use, with the last index and the moment of each unanswered request.
        self._pipeline: AppendPipeline | None = None
        self._unanswered: deque[tuple[int, float, AppendEntriesRequest]] = deque()
        self._broken = False
        self._back_step = 1
        self._sender = SnapshotSender(links)
        self.heart = Heartbeats(links, server, self._stopped, self._peer_is_back)

    def start(self) -> None:
        """Start the threads."""
        peer = self._server.id
        self._links.threads.spawn(f"repl-{peer}", self._run)
        self._links.threads.spawn(f"beat-{peer}", self.heart.run)

    # ---- main thread ----

    def kick(self) -> None:
        """Say that there is something new to send."""
        with self._changed:
            self._kicked = True
            self._changed.notify_all()

    def move(self, server: Server) -> None:
        """Use another address from now on."""
        with self._changed:
            self._server = server
        self.probe_again()
        self.heart.move(server)

    def finish(self, upto: int, seconds: float) -> None:
        """Let a removed peer learn of its removal at `upto` in so many seconds, and not count."""
        self.heart.discount()
        self._links.progress.retire(self)
        with self._changed:
            self._farewell = (upto, Deadline(self._links.runtime, seconds))
            self._changed.notify_all()

    def probe_again(self) -> None:
        """Ask where the logs agree, as at the start: the peer is told all that it is told then."""
        with self._changed:
            self._failures = 0
            self._broken = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End all threads soon; does not wait for them."""
        self._stopped.set()
        with self._changed:
            pipeline = self._pipeline
            self._changed.notify_all()
        if pipeline is not None:
            pipeline.close()
        self.heart.wake()

    def status(self) -> PeerStatus:
        """Return what is known about the peer; any thread, as it takes no lock."""
        heart, match, sending = self.heart, self._match_index, self._sender.transfer
        doing = sending or ("probing" if self._pipeline is None or self._broken else "pipelining")
        failures, after = max(self._failures, heart.failures), max(self._next_index, match + 1)
        contact, error = heart.last_contact, heart.last_error
        return PeerStatus(self._server, match, after, contact, failures, error, str(doing))

    def reach(self) -> Reach:
        """Return how far the peer has got, a large message that is on its way included."""
        with self._changed:
            match, sending = self._match_index, self._sender.transfer
            way: object = self._pipeline
        if sending is not None:
            return Reach(match, sending.since, self._links.runtime.monotonic() - sending.since)
        return Reach(match, way, way.acknowledged() if isinstance(way, WithProgress) else 0)

    # ---- repl thread ----

    def _run(self) -> None:
        try:
            while self._wait():
                self._advance()
        except SupersededError:
            _log.debug("log has entries of a later term peer=%s", self._server.id)
        finally:
            self.stop()
            self._leave_pipeline()

    def _wait(self) -> bool:
        """Wait until there is something to send, or idle for long; False to end."""
        timeout = random_timeout(self._links.runtime, self._links.config.commit_timeout)
        deadline = Deadline(self._links.runtime, timeout)
        with self._changed:
            while not self._stopped.is_set():
                if self._is_finished():
                    return False
                if self._pipeline is None or self._broken:
                    free = 1 if self._broken else 0  # the first break costs no wait
                    return self._failures <= free or self._wait_backoff()
                remaining = deadline.remaining() or 0.0
                if len(self._unanswered) < self._links.config.max_inflight_appends and (
                    self._kicked or remaining == 0.0
                ):
                    return True
                farewell = self._farewell[1].remaining() if self._farewell else None
                limits = [seconds for seconds in (remaining, farewell) if seconds]
                self._changed.wait(min(limits, default=None))
            return False

    def _wait_backoff(self) -> bool:
        """Wait after failures; an answered heartbeat sets `_failures` to 0 and ends it."""
        delay = backoff(_BACKOFF_BASE, self._failures, _BACKOFF_CAP)
        deadline = Deadline(self._links.runtime, delay)
        while not self._stopped.is_set() and self._failures and not deadline.is_over():
            self._changed.wait(deadline.remaining())
        return not self._stopped.is_set()

    def _is_finished(self) -> bool:
        if self._farewell is None:
            return False
        upto, deadline = self._farewell
        return self._told_commit >= upto <= self._match_index or deadline.is_over()

    def _advance(self) -> None:
        """Do one step; what goes wrong is counted, and the next step waits longer."""
        try:
            if self._pipeline is None or self._broken:
                self._leave_pipeline()
                self._probe()
            else:
                self._send_next()
        except LogCompactedError:
            self._try_snapshot()
        except RaftInternalError:
            raise  # of this node, not of the peer: it must stop
        except (RaftError, OSError) as error:
            if isinstance(error, LogCorruptError):
                self._links.post(LogCorrupted(error))
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            self._failures += 1
            failures = self._failures
        self.heart.last_error = describe_error(error)
        count_for_peer(self._links.metrics, "raft.replication.failed", self._server.id)
        if failures in (1, 10, 100) or failures % 1000 == 0:
            _log.warning(
                "replication failed peer=%s failures=%d error=%s", self._server.id, failures, error
            )

    # ---- finding where the logs agree ----

    def _probe(self) -> None:
        """Ask with an empty request whether the logs agree up to next_index - 1 (§5.3)."""
        with self._changed:
            self._broken = False
            server, next_index = self._server, self._next_index
        request = replace(_request(self._links, next_index, count=0), notes=self._links.notes())
        links = self._links
        began = links.runtime.monotonic()
        answer = links.transport.append_entries(
            server.id, server.address, request, links.config.heartbeat_timeout
        )
        if links.metrics is not None:
            links.metrics.appended(server.id, began, 0)
        if self._is_newer_term(answer.term):
            return
        self.heart.touch(answer.header)
        with self._changed:
            if not answer.success:
                self._failures = 0
                self._back_up(answer)
                return
            # Failures count until entries are accepted: a peer may fail on these alone.
            self._back_step = 1
            self._told_commit = request.leader_commit
        self._matched(request.prev_log_index, answer.header)
        self.heart.end_backoff()
        self._enter_pipeline(server)

    def _back_up(self, answer: AppendEntriesResponse) -> None:
        """Go back, by the peer's hint or in doubling steps; never to before what it has."""
        back = min(self._next_index - self._back_step, answer.last_log + 1)
        self._back_step *= 2
        lowest = self._match_index + 1
        if self._next_index <= lowest and not answer.success:
            # The peer had these entries and denies it now: it was wiped, or lost its disk.
            _log.warning("peer refuses what it had acknowledged peer=%s", self._server.id)
            self._failures += 1
            self._match_index = NO_INDEX
            lowest = 1
        self._next_index = max(back, lowest, 1)

    def _matched(self, index: int, peer: RPCHeader) -> None:
        with self._changed:
            self._match_index = max(self._match_index, index)
            self._next_index = max(self._next_index, self._match_index + 1)
            self._changed.notify_all()
        self._links.progress.match(self._server.id, index, self, peer.incarnation)

    def _is_newer_term(self, term: int) -> bool:
        if term <= self._links.term:
            return False
        check_term(self._links.term, term)
        self._links.post(NewerTermSeen(self._links.term, term))
        self._stopped.set()
        return True

    # ---- the pipeline: repl sends, pipe receives ----

    def _enter_pipeline(self, server: Server) -> None:
        pipeline = _open_pipeline(self._links, server)
        with self._changed:
            self._pipeline = pipeline
            self._kicked = True
        try:
            self._links.threads.spawn(f"pipe-{server.id}", lambda: self._receive(pipeline))
        except NoThreadError:
            with self._changed:
                self._broken = True  # nobody would hear its answers
            raise

    def _leave_pipeline(self) -> None:
        """Tear the window down; what was not acknowledged will be sent again."""
        with self._changed:
            pipeline, self._pipeline = self._pipeline, None
            self._unanswered.clear()
            self._next_index = self._match_index + 1 if pipeline else self._next_index
            self._changed.notify_all()
        if pipeline is not None:
            pipeline.close()

    def _send_next(self) -> None:
        """Send what comes next, or an empty request that tells the commit index."""
        links = self._links
        with self._changed:
            self._kicked = False
            pipeline, next_index = self._pipeline, self._next_index
        count = min(links.config.max_append_entries, links.log.last_index() - next_index + 1)
        request = _request(self._links, next_index, max(count, 0))
        last = next_index + len(request.entries) - 1
        with self._changed:
            if pipeline is None or pipeline is not self._pipeline or self._broken:
                return
            self._unanswered.append((last, links.runtime.monotonic(), request))
            self._next_index = last + 1
            self._kicked = self._kicked or last < links.log.last_index()
            self._changed.notify_all()
        try:
            pipeline.append_entries(request)
        except (RaftError, OSError):
            self._break(pipeline)
            raise

    def _receive(self, pipeline: AppendPipeline) -> None:
        """Be the pipe thread: take answers in order until the pipeline is left."""
        while True:
            with self._changed:
                while self._pipeline is pipeline and not self._unanswered:
                    if self._stopped.is_set():
                        return
                    self._changed.wait()
                if self._pipeline is not pipeline:
                    return
            try:
                answer = pipeline.receive(self._links.config.disk_stall_timeout)
                if not self._take_answer(pipeline, answer):
                    return
            except (RaftError, OSError) as error:
                if self._break(pipeline):
                    self._failed(error)
                return

    def _take_answer(self, pipeline: AppendPipeline, answer: AppendEntriesResponse) -> bool:
        """Note an answer; False when it ends the pipeline."""
        if self._is_newer_term(answer.term):
            self._break(pipeline)
            return False
        with self._changed:
            if self._pipeline is not pipeline or not self._unanswered:
                return False
            last, sent_at, request = self._unanswered.popleft()
            self.heart.touch(answer.header)
            if answer.success:
                self._failures = 0
                self._told_commit = max(self._told_commit, request.leader_commit)
                self._match_index = max(self._match_index, last)
            else:
                self._broken = True
            self._changed.notify_all()
        if self._links.metrics is not None:
            self._links.metrics.appended(self._server.id, sent_at, len(request.entries))
        if answer.success:
            self._links.progress.match(self._server.id, last, self, answer.header.incarnation)
        return answer.success

    def _peer_is_back(self) -> None:
        """Departure 12: what waits, or hangs on an old connection, starts over at once."""
        with self._changed:
            self._failures = 0
            self._broken = True
            pipeline = self._pipeline
            self._changed.notify_all()
        if pipeline is not None:
            pipeline.close()

    def _break(self, pipeline: AppendPipeline) -> bool:
        """Mark a pipeline as useless; True if it was the one in use."""
        with self._changed:
            if self._pipeline is not pipeline:
                return False
            self._broken = True
            self._changed.notify_all()
            return not self._stopped.is_set()

    # ---- snapshots ----

    def _try_snapshot(self) -> None:
        """Send the newest snapshot; the peer goes on behind it."""
        self._leave_pipeline()
        try:
            meta, answer = self._sender.send(self._server, self._stopped)
            if self._is_newer_term(answer.term):
                return
        except (RaftError, OSError) as error:
            self._failed(error)
            return
        self.heart.touch(answer.header)
        if not answer.success:
            self._failed(SnapshotError("the peer did not take the snapshot: see its log"))
            return
        with self._changed:
            self._failures = 0
            self._next_index = meta.index + 1
            self._back_step = 1
        self._matched(meta.index, answer.header)


def _request(links: Links, next_index: int, count: int) -> AppendEntriesRequest:
    """Build a request; an entry of a later term ends this replicator (law 4)."""
    prev_index = next_index - 1
    prev_term = links.log.term_at(prev_index) if prev_index else NO_TERM
    commit = links.commit_index()
    entries = links.log.entries(next_index, count, links.config.max_append_bytes) if count else ()
    if prev_term > links.term or (entries and entries[-1].term > links.term):
        raise SupersededError
    return AppendEntriesRequest(links.header, links.term, prev_index, prev_term, entries, commit)


def _open_pipeline(links: Links, server: Server) -> AppendPipeline:
    try:
        return links.transport.append_entries_pipeline(server.id, server.address)
    except PipelineNotSupportedError:
        return _CallPipeline(links, server)


class _CallPipeline:
    """Stands in for a pipeline where the transport has none: one plain call at a time."""

    def __init__(self, links: Links, server: Server) -> None:
        self._links = links
        self._server = server
        self._changed = links.runtime.condition()  # guards _requests and _closed
        self._requests: deque[AppendEntriesRequest] = deque()
        self._closed = False

    def append_entries(self, request: AppendEntriesRequest) -> None:
        """Leave a request for the receiving thread."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        """Make the oldest call and return its answer."""
        with self._changed:
            while not self._requests and not self._closed:
                self._changed.wait(timeout)
            if self._closed:
                raise TransportError("closed")
            request = self._requests.popleft()
        server = self._server
        return self._links.transport.append_entries(server.id, server.address, request, timeout)

    def close(self) -> None:
        """Make no further call."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
