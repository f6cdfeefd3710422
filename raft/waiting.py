"""Waiting for room or for news without a lock, so that a signal handler may call what waits.

A handler runs on the program's first thread, in the midst of whatever that does. If it were in the
midst of holding a lock, a handler that calls the node again would wait for its own thread, and so
would every thread of the node that takes the lock. So what the program's threads call does without:
it puts things into queues whose `append` and `pop` are one step, and looks once more afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from raft.runtime import Deadline, Gate, Runtime

T = TypeVar("T")


def take_out(queue: deque[T] | list[T]) -> list[T]:
    """Take everything out of a queue that others use, too; each item goes to one taker."""
    found: list[T] = []
    while queue:
        try:
            found.append(queue.pop())
        except IndexError:
            break  # somebody else had it first
    found.reverse()
    return found


class Waiters:
    """Those who wait for something, first come, first woken."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._gates: deque[Gate] = deque()

    def wait(self, is_blocked: Callable[[], bool], deadline: Deadline) -> bool:
        """Wait while it is so, until woken; False when the deadline has passed.

        The caller looks again afterwards: somebody else may have been faster.
        """
        gate = self._runtime.gate()
        self._gates.append(gate)
        is_woken = False
        try:
            # Looked at once more: who made it otherwise has perhaps not seen us yet.
            is_woken = not is_blocked() or gate.wait(deadline.remaining())
            return is_woken
        finally:
            try:
                self._gates.remove(gate)
            except ValueError:  # we were chosen
                if not is_woken:
                    self.wake()  # but leave: the next one's turn

    def wake(self) -> None:
        """Have the first look again."""
        if self._gates:  # mostly nobody waits, and an exception takes its time
            try:
                self._gates.popleft().open()
            except IndexError:
                pass

    def wake_all(self) -> None:
        """Have all look again."""
        for gate in take_out(self._gates):
            gate.open()
