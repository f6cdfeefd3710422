"""Whether an object is a state machine: looked at when it comes in, not at its first command.

A method that is missing would else show itself at the first snapshot, or in a disaster.
"""

from __future__ import annotations

import inspect
from typing import Any

from raft.interfaces import BatchingFSM, ConfigurationStore

# The arguments that each method is called with.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "apply": ("log",),
    "snapshot": (),
    "restore": ("reader",),
}
_OPTIONAL = {
    "apply_batch": (BatchingFSM, ("logs",)),
    "store_configuration": (ConfigurationStore, ("index", "configuration")),
}


def check_fsm(fsm: object) -> None:
    """Raise `TypeError` for an object that cannot be a state machine; calls nothing of it."""
    wanted = dict(_REQUIRED)
    for name, (ability, arguments) in _OPTIONAL.items():
        if isinstance(fsm, ability):
            wanted[name] = arguments
    for name, arguments in wanted.items():
        _check_method(fsm, name, arguments)


def _check_method(fsm: object, name: str, arguments: tuple[str, ...]) -> None:
    kind = fsm.__name__ if isinstance(fsm, type) else type(fsm).__name__
    call = f"{name}({', '.join(arguments)})"
    if isinstance(fsm, type):
        raise TypeError(f"the FSM is the class {kind}, not an object of it: pass {kind}()")
    method: Any = getattr(fsm, name, None)
    if not callable(method):
        raise TypeError(f"{kind} is not a state machine: it lacks the method {call}")
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError(f"{kind}.{name} is async, and nobody would await it: make it a plain `def`")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return  # a builtin that does not tell
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{kind}.{name}{signature} cannot be called as {call}: {error}") from None
