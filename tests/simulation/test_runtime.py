"""The simulated runtime: what its objects promise, and that one seed means one run."""

import concurrent.futures
import queue

import pytest

from raft.futures import Future
from raft.runtime import Deadline, ThreadGroup
from raft.testing.simulation.runtime import (
    DeadlockFoundError,
    Scheduler,
    SimRuntime,
    SimulationError,
)


def in_world(target, seed=1, limit=100.0):
    """Run `target(runtime)` in a world of its own and return what it returns."""
    scheduler = Scheduler(seed)
    found = []

    def run():
        found.append(target(scheduler.current_task().process))

    scheduler.run(run, limit)
    return found[0]


SEEDS = pytest.mark.parametrize("seed", range(20))


@SEEDS
def test_a_lock_admits_one_task_at_a_time(seed):
    def world(runtime):
        lock, inside, most = runtime.lock(), [], []

        def work():
            for _ in range(5):
                with lock:
                    inside.append(1)
                    runtime.scheduler.pause()
                    most.append(len(inside))
                    inside.pop()

        for task in [runtime.spawn(f"t{n}", work) for n in range(4)]:
            task.join()
        return most

    assert in_world(world, seed) == [1] * 20


def test_a_lock_can_be_tried_and_waited_for():
    def world(runtime):
        lock = runtime.lock()
        lock.acquire()
        tried = lock.acquire(False), lock.acquire(timeout=2.0)
        return *tried, runtime.monotonic()

    assert in_world(world) == (False, False, pytest.approx(1002.0))


def test_a_lock_nobody_holds_cannot_be_released():
    with pytest.raises(RuntimeError, match="nobody holds"):
        in_world(lambda runtime: runtime.lock().release())


@SEEDS
def test_a_notified_task_holds_the_lock_and_an_unnotified_one_times_out(seed):
    def world(runtime):
        changed, woken = runtime.condition(), []

        def wait():
            with changed:
                woken.append(changed.wait(5.0))

        tasks = [runtime.spawn(f"t{n}", wait) for n in range(3)]
        runtime.scheduler.sleep(1.0)
        with changed:
            changed.notify(2)
        for task in tasks:
            task.join()
        return sorted(woken), runtime.monotonic()

    woken, now = in_world(world, seed)
    assert woken == [False, True, True]
    assert now == pytest.approx(1005.0, abs=0.1)


def test_conditions_may_share_a_lock():
    def world(runtime):
        lock = runtime.lock()
        first, second, seen = runtime.condition(lock), runtime.condition(lock), []

        def wait():
            with lock:
                seen.append(second.wait(1.0))

        task = runtime.spawn("waiter", wait)
        runtime.scheduler.sleep(0.5)
        with lock:
            first.notify_all()
            second.notify_all()
        task.join()
        return seen

    assert in_world(world) == [True]


def test_an_event_lets_all_pass_or_times_out():
    def world(runtime):
        event = runtime.event()
        early = event.wait(1.0)
        task = runtime.spawn("setter", event.set)
        late = event.wait()
        task.join()
        return early, late, event.is_set()

    assert in_world(world) == (False, True, True)


@SEEDS
def test_a_bounded_queue_keeps_order_and_makes_putters_wait(seed):
    def world(runtime):
        items = runtime.queue(2)
        task = runtime.spawn("putter", lambda: [items.put(n) for n in range(10)])
        runtime.scheduler.sleep(1.0)
        size = items.qsize()
        got = [items.get() for _ in range(10)]
        task.join()
        return size, got

    assert in_world(world, seed) == (2, list(range(10)))


def test_a_queue_raises_as_the_real_one_does():
    def world(runtime):
        items = runtime.queue(1)
        with pytest.raises(queue.Empty):
            items.get(timeout=1.0)
        with pytest.raises(queue.Empty):
            items.get(block=False)
        items.put(1)
        with pytest.raises(queue.Full):
            items.put(2, timeout=1.0)
        return runtime.monotonic()

    assert in_world(world) == pytest.approx(1002.0)


