import math
import random
import subprocess
import sys
import threading

import pytest

from raft.runtime import (
    THREADS,
    Deadline,
    ForkGuard,
    ThreadGroup,
    ThreadRuntime,
    backoff,
    random_timeout,
)
from raft.testing.manual import ManualRuntime

SECONDS = 5.0


def test_a_deadline_counts_down_and_is_over():
    runtime = ManualRuntime()
    deadline = Deadline(runtime, 2.0)

    runtime.advance(0.5)
    assert (deadline.remaining(), deadline.is_over()) == (1.5, False)
    runtime.advance(1.5)

    assert (deadline.remaining(), deadline.is_over()) == (0.0, True)


def test_no_timeout_is_no_limit():
    runtime = ManualRuntime()
    deadline = Deadline(runtime, None)

    runtime.advance(1e9)

    assert (deadline.remaining(), deadline.is_over()) == (None, False)


def test_a_deadline_that_no_platform_can_wait_for_is_none():
    assert Deadline(THREADS, math.inf).remaining() is None


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 2.0), (0.5, 3.0), (0.999, 3.998)])
def test_a_random_timeout_is_once_to_twice_as_long(chance, expected):
    runtime = ManualRuntime()
    runtime.chance = chance

    assert random_timeout(runtime, 2.0) == pytest.approx(expected)


def test_random_timeouts_fill_the_whole_range():
    """PAP-14, PAP-15, UTL-02: 500 rounds reach both ends."""
    timeouts = [random_timeout(THREADS, 1.0) for _ in range(500)]

    assert 1.0 <= min(timeouts) < 1.1
    assert 1.9 < max(timeouts) < 2.0


def test_election_timers_of_five_nodes_seldom_end_together():
    """PAP-16, PAP-17: in 1000 rounds of ten ticks, the first two fall into one tick rarely.

    One rule for both: that followers and candidates draw from it, their own tests show.
    """
    runtime, chance = ManualRuntime(), random.Random(16)
    ties = 0

    for _ in range(1000):
        timeouts = []
        for _ in range(5):
            runtime.chance = chance.random()
            timeouts.append(int(random_timeout(runtime, 10.0)))
        first, second = sorted(timeouts)[:2]
        ties += first == second

    assert 0 < ties <= 300


def test_chance_does_not_follow_the_programs_own_seed():
    """UTL-04: nodes of processes that seed `random` alike draw other timeouts all the same."""
    state = random.getstate()
    drawn = []
    for _ in range(1000):
        random.seed(1)
        drawn.append(THREADS.random())
    random.setstate(state)

    assert len(set(drawn)) == 1000


def test_backoff_doubles_up_to_a_cap():
    """UTL-07: from the second failure on, up to a time; the original counts rounds for both."""
    assert [backoff(0.01, n, 0.1) for n in range(7)] == [0.01, 0.01, 0.02, 0.04, 0.08, 0.1, 0.1]


def test_backoff_of_very_many_failures_stays_at_the_cap():
    assert backoff(0.01, 10**9, 10.0) == 10.0


def test_threads_of_a_group_carry_its_prefix():
    group, named = ThreadGroup(ThreadRuntime(), "raft-n1"), []

    group.spawn("main", lambda: named.append(threading.current_thread().name))

    assert group.join_all(Deadline(THREADS, SECONDS)) == []
    assert named == ["raft-n1-main"]


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), KeyboardInterrupt()])
def test_what_escapes_a_thread_is_reported(error):
    group, crashes = ThreadGroup(ThreadRuntime(), "raft-n1"), []
    group.on_crash = lambda name, error: crashes.append((name, error))

    def die():
        raise error

    group.spawn("disk", die)

    group.join_all(Deadline(THREADS, SECONDS))
    assert crashes == [("disk", error)]


def test_joining_names_the_threads_that_run_on():
    group, stop = ThreadGroup(ThreadRuntime(), "raft-n1"), threading.Event()
    group.spawn("fsm", lambda: stop.wait(SECONDS))

    assert group.join_all(Deadline(THREADS, 0.001)) == ["raft-n1-fsm"]

    stop.set()
    assert group.join_all(Deadline(THREADS, SECONDS)) == []


def test_a_thread_does_not_wait_for_itself():
    group, left = ThreadGroup(ThreadRuntime(), "raft-n1"), []

    group.spawn("main", lambda: left.extend(group.join_all(Deadline(THREADS, SECONDS))))

    group.join_all(Deadline(THREADS, SECONDS))
    assert left == []


def test_a_guard_lets_its_own_process_pass():
    ForkGuard("node n1").check()


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_a_guard_names_the_cure_in_a_forked_child(fork):
    script = """
import ctypes, os
from raft.errors import ForkedProcessError
from raft.runtime import ForkGuard

guard = ForkGuard("node n1")
if FORK == 0:
    try:
        guard.check()
    except ForkedProcessError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
guard.check()
""".replace("FORK", fork)

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert run.stdout.startswith("node n1 was made in process")
    assert "post_fork" in run.stdout
