"""Signal handlers that call the node, in the midst of whatever the program does with it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from raft.testing.cluster import SCALE

PREAMBLE = """
import faulthandler, random, signal, sys
from raft import *
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport

faulthandler.dump_traceback_later(LIMIT, exit=True)

def start():
    store, config = InmemStore(), Config(local_id="n1", heartbeat_timeout=0.02,
        election_timeout=0.02, leader_lease_timeout=0.02, commit_timeout=0.005)
    node = Raft(config, RecordingFSM(), store, store, InmemSnapshotStore(), InmemTransport("n1:1"))
    node.bootstrap_cluster(Configuration([Server("n1", "n1:1")])).result(5)
    node.wait_for_leader(5)
    while node.state() is not RaftState.LEADER:
        pass
    return node

def use(node):
    node.apply(b"x").result(5)
    node.apply(b"y").add_done_callback(print_nothing)
    node.barrier().exception(5)
    node.read_barrier().done()
    node.stats(), node.state(), node.get_configuration().result(5), node.leader_with_id()
    node.register_observer(observer), node.deregister_observer(observer)
    node.wait_for_leader(5), node.last_index(), node.applied_index()

observer = Observer(None)

def print_nothing(future):
    pass
"""

STORM = """
node = start()
calls = 0

def on_alarm(number, frame):
    global calls
    calls += 1
    use_at_random = random.choice([node.stats, node.get_configuration, node.leader_with_id,
        node.state, node.last_index, node.read_barrier, node.snapshot, node.last_contact,
        lambda: node.apply(b"z"), lambda: node.apply(b"z").result(5), lambda: use(node)])
    use_at_random()
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.001))

signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.001)
while calls < COUNT:
    use(node)
signal.setitimer(signal.ITIMER_REAL, 0)
node.shutdown().result(5)
print("done", node.failure)
"""

SHUTDOWNS = """
class Stopped(Exception):
    pass

def on_signal(number, frame):
    node.shutdown().result(5)
    raise Stopped

signal.signal(signal.SIGALRM, on_signal)
for _ in range(COUNT):
    node = start()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.01))
        while True:
            use(node)
    except Stopped:
        assert node.failure is None, node.failure
print("done", None)
"""

TERMINATED = """
node = start()

def on_signal(number, frame):
    node.shutdown()
    sys.exit(0)

signal.signal(signal.SIGTERM, on_signal)
with node:
    print("done", None, flush=True)
    while True:
        use(node)
"""


def run(script: str, count: int, limit: float) -> subprocess.Popen[str]:
    numbers = f"LIMIT, COUNT = {limit * SCALE}, {count}\n"
    return subprocess.Popen(
        [sys.executable, "-c", numbers + PREAMBLE + script], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("script", "count"), [(STORM, 3000), (SHUTDOWNS, 60)])
def test_whatever_a_handler_interrupts_it_may_call_the_node_and_wait(script, count):
    with run(script, count, 25) as child:
        assert child.communicate()[0] == "done None\n"
        assert child.returncode == 0


@pytest.mark.parametrize("_", range(5))
def test_a_handler_that_shuts_the_node_down_and_exits_ends_the_program(_):
    with run(TERMINATED, 0, 15) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done None\n"
        child.send_signal(signal.SIGTERM)

        assert child.wait() == 0