def test_time_stands_still_while_something_can_run():
    def world(runtime):
        deadline = Deadline(runtime, 10.0)
        runtime.scheduler.sleep(4.0)
        return runtime.monotonic(), deadline.remaining(), runtime.wall_time_ns() % 10**12

    assert in_world(world) == (1004.0, 6.0, 4 * 10**9)


def test_a_future_parks_the_task_and_not_the_process():
    def world(runtime):
        class Host:
            gate = staticmethod(runtime.gate)

            def check_may_wait(self):
                pass

            def run_callback(self, callback):
                pass

        future = Future(Host())
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(1.0)
        runtime.spawn("answer", lambda: future.respond(7))
        return future.result(5.0)

    assert in_world(world) == 7


def test_an_unexpected_exception_fails_the_run_and_names_the_task():
    def world(runtime):
        runtime.spawn("divider", lambda: 1 / 0)
        runtime.scheduler.sleep(1.0)

    with pytest.raises(ZeroDivisionError) as caught:
        in_world(world)
    assert "in task divider" in caught.value.__notes__[0]


def test_a_group_of_threads_reports_what_one_dies_of():
    def world(runtime):
        died = []
        group = ThreadGroup(runtime, "node")
        group.on_crash = lambda name, error: died.append((name, type(error)))
        group.spawn("worker", lambda: 1 / 0)
        left = group.join_all(Deadline(runtime, 5.0))
        return died, left

    assert in_world(world) == ([("worker", ZeroDivisionError)], [])


def test_a_deadlock_names_every_task_and_what_it_waits_for():
    def world(runtime):
        a, b = runtime.lock(), runtime.lock()

        def grab(first, second):
            with first:
                runtime.scheduler.sleep(1.0)
                second.acquire()

        runtime.spawn("left", lambda: grab(a, b))
        runtime.spawn("right", lambda: grab(b, a)).join()

    with pytest.raises(DeadlockFoundError) as caught:
        in_world(world)
    assert "left waits for a lock that right holds" in str(caught.value)
    assert "right waits for a lock that left holds" in str(caught.value)
    assert "scenario waits for the end of right" in str(caught.value)


def test_a_run_that_does_not_end_is_ended():
    def world(runtime):
        while True:
            runtime.scheduler.sleep(1.0)

    with pytest.raises(SimulationError, match="no end in time"):
        in_world(world, limit=50.0)


def test_a_task_that_never_lets_time_pass_is_found(monkeypatch):
    monkeypatch.setattr("raft.testing.simulation.runtime._MOST_STEPS", 1000)
    monkeypatch.setattr("raft.testing.simulation.runtime._STALL_CHANCE", 0.0)

    def world(runtime):
        while True:
            runtime.scheduler.pause()

    def spinner():
        in_world(lambda runtime: runtime.spawn("spinner", lambda: world(runtime)).join())

    with pytest.raises(SimulationError, match="time stands still while spinner runs"):
        spinner()


def test_a_killed_process_runs_not_one_line_more():
    lines = []

    def world(runtime):
        process = SimRuntime(runtime.scheduler, "victim")

        def work():
            try:
                lines.append("begun")
                runtime.scheduler.sleep(1.0)
                lines.append("went on")
            finally:
                lines.append("unwound")

        process.spawn("worker", work)
        runtime.scheduler.sleep(0.5)
        process.kill()
        runtime.scheduler.sleep(5.0)
        return list(lines)

    assert in_world(world) == ["begun"]


def test_a_paused_process_finds_its_timers_expired_when_it_goes_on():
    def world(runtime):
        process, woke = SimRuntime(runtime.scheduler, "sleeper"), []

        def work():
            runtime.scheduler.sleep(1.0)
            woke.append(runtime.monotonic())

        process.spawn("worker", work)
        runtime.scheduler.sleep(0.5)
        process.pause()
        runtime.scheduler.sleep(4.5)
        process.resume()
        runtime.scheduler.sleep(1.0)
        return woke

    assert in_world(world) == [1005.0]


