"""What the methods of `Raft` return: futures that are answered on every path.

They are `concurrent.futures.Future`s, so `result(timeout)`, `wait`, `as_completed` and
`asyncio.wrap_future` work on them, with the original's accessors beside. They are born running:
`cancel()` is always False. The first answer counts, a later one is ignored.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from raft.errors import SnapshotError
from raft.messages import SnapshotReader
from raft.runtime import Condition
from raft.types import NO_INDEX, Configuration, SnapshotMeta

T = TypeVar("T")


class FutureHost(Protocol):
    """What a future needs of the node that made it."""

    def condition(self) -> Condition | None:
        """Return what a caller waits on; None where a thread's own condition variable will do."""

    def run_callback(self, callback: Callable[[], None]) -> None:
        """Run user code on the node's events thread."""

    def check_may_wait(self) -> None:
        """Raise where waiting for this node could never end."""


class _Standalone:
    """The host of futures that belong to no node."""

    def condition(self) -> Condition | None:
        return None

    def run_callback(self, callback: Callable[[], None]) -> None:
        callback()

    def check_may_wait(self) -> None:
        """Somebody else answers."""


STANDALONE: FutureHost = _Standalone()


class Future(concurrent.futures.Future[T], Generic[T]):
    """The answer to one request, given exactly once.

    Callbacks run on the node's events thread, never on one that consensus needs.
    """

    def __init__(self, host: FutureHost = STANDALONE) -> None:
        super().__init__()
        # The base class has no seam for its condition variable, and a simulated node must park the
        # task and not the process; the attribute has had this name since Python 3.2.
        condition = host.condition()
        if condition is not None:
            self._condition: Any = condition
        self._host = host

    def __repr__(self) -> str:
        # Without the lock: the base class shows the future while it holds it, to refuse a second
        # answer, and ours cannot be taken twice.
        return f"<{type(self).__name__} at {id(self):#x} state={self._state.lower()}>"

    def running(self) -> bool:
        """Tell whether there is no answer yet: a future is running from its birth on."""
        return not self.done()

    def cancel(self) -> bool:
        """Return False: a request that was handed over cannot be taken back."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer and return it, or raise it if it is an error.

        `timeout` is the caller's own, in seconds: its `TimeoutError` ends only this wait. On the
        FSM thread an unanswered future raises `DeadlockError`, in a forked child
        `ForkedProcessError`.
        """
        self._check_may_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer and return the error, or None."""
        self._check_may_wait()
        return super().exception(timeout)

    def error(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer and return the error, or None (the original's accessor)."""
        return self.exception(timeout)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have `fn(self)` called on the node's events thread once there is an answer."""
        super().add_done_callback(lambda _: self._host.run_callback(lambda: _drop(fn(self))))

    def respond(self, value: T) -> bool:
        """Answer with a value; return False if there was an answer already."""
        try:
            self.set_result(value)
        except concurrent.futures.InvalidStateError:
            return False
        return True

    def fail(self, error: BaseException) -> bool:
        """Answer with an error; return False if there was an answer already."""
        try:
            self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            return False
        return True

    def _check_may_wait(self) -> None:
        if not self.done():
            self._host.check_may_wait()


def _drop(_: object) -> None:
    """Ignore what a callback returned."""


class IndexFuture(Future[T]):
    """A future of something that takes a place in the log."""

    def __init__(self, host: FutureHost = STANDALONE) -> None:
        super().__init__(host)
        self._index = NO_INDEX

    def index(self) -> int:
        """Return the log index, 0 until one is given; meaningful once answered."""
        return self._index

    def set_index(self, index: int) -> None:
        """Record the log index; the leader does, when it dispatches the entry."""
        self._index = index


class ApplyFuture(IndexFuture[Any]):
    """The future of `Raft.apply`."""

    def response(self) -> Any:
        """Return what `FSM.apply` returned, or what it raised; waits for the answer."""
        error = self.exception()
        return error if error is not None else self.result()


class ConfigurationFuture(IndexFuture[Configuration]):
    """The future of `Raft.get_configuration`."""

    def configuration(self) -> Configuration:
        """Return the configuration; waits for the answer."""
        return self.result()


class SnapshotFuture(Future[str]):
    """The future of `Raft.snapshot`; its result is the snapshot's id."""

    def __init__(self, host: FutureHost = STANDALONE) -> None:
        super().__init__(host)
        self._opener: Callable[[], tuple[SnapshotMeta, SnapshotReader]] | None = None

    def open(self) -> tuple[SnapshotMeta, SnapshotReader]:
        """Open the snapshot just taken; works once, as in the original. Waits for the answer."""
        self.result()
        opener, self._opener = self._opener, None
        if opener is None:
            raise SnapshotError("no snapshot available: it was opened before")
        return opener()

    def set_opener(self, opener: Callable[[], tuple[SnapshotMeta, SnapshotReader]]) -> None:
        """Record how to open the snapshot."""
        self._opener = opener
