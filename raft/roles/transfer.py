"""Handing leadership over (thesis 3.10): bring the target up to date, then have it campaign.

The leader takes no new entries meanwhile, so that the target can catch up. It leads on if the
target does not take over in time: at the latest after twice `election_timeout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.inbox import TransferAnswered, TransferLeadership
from raft.errors import (
    LeadershipLostError,
    LeadershipTransferError,
    LeadershipTransferInProgressError,
    NoThreadError,
    RaftError,
)
from raft.futures import Future
from raft.messages import TimeoutNowRequest
from raft.roles.peers import Peers
from raft.types import Configuration, Server, ServerID


def pick_target(
    configuration: Configuration, local_id: ServerID, next_indexes: Mapping[ServerID, int]
) -> Server | None:
    """Return the other voter that needs the fewest entries, the first of equals; None for none."""
    others = [
        server
        for server in configuration.voters()
        if server.id != local_id and server.id in next_indexes
    ]
    return max(others, key=lambda server: next_indexes[server.id], default=None)


def choose_target(
    message: TransferLeadership,
    configuration: Configuration,
    local_id: ServerID,
    next_indexes: Mapping[ServerID, int],
) -> Server:
    """Return the server to hand over to; raises `LeadershipTransferError` if there is none."""
    if message.server_id == local_id:
        raise LeadershipTransferError("cannot transfer leadership to itself")
    if not message.server_id:
        target = pick_target(configuration, local_id, next_indexes)
        if target is None:
            raise LeadershipTransferError("cannot find peer: there is no other voter")
        return target
    known = configuration.server(message.server_id)
    if known is None or known.id not in next_indexes:
        raise LeadershipTransferError(
            f"cannot find replication state for {message.server_id}: it is no member"
        )
    if not configuration.has_vote(known.id):
        raise LeadershipTransferError(f"{known.id} has no vote, so it cannot lead")
    return Server(known.id, message.address)


class _Phase(Enum):
    CATCHING_UP = "the target does not have the whole log yet"
    ASKING = "TimeoutNow is on its way"
    WAITING = "the target campaigns"


@dataclass(slots=True)
class _Transfer:
    """The transfer under way; a late answer of an earlier one knows another object."""

    message: TransferLeadership
    target: Server
    last_index: int  # that the target needs
    deadline: float
    phase: _Phase = _Phase.CATCHING_UP


class Transfers:
    """The transfers of one leadership, one at a time. Main thread only, but for the call itself.

    Invariant: a caller is answered when its transfer ends, and the next begins only then.
    """

    def __init__(self, core: Core, term: int, commitment: Commitment, peers: Peers) -> None:
        self._core = core
        self._term = term
        self._commitment = commitment
        self._peers = peers
        self._current: _Transfer | None = None

    @property
    def deadline(self) -> float | None:
        """When the transfer under way is given up; None for none."""
        return None if self._current is None else self._current.deadline

    def refusal(self) -> LeadershipTransferInProgressError | None:
        """Return what new entries are refused with while leadership is being handed over."""
        if self._current is None:
            return None
        return LeadershipTransferInProgressError("leadership transfer in progress")

    def begin(self, message: TransferLeadership) -> None:
        """Bring a target up to date; raises `LeadershipTransferError` when there is none."""
        core = self._core
        target = choose_target(
            message, core.membership.latest, core.local_id, self._peers.next_indexes()
        )
        last_index = core.raft_log.last_index()
        self._current = _Transfer(message, target, last_index, self._in_time())
        self._commitment.watch(target.id, last_index)
        self._peers.kick()
        core.log.info("starting leadership transfer target=%s", target.id)

    def hand_over(self, reason: str) -> None:
        """Have somebody else lead for a reason of this server's own, if there is anybody."""
        log = self._core.log
        is_alone = not self._core.membership.latest.has_other_voter(self._core.local_id)
        if is_alone or self._current is not None:
            return
        try:
            self.begin(TransferLeadership("", "", Future()))
        except LeadershipTransferError as error:
            log.warning("%s, and nobody can lead instead error=%s", reason, error)
        else:
            log.warning("%s, handing leadership over", reason)

    def _in_time(self) -> float:
        return self._core.runtime.monotonic() + self._core.config.election_timeout

    def reached(self, server_id: ServerID, index: int) -> None:
        """Tell the target, if that is who has the whole log now, to campaign at once."""
        current = self._current
        if (
            current is not None
            and current.phase is _Phase.CATCHING_UP
            and current.target.id == server_id
            and index >= current.last_index
        ):
            current.phase = _Phase.ASKING
            try:
                self._core.threads.spawn(f"transfer-{server_id}", lambda: self._call(current))
            except NoThreadError as error:
                self._core.inbox.post(TransferAnswered(self._term, current, error))

    def _call(self, transfer: _Transfer) -> None:
        core, target = self._core, transfer.target
        error: Exception | None = None
        try:
            core.transport.timeout_now(
                target.id,
                target.address,
                TimeoutNowRequest(core.header),
                core.config.election_timeout,
            )
        except (RaftError, OSError) as exc:
            error = exc
        core.inbox.post(TransferAnswered(self._term, transfer, error))

    def answered(self, answer: TransferAnswered) -> None:
        """The target campaigns now, and will depose us; or it could not be asked."""
        current = self._current
        if current is None or answer.transfer is not current:
            return
        if answer.error is not None:
            target = current.target
            self._fail(
                f"failed to make TimeoutNow RPC to {target.id} at {target.address}: {answer.error}"
            )
        else:
            current.phase = _Phase.WAITING
            current.deadline = self._in_time()

    def expire(self, now: float) -> None:
        """Lead on if the target has not taken over in time."""
        current = self._current
        if current is not None and now >= current.deadline:
            self._fail(f"leadership transfer timeout: {current.phase.value}")

    def _fail(self, reason: str) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.message.fail(LeadershipTransferError(reason))
        self._core.log.warning("leadership transfer failed reason=%s", reason)

    def leave(self, loss: RaftError) -> None:
        """Answer the caller: this node leads no longer, by the transfer or by a `loss` of its own.

        That the target was asked is why, unless the loss has another name.
        """
        current, self._current = self._current, None
        if current is None:
            return
        if current.phase is not _Phase.CATCHING_UP and isinstance(loss, LeadershipLostError):
            current.message.future.respond(None)
        else:
            current.message.fail(loss)
