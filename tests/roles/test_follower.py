from itertools import pairwise

import pytest

from raft.engine.inbox import ConfigReloaded, FSMPoisoned, NewerTermSeen, VoteReceived
from raft.engine.state import HardState
from raft.messages import AppendEntriesRequest, RequestPreVoteRequest, RequestVoteRequest
from raft.observer import LeaderObservation
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.testing.script import (
    DEADLINE,
    Asked,
    Pause,
    ScriptedNode,
    configuration_entry,
    entries,
    header,
    servers,
)
from raft.types import RaftState

TIMEOUT = 0.1  # ScriptedNode's heartbeat_timeout


def heartbeat(term=1, leader="n2"):
    return Asked(AppendEntriesRequest(header(leader), term))


def vote(term, candidate="n2"):
    return Asked(RequestVoteRequest(header(candidate), term, 99, 99))


def rounds_played(configuration, rounds=3):
    node = ScriptedNode(configuration=configuration)
    node.play(Follower, *[DEADLINE] * rounds)
    return node.core.state.role


def test_a_nonvoter_stays_a_follower():
    """ELE-09, ETC-03"""
    assert rounds_played(servers("n2", nonvoters=["n1"])) is RaftState.FOLLOWER


def test_a_voter_becomes_a_candidate():
    """ELE-10, PAP-07"""
    assert rounds_played(servers("n1")) is RaftState.CANDIDATE


def test_a_server_that_is_not_in_the_configuration_stays_a_follower():
    """ELE-11, ETC-27"""
    assert rounds_played(servers("n2")) is RaftState.FOLLOWER


def test_a_blank_node_stays_a_follower():
    assert rounds_played(servers()) is RaftState.FOLLOWER


def test_a_node_starts_as_follower():
    """PAP-05"""
    assert ScriptedNode().core.state.role is RaftState.FOLLOWER


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_the_election_timer_is_once_to_twice_the_heartbeat_timeout(chance):
    """Section 5.2"""
    node = ScriptedNode()
    node.runtime.chance = chance
    began = node.runtime.now

    node.play(Follower)

    assert node.core.inbox.untils == [pytest.approx(began + TIMEOUT * (1 + chance))]


def test_contact_puts_the_election_off():
    node = ScriptedNode()
    began = node.runtime.now

    node.play(Follower, Pause(0.06), heartbeat(), DEADLINE)

    assert node.core.state.role is RaftState.FOLLOWER
    assert node.core.inbox.untils[-1] == pytest.approx(began + 0.06 + TIMEOUT)


