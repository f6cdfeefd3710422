import pytest

from raft.engine.inbox import ConfigReloaded, FSMPoisoned, LogCorrupted, VoteReceived
from raft.engine.state import HardState
from raft.errors import LogCorruptError, PeerUnreachableError, RemoteError, RPCTimeoutError
from raft.messages import (
    AppendEntriesRequest,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
)
from raft.roles.candidate import Candidate, Tally
from raft.roles.follower import Follower
from raft.testing.script import (
    DEADLINE,
    Asked,
    Pause,
    ScriptedNode,
    ScriptedTransport,
    entries,
    header,
    servers,
)
from raft.types import RaftState

TERM = 4  # of the node, before it campaigns
FIVE = servers("n1", "n2", "n3", "n4", "n5")


def node_with(pre_vote=False, **more):
    more.setdefault("hard_state", HardState(TERM))
    return ScriptedNode(
        log=entries(2, terms=(1, 2)), config={"pre_vote_disabled": not pre_vote}, **more
    )


def answers(node, kind=RequestVoteRequest, **results):
    """A step that answers open requests: peer=granted, or an error or a response itself."""

    def step():
        node.runtime.run()
        for call in node.transport.open_calls(kind):
            if call.server_id not in results:
                continue
            result = results[call.server_id]
            if isinstance(result, bool):
                answer = (
                    RequestVoteResponse if kind is RequestVoteRequest else RequestPreVoteResponse
                )
                result = answer(header(call.server_id), call.request.term, result)
            call.answer(result)
        node.runtime.run()

    return step


def pre(node, **results):
    return answers(node, RequestPreVoteRequest, **results)


def requests(node, kind):
    return [(c.server_id, c.request) for c in node.transport.calls if isinstance(c.request, kind)]


# ---- winning and losing (5.2) ----


@pytest.mark.parametrize(
    ("configuration", "granted", "wins"),
    [
        (servers("n1"), {}, True),
        (servers("n1", "n2", "n3"), {"n2": True, "n3": True}, True),
        (servers("n1", "n2", "n3"), {"n2": True}, True),
        (FIVE, {"n2": True, "n3": True, "n4": True, "n5": True}, True),
        (FIVE, {"n2": True, "n3": True, "n4": True}, True),
        (FIVE, {"n2": True, "n3": True}, True),
        (servers("n1", "n2", "n3"), {"n2": False, "n3": False}, False),
        (FIVE, {"n2": False, "n3": False, "n4": False, "n5": False}, False),
        (FIVE, {"n2": True, "n3": False, "n4": False, "n5": False}, False),
        (servers("n1", "n2", "n3"), {}, False),
        (FIVE, {}, False),
        (servers("n1", "n2", "n3", "n4"), {"n2": True}, False),
        (FIVE, {"n2": True}, False),
        (FIVE, {"n2": False, "n3": False}, False),
    ],
)
def test_a_majority_of_votes_wins(configuration, granted, wins):
    """PAP-09, PAP-10, PAP-11, ETC-01, ETC-13: section 5.2; refused by longer logs, too."""
    node = node_with(configuration=configuration)

    node.play(Candidate, answers(node, **granted))

    assert node.core.state.role is (RaftState.LEADER if wins else RaftState.CANDIDATE)
    assert node.core.state.term == TERM + 1


def test_the_winner_is_the_known_leader():
    node = node_with()

    node.play(Candidate, answers(node, n2=True))

    assert node.core.state.leader() == ("n1:1", "n1")


def test_votes_are_asked_of_all_other_voters_with_the_end_of_the_own_log():
    """PAP-27: section 5.4.1"""
    node = node_with(configuration=servers("n1", "n2", "n3", nonvoters=["n4"]))

    node.play(Candidate)
    node.runtime.run()

    expected = RequestVoteRequest(node.core.header, TERM + 1, 3, 2)
    assert requests(node, RequestVoteRequest) == [("n2", expected), ("n3", expected)]


def test_nonvoters_do_not_count_for_the_majority():
    node = node_with(configuration=servers("n1", "n2", "n3", nonvoters=["n4", "n5"]))

    node.play(Candidate, answers(node, n2=True))

    assert node.core.state.role is RaftState.LEADER


