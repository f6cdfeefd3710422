"""The candidate's loop: asks whether it could win (9.6), then for votes (§5.2).

A lost round starts the next one in place, until somebody wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from raft.engine.core import Core
from raft.engine.inbox import ConfigReloaded, VoteReceived
from raft.engine.incarnations import Verdict
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.request_vote import may_campaign
from raft.engine.state import HardState
from raft.errors import (
    NoThreadError,
    RaftError,
    RemoteError,
    StorageFailedError,
    describe_error,
)
from raft.interfaces import WithPreVote
from raft.messages import RequestPreVoteRequest, RequestVoteRequest
from raft.metrics import count, measure
from raft.roles.base import Role
from raft.runtime import Deadline, random_timeout
from raft.types import RaftState, Server, ServerID

_UNKNOWN_COMMAND = "unexpected command"  # how the original refuses RPCs that it does not know


@dataclass(slots=True)
class Tally:
    """The votes of one round."""

    needed: int
    granted: set[ServerID] = field(default_factory=set)

    def add(self, server_id: ServerID) -> bool:
        """Count a vote, each server's once; tell whether a majority is reached."""
        self.granted.add(server_id)
        return len(self.granted) >= self.needed


class Candidate(Role):
    """One candidacy; late answers of other rounds, of whatever candidacy, do not count."""

    role = RaftState.CANDIDATE

    def __init__(self, core: Core, snapshots: SnapshotReceiver) -> None:
        super().__init__(core, snapshots)
        self.round = 0
        self.is_pre_vote = False
        self.campaign_term = 0
        self.tally = Tally(needed=0)
        self.reasons: dict[ServerID, str] = {}  # of the round, why there is no vote
        self.handlers[VoteReceived] = self.on_vote

    def enter(self) -> None:
        """Start the first round; only this one may be privileged by a transfer."""
        self._start_round()

    def leave(self) -> None:
        """A transfer's privilege ends with the candidacy."""
        self.core.transfer_candidacy = False

    def on_deadline(self) -> None:
        """Start the next round: nobody won this one in time."""
        self.core.elections.lost(
            self.core.membership.latest,
            self.tally.granted,
            self.reasons,
            is_warned_of=self._has_vote(),
        )
        self.core.transfer_candidacy = False
        self._start_round()

    def on_reload(self, message: ConfigReloaded) -> None:
        """Give this round the new timeout, from now on."""
        self._arm()

    def _arm(self) -> float:
        """Draw how long this round may take, and return it."""
        timeout = random_timeout(self.core.runtime, self.core.config.election_timeout)
        self.deadline = self.core.runtime.monotonic() + timeout
        return timeout

    def _start_round(self) -> None:
        core = self.core
        if not may_campaign(core) or not core.membership.may_lead(core.local_id):
            core.become(RaftState.FOLLOWER)
            return
        count(core.metrics, "raft.state.candidate")
        # Whose removal may be committed, for all it knows, runs its term up for nobody's sake.
        wants_to_ask = not core.config.pre_vote_disabled or not self._has_vote()
        may_ask = isinstance(core.transport, WithPreVote) and wants_to_ask
        if may_ask and not core.transfer_candidacy:
            self._ask(is_pre_vote=True)
        else:
            self._start_election()

    def _start_election(self) -> None:
        """Enter the next term with a vote for ourselves: one durable record, before any request."""
        core = self.core
        term = core.hard_state.term + 1
        try:
            core.save_hard_state(HardState(term, core.local_id, core.header.address))
        except StorageFailedError as error:
            core.log.error("cannot campaign error=%s", error)
            core.become(RaftState.FOLLOWER)
            return
        self._ask(is_pre_vote=False)

    def _ask(self, *, is_pre_vote: bool) -> None:
        """Send the requests of a round to all other voters, and count our own vote, if we have one.

        The latest configuration counts, committed or not (§4.1), and may have us no more.
        """
        core = self.core
        core.elections.rounds += 1
        self.round = core.elections.rounds
        self.is_pre_vote = is_pre_vote
        self.campaign_term = core.hard_state.term + (1 if is_pre_vote else 0)
        self.tally = Tally(core.membership.latest.quorum())
        self.reasons = {}
        timeout = self._arm()
        last = core.raft_log.last()
        for server in core.membership.latest.voters():
            if server.id == core.local_id:
                continue
            if is_pre_vote:
                request: RequestPreVoteRequest | RequestVoteRequest = RequestPreVoteRequest(
                    core.header, self.campaign_term, last.index, last.term
                )
            else:
                request = RequestVoteRequest(
                    core.header, self.campaign_term, last.index, last.term, core.transfer_candidacy
                )
            Ballot(core, self.round, server, request, Deadline(core.runtime, timeout)).send()
        if self._has_vote():
            self._count(core.local_id)

    def _has_vote(self) -> bool:
        return self.core.membership.latest.has_vote(self.core.local_id)

    def on_vote(self, vote: VoteReceived) -> None:
        """Count an answer of this round; a newer term ends the candidacy (§5.1)."""
        core = self.core
        if vote.round != self.round:
            return
        if vote.term > self.campaign_term:
            core.log.info("newer term discovered, falling back to follower newer=%d", vote.term)
            core.become_follower(vote.term)
        elif not vote.granted:
            self.reasons[vote.server_id] = vote.reason or "refused"
        elif self._may_count(vote):
            self._count(vote.server_id)

    def _may_count(self, vote: VoteReceived) -> bool:
        """Tell whether a vote counts; that a voter is counted on is noted durably first.

        A pre-vote decides nothing, so nothing is noted by it (departure 21).
        """
        core, noted = self.core, self.core.incarnations
        verdict = noted.verdict(vote.server_id, vote.incarnation)
        if verdict is Verdict.ANOTHER:
            noted.report(vote.server_id, vote.incarnation)
            self.reasons[vote.server_id] = "another data directory than before"
            return False
        if verdict is Verdict.NEW and not vote.pre_vote:
            core.write("incarnation", noted.plan(vote.server_id, vote.incarnation))
        return True

    def _count(self, server_id: ServerID) -> None:
        core = self.core
        if not self.tally.add(server_id):
            return
        if not may_campaign(core):
            # Its FSM could not be restored since the round began, say: it could answer nobody.
            core.log.warning("not fit any more, giving up the election")
            core.become(RaftState.FOLLOWER)
        elif self.is_pre_vote:
            core.log.info("pre-vote successful, starting election")
            self._start_election()
        else:
            core.log.info("election won votes=%d", len(self.tally.granted))
            core.become(RaftState.LEADER)
            core.set_leader(core.local_id, core.header.address)


