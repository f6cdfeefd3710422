"""The checker of histories, on histories known to be good and known to be bad."""

import random
from itertools import permutations

import pytest

from raft.testing import linearizability
from raft.testing.linearizability import Kind, Operation, UndecidedError, violations


def read(client, called, returned, value, key="k"):
    return Operation(client, key, Kind.READ, called, returned, value)


def write(client, called, returned, value, key="k"):
    return Operation(client, key, Kind.WRITE, called, returned, value)


def cas(client, called, returned, expected, value, swapped=False, key="k"):
    return Operation(client, key, Kind.CAS, called, returned, value, expected, swapped)


GOOD = {
    "nothing": [],
    "one after the other": [write(1, 0, 1, "a"), read(2, 2, 3, "a")],
    "nothing was written yet": [read(1, 0, 1, None), write(1, 2, 3, "a")],
    "a read beside a write may see either": [
        write(1, 0, 10, "a"),
        read(2, 1, 2, None),
        read(3, 3, 4, "a"),
    ],
    "answers at the same time as a call": [write(1, 0, 5, "a"), read(2, 5, 6, None)],
    "writes in the other order of their calls": [
        write(1, 0, 10, "a"),
        write(2, 1, 9, "b"),
        read(3, 11, 12, "a"),
    ],
    "an open write takes effect late": [
        write(1, 0, None, "a"),
        read(2, 5, 6, None),
        read(2, 7, 8, "a"),
    ],
    "an open write never happens": [write(1, 0, None, "a"), read(2, 5, 6, None)],
    "a swap": [write(1, 0, 1, "a"), cas(2, 2, 3, "a", "b", True), read(1, 4, 5, "b")],
    "a swap in vain": [write(1, 0, 1, "a"), cas(2, 2, 3, "x", "b"), read(1, 4, 5, "a")],
    "an open swap that took effect": [
        write(1, 0, 1, "a"),
        cas(2, 2, None, "a", "b"),
        read(1, 4, 5, "b"),
    ],
    "one of two swaps wins": [
        write(1, 0, 1, "a"),
        cas(2, 2, 9, "a", "b", True),
        cas(3, 3, 8, "a", "c", False),
        read(1, 10, 11, "b"),
    ],
    "keys know nothing of each other": [
        write(1, 0, 1, "a", key="x"),
        read(2, 2, 3, None, key="y"),
    ],
}

BAD = {
    "a stale read": [write(1, 0, 1, "a"), write(1, 2, 3, "b"), read(2, 4, 5, "a")],
    "a lost write": [write(1, 0, 1, "a"), read(2, 2, 3, None)],
    "a value that nobody wrote": [write(1, 0, 1, "a"), read(2, 2, 3, "z")],
    "a read of what is written later": [read(2, 0, 1, "a"), write(1, 2, 3, "a")],
    "reads that go back": [
        write(1, 0, 100, "a"),
        read(2, 1, 2, "a"),
        read(3, 3, 4, None),
    ],
    "two readers see writes in different orders": [
        write(1, 0, 100, "a"),
        write(2, 0, 100, "b"),
        read(3, 1, 2, "a"),
        read(3, 3, 4, "b"),
        read(3, 5, 6, "a"),
    ],
    "both swaps win": [
        write(1, 0, 1, "a"),
        cas(2, 2, 9, "a", "b", True),
        cas(3, 3, 8, "a", "c", True),
    ],
    "a swap in vain that should have won": [write(1, 0, 1, "a"), cas(2, 2, 3, "a", "b", False)],
    "a swap that did not happen": [
        write(1, 0, 1, "a"),
        cas(2, 2, 3, "a", "b", True),
        read(1, 4, 5, "a"),
    ],
    "an open write that comes and goes": [
        write(1, 0, 1, "a"),
        write(2, 2, None, "b"),
        read(3, 3, 4, "b"),
        read(3, 5, 6, "a"),
    ],
    "an open write that happens twice": [
        write(2, 0, None, "b"),
        read(3, 1, 2, "b"),
        write(1, 3, 4, "a"),
        read(3, 5, 6, "b"),
    ],
    "only one key is wrong": [
        write(1, 0, 1, "a", key="x"),
        read(2, 2, 3, "a", key="x"),
        read(2, 2, 3, "a", key="y"),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_one_order_explains_is_linearizable(name):
    assert violations(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_what_no_order_explains_is_a_violation(name):
    assert len(violations(BAD[name])) == 1


def test_a_violation_names_the_key_and_marks_the_answer():
    (text,) = violations(BAD["a stale read"])

    assert "key k " in text
    assert "> [4, 5] client 2 read k 'a'" in text


def random_history(chance):
    """A short history that may or may not be linearizable."""
    operations = []
    for client in range(chance.randint(1, 6)):
        called = chance.randrange(12)
        returned = None if chance.random() < 0.2 else called + chance.randrange(8)
        value = chance.choice((None, "a", "b"))
        kind = chance.choice(list(Kind))
        if kind is Kind.READ and returned is not None:
            operations.append(read(client, called, returned, value))
        elif kind is Kind.WRITE:
            operations.append(write(client, called, returned, value))
        else:
            expected, swapped = chance.choice((None, "a", "b")), chance.random() < 0.5
            operations.append(cas(client, called, returned, expected, value, swapped))
    return operations


def is_explained_by_any_order(operations):
    """Try all orders of all subsets: slow, and so simple that it must be right."""
    done = [o for o in operations if o.returned is not None]
    open_ones = [o for o in operations if o.returned is None]
    for size in range(len(open_ones) + 1):
        for chosen in permutations(open_ones, size):
            for order in permutations([*done, *chosen]):
                if fits(order):
                    return True
    return False


def fits(order):
    for place, operation in enumerate(order):
        ended = operation.returned
        if ended is not None and any(ended < before.called for before in order[:place]):
            return False
    state = None
    for operation in order:
        ok, state = operation.step(state)
        if not ok:
            return False
    return True


def test_it_agrees_with_trying_every_order():
    chance = random.Random(1)
    verdicts = []
    for _ in range(400):
        history = random_history(chance)
        verdict = not violations(history)
        assert verdict == is_explained_by_any_order(history), "\n".join(map(str, history))
        verdicts.append(verdict)

    assert 100 < sum(verdicts) < 300


def test_many_clients_and_open_writes_are_decided_in_time():
    """Two thousand operations of one key, six at a time, thirty of them never answered."""
    chance = random.Random(2)
    operations = []
    value = None
    for number in range(2000):
        moment = number * 10
        if number % 3:
            value = number
            returned = None if number % 40 == 1 else moment + chance.randrange(30)
            operations.append(write(number, moment - chance.randrange(30), returned, value))
        else:
            operations.append(read(number, moment, moment + chance.randrange(30), value))

    assert violations(operations) == []


def test_what_is_too_tangled_is_said_to_be_undecided(monkeypatch):
    monkeypatch.setattr(linearizability, "_MOST_STEPS", 3)

    with pytest.raises(UndecidedError, match="key k"):
        violations(BAD["both swaps win"])
