"""The simulated runtime: tasks on greenlets, one at a time, in virtual time, from one seed.

A `Scheduler` is one world: its clock, its chance, all its tasks. A `SimRuntime` is one process in
it and what a node is given; a process can be paused, or die with everything it was doing. Who runs
next is drawn from the seed at every *switch point*: each lock, queue, condition, store and network
operation. Time stands still while anything can run, and then jumps to the next timer.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import random
import struct
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from greenlet import getcurrent, greenlet

from raft.runtime import Condition, Gate, Lock, LockGate
from raft.testing.simulation.primitives import SimCondition, SimEvent, SimLock, SimQueue

_START = 1000.0  # seconds on the monotonic clock when a world begins
_WALL_START_NS = 1_700_000_000 * 10**9  # nanoseconds since the epoch, then
_SWITCH_CHANCE = 0.3  # that another task goes on at a switch point
_STALL_CHANCE = 0.002  # that a switch point takes time, as if the machine were busy
_LONGEST_STALL = 0.02  # seconds
_MOST_STEPS = 1_000_000  # switch points without progress of time before a run counts as stuck
_NOTES_KEPT = 400
_CLOCK_GRAIN = 1e-9  # seconds that a timer by a clock is late, so that it has passed by then

_log = logging.getLogger(__name__)


class SimulationError(Exception):
    """A run cannot go on, or found something wrong."""


class DeadlockFoundError(SimulationError):
    """Nothing can run and no timer is set; the message names every task and what it waits for."""


class TaskKilled(BaseException):
    """Unwinds what is left of a task when its world has ended."""


class ProcessState(Enum):
    """What a simulated process is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class SimTask:
    """One simulated thread."""

    __slots__ = (
        "ends_by_clock",
        "greenlet",
        "is_done",
        "joiners",
        "name",
        "process",
        "tag",
        "ticket",
        "waiting_for",
        "woken",
    )

    def __init__(self, name: str, process: SimRuntime, run: greenlet) -> None:
        self.name = name
        self.process = process
        self.greenlet = run
        self.tag = name.encode()
        self.ticket = 0  # of the wait under way; a timer of an earlier wait is stale
        self.ends_by_clock: float | None = None  # when, if the process's clock keeps its speed
        self.waiting_for: object | None = None
        self.woken = False
        self.is_done = False
        self.joiners: list[SimTask] = []

    def __str__(self) -> str:
        return f"the end of {self.name}"

    def join(self, timeout: float | None = None) -> None:
        """Wait until the task has ended."""
        scheduler = self.process.scheduler
        scheduler.pause()
        if not self.is_done:
            me = scheduler.current_task()
            self.joiners.append(me)
            if not scheduler.park(self, timeout, by_clock=True) and me in self.joiners:
                self.joiners.remove(me)

    def is_alive(self) -> bool:
        """Tell whether the task has not ended."""
        return not self.is_done


