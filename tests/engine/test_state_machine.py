import errno
import os
import sqlite3

import pytest

from raft.engine.fsm_faults import is_machine_fault
from raft.engine.state_machine import Raised, StateMachine
from raft.errors import (
    FSMError,
    FSMFailedError,
    FSMHaltError,
    LeadershipLostError,
    NothingNewToSnapshotError,
    RaftInternalError,
)
from raft.snapshots import InmemSnapshotStore
from raft.testing.fsm import BatchingRecordingFSM, ConfigurationRecordingFSM, RecordingFSM
from raft.testing.script import configuration_entry, entries, servers
from raft.types import EntryID, LogType, SnapshotMeta

# ---- what halts, and what is only an answer ----


def sqlite_error(code, kind=sqlite3.OperationalError):
    error = kind("from the driver")
    error.sqlite_errorcode = code
    return error


class DatabaseError(Exception):
    """What other drivers derive theirs from (PEP 249)."""


class OperationalError(DatabaseError):
    pass


class InternalError(DatabaseError):
    pass


class InterfaceError(Exception):
    pass


class IntegrityError(DatabaseError):
    pass


class DeadlockDetected(OperationalError):  # noqa: N818 - as a driver names it
    pass


class DBAPIError(Exception):
    """An ORM's wrapper, which keeps the driver's error in `orig`."""

    def __init__(self, orig):
        super().__init__(str(orig))
        self.orig = orig


def caused_by(error, cause):
    error.__cause__ = cause
    return error


MACHINE_ERRNOS = [
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
]
MACHINE_FAULTS = [
    *(OSError(number, os.strerror(number)) for number in MACHINE_ERRNOS),
    MemoryError(),
    FSMHaltError("stop here"),
    KeyboardInterrupt(),
    SystemExit(1),
    sqlite_error(sqlite3.SQLITE_BUSY),
    sqlite_error(sqlite3.SQLITE_LOCKED),
    sqlite_error(sqlite3.SQLITE_NOMEM),
    sqlite_error(sqlite3.SQLITE_READONLY),
    sqlite_error(sqlite3.SQLITE_IOERR),
    sqlite_error(sqlite3.SQLITE_IOERR_FSYNC),
    sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT),
    sqlite_error(sqlite3.SQLITE_CORRUPT, sqlite3.DatabaseError),
    sqlite_error(sqlite3.SQLITE_FULL),
    sqlite_error(sqlite3.SQLITE_CANTOPEN),
    sqlite_error(sqlite3.SQLITE_PROTOCOL),
    OperationalError("server closed the connection"),
    InternalError("cursor is not valid"),
    InterfaceError("no connection"),
    DeadlockDetected("a subclass counts by its base"),
    DBAPIError(sqlite_error(sqlite3.SQLITE_BUSY)),
    caused_by(OperationalError("from an ORM"), sqlite_error(sqlite3.SQLITE_IOERR)),
    caused_by(DatabaseError("from an ORM"), sqlite_error(sqlite3.SQLITE_CORRUPT)),
]
ANSWERS = [
    ValueError("no such account"),
    KeyError("k"),
    ZeroDivisionError(),
    RecursionError("a command of five thousand brackets"),
    OSError("no errno, so nothing about this machine"),
    OSError(errno.ENOENT, "a file that the command names"),
    IsADirectoryError(errno.EISDIR, "what the command names is a directory"),
    OSError(errno.ENAMETOOLONG, "what the command names is too long"),
    TimeoutError("a service that the command asked for"),
    ConnectionRefusedError(errno.ECONNREFUSED, "the same"),
    sqlite_error(sqlite3.SQLITE_ERROR),
    sqlite_error(sqlite3.SQLITE_CONSTRAINT, sqlite3.IntegrityError),
    sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.IntegrityError),
    sqlite_error(sqlite3.SQLITE_TOOBIG, sqlite3.DataError),
    IntegrityError("duplicate key"),
    DBAPIError(IntegrityError("duplicate key")),
    DBAPIError(sqlite_error(sqlite3.SQLITE_ERROR)),
    caused_by(OperationalError("no such table"), sqlite_error(sqlite3.SQLITE_ERROR)),
    caused_by(ValueError("the cause does not count here"), OSError("disk")),
    LeadershipLostError("a RaftError is wrapped, not believed"),
]


@pytest.mark.parametrize("error", MACHINE_FAULTS, ids=repr)
def test_what_speaks_of_this_machine_halts(error):
    assert is_machine_fault(error)


@pytest.mark.parametrize("error", ANSWERS, ids=repr)
def test_what_speaks_of_the_command_is_its_answer(error):
    assert not is_machine_fault(error)


def test_a_real_sqlite_error_of_a_wrong_statement_is_an_answer():
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("select * from nowhere")
    connection.close()

    assert not is_machine_fault(caught.value)