def test_the_own_vote_is_in_the_record_of_the_new_term_before_any_request_leaves():
    """PAP-07, departure 2: section 5.2"""
    node = node_with()
    door = node.runtime.event()
    node.store.before_write = lambda _: door.wait()
    node.start(Candidate)

    assert node.transport.calls == []
    door.set()
    node.runtime.run()

    assert node.store.writes == ["set HardState"]
    assert HardState.load(node.store) == HardState(TERM + 1, "n1", "n1:1")
    assert len(node.transport.calls) == 2


def test_a_vote_of_the_same_server_counts_once():
    """Section 5.2"""
    node = node_with(configuration=FIVE)
    again = VoteReceived(1, "n2", False, TERM + 1, True)

    node.play(Candidate, again, again, again)

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_tally_reaches_its_majority_once_it_has_it():
    tally = Tally(needed=2)

    assert [tally.add("a"), tally.add("a"), tally.add("b")] == [False, False, True]


def test_a_round_that_nobody_wins_in_time_is_followed_by_the_next_in_a_new_term():
    """PAP-08: section 5.2"""
    node = node_with()

    candidate = node.play(Candidate, DEADLINE)
    node.runtime.run()

    assert (candidate.round, node.core.state.term) == (2, TERM + 2)
    assert HardState.load(node.store) == HardState(TERM + 2, "n1", "n1:1")
    assert [r.term for _, r in requests(node, RequestVoteRequest)] == [
        TERM + 1,
        TERM + 1,
        TERM + 2,
        TERM + 2,
    ]


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_a_round_takes_one_to_two_election_timeouts(chance):
    """Section 5.2"""
    node = node_with()
    node.runtime.chance = chance
    began = node.runtime.now

    node.play(Candidate)

    assert node.core.inbox.untils == [pytest.approx(began + 0.1 * (1 + chance))]


def test_a_vote_counts_until_its_round_is_over():
    """A voter's disk may take longer than the shortest round."""
    node = node_with()
    node.runtime.chance = 0.9
    began = node.runtime.now

    node.play(Candidate, Pause(0.18), answers(node, n2=True))

    assert node.core.state.role is RaftState.LEADER
    assert node.runtime.now == pytest.approx(began + 0.18)


def test_votes_of_a_lost_round_do_not_count_in_the_next():
    node = node_with(configuration=FIVE)

    node.play(
        Candidate,
        DEADLINE,
        VoteReceived(1, "n2", False, TERM + 1, True),
        VoteReceived(1, "n3", False, TERM + 1, True),
    )

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_refusal_from_a_newer_term_ends_the_candidacy():
    """Section 5.1"""
    node = node_with()

    node.play(Candidate, answers(node, n2=RequestVoteResponse(header("n2"), TERM + 7)))

    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, TERM + 7)
    assert HardState.load(node.store) == HardState(TERM + 7)


def test_peers_that_cannot_be_reached_neither_grant_nor_end_anything():
    node = node_with(configuration=FIVE)

    node.play(Candidate, answers(node, n2=PeerUnreachableError("down"), n3=OSError("x"), n4=True))

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_vote_that_no_thread_can_ask_for_is_one_not_granted():
    """A limit of a container that is reached for a moment is no reason to halt."""
    node = node_with(configuration=servers("n1", "n2", "n3"))
    node.runtime.no_thread_for = "vote-n2"

    node.play(Candidate, answers(node, n3=True))

    assert node.core.state.role is RaftState.LEADER
    assert [server_id for server_id, _ in requests(node, RequestVoteRequest)] == ["n3"]


# ---- pre-vote (9.6) ----


def test_a_pre_vote_comes_first_and_changes_nothing():
    """PRE, ETC-02: section 9.6"""
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=False, n3=False), DEADLINE)

    assert (node.core.state.term, node.store.writes) == (TERM, [])
    assert requests(node, RequestVoteRequest) == []
    assert requests(node, RequestPreVoteRequest)[0] == (
        "n2",
        RequestPreVoteRequest(node.core.header, TERM + 1, 3, 2),
    )


