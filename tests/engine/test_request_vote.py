"""The receivers of RequestVote, RequestPreVote and TimeoutNow."""

import pytest

from raft.engine.request_vote import is_up_to_date, may_campaign
from raft.engine.state import UNKNOWN_CANDIDATE, HardState
from raft.errors import NotLeaderError, StorageFailedError, UnsupportedProtocolError
from raft.messages import (
    AppendEntriesRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RPCHeader,
    TimeoutNowRequest,
)
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.testing.script import Asked, ScriptedNode, entries, header, servers
from raft.types import EntryID, RaftState


def node_with(*terms, **more):
    """A node whose log has these terms from index 2 on, behind a configuration of term 1."""
    return ScriptedNode(log=entries(2, terms=terms), **more)


def vote(term, candidate="n2", last=(99, 99), transfer=False):
    """A request of a candidate whose log ends with an index and a term."""
    return RequestVoteRequest(header(candidate), term, *last, leadership_transfer=transfer)


def pre_vote(term, candidate="n2", last=(99, 99)):
    return RequestPreVoteRequest(header(candidate), term, *last)


def led_by(leader, **more):
    """A node that has just heard of a leader of term 1."""
    node = node_with(1, **more)
    node.ask(AppendEntriesRequest(header(leader), 1))
    node.store.writes.clear()
    return node


# ---- one vote a term (5.2) ----


def test_a_vote_is_granted_and_durable():
    node = node_with(1)

    asked = node.ask(vote(2))

    assert (asked.response.granted, asked.response.term) == (True, 2)
    assert HardState.load(node.store) == HardState(2, "n2", "n2:1")


def test_a_vote_in_a_new_term_is_one_write():
    """Two would double the slowest disk that an election stands."""
    node = node_with(1)

    assert node.ask(vote(2)).response.granted

    assert node.store.writes == ["set HardState"]


def test_a_slow_write_of_a_vote_is_warned_of(caplog):
    node = node_with(1)

    def take_long(_):
        node.runtime.event().wait(0.05)

    node.store.before_write = take_long
    node.start(Follower)
    node.deliver(vote(2))
    node.runtime.advance(0.06)

    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "slow disk: storing term and vote took seconds=0.050" in warning


def test_a_vote_is_durable_before_it_is_given():
    """Section 5.2"""
    node = node_with(1)
    door = node.runtime.event()
    node.start(Follower)
    node.store.before_write = lambda _: door.wait()

    asked = node.deliver(vote(2))
    assert not asked.is_answered
    door.set()
    node.runtime.run()

    assert asked.response.granted


def test_a_vote_that_cannot_be_stored_is_not_given():
    node = node_with(1)

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    asked = node.ask(vote(2))

    assert isinstance(asked.error, StorageFailedError)
    assert node.core.hard_state == HardState(1)


@pytest.mark.parametrize(
    ("voted_for", "candidate", "granted"),
    [
        ("", "n2", True),
        ("", "n3", True),
        ("n2", "n2", True),
        ("n3", "n3", True),
        ("n2", "n3", False),
        ("n3", "n2", False),
        ("n1", "n2", False),
        (UNKNOWN_CANDIDATE, "n2", False),
    ],
)
def test_a_term_has_one_vote(voted_for, candidate, granted):
    """PAP-12: section 5.2"""
    node = node_with(1, hard_state=HardState(2, voted_for, voted_for and f"{voted_for}:1"))

    asked = node.ask(vote(2, candidate))

    assert (asked.response.granted, asked.response.term) == (granted, 2)
    assert node.core.hard_state.voted_for == (candidate if granted else voted_for)


def test_a_vote_survives_a_restart():
    """Section 5.2"""
    node = node_with(1)
    node.ask(vote(2, "n2"))

    node = node.restarted()

    assert not node.ask(vote(2, "n3")).response.granted
    assert node.ask(vote(2, "n2")).response.granted