def test_a_real_sqlite_error_of_a_locked_database_halts(tmp_path):
    first = sqlite3.connect(tmp_path / "db", isolation_level=None)
    second = sqlite3.connect(tmp_path / "db", isolation_level=None, timeout=0)
    first.execute("begin exclusive")
    with pytest.raises(sqlite3.OperationalError) as caught:
        second.execute("create table t (x)")
    first.close()
    second.close()

    assert is_machine_fault(caught.value)


def test_a_list_of_ones_own_replaces_the_built_in_one():
    own = (ValueError,)

    assert is_machine_fault(ValueError(), own)
    assert not is_machine_fault(OSError(errno.EIO, "disk"), own)
    assert is_machine_fault(GeneratorExit(), own), "nobody raises that as an answer"


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError(), OSError(errno.EIO, "disk")])
def test_an_empty_list_makes_an_answer_of_everything(error):
    assert not is_machine_fault(error, ())


# ---- applying ----


def machine_of(fsm, snapshots=None, halt_on=None):
    return StateMachine(fsm, snapshots or InmemSnapshotStore(), halt_on)


def raising(error):
    def on_apply(log):
        if log.data == b"2/1":
            raise error

    return RecordingFSM(on_apply)


def test_commands_are_applied_in_order_and_answered():
    fsm = RecordingFSM()
    machine = machine_of(fsm)

    answers = machine.apply(entries(1, terms=(1, 1, 2)))

    assert answers == [1, 2, 3]
    assert fsm.commands() == [b"1/1", b"2/1", b"3/2"]
    assert machine.position == EntryID(2, 3)


@pytest.mark.parametrize("kind", [LogType.NOOP, LogType.BARRIER, LogType.CONFIGURATION])
def test_only_commands_reach_apply(kind):
    fsm = RecordingFSM()
    machine = machine_of(fsm)
    log = configuration_entry(1, 1, servers("a"))
    if kind is not LogType.CONFIGURATION:
        (log,) = entries(1, terms=(1,), kind=kind)

    assert machine.apply([log]) == [None]

    assert (fsm.commands(), machine.position) == ([], EntryID(1, 1))


def test_an_exception_is_the_commands_answer_and_the_next_one_is_applied():
    error = ValueError("no such account")
    machine = machine_of(raising(error))

    answers = machine.apply(entries(1, terms=(1, 1, 1)))

    assert answers == [1, Raised(error), 2]
    assert machine.failed_commands == 1


def test_an_error_of_ours_is_wrapped_so_that_its_type_does_not_lie():
    error = LeadershipLostError("from another cluster that the FSM asked")
    machine = machine_of(raising(error))

    answer = machine.apply(entries(1, terms=(1, 1)))[1]

    assert type(answer.error) is FSMError
    assert answer.error.__cause__ is error
    assert "LeadershipLostError" in str(answer.error)


def test_a_fault_of_the_machine_escapes_and_nothing_later_is_applied():
    fault = OSError(errno.EIO, "disk")
    fsm = raising(fault)
    machine = machine_of(fsm)

    with pytest.raises(FSMFailedError) as caught:
        machine.apply(entries(1, terms=(1, 1, 1)))

    assert fsm.commands() == [b"1/1"]
    assert (caught.value.index, caught.value.__cause__) == (2, fault)


def test_the_error_that_halts_names_exception_entry_and_way_out():
    machine = machine_of(raising(OSError(errno.EIO, "disk")))

    with pytest.raises(FSMFailedError) as caught:
        machine.apply(entries(1, terms=(1, 1, 1)))

    for part in ("OSError(5, 'disk')", "entry 2 of term 1", "fsm_halt_on=()"):
        assert part in str(caught.value)


def test_what_would_end_the_caller_reaches_him_wrapped():
    machine = machine_of(raising(SystemExit(3)), halt_on=())

    answer = machine.apply(entries(1, terms=(1, 1)))[1]

    assert type(answer.error) is FSMError
    assert isinstance(answer.error.__cause__, SystemExit)


class UnprintableError(ValueError):
    def __repr__(self):
        raise ValueError("not even this")


def test_an_exception_that_cannot_be_shown_is_named():
    machine = machine_of(raising(UnprintableError()), halt_on=(UnprintableError,))

    with pytest.raises(FSMFailedError, match="raised UnprintableError for entry 2"):
        machine.apply(entries(1, terms=(1, 1)))


@pytest.mark.parametrize("first", [1, 2, 4])
def test_skipping_or_repeating_an_entry_is_an_internal_error(first):
    machine = machine_of(RecordingFSM())
    machine.apply(entries(1, terms=(1, 1)))

    with pytest.raises(RaftInternalError):
        machine.apply(entries(first, terms=(1,)))


# ---- batches, configurations ----


def mixed():
    """Command, configuration, no-op, command."""
    return [
        *entries(1, terms=(1,)),
        configuration_entry(2, 1, servers("a")),
        *entries(3, terms=(1,), kind=LogType.NOOP),
        *entries(4, terms=(1,)),
    ]


