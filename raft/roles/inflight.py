"""What a leader has dispatched and not committed yet: whom to answer, and since when it is so."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raft.engine.inbox import Apply
from raft.errors import RaftError
from raft.metrics import Metrics


class Dispatches:
    """When the entries in flight were dispatched, for metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._batches: deque[tuple[int, float]] = deque()  # last index, and when it began
        self.now = metrics.now

    def dispatched(self, began: float, last: int, entries: int) -> None:
        """Note that the dispatch of a batch ends now; `last` is the batch's last index."""
        self._batches.append((last, began))
        self._metrics.since("raft.leader.dispatchLog", began)
        self._metrics.set_gauge("raft.leader.dispatchNumLogs", entries)

    def committed(self, indexes: Sequence[int]) -> None:
        """Note what was in flight and is committed now, in ascending order."""
        now = self.now()
        self._metrics.set_gauge("raft.commitNumLogs", len(indexes))
        for index in indexes:
            while self._batches[0][0] < index:
                self._batches.popleft()
            self._metrics.add_sample("raft.commitTime", (now - self._batches[0][1]) * 1000.0)


class InFlight:
    """The entries of one leadership that wait for a majority. Main thread only.

    `entries` are index and caller of each, in ascending order.
    """

    def __init__(self, metrics: Metrics | None) -> None:
        self.entries: deque[tuple[int, Apply]] = deque()
        self._dispatches = None if metrics is None else Dispatches(metrics)

    def begin(self) -> float:
        """Return when a dispatch began, for `dispatched`; 0.0 when nobody wants to know."""
        return 0.0 if self._dispatches is None else self._dispatches.now()

    def dispatched(self, began: float, last: int, count: int) -> None:
        """Note that so many entries, of which the last has index `last`, are on their way."""
        if self._dispatches is not None:
            self._dispatches.dispatched(began, last, count)

    def committed(self, upto: int) -> list[tuple[int, Apply]]:
        """Take out and return what is committed."""
        done: list[tuple[int, Apply]] = []
        while self.entries and self.entries[0][0] <= upto:
            done.append(self.entries.popleft())
        if self._dispatches is not None:
            self._dispatches.committed([index for index, _ in done])
        return done

    def fail_all(self, error: RaftError) -> None:
        """Answer everybody with an error; the entries stay in the log, and may yet be committed."""
        while self.entries:
            self.entries.popleft()[1].fail(error)
