"""The snapshot thread: when to take one, and writing it (§7). Compaction is the disk thread's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raft.config import Config
from raft.engine.fsm_runner import FsmRunner
from raft.engine.inbox import SnapshotTaken
from raft.engine.raft_log import RaftLog
from raft.engine.state_machine import Capture, release_view
from raft.errors import (
    NothingNewToSnapshotError,
    ShutdownNotAppliedError,
    ShutdownOutcomeUnknownError,
    SnapshotError,
)
from raft.futures import Future, FutureHost, SnapshotFuture
from raft.interfaces import FSMSnapshot, SnapshotSink, SnapshotStore
from raft.logs import get_logger
from raft.metrics import Metrics, measure
from raft.runtime import Runtime, random_timeout
from raft.types import NO_INDEX, SNAPSHOT_VERSION, SnapshotMeta
from raft.waiting import take_out

_log = get_logger(__name__)


class Snapshotter:
    """Takes snapshots, one at a time: on its own when the log has grown, or when asked to.

    The snapshot thread owns everything but the list of wishes.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        config: Config,
        host: FutureHost,
        fsm: FsmRunner,
        log: RaftLog,
        snapshots: SnapshotStore,
        on_taken: Callable[[SnapshotTaken], None],
        metrics: Metrics | None = None,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._host = host
        self._fsm = fsm
        self._log = log
        self._snapshots = snapshots
        self._on_taken = on_taken
        self._metrics = metrics
        self._persisting: object = None  # the thread that is inside `persist` or `release`
        self._persisted_at = float("-inf")  # when the latest of these calls returned
        self._news = runtime.gate()  # for the snapshot thread; no lock, see `raft.waiting`
        self._wishes: deque[SnapshotFuture] = deque()
        self._current: SnapshotFuture | None = None  # whose snapshot is being taken
        self._reloaded = False
        self._stopped = False

    def request(self, future: SnapshotFuture) -> None:
        """Have a snapshot taken now, whatever the threshold says; any thread."""
        self._wishes.append(future)
        self._news.open()
        if self._stopped:  # perhaps nobody looks any more
            for wish in take_out(self._wishes):
                wish.fail(ShutdownNotAppliedError("raft is already shut down"))

    def take_now(self, on_done: Callable[[BaseException | None], None]) -> None:
        """Have a snapshot taken for the node itself; `on_done` must not block; any thread."""
        future = SnapshotFuture()  # of no node: its callback runs where the answer is given
        future.add_done_callback(lambda done: on_done(done.exception()))
        self.request(future)

    def look_again(self) -> None:
        """Wait by the interval as it is now, from now on; any thread."""
        self._reloaded = True
        self._news.open()

    def stop(self) -> None:
        """Let the thread end; a snapshot being written is finished first."""
        self._stopped = True
        self._news.open()

    def abandon(self) -> None:
        """Answer those who still wait for a snapshot; any thread.

        User code may never return, so the one being taken is among them.
        """
        wishes = take_out(self._wishes)
        current = self._current
        if current is not None:
            current.fail(ShutdownOutcomeUnknownError("raft was shut down during the snapshot"))
        for wish in wishes:
            wish.fail(ShutdownNotAppliedError("raft was shut down before the snapshot was taken"))

    def is_in_fsm_code(self) -> bool:
        """Tell whether the caller is `persist` or `release` of a view; any thread."""
        return self._persisting is not None and self._runtime.current() is self._persisting

    def was_persisting(self, since: float) -> bool:
        """Tell whether a view was being written at some time after `since` (monotonic)."""
        return self._persisting is not None or self._persisted_at >= since

    def run(self) -> None:
        """Be the snapshot thread."""
        while True:
            wish, stopped = self._wait()
            if stopped:
                return
            if wish is not None:
                self._take_for(wish)
            elif self._should_snapshot():
                self._take_on_our_own()

    def _wait(self) -> tuple[SnapshotFuture | None, bool]:
        at = self._next_look()
        while not self._stopped:
            if self._wishes:
                try:
                    self._current = self._wishes.popleft()
                except IndexError:
                    continue  # the node is being stopped, and somebody else has answered it
                return self._current, False
            if self._reloaded:
                self._reloaded = False
                at = self._next_look()
            remaining = at - self._runtime.monotonic()
            if remaining <= 0:
                return None, False
            self._news.wait(remaining)
        return None, True

    def _next_look(self) -> float:
        interval = self._config.snapshot_interval
        return self._runtime.monotonic() + random_timeout(self._runtime, interval)

    def _should_snapshot(self) -> bool:
        grown = self._log.durable_index() - self._log.boundary().index
        return grown >= self._config.snapshot_threshold or self._is_lost()

    def _is_lost(self) -> bool:
        """Tell whether the snapshot that stands for the log's beginning is gone from its store."""
        if self._log.boundary().index == NO_INDEX or self._log.first_index() == 1:
            return False
        try:
            listed = self._snapshots.list()
        except Exception as error:  # noqa: BLE001 - a store is foreign code: asked again next time
            _log.warning("snapshots cannot be listed error=%s", error)
            return False
        return not any(self._log.goes_on_behind(meta.index) for meta in listed)

    def _take_for(self, wish: SnapshotFuture) -> None:
        try:
            meta = self._take()
        except BaseException as error:  # stores and user code: the caller's answer
            wish.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        wish.set_opener(lambda: self._snapshots.open(meta.id))
        wish.respond(meta.id)

    def _take_on_our_own(self) -> None:
        try:
            self._take()
        except NothingNewToSnapshotError:
            pass
        except Exception:  # noqa: BLE001 - stores and user code: tried again next time
            _log.exception("snapshot failed")

    def _take(self) -> SnapshotMeta:
        with measure(self._metrics, "raft.snapshot.takeSnapshot"):
            return self._take_now()

    def _take_now(self) -> SnapshotMeta:
        future: Future[Capture] = Future(self._host)
        self._fsm.capture(future)
        view = future.result()
        self._persisting = self._runtime.current()
        try:
            meta = self._write(view)
        finally:
            release_view(view.snapshot)
            self._persisting = None
            self._persisted_at = self._runtime.monotonic()
        self._on_taken(SnapshotTaken(meta))
        _log.info("snapshot taken id=%s index=%d", meta.id, meta.index)
        return meta

    def _write(self, view: Capture) -> SnapshotMeta:
        with measure(self._metrics, "raft.snapshot.create"):
            sink = self._snapshots.create(
                SNAPSHOT_VERSION,
                view.last.index,
                view.last.term,
                view.configuration,
                view.configuration_index,
            )
        try:
            with measure(self._metrics, "raft.snapshot.persist"):
                persist_held(view.snapshot, sink)
            sink.close()
        except BaseException as error:
            self._cancel(sink)
            if isinstance(error, Exception):
                raise SnapshotError(f"failed to persist snapshot: {error}") from error
            raise
        return SnapshotMeta(
            sink.id(),
            view.last.index,
            view.last.term,
            view.configuration,
            view.configuration_index,
        )

    def _cancel(self, sink: SnapshotSink) -> None:
        try:
            sink.cancel()
        except Exception:  # noqa: BLE001 - a store is foreign code; the first error counts
            _log.exception("cancelling a snapshot failed")


def persist_held(view: FSMSnapshot, sink: SnapshotSink) -> None:
    """Have a view written to a sink, whose end is the caller's affair, whatever the FSM calls.

    What is closed on the way out of an error must not be published, and what was cancelled is no
    snapshot for which entries could be deleted: a `SnapshotError`.
    """
    held = _HeldSink(sink)
    view.persist(held)
    if held.is_cancelled:
        raise SnapshotError("the FSM cancelled it")


class _HeldSink:
    """A sink that the FSM may close or cancel, to no effect yet."""

    def __init__(self, sink: SnapshotSink) -> None:
        self.write = sink.write
        self.id = sink.id
        self.is_cancelled = False

    def close(self) -> None:
        """Do nothing yet."""

    def cancel(self) -> None:
        """Note that the FSM has given up."""
        self.is_cancelled = True
