"""The seam between Raft and the world: threads, waiting, clocks and chance.

The only module of `raft` that imports `threading`, `queue`, `time`, `random` and `secrets`. The
engine asks a `Runtime` for whatever it needs of these; `ThreadRuntime` hands out the plain
standard-library objects, so the seam costs nothing per operation, and `raft.testing` has a second
one that runs the same code on one thread, in virtual time, from one seed.

Nothing in `raft` may block but on objects made here (sockets and disks have simulated twins).
"""

from __future__ import annotations

import os
import queue
import random
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from raft.errors import ForkedProcessError, InvalidConfigError, NoThreadError

if os.name != "posix":
    raise ImportError(
        f"raft runs on POSIX systems, such as Linux and macOS, not on {sys.platform}: on Windows"
        " use WSL, or a container"
    )

T = TypeVar("T")

QueueEmpty = queue.Empty
"""Raised by `Queue.get` when its timeout is over."""
QueueFull = queue.Full
"""Raised by `Queue.put` when its timeout is over."""
SimpleQueue = queue.SimpleQueue
"""A queue without bound whose `put` may also be called in a signal handler."""


class Lock(Protocol):
    """What `threading.Lock` offers and the engine uses."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Condition(Lock, Protocol):
    """What `threading.Condition` offers and the engine uses."""

    def wait(self, timeout: float | None = None) -> bool: ...
    def notify(self, n: int = 1) -> None: ...
    def notify_all(self) -> None: ...


class Event(Protocol):
    """What `threading.Event` offers and the engine uses."""

    def set(self) -> None: ...
    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Gate(Protocol):
    """What one thread waits at until another lets it through.

    Nobody holds a gate, so that a signal handler, too, may open it at any time. That is how a
    program's own threads hand something over: a lock that one of them holds while a handler
    interrupts it would stop the node's threads, for which that handler may wait.
    """

    def open(self) -> None:
        """Let one through: who waits, or else who comes next. Never blocks."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the gate is open, and shut it behind; False when the time was over first."""


class LockGate:
    """A gate made of a lock, which is taken while the gate is shut."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        lock.acquire()

    def open(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is open already

    def wait(self, timeout: float | None = None) -> bool:
        return self._lock.acquire(True, -1 if timeout is None else timeout)


class Queue(Protocol, Generic[T]):
    """What `queue.Queue` offers and the engine uses."""

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None: ...
    def get(self, block: bool = True, timeout: float | None = None) -> T: ...
    def qsize(self) -> int: ...


class Task(Protocol):
    """A running thread, or its simulated twin."""

    name: str

    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Runtime(Protocol):
    """What a node needs of the world. Every method may be called from any thread."""

    def spawn(self, name: str, target: Callable[[], None]) -> Task:
        """Start `target` on a new daemon thread of this name."""

    def current(self) -> object:
        """Return an identity of the calling thread, good for `is` and nothing else."""

    def lock(self) -> Lock: ...

    def condition(self, lock: Lock | None = None) -> Condition:
        """Return a condition variable, on a lock of its own or on one that several share."""

    def event(self) -> Event: ...

    def gate(self) -> Gate: ...

    def queue(self, maxsize: int = 0) -> Queue[Any]: ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; for timers, contact and leases."""

    def wall_time_ns(self) -> int:
        """Return nanoseconds since the epoch; for stamps that people read, never for decisions."""

    def random(self) -> float:
        """Return a number in [0, 1); for jitter."""

    def random_bytes(self, count: int) -> bytes:
        """Return unpredictable bytes; for ids."""


class ThreadRuntime:
    """The runtime of real programs: the standard library's own objects."""

    def spawn(self, name: str, target: Callable[[], None]) -> Task:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    current = staticmethod(threading.current_thread)
    lock = staticmethod(threading.Lock)
    event = staticmethod(threading.Event)
    monotonic = staticmethod(time.monotonic)
    wall_time_ns = staticmethod(time.time_ns)
    random = staticmethod(random.SystemRandom().random)  # a program's random.seed() ties no nodes
    random_bytes = staticmethod(secrets.token_bytes)

    def condition(self, lock: Lock | None = None) -> Condition:
        # Ours is any lock with the methods that a condition uses; the stub names those it knows.
        return threading.Condition(threading.Lock() if lock is None else lock)  # type: ignore[arg-type]

    def gate(self) -> Gate:
        return LockGate(threading.Lock())

    def queue(self, maxsize: int = 0) -> Queue[Any]:
        return queue.Queue(maxsize)


def refuse_green_threads() -> None:
    """Raise `InvalidConfigError` under eventlet, under which a node stands still.

    Its threads are all on a real one, and what waits there holds up all others.
    """
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        raise InvalidConfigError(
            "eventlet has replaced the threads of this process (monkey_patch), and a node needs"
            " real ones: run it in a process of its own, or under a server with threads (gunicorn:"
            " --worker-class gthread --workers 1)"
        )


THREADS: Runtime = ThreadRuntime()
"""The runtime used when none is given."""


_LONGEST_WAIT = 1e9  # seconds, 31 years; platforms differ in how much longer they can wait