class Vote(NamedTuple):
    """What a voter has answered, or what its answer counts as."""

    term: int
    granted: bool
    incarnation: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One request to one voter, on a thread that ends with its answer, or with the round."""

    core: Core
    round: int
    server: Server
    request: RequestVoteRequest | RequestPreVoteRequest
    deadline: Deadline

    def send(self) -> None:
        """Ask; the answer comes as a message. No retry within a round."""
        try:
            self.core.threads.spawn(f"vote-{self.server.id}", self._run)
        except NoThreadError as error:
            self._report(Vote(self.request.term, granted=False, reason=str(error)))
            if self.core.threads.complaints.admits():
                self.core.log.warning("vote not asked for peer=%s error=%s", self.server.id, error)

    def _run(self) -> None:
        try:
            vote = self._call()
        except RemoteError as error:
            # A peer that knows no pre-vote cannot object to one.
            is_pre_vote = isinstance(self.request, RequestPreVoteRequest)
            is_granted = is_pre_vote and _UNKNOWN_COMMAND in str(error)
            vote = Vote(self.request.term, is_granted, reason=str(error))
        except (RaftError, OSError) as error:
            self.core.log.debug("vote request failed peer=%s error=%s", self.server.id, error)
            vote = Vote(self.request.term, granted=False, reason=describe_error(error))
        self._report(vote)

    def _report(self, vote: Vote) -> None:
        is_pre_vote = isinstance(self.request, RequestPreVoteRequest)
        self.core.inbox.post(VoteReceived(self.round, self.server.id, is_pre_vote, *vote))

    def _call(self) -> Vote:
        transport, server = self.core.transport, self.server
        timeout = self.deadline.remaining()
        metrics = self.core.metrics
        if isinstance(self.request, RequestVoteRequest):
            with measure(metrics, "raft.candidate.electSelf"):
                vote = transport.request_vote(server.id, server.address, self.request, timeout)
            return Vote(vote.term, vote.granted, vote.header.incarnation, vote.reason)
        if isinstance(transport, WithPreVote):
            with measure(metrics, "raft.candidate.preElectSelf"):
                asked = transport.request_pre_vote(server.id, server.address, self.request, timeout)
            return Vote(asked.term, asked.granted, asked.header.incarnation, asked.reason)
        return Vote(self.request.term, granted=True)


def run_candidate(core: Core, snapshots: SnapshotReceiver) -> None:
    """Campaign until somebody leads or the node stops."""
    Candidate(core, snapshots).run()