def test_a_pre_vote_won_starts_the_election():
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=True), answers(node, n3=True))

    assert (node.core.state.role, node.core.state.term) == (RaftState.LEADER, TERM + 1)


def test_a_pre_vote_that_arrives_late_is_not_counted_as_a_vote():
    """ETC-19"""
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=True), VoteReceived(1, "n3", True, TERM + 1, True))

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_pre_vote_refused_from_a_newer_term_brings_it():
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=RequestPreVoteResponse(header("n2"), TERM + 5)))

    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, TERM + 5)


def test_a_peer_that_knows_no_pre_vote_does_not_object():
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=RemoteError("unexpected command")))

    assert requests(node, RequestVoteRequest) != []


@pytest.mark.parametrize("error", [RemoteError("disk on fire"), PeerUnreachableError("down")])
def test_any_other_error_is_no_pre_vote(error):
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=error, n3=error))

    assert requests(node, RequestVoteRequest) == []


def test_who_knows_no_pre_vote_has_not_voted():
    node = node_with()

    node.play(Candidate, answers(node, n2=RemoteError("unexpected command")))

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_transport_without_pre_votes_campaigns_at_once():
    class Older(ScriptedTransport):
        request_pre_vote = None

    node = node_with(pre_vote=True)
    node = ScriptedNode(
        hard_state=HardState(TERM), runtime=node.runtime, transport=Older(node.runtime, "n1:1")
    )

    node.play(Candidate, answers(node, n2=True))

    assert node.core.state.role is RaftState.LEADER


def test_votes_that_were_split_are_followed_by_a_round_that_elects():
    """ETC-21: both that are left win their pre-vote, and each votes for itself."""
    node = node_with(pre_vote=True)

    node.play(Candidate, pre(node, n2=True), answers(node, n2=False), DEADLINE)
    assert (node.core.state.role, node.core.state.term) == (RaftState.CANDIDATE, TERM + 1)
    node.play(Candidate, pre(node, n2=True), answers(node, n2=True))

    assert (node.core.state.role, node.core.state.term) == (RaftState.LEADER, TERM + 2)


def test_a_follower_whose_timer_fired_too_early_comes_back_and_disturbs_nobody():
    """ETC-37: heartbeats were late; the others know the leader and refuse the pre-vote."""
    node = node_with(pre_vote=True)
    late = Asked(AppendEntriesRequest(header("n2"), TERM))

    node.play(Candidate, pre(node, n2=False, n3=False), late)

    assert late.response.success
    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, TERM)
    assert node.store.writes == []


# ---- transfer (3.10) ----


def test_a_transfer_skips_the_pre_vote_and_says_so():
    """Section 3.10"""
    node = node_with(pre_vote=True)
    node.core.transfer_candidacy = True

    node.play(Candidate)
    node.runtime.run()

    assert [r.leadership_transfer for _, r in requests(node, RequestVoteRequest)] == [True, True]


def test_the_privilege_of_a_transfer_lasts_one_round():
    """Departure 7."""
    node = node_with(pre_vote=True)
    node.core.transfer_candidacy = True

    node.play(Candidate, DEADLINE)
    node.runtime.run()

    assert len(requests(node, RequestPreVoteRequest)) == 2
    assert not node.core.transfer_candidacy


def test_the_privilege_of_a_transfer_ends_with_the_candidacy():
    """Departure 7."""
    node = node_with()
    node.core.transfer_candidacy = True

    node.play(Candidate, Asked(AppendEntriesRequest(header("n2"), TERM + 1)))

    assert not node.core.transfer_candidacy


# ---- who cannot campaign ----


def test_a_candidate_that_loses_its_disk_becomes_a_follower():
    """Departure 8."""
    node = node_with()

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    node.play(Candidate)
    node.runtime.run()

    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, TERM)
    assert node.transport.calls == []