def test_a_vote_given_twice_is_stored_once():
    node = node_with(1)
    node.ask(vote(2))
    node.store.writes.clear()

    assert node.ask(vote(2)).response.granted

    assert node.store.writes == []


def test_a_vote_belongs_to_a_server_and_not_to_its_address():
    """T10"""
    node = node_with(1)
    node.ask(vote(2))

    moved = RequestVoteRequest(RPCHeader("n2", "elsewhere:1"), 2, 99, 99)
    taken_over = RequestVoteRequest(RPCHeader("n3", "n2:1"), 2, 99, 99)

    assert node.ask(moved).response.granted
    assert not node.ask(taken_over).response.granted


@pytest.mark.parametrize("members", [servers("n1", "n2", "n3"), servers()])
def test_a_candidate_without_a_name_gets_no_vote(members):
    """A vote that cannot be written down could be given twice."""
    node = ScriptedNode(configuration=members)

    nameless = node.ask(RequestVoteRequest(RPCHeader("", "n2:1"), 2, 99, 99))
    named = node.ask(vote(2, "n3"))

    assert (nameless.response.granted, named.response.granted) == (False, True)


def test_a_newer_term_clears_the_vote():
    node = node_with(1, hard_state=HardState(2, "n3", "n3:1"))

    assert node.ask(vote(3, "n2")).response.granted


def test_an_older_term_is_refused():
    """Figure 3.1, RequestVote 1."""
    node = node_with(1, hard_state=HardState(5))

    asked = node.ask(vote(4))

    assert (asked.response.granted, asked.response.term) == (False, 5)
    assert node.store.writes == []


def test_a_vote_given_counts_as_contact_and_one_refused_does_not():
    node = node_with(1)

    node.ask(vote(2, last=(0, 0)))
    assert node.core.state.last_contact is None
    node.ask(vote(3))

    assert node.core.state.last_contact == node.runtime.now


@pytest.mark.parametrize("term", [2, 3])
def test_a_candidate_follows_a_newer_term_and_keeps_its_own_vote(term):
    node = node_with(1, hard_state=HardState(2, "n1", "n1:1"))
    asked = Asked(vote(term))

    node.play(Candidate, asked)

    assert asked.response.granted is (term == 3)
    assert node.core.state.role is (RaftState.FOLLOWER if term == 3 else RaftState.CANDIDATE)


def test_vote_requests_are_observed():
    node = node_with(1)
    requests = [vote(2), pre_vote(2)]

    for request in requests:
        node.ask(request)

    assert [event for event in node.events if event in requests] == requests


# ---- the election restriction (5.4.1) ----


@pytest.mark.parametrize(
    ("own", "last", "granted"),
    [
        ((1, 1), (2, 1), False),
        ((1, 1), (3, 1), True),
        ((1, 1), (4, 1), True),
        ((1, 1), (2, 2), True),
        ((1, 1), (1, 2), True),
        ((1, 2), (9, 1), False),
        ((1, 2), (3, 2), True),
        ((1, 2), (2, 2), False),
        ((2, 2), (9, 1), False),
        ((2, 2), (2, 3), True),
    ],
)
@pytest.mark.parametrize("ask", [vote, pre_vote])
def test_a_log_that_ends_earlier_than_ours_is_refused(own, last, granted, ask):
    """PAP-28: section 5.4.1"""
    node = node_with(*own, hard_state=HardState(5))

    assert node.ask(ask(6, last=last)).response.granted is granted


