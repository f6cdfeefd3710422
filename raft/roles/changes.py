"""Membership changes of one leadership: one at a time (§4.1), and catching up first (4.2.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from raft.codec import encode_configuration
from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.inbox import Apply, ChangeConfiguration, ChangeKind
from raft.engine.membership import next_configuration
from raft.errors import (
    CatchUpError,
    EnqueueTimeoutError,
    RaftError,
    ShutdownOutcomeUnknownError,
)
from raft.futures import IndexFuture
from raft.roles.peers import Peers
from raft.runtime import Deadline
from raft.types import NO_INDEX, LogType, ServerID

_MOST_ROUNDS = 10  # of catching up, each longer than an election timeout; then it is given up
_SILENCE = 10.0  # election timeouts without an answer after which catching up is given up


@dataclass(slots=True)
class _CatchUp:
    """A server that entered as a non-voter and is to be promoted (thesis 4.2.1)."""

    message: ChangeConfiguration
    began: float  # of the current round
    goal: int  # of the current round: what was there when it began
    rounds: int = 1


class Changes:
    """What was asked for, in order, and the servers that catch up. Main thread only.

    `dispatch` appends an entry and returns its index. Invariant: a change is appended only while
    `may_change` says that the one before it is committed, and an entry of this leadership, too.
    """

    def __init__(
        self,
        core: Core,
        commitment: Commitment,
        peers: Peers,
        dispatch: Callable[[Apply], int],
        may_change: Callable[[], bool],
    ) -> None:
        self._core = core
        self._commitment = commitment
        self._peers = peers
        self._dispatch = dispatch
        self._may_change = may_change
        self._queue: deque[ChangeConfiguration] = deque()
        self._catching_up: dict[ServerID, _CatchUp] = {}
        self._promotions: deque[ChangeConfiguration] = deque()  # of who has caught up; go first

    def add(self, message: ChangeConfiguration) -> None:
        """Queue a change; it is made when the configuration is stable."""
        self._queue.append(message)
        self.advance(fresh=message)

    def advance(self, fresh: ChangeConfiguration | None = None) -> None:
        """Make the next changes, as far as the one before is committed.

        One that need not wait is made whatever its deadline: 0 seconds say not to wait.
        """
        while (self._promotions or self._queue) and self._may_change():
            message = self._next()
            if message is not fresh and message.deadline.is_over():
                message.fail(EnqueueTimeoutError("timed out waiting for a stable configuration"))
                continue
            try:
                self._begin(message)
            except Exception as error:
                # The node halts, perhaps on behalf of another message: this one is in no queue.
                message.fail(ShutdownOutcomeUnknownError(f"the node failed on this: {error!r}"))
                raise

    def _next(self) -> ChangeConfiguration:
        """Take the next change out; who is promoted stays where it has moved to meanwhile."""
        if not self._promotions:
            return self._queue.popleft()
        message = self._promotions.popleft()
        server = self._core.membership.latest.server(message.server_id)
        return message if server is None else replace(message, address=server.address)

    def expire(self) -> None:
        """Give up what waited for too long."""
        for message in [m for m in self._queue if m.deadline.is_over()]:
            self._queue.remove(message)
            message.fail(EnqueueTimeoutError("timed out waiting for a stable configuration"))
        silence = self._core.config.election_timeout * _SILENCE
        heard = self._peers.last_contacts()
        now = self._core.runtime.monotonic()
        for server_id, entry in list(self._catching_up.items()):
            if entry.message.deadline.is_over():
                self._give_up(server_id, "did not catch up in time")
            elif now - max(heard.get(server_id, now), entry.began) > silence:
                self._give_up(server_id, "does not answer")

    def moments(self) -> list[float]:
        """Return when `expire` has something to do, as far as that is known."""
        waiting = [*self._queue, *(entry.message for entry in self._catching_up.values())]
        return [m.deadline.at for m in waiting if m.deadline.at is not None]

    def refuse_all(self, error: RaftError) -> None:
        """Answer everything that is only queued; servers go on catching up."""
        while self._queue:
            self._queue.popleft().fail(error)

    def abandon(self, refusal: RaftError, loss: RaftError) -> None:
        """Answer everything: leadership is over. A server that was catching up is a non-voter."""
        self.refuse_all(refusal)
        while self._promotions:
            self._promotions.popleft().fail(loss)
        for entry in self._catching_up.values():
            entry.message.fail(loss)
        self._catching_up.clear()

    # ---- making one ----

    def _begin(self, message: ChangeConfiguration) -> None:
        if message.catch_up and not self._core.membership.latest.has_vote(message.server_id):
            self._begin_catch_up(message)
        else:
            self._make(message)

    def _make(self, message: ChangeConfiguration) -> bool:
        """Append the configuration after a change; False when it was refused."""
        core = self._core
        members = core.membership
        try:
            configuration = next_configuration(
                members.latest,
                members.latest_index,
                message.kind,
                message.server_id,
                message.address,
                message.prev_index,
            )
        except RaftError as error:
            message.fail(error)
            return False
        data = encode_configuration(configuration)
        # In force as soon as it is appended (§4.1), so the disk may not report the entry earlier:
        # it commits by the majority it makes itself, not by the one before.
        self._commitment.set_configuration(configuration)
        pin = self._peers.voters.pin(message.server_id, configuration)
        index = self._dispatch(Apply(LogType.CONFIGURATION, data, pin, message.future))
        members.append_own(index, configuration)
        core.publish_log()
        self._peers.follow(configuration)
        for server_id in [i for i in self._catching_up if configuration.server(i) is None]:
            self._catching_up.pop(server_id).message.fail(
                CatchUpError(f"{server_id} was removed while it caught up")
            )
        core.log.info(
            "updating configuration command=%s server=%s servers=%s",
            message.kind.value,
            message.server_id,
            configuration,
        )
        return True

    # ---- catching up ----

    def _begin_catch_up(self, message: ChangeConfiguration) -> None:
        """Let a server in without a vote; it gets one when it has what the others have."""
        if message.server_id in self._catching_up:
            message.fail(CatchUpError(f"{message.server_id} is catching up already"))
            return
        entering = replace(message, kind=ChangeKind.ADD_NONVOTER, future=IndexFuture())
        if not self._make(entering):
            message.fail(entering.future.error(0) or CatchUpError("refused"))
            return
        now = self._core.runtime.monotonic()
        goal = self._core.raft_log.last_index()
        self._catching_up[message.server_id] = _CatchUp(message, now, goal)
        self._watch(message.server_id, goal)

    def _watch(self, server_id: ServerID, goal: int) -> None:
        self._commitment.watch(server_id, goal)
        self._peers.kick()

    def reached(self, server_id: ServerID, index: int) -> None:
        """End a round. A short one shows that the server keeps up: it may vote now."""
        entry = self._catching_up.get(server_id)
        if entry is None or index < entry.goal:
            return
        now = self._core.runtime.monotonic()
        if now - entry.began <= self._core.config.election_timeout:
            del self._catching_up[server_id]
            # `prev_index` and the deadline were for letting it in.
            promotion = replace(
                entry.message,
                prev_index=NO_INDEX,
                deadline=Deadline(self._core.runtime, None),
                catch_up=False,
            )
            self._promotions.append(promotion)
            self.advance()
        elif entry.rounds == _MOST_ROUNDS:
            self._give_up(server_id, "is too slow to catch up")
        else:
            entry.rounds += 1
            entry.began = now
            entry.goal = self._core.raft_log.last_index()
            self._watch(server_id, entry.goal)

    def _give_up(self, server_id: ServerID, reason: str) -> None:
        entry = self._catching_up.pop(server_id)
        last_error = self._peers.last_error(server_id) or "none"
        entry.message.fail(
            CatchUpError(
                f"{server_id} {reason} (last error: {last_error}): it got no vote, and stays as a"
                " non-voter. Add it again once that is mended, or remove it"
            )
        )