@pytest.mark.parametrize("what", ["disk", "fsm"])
def test_a_candidate_that_is_not_fit_any_more_becomes_a_follower(what):
    """Departures 8 and 9."""
    node = node_with()

    def spoil():
        if what == "disk":
            node.core.disk.is_unfit = True
        else:
            node.core.fsm.restores.poison = ValueError("half restored")

    node.play(Candidate, spoil, DEADLINE)

    assert node.core.state.role is RaftState.FOLLOWER


@pytest.mark.parametrize("what", ["fsm", "log"])
@pytest.mark.parametrize("pre_vote", [True, False])
def test_a_candidate_that_is_not_fit_any_more_does_not_win(pre_vote, what):
    """Departures 9 and 16: a leader would step down, but only the candidate is told."""
    node = node_with(pre_vote)

    def spoil():
        if what == "fsm":
            node.core.fsm.restores.poison = ValueError("half restored")
            node.core.inbox.post(FSMPoisoned(node.core.fsm.restores.poison))
        else:
            node.core.inbox.post(LogCorrupted(LogCorruptError("spoiled", 2)))

    node.play(Candidate, spoil, pre(node, n2=True) if pre_vote else answers(node, n2=True))

    assert node.core.state.role is RaftState.FOLLOWER
    assert node.core.state.term == TERM + (0 if pre_vote else 1)


def test_a_candidate_that_is_no_voter_any_more_becomes_a_follower():
    node = node_with(configuration=servers("n2", "n3", nonvoters=["n1"]))

    node.play(Candidate)

    assert node.core.state.role is RaftState.FOLLOWER


def test_a_vote_that_arrives_after_a_leader_was_heard_has_no_effect():
    """ETC-18"""
    node = node_with()
    node.play(Candidate, Asked(AppendEntriesRequest(header("n2"), TERM + 1)))
    assert node.core.state.role is RaftState.FOLLOWER

    node.ask(AppendEntriesRequest(header("n2"), TERM + 1))
    node.core.inbox.post(VoteReceived(1, "n3", False, TERM + 1, True))

    node.play(Follower)

    assert node.core.state.role is RaftState.FOLLOWER


def test_a_round_that_runs_takes_the_new_timeout():
    node = node_with()
    began = node.runtime.now

    def reload():
        node.core.config.election_timeout = 5.0
        node.core.inbox.post(ConfigReloaded())

    node.play(Candidate, reload, DEADLINE)

    assert node.runtime.now - began == pytest.approx(5.0)


# ---- why there is no leader ----


def lost_rounds(caplog):
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    return [message for message in said if "restarting election" in message]


def test_a_lost_round_says_what_became_of_each_request(caplog):
    node = node_with(configuration=FIVE)
    refusal = RequestVoteResponse(header("n3"), TERM + 1, reason="log is\ndamaged")
    results = {"n2": PeerUnreachableError("connection refused"), "n3": refusal, "n4": False}

    node.play(Candidate, answers(node, **results), DEADLINE)

    (said,) = lost_rounds(caplog)
    why = "1 of 5 votes: n2 connection refused, n3 log is damaged, n4 refused, n5 no answer in time"
    assert said.endswith(why)
    assert str(node.core.elections.last) == why


def test_lost_rounds_are_told_once_in_ten_seconds(caplog):
    node = node_with()

    node.play(Candidate, *[DEADLINE] * 5, Pause(10.0), DEADLINE)

    assert len(lost_rounds(caplog)) == 2


def test_a_pre_vote_that_is_refused_carries_the_reason(caplog):
    node = node_with(pre_vote=True)
    known = RequestPreVoteResponse(header("n2"), TERM, reason="leader n3 is known")

    node.play(Candidate, pre(node, n2=known, n3=RPCTimeoutError("timed out")), DEADLINE)

    (said,) = lost_rounds(caplog)
    assert "1 of 3 votes: n2 leader n3 is known, n3 timed out" in said


def test_a_late_vote_of_an_earlier_candidacy_does_not_count():
    """It was given in another term: counted in this one, it could make a second leader."""
    node = node_with()
    node.play(Candidate)

    node.play(Candidate, VoteReceived(1, "n2", False, TERM + 1, True))

    assert node.core.state.role is RaftState.CANDIDATE
    assert node.core.state.term == TERM + 2