class Trace:
    """What a run did: a hash over every choice, and the latest notes for people."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self.mix = self._digest.update
        self.notes: deque[str] = deque(maxlen=_NOTES_KEPT)

    def note(self, now: float, text: str) -> None:
        """Record an event."""
        self.mix(text.encode())
        self.notes.append(f"{now:.6f} {text}")
        _log.info("%.6f %s", now, text)

    def hash(self) -> str:
        """Return the hash so far."""
        return self._digest.hexdigest()


class Timers:
    """Moments at which a task times out, or something else happens."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any, int]] = []  # (when, tie-break, who, ticket)
        self._count = 0

    def push(self, moment: float, who: Any, ticket: int) -> None:
        """Add a timer; a task's counts for the wait of that ticket only."""
        self._count += 1
        heapq.heappush(self._heap, (moment, self._count, who, ticket))

    def next_moment(self) -> float | None:
        """Return when the next timer expires, None without any."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now: float) -> Iterator[Any]:
        """Take out what has expired, one after the other."""
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)
            if self._is_live(timer):
                yield timer[2]

    def clear(self) -> None:
        """Forget all timers."""
        self._heap.clear()

    def _is_live(self, timer: tuple[float, int, Any, int]) -> bool:
        who = timer[2]
        return not isinstance(who, SimTask) or who.ticket == timer[3]


class Scheduler:
    """One simulated world. Everything that happens in it follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = _START
        self.spread = 1.0  # of the numbers that processes draw: near 0 all timeouts tie
        self.current: SimTask | None = None
        # Called after each step of a task, with its process: nobody is inside any code then.
        self.on_step: Callable[[SimRuntime], None] = lambda _: None
        self.trace = Trace()
        self._hub = getcurrent()
        self._main: SimTask | None = None
        self._tasks: dict[SimTask, None] = {}  # all that have not ended, in order of birth
        self._ready: list[SimTask] = []
        self._timers = Timers()
        self._steps = 0  # since time moved
        self._end = float("inf")
        self._failure: BaseException | None = None
        self._is_over = False

    # ---- driving ----

    def run(self, target: Callable[[], None], limit: float = 3600.0) -> None:
        """Run a world until `target`, a task of its own process, has ended; once only.

        Raises what ended the run early: a task's unexpected exception, a deadlock, more than
        `limit` virtual seconds, or what was given to `stop`.
        """
        world = SimRuntime(self, "world")
        self._hub = getcurrent()
        self._main = world.spawn("scenario", target)
        self._end = self.now + limit
        try:
            while (task := self._next()) is not None:
                self.current = task
                task.greenlet.switch()
        finally:
            self.current = None
            self._dispose()
        if self._failure is not None:
            raise self._failure

    def stop(self, error: BaseException) -> None:
        """End the run with an error; the first one counts."""
        self._failure = self._failure or error

    def note(self, text: str) -> None:
        """Record something worth reading about the run; it counts in the trace."""
        self.trace.note(self.now, text)

    # ---- tasks ----

    def add_task(self, name: str, process: SimRuntime, target: Callable[[], None]) -> SimTask:
        """Start a task; it runs when its turn comes."""
        if self._is_over:
            raise TaskKilled
        task: SimTask

        def root() -> None:
            try:
                target()
            except TaskKilled:
                return
            except BaseException as error:  # noqa: BLE001 - a thread's root: it fails the run
                self._ended(task)
                error.add_note(f"in task {name} at {self.now:.6f}")
                self.stop(error)
                return
            self._ended(task)

        task = SimTask(name, process, greenlet(root, self._hub))
        self._tasks[task] = None
        self._ready.append(task)
        return task

    def _ended(self, task: SimTask) -> None:
        task.is_done = True
        self._tasks.pop(task, None)
        for joiner in task.joiners:
            self.wake(joiner, task)

    def current_task(self) -> SimTask:
        """Return the running task; there must be one."""
        if self.current is None:
            raise SimulationError("only a task may wait")
        return self.current

    # ---- switch points ----

    def pause(self) -> None:
        """Be a switch point: maybe let another task go on, maybe take some time."""
        roll = self.chance.random()
        if roll > _SWITCH_CHANCE and not self._is_over:
            return
        if self._is_over:
            raise TaskKilled
        task = self.current
        if task is None:
            return
        self._steps += 1
        if self._steps > _MOST_STEPS:
            self.stop(SimulationError(f"time stands still while {task.name} runs"))
            self._dispatch()  # to whoever drives the world
        if roll < _STALL_CHANCE:
            self.sleep(self.chance.random() * _LONGEST_STALL)
        elif self._ready:
            self._ready.append(task)
            self._dispatch()

    def sleep(self, seconds: float) -> None:
        """Have the running task wait."""
        self.park("time to pass", seconds)

    def park(self, what: object, timeout: float | None = None, *, by_clock: bool = False) -> bool:
        """Have the running task wait until it is woken; False when the timeout came first.

        The timeout is in virtual time, or by the clock of the task's process.
        """
        if self._is_over:
            raise TaskKilled
        task = self.current_task()
        task.ticket += 1
        task.waiting_for = what
        task.woken = False
        task.ends_by_clock = None
        if timeout is not None:
            moment = self.now + max(timeout, 0.0)
            if by_clock:
                moment = self.now + max(timeout, 0.0) / task.process.rate + _CLOCK_GRAIN
                task.ends_by_clock = moment
            self._timers.push(moment, task, task.ticket)
        self._dispatch()
        return task.woken

    def stretch_waits(self, process: SimRuntime, factor: float) -> None:
        """Have what is left of a process's waits take so many times as long: its clock did that."""
        for task in self._tasks:
            if task.process is process and task.ends_by_clock is not None:
                left = max(task.ends_by_clock - self.now, 0.0)
                task.ticket += 1
                task.ends_by_clock = self.now + left * factor + _CLOCK_GRAIN
                self._timers.push(task.ends_by_clock, task, task.ticket)

    def wake(self, task: SimTask, what: object) -> bool:
        """Make a task runnable that waits for `what`; False when it does so no longer."""
        if task.waiting_for is not what:
            return False
        self._wake(task, in_time=True)
        return True

    def _wake(self, task: SimTask, *, in_time: bool) -> None:
        task.waiting_for = None
        task.ends_by_clock = None
        task.woken = in_time
        task.ticket += 1
        self._ready.append(task)

    def make_ready(self, tasks: list[SimTask]) -> None:
        """Let tasks run that were held back."""
        self._ready.extend(tasks)

    def wait_for_another(self, task: SimTask, what: object) -> None:
        """Have a waiting task wait for something else instead, without a timeout."""
        task.ticket += 1
        task.waiting_for = what
        task.ends_by_clock = None

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        """Call something after a while, on no task: it must not wait."""
        self._timers.push(self.now + max(delay, 0.0), action, 0)

    def pick(self, count: int) -> int:
        """Return a number below `count`."""
        return int(self.chance.random() * count) if count > 1 else 0

    # ---- who is next ----

    def _dispatch(self) -> None:
        """Hand over to the next task; returns when the calling task has its turn again."""
        me = self.current
        task = self._next()
        self.current = task
        if task is None:
            self._hub.switch()
        elif task is not me:
            task.greenlet.switch()

    def _next(self) -> SimTask | None:
        """Draw the next task; None when the run is over."""
        ready = self._ready
        if self.current is not None:
            self.on_step(self.current.process)
        while self._failure is None and self._main is not None and not self._main.is_done:
            if not ready:
                self._advance()
                continue
            position = self.pick(len(ready))
            task, ready[position] = ready[position], ready[-1]
            ready.pop()
            if task.process.state is ProcessState.RUNNING:
                self.trace.mix(task.tag)
                return task
            if task.process.state is ProcessState.PAUSED:
                task.process.held.append(task)
        return None

    def _advance(self) -> None:
        """Nothing can run: move time to the next timer."""
        self.current = None
        self._steps = 0
        moment = self._timers.next_moment()
        if moment is None:
            self.stop(DeadlockFoundError("nothing can run:\n" + self.describe_tasks()))
            return
        if moment > self._end:
            self.stop(SimulationError("no end in time:\n" + self.describe_tasks()))
            return
        self.now = max(self.now, moment)
        self.trace.mix(struct.pack(">d", self.now))
        for who in self._timers.expired(self.now):
            if isinstance(who, SimTask):
                self._wake(who, in_time=False)
            else:
                who()

    def describe_tasks(self) -> str:
        """Return one line about each task that lives: its name and what it waits for."""
        return "\n".join(
            f"  {task.name} waits for {task.waiting_for or 'its turn'}"
            for task in self._tasks
            if task.process.state is not ProcessState.DEAD
        )

    def _dispose(self) -> None:
        """Unwind every task that is left; no code of theirs gets past its next switch point."""
        self._is_over = True
        previous = logging.root.manager.disable
        logging.disable()
        try:
            for task in list(self._tasks):
                try:
                    task.greenlet.throw(TaskKilled)
                except TaskKilled:
                    pass  # it had not begun
        finally:
            logging.disable(previous)
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()


