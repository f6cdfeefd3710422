"""The client oracle: each lie to a client is found, and nothing else is."""

import io

import pytest

from raft.testing.simulation.machine import MarkedFSM, pack_state
from raft.testing.simulation.oracle import Oracle
from raft.types import EMPTY_CONFIGURATION, Log, SnapshotMeta


class World:
    """An oracle and one state machine that reports to it."""

    def __init__(self):
        self.found = []
        self.oracle = Oracle(self.found.append)
        self.fsm = self.machine("n1")

    def machine(self, node):
        def applied(log):
            self.oracle.applied(node, log)

        return MarkedFSM(
            applied, applied, lambda mark: self.oracle.marked(node, mark), self.found.append
        )

    def restore(self, mark, index, logs=(), fsm=None):
        data = pack_state(mark, logs)
        meta = SnapshotMeta("s", index, 1, EMPTY_CONFIGURATION, 0, unsettled=True)
        self.oracle.restore_stored(meta, data)
        (fsm or self.fsm).restore(io.BytesIO(data))

    def faults(self):
        return self.oracle.faults({"n1": self.fsm})


@pytest.fixture
def world():
    return World()


def command(index, data):
    return Log(index, 1, data=data)


def test_a_client_that_was_told_the_truth_finds_no_fault(world):
    world.fsm.apply(command(1, b"a"))
    world.oracle.acknowledged(b"a", 1)
    world.oracle.refused(b"r")
    world.fsm.apply(command(2, b"u"))
    world.oracle.end_read("n1", world.fsm, world.oracle.begin_read())

    assert (world.faults(), world.found) == ([], [])


def test_a_command_that_was_refused_must_never_show_up(world):
    world.oracle.refused(b"early")
    world.fsm.apply(command(1, b"early"))
    world.fsm.apply(command(2, b"late"))
    world.oracle.refused(b"late")

    assert world.found == [
        "oracle: n1 applied b'early', which was certainly not applied",
        "oracle: b'late' was refused, but is at 2",
    ]


def test_a_command_at_two_places_is_found(world):
    world.fsm.apply(command(1, b"a"))
    world.fsm.apply(command(2, b"a"))

    assert world.found == ["oracle: b'a' stands at 1 and, for n1, at 2"]
    assert world.faults() == ["n1 holds a command twice"]


def test_an_acknowledgement_before_it_was_applied_is_found(world):
    world.oracle.acknowledged(b"a", 1)

    assert world.found == ["oracle: b'a' was acknowledged at 1, but was applied at None"]


def test_an_acknowledged_command_that_is_gone_is_found(world):
    world.fsm.apply(command(1, b"a"))
    world.oracle.acknowledged(b"a", 1)
    world.fsm = world.machine("n1")

    assert world.faults() == ["n1 lost acknowledged b'a' at 1"]


def test_a_state_that_lacks_something_is_found_with_its_next_command(world):
    world.oracle.applied("n1", command(8, b"a"), 5)
    world.oracle.applied("n2", command(8, b"a"), 4)

    assert world.found == ["oracle: n2 holds 4 commands at 8, others 5"]


def test_entries_out_of_order_are_found(world):
    world.fsm.apply(command(2, b"a"))
    world.fsm.apply(command(2, b"b"))

    assert world.found == ["applied 2 after 2"]


def test_state_machines_that_differ_are_found(world):
    world.fsm.apply(command(1, b"a"))

    found = world.oracle.faults({"n1": world.fsm, "n2": world.machine("n2")})

    assert found == ["the state machines differ"]


# ---- reads ----


def test_a_read_that_lacks_what_was_acknowledged_before_is_found(world):
    world.fsm.apply(command(7, b"a"))
    world.oracle.acknowledged(b"a", 7)

    world.oracle.end_read("n2", world.machine("n2"), world.oracle.begin_read())

    assert world.found == ["oracle: stale read at n2: version 0, 7 was known before"]


def test_a_read_need_not_show_what_was_acknowledged_meanwhile(world):
    floor = world.oracle.begin_read()
    world.fsm.apply(command(7, b"a"))
    world.oracle.acknowledged(b"a", 7)

    world.oracle.end_read("n2", world.machine("n2"), floor)

    assert world.found == []


def test_reads_must_not_go_backwards(world):
    world.fsm.apply(command(7, b"a"))
    world.oracle.end_read("n1", world.fsm, world.oracle.begin_read())

    world.oracle.end_read("n2", world.machine("n2"), world.oracle.begin_read())

    assert world.found == ["oracle: stale read at n2: version 0, 7 was known before"]


# ---- user restores ----


def test_what_was_before_a_user_restore_is_rightly_gone(world):
    world.fsm.apply(command(1, b"a"))
    world.oracle.acknowledged(b"a", 1)
    world.restore(b"m", index=9)
    world.oracle.restored(b"m")
    world.fsm.apply(command(10, b"b"))
    world.oracle.acknowledged(b"b", 10)

    assert (world.faults(), world.found) == ([], [])


def test_a_restore_that_was_acknowledged_and_is_gone_is_found(world):
    world.restore(b"m", index=9, fsm=world.machine("n2"))
    world.oracle.restored(b"m")

    assert world.faults() == ["n1 lost the restore at 9, known to users"]


def test_a_restore_that_was_read_and_is_gone_is_found(world):
    other = world.machine("n2")
    world.restore(b"m", index=9)
    other.apply(command(10, b"a"))  # of a leader without the restore
    world.oracle.end_read("n1", world.fsm, world.oracle.begin_read())

    world.oracle.end_read("n2", other, world.oracle.begin_read())

    assert world.found == [
        "oracle: n2 shows a state of restore b'' at 0, but the one at 9 was shown or"
        " acknowledged before"
    ]
    assert world.oracle.faults({"n2": other}) == ["n2 lost the restore at 9, known to users"]


def test_a_read_need_not_show_a_restore_that_was_read_meanwhile(world):
    floor = world.oracle.begin_read()
    world.restore(b"m", index=9)
    world.oracle.end_read("n1", world.fsm, world.oracle.begin_read())

    world.oracle.end_read("n2", world.machine("n2"), floor)

    assert world.found == []


def test_a_restore_that_was_refused_must_never_show(world):
    world.restore(b"late", index=9)
    world.oracle.restore_refused(b"late")
    world.oracle.restore_refused(b"early")
    world.restore(b"early", index=19)

    assert world.found == [
        "oracle: restore b'late' was refused, but a state machine showed it",
        "oracle: n1 shows restore b'early', which certainly had no effect",
    ]


def test_a_read_of_a_restored_state_is_as_new_as_the_restore(world):
    world.fsm.apply(command(8, b"a"))
    world.oracle.acknowledged(b"a", 8)
    world.restore(b"m", index=9, logs=[command(3, b"c")])

    world.oracle.end_read("n1", world.fsm, world.oracle.begin_read())

    assert world.found == []
    assert world.oracle.version(world.fsm) == 9
