"""What the FSM is to be restored from, and what becomes of a restore that fails (departure 9).

A snapshot of the log's own, a leader's or a user's committed one, must be restored: should that
fail the FSM is poisoned, and the newest that will do is tried again. A user's snapshot is only
tried, before anything is recorded of it: should that fail the FSM goes back to where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raft.engine.fsm_faults import RAISED, shown
from raft.engine.raft_log import RaftLog
from raft.engine.state_machine import StateMachine
from raft.errors import RestoreFailedError
from raft.interfaces import SnapshotStore
from raft.logs import get_logger
from raft.runtime import Condition, Runtime, backoff
from raft.types import EntryID, SnapshotMeta

_log = get_logger(__name__)

_RETRY_BASE = 0.1  # seconds before a failed restore is tried again, doubling
_RETRY_CAP = 30.0


@dataclass(slots=True)
class Trial:
    """A user's snapshot that the FSM tries, and who is told of it: None, or why it failed."""

    meta: SnapshotMeta
    on_done: Callable[[RestoreFailedError | None], None]
    has_begun: bool = False
    is_over: bool = False  # the leadership that wanted it has ended: the FSM goes back


class Restores:
    """The restores of one FSM. The FSM thread performs them; any thread asks.

    `changed` is the runner's: its lock guards `wish`, `trial` and `poison`.
    Invariant: while there is a wish, a trial or a poison, nothing is applied, captured or read.
    """

    def __init__(
        self,
        runtime: Runtime,
        changed: Condition,
        machine: StateMachine,
        log: RaftLog,
        snapshots: SnapshotStore,
    ) -> None:
        self._runtime = runtime
        self._changed = changed
        self._machine = machine
        self._log = log
        self._snapshots = snapshots
        self._failures = 0
        self._retry_at = 0.0
        self._refused: tuple[Trial, RestoreFailedError] | None = None  # told once the FSM is back
        self.wish: SnapshotMeta | None = None  # what must be restored
        self.trial: Trial | None = None
        self.poison: BaseException | None = None

    # ---- any thread ----

    def try_out(self, trial: Trial) -> None:
        """Have the FSM try a user's snapshot, before anything of it counts; `on_done` is told.

        If it could be restored nothing goes on until the runner accepts it, or it is given up.
        """
        with self._changed:
            self.trial = trial
            self._changed.notify()

    def give_up(self, trial: Trial) -> None:
        """End a trial: one not begun never was, one that was tried is undone."""
        with self._changed:
            trial.is_over = True
            self._changed.notify()

    # ---- the caller holds the lock ----

    def are_done(self) -> bool:
        """Tell whether the FSM holds the state that it should."""
        return self.wish is None and self.trial is None and self.poison is None

    def ask(self, meta: SnapshotMeta) -> None:
        """Have a snapshot restored at once."""
        self.wish = meta
        self._retry_at = 0.0

    def delay(self) -> float | None:
        """Return the seconds until there is something to perform, None while there is nothing."""
        trial = self.trial
        if trial is not None and (trial.is_over or not trial.has_begun):
            return 0.0
        if self.wish is None:
            return None
        return max(0.0, self._retry_at - self._runtime.monotonic())

    # ---- the FSM thread ----

    def perform(self) -> SnapshotMeta | None:
        """Do what is due; return the snapshot that the FSM holds now, None if it holds no other.

        Raises what poisons the FSM.
        """
        with self._changed:
            trial, wish = self.trial, self.wish
        if trial is not None and trial.is_over:
            if trial.has_begun:
                self._go_back(trial)
            else:
                self._end_trial(trial)
            return None
        if trial is not None and not trial.has_begun:
            self._try(trial)
            return None
        return None if wish is None else self._restore(wish)

    def start_over(self) -> bool:
        """Have the snapshot restored that took the place of the next entries; False for none.

        Either a leader's came just now, or the FSM went back to an older one when the newest
        failed, before the log was dropped.
        """
        another = self._another_snapshot()
        with self._changed:
            self.wish = self.wish or another
            return self.wish is not None

    def _restore(self, meta: SnapshotMeta) -> SnapshotMeta:
        try:
            self._machine.restore(meta, self._runtime)
        except RAISED as error:
            self._failed(meta, error)
            self._tell_refused(error)
            raise
        _log.info("restored from snapshot id=%s index=%d", meta.id, meta.index)
        with self._changed:
            if self.wish is meta:
                self.wish = None
            self.poison = None
            self._failures = 0
        self._tell_refused(None)
        return meta

    def _failed(self, meta: SnapshotMeta, error: BaseException) -> None:
        """Count as having applied nothing, and try again later, the newest first."""
        another = self._another_snapshot() or meta
        self._machine.forget()
        with self._changed:
            self.poison = error
            self._failures += 1
            if self.wish is None or self.wish is meta:
                self.wish = another
            delay = backoff(_RETRY_BASE, self._failures, _RETRY_CAP)
            self._retry_at = self._runtime.monotonic() + delay
        _log.error("restore failed id=%s index=%d", meta.id, meta.index, exc_info=error)

    def _another_snapshot(self) -> SnapshotMeta | None:
        """Return the next one to try: in turn, those from which the log goes on."""
        try:
            end = self._log.boundary()
            listed = [
                m
                for m in self._snapshots.list()
                if self._log.goes_on_behind(m.index)
                and (not m.unsettled or EntryID(m.term, m.index) == end)
            ]
        except Exception:  # noqa: BLE001 - a store is foreign code; the old one is tried again
            return None
        return listed[self._failures % len(listed)] if listed else None

    # ---- trials ----

    def _end_trial(self, trial: Trial) -> None:
        with self._changed:
            if self.trial is trial:
                self.trial = None

    def _try(self, trial: Trial) -> None:
        trial.has_begun = True
        try:
            reader = self._machine.open(trial.meta, self._runtime)
        except Exception as error:  # noqa: BLE001 - a store is foreign code; the FSM saw nothing
            self._end_trial(trial)
            trial.on_done(_refusal(error))
            return
        try:
            self._machine.restore_from(trial.meta, reader)
        except RAISED as error:
            self._refused = (trial, _refusal(error))
            self._go_back(trial)
            return
        trial.on_done(None)

    def _go_back(self, trial: Trial) -> None:
        """Have the FSM restored as it was before the trial: the newest snapshot, then the log.

        The trial ends in the same step as that is wished for: between the two a read would be
        answered from what the trial has left.
        """
        another = self._another_snapshot()
        self._machine.forget()
        with self._changed:
            self.wish = self.wish or another or trial.meta
            self._retry_at = 0.0
            if self.trial is trial:
                self.trial = None

    def _tell_refused(self, error: BaseException | None) -> None:
        """Answer a trial that failed, now that the FSM is back, or could not be brought back."""
        refused, self._refused = self._refused, None
        if refused is None:
            return
        trial, reason = refused
        if error is not None:
            reason = RestoreFailedError(
                f"{reason}; nor could the state before be restored here: {shown(error)}. Nothing"
                " was changed in the cluster, which needs another leader"
            )
        trial.on_done(reason)


def _refusal(error: BaseException) -> RestoreFailedError:
    refusal = RestoreFailedError(
        f"the state machine cannot restore the snapshot given: {shown(error)}. Nothing was changed"
    )
    refusal.__cause__ = error
    return refusal