@pytest.mark.parametrize("last", [(2, 1), (9, 1), (2, 2), (3, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize("voted_for", ["", "n1", "n2", "n3"])
@pytest.mark.parametrize("ask", [vote, pre_vote])
def test_a_vote_needs_both_a_free_vote_and_a_log_that_does_not_end_earlier(ask, voted_for, last):
    """ETC-15: a log of two entries of term 2; who voted for itself is the candidate.

    A pre-vote costs no vote: it is granted whomever this term's vote went to, and changes nothing.
    """
    role = Candidate if voted_for == "n1" else Follower
    hard_state = HardState(3, voted_for, voted_for and f"{voted_for}:1")
    node = node_with(2, 2, hard_state=hard_state)
    if role is Candidate:
        node.core.state.set_role(RaftState.CANDIDATE)
    asked = Asked(ask(3, last=last))

    role(node.core, node.receiver).handle(asked.rpc)
    node.runtime.run()

    is_long_enough = last in [(3, 2), (4, 2), (1, 3)]
    is_free = ask is pre_vote or voted_for in ("", "n2")
    assert asked.response.granted is (is_long_enough and is_free)
    if ask is pre_vote:
        assert node.core.hard_state == hard_state


def test_a_snapshot_counts_as_the_end_of_an_empty_log():
    node = node_with(2)
    node.core.raft_log.drop_all(EntryID(3, 9))

    assert not node.ask(vote(4, last=(8, 3))).response.granted
    assert node.ask(vote(5, last=(9, 3))).response.granted


def test_logs_are_compared_by_term_and_then_by_length():
    """Section 5.4.1"""
    assert is_up_to_date(EntryID(2, 5), EntryID(2, 5))
    assert is_up_to_date(EntryID(2, 5), EntryID(3, 1))
    assert not is_up_to_date(EntryID(2, 5), EntryID(1, 9))
    assert not is_up_to_date(EntryID(2, 5), EntryID(2, 4))


def test_a_refused_log_still_brings_its_newer_term():
    node = node_with(2)

    asked = node.ask(vote(9, last=(1, 1)))

    assert (asked.response.granted, asked.response.term) == (False, 9)
    assert HardState.load(node.store) == HardState(9)


# ---- a known leader (4.2.3), membership, transfer (3.10) ----


def test_a_known_leader_is_not_disturbed():
    """ELE-14 (b), PRE: section 4.2.3; the term is not adopted."""
    node = led_by("n2")

    asked = node.ask(vote(11, "n3"))

    assert (asked.response.granted, asked.response.term) == (False, 1)
    assert (node.core.state.term, node.store.writes) == (1, [])


def test_the_leaders_own_request_shows_that_it_leads_no_more():
    """ELE-14 (a), H15"""
    node = led_by("n2")

    assert node.ask(vote(11, "n2")).response.granted


def test_a_transfer_overrides_a_known_leader():
    """ELE-14 (c): section 3.10"""
    node = led_by("n2")

    assert node.ask(vote(11, "n3", transfer=True)).response.granted


def test_a_server_that_was_removed_is_refused_and_cannot_raise_the_term():
    """ELE-15"""
    node = node_with(1)

    asked = node.ask(vote(11, "n9", transfer=True))

    assert (asked.response.granted, asked.response.term) == (False, 1)


def test_a_nonvoter_is_refused_but_its_newer_term_is_adopted():
    node = node_with(1, configuration=servers("n1", "n2", nonvoters=["n3"]))

    asked = node.ask(vote(11, "n3"))

    assert (asked.response.granted, asked.response.term) == (False, 11)


def test_a_node_that_is_no_voter_itself_votes():
    """ETC-05: it may not have heard of its promotion yet."""
    node = node_with(1, configuration=servers("n2", "n3", nonvoters=["n1"]))

    assert node.ask(vote(2)).response.granted


def test_a_blank_node_votes_for_anybody():
    node = ScriptedNode(configuration=servers())

    assert node.ask(vote(1, "n7", last=(1, 1))).response.granted


@pytest.mark.parametrize("ask", [vote, pre_vote])
@pytest.mark.parametrize("unfit", ["failed", "fault"])
def test_a_node_whose_disk_is_unfit_neither_votes_nor_adopts_a_term(ask, unfit):
    """Departure 8."""
    node = node_with(1)
    if unfit == "failed":
        node.core.disk.is_unfit = True
    else:
        node.core.fault = OSError("disk")

    asked = node.ask(ask(9))

    assert (asked.response.granted, asked.response.term) == (False, 1)


def test_a_node_whose_disk_stalls_does_not_vote():
    """Departure 8."""
    node = node_with(1)
    door = node.runtime.event()
    node.core.disk.submit("slow", door.wait)
    node.runtime.advance(node.core.config.disk_stall_timeout + 1.0)

    assert not node.ask(vote(2)).response.granted


# ---- pre-votes (9.6) ----


def test_a_pre_vote_changes_nothing():
    """ETC-09: section 9.6"""
    node = node_with(1, hard_state=HardState(3, "n3", "n3:1"))

    asked = node.ask(pre_vote(9))

    assert (asked.response.granted, asked.response.term) == (True, 9)
    assert (node.core.hard_state, node.core.state.term) == (HardState(3, "n3", "n3:1"), 3)
    assert (node.store.writes, node.core.state.last_contact) == ([], None)


def test_a_pre_vote_of_an_older_term_is_refused():
    node = node_with(1, hard_state=HardState(3))

    asked = node.ask(pre_vote(2))

    assert (asked.response.granted, asked.response.term) == (False, 3)


def test_a_pre_vote_of_the_present_term_may_be_granted():
    """The leader of that term may ask so whether it could win again."""
    node = node_with(1, hard_state=HardState(3))

    asked = node.ask(pre_vote(3))

    assert (asked.response.granted, asked.response.term) == (True, 3)


@pytest.mark.parametrize("candidate", ["n3", "n9"])
def test_a_pre_vote_disturbs_no_known_leader(candidate):
    node = led_by("n2")

    assert not node.ask(pre_vote(9, candidate)).response.granted


def test_a_pre_vote_of_a_nonvoter_is_refused():
    node = node_with(1, configuration=servers("n1", "n2", nonvoters=["n3"]))

    assert not node.ask(pre_vote(9, "n3")).response.granted


# ---- timeout-now (3.10) ----


def test_who_is_asked_to_campaign_does():
    """Section 3.10"""
    node = led_by("n2")

    asked = node.ask(TimeoutNowRequest(header("n2")))

    assert asked.response is not None
    assert (node.core.state.role, node.core.transfer_candidacy) == (RaftState.CANDIDATE, True)
    assert node.core.state.leader() == ("", "")


def test_a_nonvoter_refuses_to_campaign():
    """ETC-25, ETC-28"""
    node = led_by("n2", configuration=servers("n2", "n3", nonvoters=["n1"]))

    asked = node.ask(TimeoutNowRequest(header("n2")))

    assert isinstance(asked.error, NotLeaderError)
    assert node.core.state.role is RaftState.FOLLOWER


@pytest.mark.parametrize("fault", ["disk", "fault", "fsm"])
def test_who_is_not_fit_to_lead_refuses_to_campaign(fault):
    """Departures 8 and 9."""
    node = led_by("n2")
    if fault == "disk":
        node.core.disk.is_unfit = True
    elif fault == "fault":
        node.core.fault = OSError("disk")
    else:
        node.core.fsm.restores.poison = ValueError("half restored")

    asked = node.ask(TimeoutNowRequest(header("n2")))

    assert isinstance(asked.error, NotLeaderError)
    assert not may_campaign(node.core)
    assert (node.core.state.role, node.core.transfer_candidacy) == (RaftState.FOLLOWER, False)


# ---- protocol versions (departure 17) ----


@pytest.mark.parametrize("version", [0, 1, 2, 4, 99])
def test_other_protocol_versions_are_refused(version):
    """Departure 17."""
    node = node_with(1)

    asked = node.ask(RequestVoteRequest(RPCHeader("n2", "n2:1", version), 2, 99, 99))

    assert isinstance(asked.error, UnsupportedProtocolError)
    assert node.core.state.term == 1