class Deadline:
    """A moment on a runtime's monotonic clock; `timeout=None` is no limit, nor are decades."""

    __slots__ = ("_runtime", "at")

    def __init__(self, runtime: Runtime, timeout: float | None) -> None:
        self._runtime = runtime
        if timeout is not None and timeout > _LONGEST_WAIT:
            timeout = None
        self.at = None if timeout is None else runtime.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0, or None for no limit."""
        return None if self.at is None else max(0.0, self.at - self._runtime.monotonic())

    def is_over(self) -> bool:
        """Tell whether the moment has passed."""
        return self.at is not None and self._runtime.monotonic() >= self.at


def was_stalled(late: float, lease: float) -> bool:
    """Tell whether the process did not run for a while, by how late a timer went off.

    A held GIL or a pause of the machine does that. What came meanwhile has yet to be read, so it is
    too early to say that nothing came.
    """
    return late > lease / 5


def random_timeout(runtime: Runtime, shortest: float) -> float:
    """Return a duration from `shortest` up to twice as long, so that nodes do not tie (§5.2)."""
    return shortest * (1.0 + runtime.random())


def backoff(base: float, failures: int, cap: float) -> float:
    """Return how long to wait after so many failures in a row: doubling from `base` up to `cap`."""
    return min(cap, base * 2.0 ** min(max(failures - 1, 0), 30))


class Throttle:
    """Lets the first of many alike through, then one in `period` seconds, and counts the rest.

    For log records that could come by the thousand. One thread only.
    """

    def __init__(self, runtime: Runtime, period: float) -> None:
        self._runtime = runtime
        self._period = period
        self._next = 0.0
        self._held_back = 0

    def admits(self) -> bool:
        """Tell whether this one may pass."""
        now = self._runtime.monotonic()
        if self._next and now < self._next:
            self._held_back += 1
            return False
        self._next = now + self._period
        return True

    def taken(self) -> int:
        """Return how many were held back since this was last asked."""
        held_back, self._held_back = self._held_back, 0
        return held_back


_COMPLAINT_PERIOD = 10.0  # seconds


def no_thread(name: str, cause: RuntimeError) -> NoThreadError:
    """Return the error for a thread that the system did not start."""
    if threading.main_thread().is_alive():
        cure = "See the limits of the process or container"
    else:
        cure = "The program is ending: shut nodes down before that, as by `with`"
    return NoThreadError(f"cannot start thread {name}: {cause}. {cure}")


class ThreadGroup:
    """The threads of one node: named, watched and joined.

    Invariant: no thread dies in silence; `on_crash` gets whatever escapes one, on that thread.
    """

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        self._runtime = runtime
        self.prefix = prefix
        self._lock = runtime.lock()  # guards _tasks
        self._tasks: list[Task] = []
        self.complaints = Throttle(runtime, _COMPLAINT_PERIOD)  # the main thread's, of lacking some
        self.on_crash: Callable[[str, BaseException], None] = lambda _name, _error: None

    def spawn(self, name: str, target: Callable[[], None]) -> Task:
        """Start `target` on a thread called `<prefix>-<name>`.

        Raises `NoThreadError` when the system has none left: what was to be done failed, no more.
        """

        def run() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - a thread's root: report, never vanish
                self.on_crash(name, error)

        with self._lock:  # also while it starts: nobody may join all but this one
            try:
                task = self._runtime.spawn(f"{self.prefix}-{name}", run)
            except RuntimeError as exc:
                raise no_thread(name, exc) from exc
            self._tasks = [t for t in self._tasks if t.is_alive()]
            self._tasks.append(task)
        return task

    def join_all(self, deadline: Deadline) -> list[str]:
        """Wait for every thread but the calling one; return the names of those still running."""
        me = self._runtime.current()
        with self._lock:
            tasks = [task for task in self._tasks if task is not me]
        for task in tasks:
            task.join(deadline.remaining())
        return [task.name for task in tasks if task.is_alive()]


# ---- fork ----
# Threads do not survive a fork. What holds a file or a socket registers here how to let go of it in
# the child. The hook is the one piece of global state; the first store or node installs it. A fork
# that runs no hooks is noticed when the child uses something of its parent's.

_in_child: list[tuple[int, weakref.WeakMethod[Callable[[], None]]]] = []  # with the process
_hook_installed = False


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Have a bound method called in every child forked while its object lives."""
    _install_hook()
    _in_child[:] = [entry for entry in _in_child if entry[1]() is not None]
    _in_child.append((os.getpid(), weakref.WeakMethod(method)))


def _install_hook() -> None:
    global _hook_installed
    if not _hook_installed:
        _hook_installed = True
        os.register_at_fork(after_in_child=_run_child_hooks)


def _run_child_hooks() -> None:
    """Run what was registered in another process than this one."""
    pid = os.getpid()
    foreign = [ref for owner, ref in _in_child if owner != pid]
    _in_child[:] = [entry for entry in _in_child if entry[0] == pid]
    for ref in foreign:
        if (method := ref()) is not None:
            method()


class ForkGuard:
    """Remembers in which process an object was made.

    Asks for the process id each time, a tenth of a microsecond: not every fork runs the hooks of
    Python (uWSGI's with a master).
    """

    __slots__ = ("_pid", "_what")

    def __init__(self, what: str) -> None:
        _install_hook()
        self._pid = os.getpid()
        self._what = what

    def check(self) -> None:
        """Raise `ForkedProcessError` when called in another process than the maker's."""
        if os.getpid() != self._pid:
            _run_child_hooks()  # those that are left
            raise ForkedProcessError(
                f"{self._what} was made in process {self._pid} and cannot be used in its forked"
                f" child {os.getpid()}: create it after the fork (gunicorn: in post_fork, without"
                " preload_app)"
            )