def test_a_batching_fsm_gets_commands_and_configurations_together():
    fsm = BatchingRecordingFSM()
    machine = machine_of(fsm)

    answers = machine.apply(mixed())

    assert fsm.batches == [(1, 2, 4)]
    assert answers == [1, None, None, 2]
    assert (machine.configuration, machine.configuration_index) == (servers("a"), 2)


def test_a_batching_fsm_is_not_called_for_nothing():
    fsm = BatchingRecordingFSM()

    assert machine_of(fsm).apply(entries(1, terms=(1, 1), kind=LogType.NOOP)) == [None, None]

    assert fsm.batches == []


class Shortchanging(BatchingRecordingFSM):
    def apply_batch(self, logs):
        return super().apply_batch(logs)[:-1]


def test_a_wrong_number_of_answers_halts():
    with pytest.raises(FSMFailedError, match="returned 1 answers for the entries 1 to 2"):
        machine_of(Shortchanging()).apply(entries(1, terms=(1, 1)))


class FailingBatches(BatchingRecordingFSM):
    def apply_batch(self, logs):
        raise ValueError("no answer to any command")


def test_a_batch_that_raises_halts():
    with pytest.raises(FSMFailedError, match="apply_batch raised ValueError"):
        machine_of(FailingBatches()).apply(entries(1, terms=(1, 1)))


def test_a_configuration_store_is_told_of_committed_configurations():
    fsm = ConfigurationRecordingFSM()

    machine_of(fsm).apply(mixed())

    assert fsm.configurations == [(2, servers("a"))]


class FailingConfigurations(RecordingFSM):
    def store_configuration(self, index, configuration):
        raise ValueError("no answer to any command")


def test_a_configuration_that_cannot_be_stored_halts():
    with pytest.raises(FSMFailedError, match="store_configuration raised ValueError"):
        machine_of(FailingConfigurations()).apply(mixed())


# ---- capturing and restoring ----


def test_nothing_can_be_captured_before_something_was_applied():
    with pytest.raises(NothingNewToSnapshotError):
        machine_of(RecordingFSM()).capture()


def test_a_capture_knows_its_place_and_the_configuration_there():
    machine = machine_of(RecordingFSM())
    machine.apply(mixed())

    capture = machine.capture()

    assert (capture.last, capture.configuration_index) == (EntryID(1, 4), 2)
    assert capture.configuration == servers("a")


def test_a_membership_change_alone_can_be_captured():
    """Departure 18: no command has to follow it."""
    machine = machine_of(RecordingFSM())
    machine.apply([configuration_entry(1, 1, servers("a", "b"))])

    capture = machine.capture()

    assert (capture.last, capture.configuration) == (EntryID(1, 1), servers("a", "b"))


def snapshot_of(store, index, term, logs):
    source = RecordingFSM()
    for log in logs:
        source.apply(log)
    sink = store.create(1, index, term, servers("a"), 1)
    source.snapshot().persist(sink)
    sink.close()
    return store.list()[0]


def test_a_restore_replaces_state_and_position():
    store, fsm = InmemSnapshotStore(), RecordingFSM()
    machine = machine_of(fsm, store)
    machine.apply(entries(1, terms=(1, 1)))
    meta = snapshot_of(store, 9, 3, entries(8, terms=(3,)))

    machine.restore(meta)

    assert fsm.commands() == [b"8/3"]
    assert (machine.position, machine.configuration) == (EntryID(3, 9), servers("a"))


def test_a_restore_that_fails_leaves_the_position_to_be_forgotten():
    store = InmemSnapshotStore()

    def fail(_):
        raise ValueError("bad snapshot")

    machine = machine_of(RecordingFSM(on_restore=fail), store)
    meta = snapshot_of(store, 9, 3, entries(8, terms=(3,)))

    with pytest.raises(ValueError, match="bad snapshot"):
        machine.restore(meta)
    machine.forget()

    assert machine.position == EntryID(0, 0)


def test_an_fsm_that_keeps_its_state_only_takes_the_position():
    machine = machine_of(RecordingFSM())

    machine.move_to(SnapshotMeta("id", 9, 3, servers("a"), 1))

    assert (machine.position, machine.configuration_index) == (EntryID(3, 9), 1)


def test_a_configuration_store_hears_what_a_restored_snapshot_says():
    store, fsm = InmemSnapshotStore(), ConfigurationRecordingFSM()
    meta = snapshot_of(store, 9, 3, entries(8, terms=(3,)))

    machine_of(fsm, store).restore(meta)

    assert fsm.configurations == [(1, servers("a"))]


def test_a_configuration_that_cannot_be_stored_fails_the_restore():
    store = InmemSnapshotStore()
    machine = machine_of(FailingConfigurations(), store)
    meta = snapshot_of(store, 9, 3, entries(8, terms=(3,)))

    with pytest.raises(ValueError, match="no answer"):
        machine.restore(meta)

    assert machine.position == EntryID(0, 0)