class SimRuntime:
    """One simulated process: the `Runtime` of whatever runs in it.

    Its clocks are its own: the monotonic one runs at `rate` times the speed of virtual time and
    began `uptime` seconds earlier than that, the other one is `wall_offset` seconds wrong.
    """

    def __init__(
        self, scheduler: Scheduler, name: str, rate: float = 1.0, uptime: float = 0.0
    ) -> None:
        self.scheduler = scheduler
        self.name = name
        self.rate = rate
        self.wall_offset = 0.0
        self._uptime = uptime
        self.state = ProcessState.RUNNING
        self.held: list[SimTask] = []  # could run, but for the pause
        self.random_bytes = scheduler.chance.randbytes

    # ---- the contract ----

    def spawn(self, name: str, target: Callable[[], None]) -> SimTask:
        """Start a task of this process."""
        task = self.scheduler.add_task(name, self, target)
        self.scheduler.pause()
        return task

    def current(self) -> object:
        """Return the running task, or the scheduler between tasks."""
        return self.scheduler.current or self.scheduler

    def lock(self) -> Lock:
        """Return a lock."""
        return SimLock(self.scheduler)

    def condition(self, lock: Lock | None = None) -> Condition:
        """Return a condition variable, on a lock of its own or on one that several share."""
        if lock is None:
            lock = SimLock(self.scheduler)
        if not isinstance(lock, SimLock):
            raise TypeError(f"a simulated condition needs a simulated lock, not {lock!r}")
        return SimCondition(self.scheduler, lock)

    def event(self) -> SimEvent:
        """Return an event."""
        return SimEvent(self.scheduler)

    def gate(self) -> Gate:
        return LockGate(self.lock())

    def queue(self, maxsize: int = 0) -> SimQueue:
        """Return a queue."""
        return SimQueue(self.scheduler, maxsize)

    def monotonic(self) -> float:
        """Return the time on this process's own clock; that of a plain one is virtual time."""
        return self._uptime + _START + (self.scheduler.now - _START) * self.rate

    def set_rate(self, rate: float) -> None:
        """Let the monotonic clock run at another speed from now on; it does not jump."""
        self.scheduler.stretch_waits(self, self.rate / rate)
        self._uptime = self.monotonic() - _START - (self.scheduler.now - _START) * rate
        self.rate = rate

    def wall_time_ns(self) -> int:
        """Return nanoseconds since the epoch, as this process believes."""
        return _WALL_START_NS + round((self.scheduler.now - _START + self.wall_offset) * 1e9)

    def random(self) -> float:
        """Return a number in [0, 1), or below `Scheduler.spread`."""
        return self.scheduler.chance.random() * self.scheduler.spread

    # ---- what may happen to a process ----

    def pause(self) -> None:
        """Let no task of this process run until `resume`."""
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.PAUSED

    def resume(self) -> None:
        """Let the tasks go on; what has timed out meanwhile finds out now."""
        if self.state is ProcessState.PAUSED:
            self.state = ProcessState.RUNNING
            self.scheduler.make_ready(self.held)
            self.held = []

    def kill(self) -> None:
        """End the process where it stands: not one further line of its code is run."""
        self.state = ProcessState.DEAD
        self.held = []
