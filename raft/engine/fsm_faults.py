"""What an FSM raises: which of it halts the node, and what the node then says.

What `FSM.apply` raises is the application's answer to a command, the same on every replica. Only
what names this machine may differ between replicas: going on after that would let them diverge, so
the node halts (docs/architecture.md, Failures).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from raft.errors import FSMFailedError, FSMHaltError, RaftError
from raft.interfaces import StableStore
from raft.types import NO_INDEX, Log

HALT_KEY = b"FSMHaltedAt"

RAISED = (Exception, SystemExit, KeyboardInterrupt)
"""What the application's code may raise on purpose; what else escapes it ends a thread as it is."""

# An `OSError` halts only by what says that this machine lacks something: a disk, room, memory,
# descriptors, rights. A file that a command names and that is absent is absent on every replica.
_MACHINE_ERRNOS = frozenset(
    {
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
    }
)
# SQLite's primary result codes that speak of the database's state and not of the statement:
# BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL.
_SQLITE_STATE_CODES = frozenset({5, 6, 7, 8, 10, 11, 13, 14, 15})
# What DB-API drivers and the ORMs above them call errors of the database's state (PEP 249).
_DRIVER_STATE_ERRORS = frozenset({"OperationalError", "InternalError", "InterfaceError"})


def is_machine_fault(
    error: BaseException, halt_on: tuple[type[BaseException], ...] | None = None
) -> bool:
    """Tell whether what `FSM.apply` raised halts the node; `halt_on` replaces the built-in list."""
    if halt_on is not None and isinstance(error, RAISED):
        return isinstance(error, halt_on)
    if not isinstance(error, Exception):
        return True
    if isinstance(error, RaftError):
        return False  # some of ours are timeouts, and so `OSError`s, too
    if isinstance(error, OSError):
        return error.errno in _MACHINE_ERRNOS
    if isinstance(error, (MemoryError, FSMHaltError)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    for candidate in (error, *_driver_errors(error, names)):
        code = getattr(candidate, "sqlite_errorcode", None)
        if isinstance(code, int):
            return code & 0xFF in _SQLITE_STATE_CODES
    return not names.isdisjoint(_DRIVER_STATE_ERRORS)


def _driver_errors(error: BaseException, names: set[str]) -> list[BaseException]:
    """Return the driver's error inside an ORM's (SQLAlchemy: `orig`; Django: the cause)."""
    if names.isdisjoint(_DRIVER_STATE_ERRORS | {"DatabaseError", "DBAPIError"}):
        return []
    inner = (getattr(error, "orig", None), error.__cause__)
    return [candidate for candidate in inner if isinstance(candidate, BaseException)]


# ---- what a node says that halts ----


def command_failed(log: Log, error: BaseException) -> FSMFailedError:
    """Return what a node dies of when `FSM.apply` raised what speaks of this machine."""
    return FSMFailedError(
        f"FSM.apply raised {shown(error)} for entry {log.index} of term {log.term}, so this node"
        " stopped before it applied anything later. If this machine is at fault, mend it and start"
        " the node again. If the command is at fault, set Config.fsm_halt_on=() on every node and"
        " start them: the exception is then the answer to this command, and the nodes go on",
        log.index,
    )


def batch_failed(first: Log, last: Log, reason: str) -> FSMFailedError:
    """Return what a node dies of when `apply_batch` did not answer every entry."""
    return FSMFailedError(
        f"FSM.apply_batch {reason} for the entries {first.index} to {last.index}, so this node"
        " stopped before it applied anything later. apply_batch must return one answer for each"
        " entry, also for a bad command: correct it on every node, and start them",
        first.index,
    )


def configuration_failed(log: Log, error: BaseException) -> FSMFailedError:
    """Return what a node dies of when `store_configuration` raised."""
    return FSMFailedError(
        f"FSM.store_configuration raised {shown(error)} for entry {log.index} of term {log.term},"
        " so this node stopped before it applied anything later. It must not raise: correct it, or"
        " this machine, and start the node again",
        log.index,
    )


def shown(error: BaseException) -> str:
    """Return an exception as people read it, whatever its own `__repr__` does."""
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - the `__repr__` is user code: the type's name must do
        return type(error).__name__


# ---- the entry that halted this node last ----


def note_halt(
    stable: StableStore, write: Callable[[Callable[[], None]], object], error: FSMFailedError
) -> FSMFailedError:
    """Remember the entry that halts this node, and say so if it is the one that did so last.

    `write` has the action done where the stable store may be written.
    """
    if _halted_at(stable) != error.index:
        write(lambda: stable.set(HALT_KEY, b"%d" % error.index))
        return error
    again = FSMFailedError(
        f"{error}. This node stopped at entry {error.index} before: the entry itself looks guilty,"
        " and not this machine",
        error.index,
    )
    again.__cause__ = error.__cause__
    return again


def _halted_at(stable: StableStore) -> int:
    try:
        return int(stable.get(HALT_KEY))
    except Exception:  # noqa: BLE001 - no such key, or foreign code: the node halts anyway
        return NO_INDEX
