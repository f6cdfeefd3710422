"""What the methods of `Raft` return: futures that are answered on every path.

They are `concurrent.futures.Future`s, so `result(timeout)`, `wait`, `as_completed` and
`asyncio.wrap_future` work on them, with the original's accessors beside. They are born running:
`cancel()` is always False. The first answer counts, a later one is ignored.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from raft.errors import ResultTimeoutError, SnapshotError
from raft.logs import get_logger
from raft.messages import SnapshotReader
from raft.runtime import THREADS, Gate
from raft.types import NO_INDEX, Configuration, SnapshotMeta
from raft.waiting import take_out

T = TypeVar("T")

_log = get_logger(__name__)

_FINISHED = "FINISHED"  # the base class's word for a future with an answer
_LONGEST_WAIT = 1e9  # seconds; platforms differ in how much longer they can wait


class FutureHost(Protocol):
    """What a future needs of the node that made it."""

    def gate(self) -> Gate:
        """Return what a caller waits at."""

    def run_callback(self, callback: Callable[[], None]) -> None:
        """Run user code on the node's events thread."""

    def check_may_wait(self) -> None:
        """Raise where waiting for this node could never end."""


class _Standalone:
    """The host of futures that belong to no node."""

    def gate(self) -> Gate:
        return THREADS.gate()

    def run_callback(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - user code, and the base class logs it as well
            _log.exception("callback failed")

    def check_may_wait(self) -> None:
        """Somebody else answers."""


STANDALONE: FutureHost = _Standalone()


class Future(concurrent.futures.Future[T], Generic[T]):
    """The answer to one request, given exactly once.

    Callbacks run on the node's events thread, never on one that consensus needs. A signal handler
    may do everything with a future: neither those who wait nor the one who answers hold a lock.
    """

    def __init__(self, host: FutureHost = STANDALONE) -> None:
        super().__init__()
        self._host = host
        self._unanswered = [True]  # the first answer takes it
        self._gates: list[Gate] = []  # of those who wait
        self._callbacks: list[Callable[[concurrent.futures.Future[T]], object]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} state={self._state.lower()}>"

    def done(self) -> bool:
        """Tell whether there is an answer."""
        return self._state == _FINISHED

    def cancelled(self) -> bool:
        """Return False; see `cancel`."""
        return False

    def running(self) -> bool:
        """Tell whether there is no answer yet: a future is running from its birth on."""
        return not self.done()

    def cancel(self) -> bool:
        """Return False: a request that was handed over cannot be taken back."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer and return it, or raise it if it is an error.

        `timeout` is the caller's own, in seconds (0: do not wait, None: no limit): its
        `ResultTimeoutError`, a `TimeoutError`, ends only this wait, and the request goes on. On the
        FSM thread an unanswered future raises `DeadlockError`, in a forked child
        `ForkedProcessError`.
        """
        self._wait(timeout)
        try:
            if self._exception is not None:
                raise self._exception
            return cast(T, self._result)
        finally:
            del self  # a traceback that refers to us, and we to it, would live on

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer and return the error, or None."""
        self._wait(timeout)
        return self._exception

    def error(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer and return the error, or None (the original's accessor)."""
        return self.exception(timeout)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have `fn(self)` called on the node's events thread once there is an answer."""
        self._callbacks.append(fn)
        if self.done():
            self._run_callbacks()

    def set_result(self, result: T) -> None:
        """Answer with a value, for the first time."""
        if not self.respond(result):
            raise concurrent.futures.InvalidStateError(f"{self!r} has an answer")

    def set_exception(self, exception: BaseException | None) -> None:
        """Answer with an error, for the first time."""
        if not self._answer(None, exception):
            raise concurrent.futures.InvalidStateError(f"{self!r} has an answer")

    def respond(self, value: T) -> bool:
        """Answer with a value; return False if there was an answer already."""
        return self._answer(value, None)

    def fail(self, error: BaseException) -> bool:
        """Answer with an error; return False if there was an answer already."""
        return self._answer(None, error)

    def _answer(self, value: T | None, error: BaseException | None) -> bool:
        try:
            self._unanswered.pop()
        except IndexError:
            return False
        self._result, self._exception = value, error
        self._state = _FINISHED
        for gate in take_out(self._gates):
            gate.open()
        # Those in `concurrent.futures.wait` and its like are told under the base class's lock. Who
        # holds it may be in the midst of a signal handler that waits for the thread we are on.
        if self._condition.acquire(False):
            self._tell_waiters()
        else:
            self._host.run_callback(self._tell_waiters_later)
        self._run_callbacks()
        return True

    def _tell_waiters_later(self) -> None:
        self._condition.acquire()
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        """Tell those who wait by the base class's means; holding its lock, which is released."""
        try:
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
        finally:
            self._condition.release()

    def _run_callbacks(self) -> None:
        for fn in take_out(self._callbacks):
            self._host.run_callback(partial(_call, fn, self))

    def _wait(self, timeout: float | None) -> None:
        """Wait for the answer; raises `ResultTimeoutError`, or at once where no wait can end."""
        if self.done():
            return
        self._host.check_may_wait()
        gate = self._host.gate()
        self._gates.append(gate)
        if not self.done():  # or it came meanwhile, from one who did not see us
            gate.wait(None if timeout is None else min(max(timeout, 0.0), _LONGEST_WAIT))
        if not self.done():
            try:
                self._gates.remove(gate)
            except ValueError:
                pass  # it is being answered
            raise ResultTimeoutError("no answer yet: the request goes on, its outcome is not known")


def _call(fn: Callable[[Any], object], future: Future[Any]) -> None:
    """Run a callback and ignore what it returns."""
    fn(future)


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
