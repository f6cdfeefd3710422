"""What becomes of the FSM's answers: callers get them, and exceptions are never lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raft.engine.fsm_faults import shown
from raft.engine.inbox import Apply
from raft.engine.state_machine import Raised
from raft.logs import get_logger
from raft.observer import FailedCommandObservation, ObservationData
from raft.runtime import Runtime, Throttle
from raft.types import Log

_log = get_logger(__name__)

_PERIOD = 10.0  # seconds between two log records about failing commands


class Answers:
    """Delivers what the FSM answered. The constructing thread, then the FSM thread only."""

    def __init__(self, runtime: Runtime, emit: Callable[[ObservationData], None]) -> None:
        self._emit = emit
        self._throttle = Throttle(runtime, _PERIOD)

    def deliver(
        self, logs: Sequence[Log], answers: Sequence[Any], callers: Sequence[Apply | None]
    ) -> None:
        """Give each caller the answer to its command; an exception is reported besides."""
        for log, answer, caller in zip(logs, answers, callers, strict=True):
            if isinstance(answer, Raised):
                self._report(log, answer.error, is_answered=caller is not None)
                if caller is not None:
                    caller.fail(answer.error)
            elif caller is not None:
                caller.succeed(answer)

    def _report(self, log: Log, error: BaseException, *, is_answered: bool) -> None:
        """Make an exception visible, also where no caller gets it.

        A replica that alone raises goes another way than the others, at the same index.
        """
        self._emit(FailedCommandObservation(log.index, log.term, error, is_answered))
        if not is_answered and self._throttle.admits():
            _log.warning(
                "command failed, nobody waits for its answer here; it must fail alike on every node"
                " index=%d error=%s not_logged_before=%d",
                log.index,
                shown(error),
                self._throttle.taken(),
            )
