"""The receivers of RequestVote, RequestPreVote and TimeoutNow (§5.2, §5.4.1; thesis 3.10, 9.6)."""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.incarnations import Verdict
from raft.engine.state import HardState
from raft.errors import NotLeaderError
from raft.messages import (
    RPC,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.types import EMPTY_CONFIGURATION, EntryID, RaftState


def receive_request_vote(core: Core, rpc: RPC, request: RequestVoteRequest) -> None:
    """Answer a vote request; a vote is durable before it is given."""
    core.emit(request)
    reason = _refusal_before_term(core, request.header, is_transfer=request.leadership_transfer)
    if reason is None and request.term < core.state.term:
        reason = "older term"
    if reason is None:
        reason = (
            _refusal_of_suffrage(core, request.header)
            or _refusal_of_vote(core, request.header, request.term)
            or _refusal_of_log(core, request.last_log_term, request.last_log_index)
        )
        if request.term > core.state.term:
            # A new term and the vote in it are one record, and one write.
            core.become_follower(request.term, request.header if reason is None else None)
    if reason is not None:
        core.log.info("vote refused candidate=%s reason=%s", request.header.id, reason)
        rpc.respond(RequestVoteResponse(core.header, core.state.term, reason=reason))
        return
    if core.hard_state.voted_for != request.header.id:
        core.save_hard_state(HardState(request.term, request.header.id, request.header.address))
    core.state.touch(core.runtime.monotonic())
    core.log.info("vote granted candidate=%s", request.header.id)
    rpc.respond(RequestVoteResponse(core.header, core.state.term, granted=True))


def receive_request_pre_vote(core: Core, rpc: RPC, request: RequestPreVoteRequest) -> None:
    """Answer whether a vote could be won; changes nothing, and counts as no contact."""
    core.emit(request)
    reason = _refusal_before_term(core, request.header, is_transfer=False)
    if reason is None and request.term < core.state.term:
        reason = "older term"
    if reason is None:
        reason = _refusal_of_suffrage(core, request.header) or _refusal_of_log(
            core, request.last_log_term, request.last_log_index
        )
    if reason is not None:
        core.log.debug("pre-vote refused candidate=%s reason=%s", request.header.id, reason)
        rpc.respond(RequestPreVoteResponse(core.header, core.state.term, reason=reason))
        return
    term = max(request.term, core.state.term)
    rpc.respond(RequestPreVoteResponse(core.header, term, granted=True))


def receive_timeout_now(core: Core, rpc: RPC, request: TimeoutNowRequest) -> None:
    """Campaign at once because the leader asks to (3.10); refused by who could not lead."""
    if not core.membership.latest.has_vote(core.local_id) or not may_campaign(core):
        rpc.respond(
            None, NotLeaderError(f"{core.local_id} cannot campaign: it is no voter or not fit")
        )
        return
    core.log.info("asked to campaign by=%s", request.header.id)
    core.transfer_candidacy = True
    core.set_leader("", "")
    core.become(RaftState.CANDIDATE)
    rpc.respond(TimeoutNowResponse(core.header))


def may_campaign(core: Core) -> bool:
    """Tell whether this node is fit to lead: its disk works, its log and its FSM are whole."""
    is_sound = core.fault is None and core.disk.is_fit() and core.damage.is_whole()
    return is_sound and core.fsm.restores.poison is None


def is_up_to_date(own: EntryID, candidate: EntryID) -> bool:
    """The election restriction (§5.4.1): does the candidate's log end no earlier than ours?

    Logs are ordered by the term of their last entry, then by their length.
    """
    return candidate >= own


def _refusal_before_term(core: Core, candidate: RPCHeader, *, is_transfer: bool) -> str | None:
    """Return why a request is refused without so much as looking at its term."""
    if not candidate.id:
        return "candidate names no id"  # nor could its vote be written down
    members = core.membership
    # One that is not committed may be of a leader whose entries are truncated yet (4.1).
    known = members.latest.server(candidate.id) or members.committed.server(candidate.id)
    if members.latest != EMPTY_CONFIGURATION and known is None:
        return "not in configuration"
    if core.incarnations.verdict(candidate.id, candidate.incarnation) is Verdict.ANOTHER:
        core.incarnations.report(candidate.id, candidate.incarnation)
        return "candidate has another data directory than before"  # departure 21
    if core.fault is not None or not core.disk.is_fit():
        return "disk is not fit"
    if not core.damage.is_whole():
        return "log is damaged"  # it may lack what it has acknowledged (departure 16)
    # A known leader is not disturbed (thesis 4.2.3); its own request shows it leads no more (H15).
    _, leader_id = core.state.leader()
    if leader_id and candidate.id != leader_id and not is_transfer:
        return f"leader {leader_id} is known"
    return None


def _refusal_of_suffrage(core: Core, candidate: RPCHeader) -> str | None:
    members = core.membership
    if members.latest != EMPTY_CONFIGURATION and not members.may_lead(candidate.id):
        return "no voter"
    return None


def _refusal_of_vote(core: Core, candidate: RPCHeader, term: int) -> str | None:
    """One vote a term (§5.2): the record belongs to the current term, or is empty."""
    voted_for = core.hard_state.voted_for if term == core.hard_state.term else ""
    if voted_for and voted_for != candidate.id:
        return f"voted for {voted_for} in this term"
    return None


def _refusal_of_log(core: Core, last_log_term: int, last_log_index: int) -> str | None:
    own, last = core.raft_log.last(), EntryID(last_log_term, last_log_index)
    if not is_up_to_date(own, last):
        return f"log ends earlier than ours at term {own.term} index {own.index}"
    return core.told.refusal(last)
