"""The FSM thread: applies what is committed, in order, and is the only one to touch the FSM (§5.3).

It works off wishes, not a queue: how far to apply, which snapshot to restore, who wants a view of
the state. So the main thread never waits for it, however slow the FSM is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from raft.config import Config
from raft.engine.fsm_answers import Answers
from raft.engine.fsm_faults import RAISED
from raft.engine.fsm_restores import Restores, Trial
from raft.engine.inbox import Apply, ControlMessage, FSMPoisoned, LogCorrupted
from raft.engine.raft_log import RaftLog
from raft.engine.state import NodeState
from raft.engine.state_machine import Capture, StateMachine, release_view
from raft.errors import (
    FSMFailedError,
    LeadershipLostError,
    LogCompactedError,
    LogCorruptError,
    LogNotFoundError,
    RaftError,
    ShutdownNotAppliedError,
    ShutdownOutcomeUnknownError,
    SnapshotError,
)
from raft.futures import Future
from raft.interfaces import SnapshotStore
from raft.logs import get_logger
from raft.metrics import Saturation
from raft.observer import ObservationData
from raft.runtime import Runtime
from raft.types import NO_INDEX, SnapshotMeta

_log = get_logger(__name__)

_CORRUPT_PAUSE = 0.1  # seconds before an entry that the disk has spoiled is looked at again


class FsmRunner:
    """Drives the state machine. Wishes come from any thread.

    Invariant: what is applied is committed, in order, each entry once since the last restore.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        config: Config,
        machine: StateMachine,
        log: RaftLog,
        snapshots: SnapshotStore,
        state: NodeState,
        post: Callable[[ControlMessage], None],
        on_halted: Callable[[FSMFailedError], FSMFailedError],
        emit: Callable[[ObservationData], None],
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._machine = machine
        self._log = log
        self._state = state
        self._post = post
        self._on_halted = on_halted
        self._answers = Answers(runtime, emit)
        self._thread: object = None
        self._changed = runtime.condition()  # guards all below
        self._commit_index = NO_INDEX
        self._pending: dict[int, Apply] = {}
        self.restores = Restores(runtime, self._changed, machine, log, snapshots)
        self._captures: list[Future[Capture]] = []
        self._readers: deque[tuple[int, Future[int]]] = deque()  # by index
        self._stopped = False
        self._halt: FSMFailedError | None = None  # what ended the FSM thread

    # ---- wishes: any thread ----

    def commit(self, upto: int, applies: Sequence[tuple[int, Apply]] = ()) -> None:
        """Have everything up to an index applied, and these callers answered as it is."""
        with self._changed:
            self._commit_index = max(self._commit_index, upto)
            poison = self.restores.poison
            if poison is None:
                self._pending.update(applies)
            self._changed.notify()
        if poison is not None:
            _fail_unrestored([apply for _, apply in applies], poison)

    def restore(self, meta: SnapshotMeta, *, may_go_back: bool = True) -> None:
        """Have the FSM take over a snapshot that is durable; what is older is skipped.

        Unless it `may_go_back`, nothing is done when the FSM has got as far, and stays there.
        """
        with self._changed:
            is_there = self.restores.are_done() and self._machine.position.index >= meta.index
            if is_there and not may_go_back:
                return
            self.restores.ask(meta)
            if not meta.unsettled:
                self._commit_index = max(self._commit_index, meta.index)
            self._changed.notify()

    def accept(self, trial: Trial) -> None:
        """Go on from the snapshot that was tried."""
        with self._changed:
            self.restores.trial = None
            self._changed.notify()
        self._went_to(trial.meta)

    def capture(self, future: Future[Capture]) -> None:
        """Have a view of the state taken."""
        with self._changed:
            if not self._stopped:
                self._captures.append(future)
                self._changed.notify()
                return
        future.fail(ShutdownOutcomeUnknownError("raft is shut down"))

    def answer_when_applied(self, index: int, future: Future[int]) -> None:
        """Answer with an index once it is applied: from then on the FSM may be read (6.4).

        Indexes come in ascending order.
        """
        error: RaftError | None = None
        with self._changed:
            if self.restores.poison is not None:
                error = SnapshotError(f"the FSM could not be restored: {self.restores.poison}")
            elif self._stopped:
                error = ShutdownNotAppliedError("raft is shut down")
            elif not self.restores.are_done() or self._machine.position.index < index:
                self._readers.append((index, future))
                return
        if error is not None:
            future.fail(error)
        else:
            future.respond(index)

    def stop(self) -> None:
        """Let the thread end; it first applies what a caller waits for."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def abandon(self) -> None:
        """Answer everybody who still waits: the thread has ended, or user code never returns."""
        with self._changed:
            pending, self._pending = self._pending, {}
            captures, self._captures = self._captures, []
            self._fail_readers(ShutdownNotAppliedError("raft is shut down"))
            halt = self._halt
        why = f": {halt}" if halt is not None else ""
        for apply in pending.values():
            error = ShutdownOutcomeUnknownError(
                f"raft was shut down before the entry was applied here{why}"
            )
            error.__cause__ = halt
            apply.fail(error)
        for capture in captures:
            capture.fail(ShutdownOutcomeUnknownError("raft was shut down"))

    def is_current(self) -> bool:
        """Tell whether the caller is the FSM thread."""
        return self._thread is not None and self._runtime.current() is self._thread

    def pending(self) -> int:
        """Return how many committed entries are not applied yet."""
        return max(0, self._commit_index - self._machine.position.index)

    def failed_commands(self) -> int:
        """Return how many commands the FSM has answered with an exception since the start."""
        return self._machine.failed_commands

    # ---- start-up: the constructing thread ----

    def start_from(self, meta: SnapshotMeta, *, read: bool) -> None:
        """Begin at a snapshot, restored into the FSM unless it keeps its own state."""
        if read:
            self._machine.restore(meta, self._runtime)
        else:
            self._machine.move_to(meta)
        if not meta.unsettled:
            self._commit_index = meta.index
        self._state.set_applied(meta.index)

    def apply_upto(self, index: int) -> None:
        """Apply what is known to be committed; raises what halts a node.

        Should an entry be spoiled in this very moment, the rest is left to the FSM thread.
        """
        self.commit(index)
        while (before := self._machine.position.index) < index:
            self._apply_some()
            if self._machine.position.index == before:
                return

    # ---- the FSM thread ----

    def run(self, saturation: Saturation | None = None) -> None:
        """Be the FSM thread; what escapes halts the node."""
        self._thread = self._runtime.current()
        wait = self._wait if saturation is None else saturation.asleep_in(self._wait)
        try:
            while wait():
                if not self.restores.are_done():
                    self._restore_now()
                elif self._captures:
                    self._capture_now()
                else:
                    self._apply_some()
        except FSMFailedError as error:
            self._halt = self._on_halted(error)
            raise self._halt from error.__cause__
        finally:
            with self._changed:
                self._stopped = True
                self._fail_captures(ShutdownOutcomeUnknownError("raft is shut down"))
                self._fail_readers(ShutdownNotAppliedError("raft is shut down"))

    def _wait(self) -> bool:
        """Wait for something to do; False when the thread shall end."""
        with self._changed:
            while True:
                is_whole = self.restores.are_done()
                may_apply = is_whole and self._available() > self._machine.position.index
                if self._stopped:
                    # A waiting caller gets its answer if the FSM still can give it.
                    return may_apply and bool(self._pending or self._readers)
                if may_apply or (is_whole and self._captures):
                    return True
                if not is_whole:
                    self._fail_captures(SnapshotError("the FSM was not restored yet"))
                delay = self.restores.delay()
                if delay == 0.0:
                    return True
                self._changed.wait(delay)

    def _available(self) -> int:
        """Return how far may be applied: committed, and in the log.

        Law 3: a leader may commit what its own disk then fails to keep. It comes again from the
        next leader, who has it.
        """
        return min(self._commit_index, self._log.last_index())

    def _committed_here(self) -> int:
        """Return how far our log is known to be committed; 0 with a snapshot to be restored.

        That one is committed then, and not what our log holds up to there.
        """
        with self._changed:
            return self._available() if self.restores.are_done() else NO_INDEX

    def _fail_captures(self, error: RaftError) -> None:
        captures, self._captures = self._captures, []
        for capture in captures:
            capture.fail(error)

    def _fail_readers(self, error: RaftError) -> None:
        while self._readers:
            self._readers.popleft()[1].fail(error)

    def _answer_readers(self) -> None:
        """Answer who waited for what is applied now.

        Looked at under the lock: whoever has just seen the position of before is being added.
        """
        while True:
            with self._changed:
                if not self._readers or self._readers[0][0] > self._machine.position.index:
                    return
                index, future = self._readers.popleft()
            future.respond(index)

    def _restore_now(self) -> None:
        try:
            meta = self.restores.perform()
        except RAISED as error:
            self._poisoned(error)
            return
        if meta is not None:
            self._went_to(meta)

    def _went_to(self, meta: SnapshotMeta) -> None:
        """Publish that the FSM holds a snapshot; what was waited for before is swallowed by it."""
        self._state.set_applied(meta.index)
        with self._changed:
            swallowed = [index for index in self._pending if index <= meta.index]
            skipped = [self._pending.pop(index) for index in swallowed]
        for apply in skipped:
            apply.fail(LeadershipLostError("a snapshot took the place of the entry"))
        if not meta.unsettled:
            self._answer_readers()  # else what they would read may never have happened

    def _poisoned(self, error: BaseException) -> None:
        """Answer who waits for the FSM, which holds no state that counts (departure 9)."""
        self._state.set_applied(NO_INDEX)
        with self._changed:
            self._fail_readers(SnapshotError(f"the FSM could not be restored: {error}"))
            pending, self._pending = self._pending, {}
        _fail_unrestored(list(pending.values()), error)
        self._post(FSMPoisoned(error))

    def _capture_now(self) -> None:
        with self._changed:
            captures, self._captures = self._captures, []
        for future in captures:
            try:
                view = self._machine.capture()
            except BaseException as error:  # user code: merely fails this snapshot
                future.fail(error)
                if not isinstance(error, Exception):
                    raise
                continue
            if not future.respond(view):
                release_view(view.snapshot)

    def _apply_some(self) -> None:
        config = self._config
        position = self._machine.position.index
        upto = self._committed_here()
        if upto <= position:
            return
        count = min(config.max_append_entries, upto - position)
        try:
            logs = self._log.entries(position + 1, count, config.max_append_bytes)
        except LogCorruptError as error:
            self._post(
                LogCorrupted(error)
            )  # the main thread gives it up; it comes again from a leader
            with self._changed:
                self._changed.wait(_CORRUPT_PAUSE)
            return
        except LogCompactedError:
            if not self.restores.start_over():
                raise
            return
        except LogNotFoundError:
            with self._changed:
                if not self.restores.are_done():
                    return  # a leader's snapshot has just replaced these entries
            if self._available() <= position:
                return  # the tail has just been dropped
            raise
        answers = self._machine.apply(logs)
        self._state.set_applied(logs[-1].index)
        callers: list[Apply | None] = [None] * len(logs)
        if self._pending:
            with self._changed:
                callers = [self._pending.pop(log.index, None) for log in logs]
        self._answers.deliver(logs, answers, callers)
        self._answer_readers()


def _fail_unrestored(applies: Sequence[Apply], poison: BaseException) -> None:
    """Answer callers whose entries are committed and cannot be applied here for now."""
    error = LeadershipLostError(f"the FSM could not be restored: {poison!r}")
    for apply in applies:
        apply.fail(error)
