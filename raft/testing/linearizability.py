"""Checks what clients saw: is there one order of all operations that explains every answer?

A history is linearizable when each operation can be given one moment between its call and its
answer at which it took effect at once. The algorithm is that of Wing and Gong ("Testing and
Verifying Concurrent Objects", 1993) with Lowe's memory of the configurations that were tried
("Testing for Linearizability", 2016). Every key is a register of its own, checked apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

_NEIGHBOURS = 12  # operations told about with a violation
_MOST_STEPS = 5_000_000  # for one key; a minute or so


class Kind(Enum):
    """What an operation does to the register of its key, which starts as None."""

    READ = "read"
    WRITE = "write"
    CAS = "cas"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client.

    `called` and `returned` are times on one clock that all clients share, in any unit; `returned`
    is None when nobody knows whether, and when, the operation takes effect. What has certainly had
    no effect is no part of a history, nor is a read without an answer.
    """

    client: int
    key: str
    kind: Kind
    called: int
    returned: int | None
    value: Any = None
    """What a read returned, what a write or compare-and-set writes."""
    expected: Any = None
    """What a compare-and-set replaces."""
    swapped: bool = False
    """What a compare-and-set answered."""

    def __str__(self) -> str:
        what = repr(self.value)
        if self.kind is Kind.CAS:
            answer = "?" if self.returned is None else self.swapped
            what = f"{self.expected!r} -> {what}: {answer}"
        end = "open" if self.returned is None else str(self.returned)
        return f"[{self.called}, {end}] client {self.client} {self.kind.value} {self.key} {what}"

    def step(self, state: Any) -> tuple[bool, Any]:
        """Return whether the answer fits a register in this state, and the state afterwards."""
        if self.kind is Kind.READ:
            return state == self.value, state
        if self.kind is Kind.WRITE:
            return True, self.value
        swaps = state == self.expected
        fits = self.returned is None or swaps == self.swapped
        return fits, self.value if swaps else state


class UndecidedError(Exception):
    """A history that is too tangled to be decided: fewer operations a key, or fewer at a time."""


def violations(history: Iterable[Operation]) -> list[str]:
    """Return a text for each key whose operations no order explains; empty when all is well.

    Raises `UndecidedError` when that is too hard to say.
    """
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    found = []
    for key in sorted(by_key):
        blamed = _Search(by_key[key]).run()
        if blamed is not None:
            found.append(_describe(key, by_key[key], blamed))
    return found


def _describe(key: str, operations: Sequence[Operation], blamed: Operation) -> str:
    ordered = sorted(operations, key=lambda operation: operation.called)
    place = ordered.index(blamed)
    near = ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS // 2]
    lines = "\n".join(f"  {'>' if o is blamed else ' '} {o}" for o in near)
    return f"key {key} is not linearizable: no order explains the marked answer\n{lines}"


class _Event:
    """The call or the return of an operation, in a list from which operations are lifted."""

    __slots__ = ("after", "before", "is_call", "number", "other")

    def __init__(self, number: int, *, is_call: bool) -> None:
        self.number = number
        self.is_call = is_call
        self.before: _Event | None = None
        self.after: _Event | None = None
        self.other: _Event | None = None  # a call's return; None while it is open

    def unlink(self) -> None:
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


class _Search:
    """Looks for an order of one key's operations: depth first, never twice from the same point."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._to_explain = sum(o.returned is not None for o in operations)
        self._head = self._linked()
        # Bits of the operations that could tell that the register had a value, or had it not.
        self._seeing: defaultdict[Any, int] = defaultdict(int)
        self._missing: defaultdict[Any, int] = defaultdict(int)
        for number, operation in enumerate(operations):
            if operation.kind is Kind.READ:
                self._seeing[operation.value] |= 1 << number
            elif operation.kind is Kind.CAS:
                is_miss = operation.returned is not None and not operation.swapped
                told = self._missing if is_miss else self._seeing
                told[operation.expected] |= 1 << number

    def _linked(self) -> _Event:
        """Return the head of the list of events; of two at one time the call comes first."""
        moments: list[tuple[int, bool, int, _Event]] = []
        for number, operation in enumerate(self._operations):
            call = _Event(number, is_call=True)
            moments.append((operation.called, False, number, call))
            if operation.returned is not None:
                call.other = _Event(number, is_call=False)
                moments.append((operation.returned, True, number, call.other))
        head = last = _Event(-1, is_call=False)
        for *_, event in sorted(moments, key=lambda moment: moment[:3]):
            last.after, event.before = event, last
            last = event
        return head

    def run(self) -> Operation | None:
        """Return None when there is an order, else the first answer that none could explain."""
        placed = 0  # a bit for each operation that has its moment
        state: Any = None
        tried: set[tuple[int, Any]] = set()
        path: list[tuple[_Event, Any, int]] = []
        left = self._to_explain
        deepest, blamed = left + 1, None
        event = self._head.after
        for _ in range(_MOST_STEPS):
            if left == 0:
                return None
            assert event is not None
            operation = self._operations[event.number]
            if event.is_call:
                point = self._place(operation, event.number, placed, state)
                if point is None or point in tried:
                    event = event.after
                    continue
                tried.add(point)
                path.append((event, state, left))
                placed, state = point
                left -= operation.returned is not None
                self._lift(event)
                event = self._head.after
                continue
            # An operation has returned, and without a moment before: one of those placed is wrong.
            if left < deepest:
                deepest, blamed = left, operation
            if not path:
                return blamed
            event, state, left = path.pop()
            placed &= ~(1 << event.number)
            self._put_back(event)
            event = event.after
        raise UndecidedError(
            f"key {self._operations[0].key}: no answer after {_MOST_STEPS} steps,"
            f" {len(self._operations)} operations, {len(self._operations) - self._to_explain} open"
        )

    def _place(
        self, operation: Operation, number: int, placed: int, state: Any
    ) -> tuple[int, Any] | None:
        """Return the point after an operation; None if it does not fit, or is not worth a look.

        An open operation may as well never happen when nobody is left who could tell.
        """
        fits, after = operation.step(state)
        if not fits:
            return None
        if operation.returned is None:
            tellers = self._seeing[after] | self._missing[state]
            if after == state or not tellers & ~placed & ~(1 << number):
                return None
        return placed | 1 << number, after

    @staticmethod
    def _lift(call: _Event) -> None:
        call.unlink()
        if call.other is not None:
            call.other.unlink()

    @staticmethod
    def _put_back(call: _Event) -> None:
        if call.other is not None:
            call.other.relink()
        call.relink()
