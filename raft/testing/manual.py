"""A runtime whose time only the test moves, and whose tasks run only while the test lets them.

What would be threads are greenlets on the test's own thread: one runs at a time, in the order in
which they became ready. Nothing is left to chance, so every order of events can be written down;
for clusters under chance there is the simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from raft.runtime import Condition, Lock, Queue, QueueEmpty, QueueFull, Task

_START = 1000.0  # seconds on the clock when a test begins
_WALL_START_NS = 1_700_000_000 * 10**9
_MOST_TIMERS = 100_000  # that pass in one wait of the test before it counts as stuck


class StuckError(AssertionError):
    """The test waits for something that nobody is going to do."""


class _Waiter:
    """Somebody who waits, perhaps not longer than until a moment."""

    __slots__ = ("at", "notified", "over", "task")

    def __init__(self, task: greenlet, at: float | None) -> None:
        self.task = task
        self.at = at
        self.notified = False
        self.over = False


class ManualTask:
    """What stands in for a thread."""

    def __init__(self, runtime: ManualRuntime, name: str, target: Callable[[], None]) -> None:
        self.name = name
        self._runtime = runtime
        self._ended = ManualEvent(runtime)

        def run() -> None:
            try:
                target()
            except GreenletExit:
                pass  # the test is over
            finally:
                self._ended.set()

        self.greenlet = greenlet(run, parent=runtime.test)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        """Tell whether the task has not ended."""
        return not self._ended.is_set()


class ManualRuntime:
    """The runtime of scripted tests. `chance` is what `random` returns; 0.0 adds no jitter."""

    def __init__(self) -> None:
        self.test = getcurrent()
        self.now = _START
        self.chance = 0.0
        self.no_thread_for = ""  # threads with this in their name cannot be started
        self._ready: deque[greenlet] = deque()
        self._timers: list[_Waiter] = []
        self._bytes_given = 0

    # ---- what the test does ----

    def run(self) -> None:
        """Let every task go on until all of them wait."""
        if getcurrent() is not self.test:
            while self._ready:
                self._ready.append(getcurrent())
                self.test.switch()
            return
        while self._ready:
            self._ready.popleft().switch()

    def advance(self, seconds: float) -> None:
        """Let time pass, and everybody do what falls due meanwhile."""
        end = self.now + seconds
        self.run()
        while self._fire_next(end):
            self.run()
        self.now = max(self.now, end)

    def _fire_next(self, end: float | None = None) -> bool:
        """Move the clock to the next timer, if it is due by `end`, and wake who set it."""
        due = [w for w in self._timers if end is None or (w.at or 0.0) <= end]
        if not due:
            return False
        waiter = min(due, key=lambda w: w.at or 0.0)
        self.now = max(self.now, waiter.at or 0.0)
        self.wake(waiter, notified=False)
        return True

    # ---- waiting ----

    def park(self, waiting: list[_Waiter], timeout: float | None) -> bool:
        """Wait in a list until woken; False when the time is over."""
        at = None if timeout is None else self.now + timeout
        waiter = _Waiter(getcurrent(), at)
        waiting.append(waiter)
        if at is not None:
            self._timers.append(waiter)
        try:
            if waiter.task is self.test:
                self._run_until(waiter)
            else:
                self.test.switch()
        finally:
            waiter.over = True
            if waiter in waiting:
                waiting.remove(waiter)
            if waiter in self._timers:
                self._timers.remove(waiter)
        return waiter.notified

    def _run_until(self, waiter: _Waiter) -> None:
        for _ in range(_MOST_TIMERS):
            self.run()
            if waiter.over:
                return
            if not self._fire_next():
                break
        raise StuckError("the test waits for something that nobody is going to do")

    def wake(self, waiter: _Waiter, *, notified: bool) -> None:
        """Have somebody who waits go on."""
        if waiter.over:
            return
        waiter.notified = notified
        waiter.over = True
        if waiter in self._timers:
            self._timers.remove(waiter)
        if waiter.task is not self.test:
            self._ready.append(waiter.task)

    # ---- Runtime ----

    def spawn(self, name: str, target: Callable[[], None]) -> Task:
        if self.no_thread_for and self.no_thread_for in name:
            raise RuntimeError("can't start new thread")
        task = ManualTask(self, name, target)
        self._ready.append(task.greenlet)
        return task

    def current(self) -> object:
        return getcurrent()

    def lock(self) -> Lock:
        return ManualLock()

    def condition(self, lock: Lock | None = None) -> Condition:
        return ManualCondition(self, lock or ManualLock())

    def event(self) -> ManualEvent:
        return ManualEvent(self)

    def gate(self) -> ManualGate:
        return ManualGate(self)

    def queue(self, maxsize: int = 0) -> Queue[Any]:
        return ManualQueue(self, maxsize)

    def monotonic(self) -> float:
        return self.now

    def wall_time_ns(self) -> int:
        return _WALL_START_NS + int((self.now - _START) * 1e9)

    def random(self) -> float:
        return self.chance

    def random_bytes(self, count: int) -> bytes:
        self._bytes_given += 1
        return self._bytes_given.to_bytes(count, "big")


class ManualLock:
    """A lock; nobody waits while holding one, so a second taker is a mistake of the engine."""

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._is_held:
            if blocking:
                raise StuckError("a lock was taken by one who waits or has it already")
            return False
        self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class ManualCondition:
    """A condition variable."""

    def __init__(self, runtime: ManualRuntime, lock: Lock) -> None:
        self._runtime = runtime
        self._lock = lock
        self._waiting: list[_Waiter] = []
        self.acquire = lock.acquire
        self.release = lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        self._lock.release()
        try:
            return self._runtime.park(self._waiting, timeout)
        finally:
            self._lock.acquire()

    def notify(self, n: int = 1) -> None:
        for waiter in self._waiting[:n]:
            self._waiting.remove(waiter)
            self._runtime.wake(waiter, notified=True)

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class ManualEvent:
    """An event; the test may `clear` it, as a door that is shut again."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self._runtime = runtime
        self._waiting: list[_Waiter] = []
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        for waiter in list(self._waiting):
            self._runtime.wake(waiter, notified=True)

    def clear(self) -> None:
        """Have others wait again."""
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._is_set or self._runtime.park(self._waiting, timeout) or self._is_set


class ManualGate:
    """A gate."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self._runtime = runtime
        self._waiting: list[_Waiter] = []
        self._is_open = False

    def open(self) -> None:
        if self._waiting:
            self._runtime.wake(self._waiting.pop(0), notified=True)
        else:
            self._is_open = True

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_open:
            self._is_open = False
            return True
        return self._runtime.park(self._waiting, timeout)


class ManualQueue:
    """A queue."""

    def __init__(self, runtime: ManualRuntime, maxsize: int = 0) -> None:
        self._items: deque[Any] = deque()
        self._maxsize = maxsize
        self._changed = ManualCondition(runtime, ManualLock())

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self._changed:
            while 0 < self._maxsize <= len(self._items):
                if not block or not self._changed.wait(timeout):
                    raise QueueFull
            self._items.append(item)
            self._changed.notify_all()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with self._changed:
            while not self._items:
                if not block or not self._changed.wait(timeout):
                    raise QueueEmpty
            self._changed.notify_all()
            return self._items.popleft()

    def qsize(self) -> int:
        return len(self._items)