@pytest.mark.parametrize("rate", [0.95, 1.0, 1.05])
def test_a_clock_of_another_speed_rules_every_wait_of_its_process(rate):
    took = {}

    def world(runtime):
        scheduler = runtime.scheduler
        process = SimRuntime(scheduler, "skewed", rate, uptime=5000.0)

        def work():
            lock, event, items = process.lock(), process.event(), process.queue()
            changed = process.condition()
            lock.acquire()
            waits = {
                "lock": lambda: lock.acquire(timeout=10.0),
                "event": lambda: event.wait(10.0),
                "condition": lambda: wait_for_nobody(changed),
                "queue": lambda: get_nothing(items),
            }
            for name, wait in waits.items():
                deadline, began = Deadline(process, 10.0), scheduler.now
                wait()
                assert deadline.is_over(), name
                took[name] = scheduler.now - began

        process.spawn("worker", work).join()

    def wait_for_nobody(changed):
        with changed:
            changed.wait(10.0)

    def get_nothing(items):
        with pytest.raises(queue.Empty):
            items.get(timeout=10.0)

    in_world(world)

    assert took == {name: pytest.approx(10.0 / rate, abs=0.1) for name in took}
    assert len(took) == 4


def test_a_clock_whose_speed_changes_does_not_jump():
    def world(runtime):
        process = SimRuntime(runtime.scheduler, "wild", uptime=5000.0)
        read = [process.monotonic()]
        for rate in (2.0, 0.5, 1.0):
            process.set_rate(rate)
            read.append(process.monotonic())
            runtime.scheduler.sleep(10.0)
            read.append(process.monotonic())
        return [round(now - read[0], 6) for now in read]

    assert in_world(world) == [0.0, 0.0, 20.0, 20.0, 25.0, 25.0, 35.0]


def test_what_waits_goes_by_the_new_speed_of_its_clock():
    """A call to a server that was cut off ends soon after all clocks run as they should."""
    scheduler, took = Scheduler(1), {}

    def world():
        process = SimRuntime(scheduler, "slow", rate=0.1)
        waits = {
            "event": lambda: process.event().wait(10.0),
            "queue": lambda: get_nothing(process.queue()),
            "condition": lambda: wait_for_nobody(process.condition()),
        }

        def measured(name):
            began = scheduler.now
            waits[name]()
            took[name] = scheduler.now - began

        for name in waits:
            process.spawn(name, lambda name=name: measured(name))
        scheduler.sleep(10.0)
        process.set_rate(3.0)
        scheduler.sleep(10.0)

    def wait_for_nobody(changed):
        with changed:
            changed.wait(10.0)

    def get_nothing(items):
        with pytest.raises(queue.Empty):
            items.get(timeout=10.0)

    scheduler.run(world)

    assert took == {name: pytest.approx(13.0, abs=0.1) for name in took}
    assert len(took) == 3


def test_a_wrong_time_of_day_moves_no_other_clock():
    def world(runtime):
        process = SimRuntime(runtime.scheduler, "wrong")
        before = process.monotonic()
        process.wall_offset = 3600.0
        difference = process.wall_time_ns() - runtime.wall_time_ns()
        return process.monotonic() - before, difference

    assert in_world(world) == (0.0, 3600 * 10**9)


def test_each_step_of_a_task_is_looked_at_before_the_next():
    scheduler, seen = Scheduler(1), []
    scheduler.on_step = lambda process: seen.append(process.name)

    def world():
        SimRuntime(scheduler, "other").spawn("task", lambda: None).join()

    scheduler.run(world)

    assert "other" in seen
    assert "world" in seen


def run_race(seed):
    """Run a few tasks that compete; return the trace and the order in which they got through."""
    scheduler, order = Scheduler(seed), []

    def world():
        runtime = scheduler.current_task().process
        lock = runtime.lock()

        def work(name):
            for _ in range(3):
                with lock:
                    order.append(name)
                runtime.scheduler.sleep(runtime.random())

        for task in [runtime.spawn(name, lambda name=name: work(name)) for name in "abc"]:
            task.join()

    scheduler.run(world)
    return scheduler.trace.hash(), "".join(order)


def test_one_seed_is_one_run_and_another_is_another():
    assert run_race(3) == run_race(3)
    assert len({run_race(seed)[0] for seed in range(10)}) == 10
    assert len({run_race(seed)[1] for seed in range(10)}) > 5
