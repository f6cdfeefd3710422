"""A read that comes in the very moment in which what it waits for is applied."""

import threading

from raft.engine.state_machine import StateMachine
from raft.futures import Future
from raft.testing.fsm import RecordingFSM
from raft.testing.script import ScriptedNode, entries

SECONDS = 5.0


class Preempted:
    """A state machine; who asks for its position from main loses the interpreter just after."""

    def __init__(self, machine: StateMachine, switch: object) -> None:
        self._machine, self._switch = machine, switch

    @property
    def position(self):
        before = self._machine.position
        self._switch()
        return before


def test_a_read_does_not_miss_the_moment_in_which_its_entry_is_applied():
    """No reader's lock, no look for readers: else nobody looks again until the next entry."""
    node = ScriptedNode(log=entries(2, terms=(1,)), fsm=RecordingFSM())
    runner = node.core.fsm
    runner._changed = threading.Condition(threading.Lock())
    machine = runner._machine
    started = threading.Event()

    def move_on():
        runner._machine = machine
        machine.apply(node.core.raft_log.entries(1, 2, 10**6))
        started.set()
        runner._answer_readers()

    fsm_thread = threading.Thread(target=move_on, daemon=True)

    def switch():
        fsm_thread.start()
        started.wait(SECONDS)
        fsm_thread.join(0.05)  # it ends, or it waits for the lock that we hold

    runner._machine = Preempted(machine, switch)
    future = Future()
    runner.answer_when_applied(2, future)
    fsm_thread.join(SECONDS)

    assert future.result(0) == 2