def test_silence_after_contact_is_an_election():
    node = ScriptedNode()

    node.play(Follower, Pause(0.06), heartbeat(), DEADLINE, DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_vote_given_puts_the_election_off():
    """Section 5.2"""
    node = ScriptedNode()

    node.play(Follower, Pause(0.06), vote(2), DEADLINE)

    assert node.core.state.role is RaftState.FOLLOWER


def test_a_vote_refused_does_not():
    node = ScriptedNode(hard_state=HardState(2, "n3", "n3:1"))

    node.play(Follower, Pause(0.06), vote(2), DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE


def test_the_leader_is_forgotten_when_it_is_silent():
    node = ScriptedNode(configuration=servers("n2", nonvoters=["n1"]))

    node.play(Follower, heartbeat(), DEADLINE, DEADLINE)

    assert node.core.state.leader() == ("", "")
    assert LeaderObservation("", "") in node.events


def test_a_gap_in_which_the_process_did_not_run_costs_no_election():
    """What the leader sent meanwhile has yet to be read."""
    node = ScriptedNode()

    node.play(Follower, Pause(0.6), heartbeat())

    assert node.core.state.role is RaftState.FOLLOWER


def test_a_gap_puts_the_election_off_once():
    node = ScriptedNode()

    node.play(Follower, Pause(0.6), DEADLINE, DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE


def test_a_timer_that_fires_a_little_late_is_no_gap():
    node = ScriptedNode()

    node.play(Follower, Pause(TIMEOUT + 0.009), DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE


@pytest.mark.parametrize(
    ("between", "role"), [([], RaftState.CANDIDATE), ([heartbeat()], RaftState.FOLLOWER)]
)
def test_a_second_gap_costs_no_election_if_the_leader_was_heard_in_between(between, role):
    """A gap may end a moment after the time was up: a fifth of a lease is one."""
    node = ScriptedNode()

    gap = [Pause(2 * TIMEOUT + 0.011), DEADLINE]
    node.play(Follower, *gap, *between, *gap)

    assert node.core.state.role is role


# ---- who has a vote ----


def test_a_promoted_nonvoter_campaigns_and_can_win():
    """ETC-04"""
    before, after = servers("n2", nonvoters=["n1"]), servers("n1", "n2")
    node = ScriptedNode(configuration=before, config={"pre_vote_disabled": True})
    node.play(Follower, heartbeat(), *[DEADLINE] * 3)
    assert node.core.state.role is RaftState.FOLLOWER

    promotion = (configuration_entry(2, 1, after),)
    node.play(
        Follower, Asked(AppendEntriesRequest(header("n2"), 1, 1, 1, promotion, 2)), *[DEADLINE] * 3
    )
    assert node.core.state.role is RaftState.CANDIDATE
    node.play(Candidate, VoteReceived(1, "n2", False, 2, True))

    assert node.core.state.role is RaftState.LEADER


@pytest.mark.parametrize(
    ("committed", "latest", "role"),
    [
        (servers("n2", "n3"), servers("n2", "n3", nonvoters=["n1"]), RaftState.FOLLOWER),
        (servers("n2", "n3"), servers("n1", "n2", "n3"), RaftState.CANDIDATE),
        (servers("n1", "n2", "n3"), servers("n2", "n3"), RaftState.CANDIDATE),
    ],
)
def test_the_latest_configuration_in_the_log_decides_who_campaigns(committed, latest, role):
    """ETC-74: also while it is not committed. There, such a node waits until it has applied it.

    But whose removal is not committed may be needed to bring it about.
    """
    node = ScriptedNode(configuration=committed, log=[configuration_entry(2, 1, latest)])
    assert not node.core.membership.is_stable()

    node.play(Follower, *[DEADLINE] * 3)

    assert node.core.state.role is role


@pytest.mark.parametrize("latest", [servers("n2"), servers("n2", nonvoters=["n1"])])
def test_who_was_removed_leads_by_the_votes_of_the_others_until_that_is_committed(latest):
    """Thesis 4.2.2. Of two voters the other lacks the entry, so it cannot win.

    Found by the simulation: no leader was ever elected again.
    """
    node = ScriptedNode(configuration=servers("n1", "n2"), log=[configuration_entry(2, 1, latest)])
    node.play(Follower, DEADLINE, DEADLINE)
    node.play(Candidate)
    assert node.core.state.role is RaftState.CANDIDATE  # our own vote does not count any more

    node.play(
        Candidate,
        VoteReceived(2, "n2", True, 2, True),
        VoteReceived(3, "n2", False, 2, True),
    )
    assert node.core.state.role is RaftState.LEADER


@pytest.mark.parametrize("latest", [servers("n1", "n3"), servers("n1", "n3", nonvoters=["n2"])])
@pytest.mark.parametrize("request_type", [RequestVoteRequest, RequestPreVoteRequest])
def test_who_is_not_removed_for_good_gets_votes(request_type, latest):
    """The removal may be of a leader of the past, and be truncated yet (thesis 4.1).

    Found by the simulation: of two voters one had a removal of the other that nobody else had.
    """
    change = configuration_entry(2, 1, latest)
    node = ScriptedNode(configuration=servers("n1", "n2", "n3"), log=[change])

    assert node.ask(request_type(header("n2"), 2, 3, 2)).response.granted


def test_who_may_be_removed_for_good_asks_before_it_campaigns(caplog):
    """It runs up no term and writes nothing, though pre-votes are off; once is enough to say so."""
    node = ScriptedNode(
        configuration=servers("n1", "n2", "n3"),
        log=[configuration_entry(2, 1, servers("n2", "n3"))],
        config={"pre_vote_disabled": True},
    )
    node.play(Follower, DEADLINE, DEADLINE)

    node.play(Candidate, *[DEADLINE] * 9)

    assert (node.core.state.role, node.core.state.term) == (RaftState.CANDIDATE, 1)
    assert node.store.writes == []
    assert len([r for r in caplog.records if "election" in r.message]) == 1


def test_a_term_that_answers_have_shown_to_the_leader_is_taken_over():
    """Else a server in a far term, without a vote, deposes one leader for each term up to there."""
    node = ScriptedNode()

    node.play(Follower, NewerTermSeen(1, 9), NewerTermSeen(1, 7))

    assert HardState.load(node.store) == node.core.hard_state == HardState(9)


def test_a_node_that_is_no_voter_in_its_own_view_votes_and_follows_all_the_same():
    """ETC-35: the others know already that it is one."""
    node = ScriptedNode(configuration=servers("n1"), local_id="n2")

    assert node.ask(RequestVoteRequest(header("n1"), 2, 1, 1)).response.granted
    assert node.ask(AppendEntriesRequest(header("n1"), 2, 1, 1)).response.success
    node.play(Follower, *[DEADLINE] * 3)

    assert node.core.state.role is RaftState.FOLLOWER


# ---- a known leader is not disturbed (4.2.3) ----


def test_the_first_vote_is_given_at_once_and_the_next_when_the_leader_is_silent():
    """ETC-32, ETC-33"""
    node = ScriptedNode(config={"pre_vote_disabled": True})
    first, early, late = vote(2), vote(9, "n3"), vote(9, "n3")

    node.play(Follower, first, heartbeat(2), early, DEADLINE, DEADLINE)
    assert (first.response.granted, early.response.granted) == (True, False)
    assert node.core.state.role is RaftState.CANDIDATE
    node.play(Candidate, late)

    assert late.response.granted
    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, 9)


# ---- who is not fit does not campaign ----


def test_a_poisoned_fsm_keeps_a_node_from_campaigning():
    """Departure 9."""
    node = ScriptedNode()
    node.core.fsm.restores.poison = ValueError("half restored")

    node.play(Follower, FSMPoisoned(node.core.fsm.restores.poison), DEADLINE, DEADLINE)

    assert node.core.state.role is RaftState.FOLLOWER


def fail(_):
    raise OSError("disk")


def test_a_failed_disk_keeps_a_node_from_campaigning_until_a_probe_is_durable():
    """Departure 8."""
    node = ScriptedNode()
    node.store.before_write = fail
    node.play(Follower, vote(2), DEADLINE, DEADLINE)
    assert (node.core.state.role, node.core.fault is None) == (RaftState.FOLLOWER, False)

    node.store.before_write = lambda _: None
    node.play(Follower, DEADLINE)

    assert (node.core.state.role, node.core.fault) == (RaftState.CANDIDATE, None)


def test_a_failed_disk_is_probed_with_a_leader_as_well():
    """Departure 8: until then the node can acknowledge nothing."""
    node = ScriptedNode()
    node.store.before_write = fail
    node.play(Follower, vote(2))
    node.store.before_write = lambda _: None

    node.play(Follower, DEADLINE)
    asked = node.ask(AppendEntriesRequest(header("n2"), 2, 1, 1, tuple(entries(2, terms=(2,))), 2))

    assert asked.response.success


def test_a_disk_that_failed_once_is_probed_long_before_the_next_election():
    """Long timeouts are for the way, and not for the disk."""
    node = ScriptedNode(config={"heartbeat_timeout": 5.0, "election_timeout": 5.0})
    node.start(Follower)
    node.store.before_write = fail
    request = AppendEntriesRequest(header("n2"), 2, 1, 1, tuple(entries(2, terms=(2,))), 2)
    assert node.deliver(request).error is not None
    node.store.before_write = lambda _: None

    node.runtime.advance(0.15)

    assert node.deliver(request).response.success


def test_a_disk_that_goes_on_failing_is_probed_later_each_time():
    node = ScriptedNode(config={"heartbeat_timeout": 60.0, "election_timeout": 60.0})
    times = []

    def fail_at(_):
        times.append(node.runtime.now)
        raise OSError("disk")

    node.start(Follower)
    node.store.before_write = fail_at
    node.deliver(vote(2).rpc.command)
    node.runtime.advance(20.0)

    waits = [round(later - earlier, 2) for earlier, later in pairwise(times)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_why_a_node_does_not_campaign_is_said_once(caplog):
    rounds_played(servers("n2"), rounds=5)

    assert caplog.text.count("not a voter") == 1


# ---- other timeouts while it runs ----


def test_a_shorter_heartbeat_timeout_counts_at_once():
    """ELE-12: without waiting for the old one."""
    node = ScriptedNode(
        configuration=servers("n1"), config={"heartbeat_timeout": 0.5, "election_timeout": 0.5}
    )

    def reload():
        node.core.config.heartbeat_timeout = node.core.config.election_timeout = 0.05
        node.core.inbox.post(ConfigReloaded())

    began = node.runtime.now
    node.play(Follower, Pause(0.1), reload, DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE
    assert node.runtime.now - began < 0.1 + 3 * 0.05


def test_a_shorter_timeout_is_counted_from_the_last_contact_and_is_no_stall():
    node = ScriptedNode(config={"heartbeat_timeout": 0.5, "election_timeout": 0.5})
    node.core.state.touch(node.runtime.now)

    def reload():
        node.core.config.heartbeat_timeout = 0.05
        node.core.inbox.post(ConfigReloaded())

    node.play(Follower, Pause(0.4), reload, DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE
