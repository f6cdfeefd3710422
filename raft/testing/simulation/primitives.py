"""Locks, conditions, events and queues of the simulation; each operation is a switch point.

No waiter is served in order: whoever goes on is drawn from the seed, as the contracts of the real
objects promise nothing either.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any, Protocol

from raft.runtime import QueueEmpty, QueueFull


class Tasks(Protocol):
    """What the objects here need of the scheduler."""

    now: float
    current: Any

    def current_task(self) -> Any: ...
    def pause(self) -> None: ...
    def park(
        self, what: object, timeout: float | None = None, *, by_clock: bool = False
    ) -> bool: ...
    def wake(self, task: Any, what: object) -> bool: ...
    def wait_for_another(self, task: Any, what: object) -> None: ...
    def pick(self, count: int) -> int: ...


class SimLock:
    """A `threading.Lock`; it goes straight to one of those who wait."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._owner: Any = None
        self._waiters: list[Any] = []

    def __str__(self) -> str:
        return f"a lock that {getattr(self._owner, 'name', 'nobody')} holds"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, or return False when it cannot be had in time."""
        tasks = self._tasks
        tasks.pause()
        if self._owner is None:
            self._owner = tasks.current or tasks
            return True
        if not blocking or timeout == 0:
            return False
        task = tasks.current_task()
        self._waiters.append(task)
        if tasks.park(self, None if timeout < 0 else timeout, by_clock=True):
            return True
        if task in self._waiters:
            self._waiters.remove(task)
        return False

    def release(self) -> None:
        """Give the lock to one of those who wait, or to nobody."""
        if self._waiters or self._owner is None:
            self.hand_over()
        else:
            self._owner = None
        self._tasks.pause()

    def locked(self) -> bool:
        """Tell whether somebody holds the lock."""
        return self._owner is not None

    def hand_over(self) -> None:
        """Release without a switch point."""
        if self._owner is None:
            raise RuntimeError("release of a lock that nobody holds")
        waiters = self._waiters
        while waiters:
            task = waiters.pop(self._tasks.pick(len(waiters)))
            if self._tasks.wake(task, self):
                self._owner = task
                return
        self._owner = None

    def take_in(self, task: Any) -> None:
        """Have a task that waits for something else wait for this lock."""
        self._waiters.append(task)
        self._tasks.wait_for_another(task, self)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class SimCondition:
    """A `threading.Condition` on a simulated lock."""

    def __init__(self, tasks: Tasks, lock: SimLock) -> None:
        self._tasks = tasks
        self._lock = lock
        self._waiters: list[Any] = []
        self.acquire = lock.acquire
        self.release = lock.release

    def __str__(self) -> str:
        return "a condition"

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
        """Give the lock away until notified; False when the timeout came first."""
        task = self._tasks.current_task()
        self._waiters.append(task)
        self._lock.hand_over()
        if self._tasks.park(self, timeout, by_clock=True):
            return True  # the lock was handed over with the wake-up
        if task in self._waiters:
            self._waiters.remove(task)
        self._lock.acquire()
        return False

    def notify(self, n: int = 1) -> None:
        """Let some of those who wait go on, one after the other, once the lock is free."""
        if not self._lock.locked():
            raise RuntimeError("notify without the lock")
        waiters = self._waiters
        while waiters and n > 0:
            task = waiters.pop(self._tasks.pick(len(waiters)))
            if task.waiting_for is self:
                self._lock.take_in(task)
                n -= 1
        self._tasks.pause()

    def notify_all(self) -> None:
        """Let all who wait go on."""
        self.notify(len(self._waiters))


class SimEvent:
    """A `threading.Event`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._flag = False
        self._waiters: list[Any] = []

    def __str__(self) -> str:
        return "an event"

    def set(self) -> None:
        """Let everybody pass, from now on."""
        self._flag = True
        waiters, self._waiters = self._waiters, []
        for task in waiters:
            self._tasks.wake(task, self)
        self._tasks.pause()

    def is_set(self) -> bool:
        """Tell whether the event has been set."""
        self._tasks.pause()
        return self._flag

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set; tell whether it is."""
        self._tasks.pause()
        if not self._flag:
            task = self._tasks.current_task()
            self._waiters.append(task)
            if not self._tasks.park(self, timeout, by_clock=True) and task in self._waiters:
                self._waiters.remove(task)
        return self._flag


class SimQueue:
    """A `queue.Queue`."""

    def __init__(self, tasks: Tasks, maxsize: int) -> None:
        self._tasks = tasks
        self._maxsize = maxsize
        self._items: deque[Any] = deque()
        self._waiters: list[Any] = []  # for an item or for room

    def __str__(self) -> str:
        return f"a queue of {len(self._items)}"

    def qsize(self) -> int:
        """Return how many items are waiting."""
        return len(self._items)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item, waiting for room."""
        tasks = self._tasks
        tasks.pause()
        until = self._until(timeout)
        while 0 < self._maxsize <= len(self._items):
            if not block or not self._wait(until):
                raise QueueFull
        self._items.append(item)
        self._wake_all()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item, waiting for one."""
        tasks = self._tasks
        tasks.pause()
        until = self._until(timeout)
        while not self._items:
            if not block or not self._wait(until):
                raise QueueEmpty
        item = self._items.popleft()
        self._wake_all()
        return item

    def _until(self, timeout: float | None) -> float | None:
        """Return when a wait ends, by the clock of the running process."""
        return None if timeout is None else self._now() + timeout

    def _now(self) -> float:
        now: float = self._tasks.current_task().process.monotonic()
        return now

    def _wait(self, until: float | None) -> bool:
        """Wait for a change; False when there is no time left."""
        left = None if until is None else until - self._now()
        if left is not None and left <= 0:
            return False
        task = self._tasks.current_task()
        self._waiters.append(task)
        if not self._tasks.park(self, left, by_clock=True):
            self._waiters.remove(task)
        return True

    def _wake_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for task in waiters:
            self._tasks.wake(task, self)
        self._tasks.pause()
