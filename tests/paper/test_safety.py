"""Raft's safety claims, each by its section of the thesis, at the one place that keeps it.

One node, peers played by the test. Clusters under chance check the same from outside: see
`tests/simulation` and `raft.testing.invariants`.
"""

import pytest

from raft.engine.inbox import ChangeConfiguration, ChangeKind
from raft.engine.state import HardState
from raft.errors import CommittedConflictError, StorageFailedError
from raft.futures import IndexFuture
from raft.messages import AppendEntriesRequest, AppendEntriesResponse, RequestVoteRequest
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.roles.leader import Leader
from raft.runtime import Deadline
from raft.testing.script import Asked, ScriptedNode, configuration_entry, entries, header, servers

FIVE = servers("s1", "s2", "s3", "s4", "s5")


def follower(*terms, term=None, **more):
    """A node whose log has these terms from index 2 on, behind a configuration of term 1."""
    hard_state = HardState(term) if term else None
    return ScriptedNode(log=entries(2, terms=terms), hard_state=hard_state, **more)


def append(term, prev, logs=(), commit=0, leader="n2"):
    return AppendEntriesRequest(header(leader), term, *prev, tuple(logs), commit)


def vote(term, last, candidate="n2"):
    return RequestVoteRequest(header(candidate), term, *last)


def stored_terms(node):
    return [term for _, term in node.stored()]


class Leadership:
    """A leader of a term, whose peers acknowledge what the test lets them.

    `storing` names the peers that acknowledge entries now, `upto` the last index that they do.
    """

    def __init__(self, term, log, configuration=FIVE, local_id="s1", committed=0):
        self.node = ScriptedNode(
            configuration=configuration,
            log=log,
            local_id=local_id,
            hard_state=HardState(term, local_id, f"{local_id}:1"),
            config={"max_append_entries": 1, "leader_lease_timeout": 0.1},
        )
        self.term, self.storing, self.upto = term, set(), 0
        self.node.transport.has_pipelines = False
        self.node.transport.respond = self._respond
        self.node.core.apply_committed(committed)
        self.role = self.node.start(Leader)

    def _respond(self, call):
        request = call.request
        if not request.is_heartbeat():
            last = request.prev_log_index + len(request.entries)
            if call.server_id not in self.storing or last > self.upto:
                return None
        return AppendEntriesResponse(header(call.server_id), self.term, 0, success=True)

    def store(self, *peers, upto):
        """Have these peers, and no others, acknowledge entries up to an index."""
        self.storing, self.upto = set(peers), upto
        for call in self.node.transport.open_calls(AppendEntriesRequest):
            result = self._respond(call)
            if result is not None:
                call.answer(result)
        self.node.runtime.run()

    @property
    def commit_index(self):
        return self.node.core.state.commit_index


# ---- 5.2: votes ----


def test_5_2_a_server_votes_for_one_candidate_a_term():
    """Section 5.2: at most one vote a term, first come, first served."""
    node = follower(1)

    assert node.ask(vote(2, (2, 1), "n2")).response.granted
    assert not node.ask(vote(2, (9, 9), "n3")).response.granted
    assert node.ask(vote(2, (2, 1), "n2")).response.granted


def test_5_2_a_vote_persists_over_a_crash():
    """Section 5.2 and Figure 3.1: votedFor is durable before the answer."""
    node = follower(1)
    durable = []
    asked = Asked(vote(2, (2, 1), "n2"))
    answer = asked.rpc.answer
    asked.rpc.answer = lambda *a: (durable.append(HardState.load(node.store)), answer(*a))

    node.play(Follower, asked)
    node = node.restarted()

    assert durable == [HardState(2, "n2", "n2:1")], "durable when the answer left"
    assert not node.ask(vote(2, (9, 9), "n3")).response.granted


def test_5_2_a_candidates_own_vote_persists_over_a_crash():
    """Section 5.2: a candidate votes for itself, and for nobody else when it comes back."""
    node = follower(1, config={"pre_vote_disabled": True})
    node.play(Candidate)

    node = node.restarted()

    assert node.core.state.term == 2
    assert not node.ask(vote(2, (9, 9), "n3")).response.granted


def test_5_2_a_term_never_falls_over_a_crash():
    """Section 5.1 and Figure 3.1: currentTerm is durable before the answer."""
    node = follower(1)
    node.ask(append(7, (2, 1)))

    node = node.restarted()

    assert not node.ask(append(6, (2, 1))).response.success
    assert not node.ask(vote(6, (9, 9))).response.granted


# ---- 5.3: log matching ----


def test_5_3_entries_are_taken_only_behind_the_same_entry():
    """Section 5.3, the consistency check: a hole or another entry before is refused."""
    node = follower(1, 2)

    for prev in [(4, 2), (3, 1), (3, 3), (2, 2)]:
        assert not node.ask(append(3, prev, entries(prev[0] + 1, terms=(3,)))).response.success

    assert stored_terms(node) == [1, 1, 2]


# The logs of Figure 3.6, behind one more entry of term 1: the configuration.
FIGURE_3_6_LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
FIGURE_3_6 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("terms", FIGURE_3_6.values(), ids=FIGURE_3_6.keys())
def test_5_3_any_log_of_the_figure_becomes_the_leaders(terms):
    """PAP-26: section 5.3, Figure 3.6 (Figure 7 of the paper)."""
    node = follower(*terms, term=8)
    leader_log = [(1, 1), *((i, t) for i, t in enumerate(FIGURE_3_6_LEADER, 2)), (12, 8)]
    index = len(leader_log)

    while True:
        missing = [log for i, t in leader_log[index:] for log in entries(i, terms=(t,))]
        asked = node.ask(append(8, leader_log[index - 1], missing))
        if asked.response.success:
            break
        index -= 1

    assert node.stored() == leader_log


def test_5_3_a_follower_acknowledges_only_what_is_durable():
    """Section 3.8: an answer to a leader rests on stable storage."""
    node = follower(1)

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    asked = node.ask(append(1, (2, 1), entries(3, terms=(1,))))

    assert isinstance(asked.error, StorageFailedError)
    assert node.restarted().core.raft_log.last_index() == 2


def test_5_3_a_leader_never_overwrites_or_deletes_its_own_entries():
    """Section 5.3, leader append-only: also those of earlier terms and those nobody else has."""
    leadership = Leadership(9, entries(2, terms=(1, 2, 2, 7)))
    before = leadership.node.stored()
    leadership.node.store.writes.clear()

    leadership.node.apply(b"x")
    leadership.store("s2", "s3", upto=99)
    leadership.node.deliver(append(8, (1, 1), entries(2, terms=(8,)), leader="s4"))
    leadership.node.deliver(append(9, (1, 1), entries(2, terms=(9,)), leader="s5"))

    assert leadership.node.stored()[: len(before)] == before
    assert all(write.startswith("store") for write in leadership.node.store.writes)


# ---- 5.4.1: the election restriction ----


def test_5_4_1_a_candidate_that_lacks_committed_entries_is_refused():
    """PAP-28: section 5.4.1: the log that ends in the later term, or is longer, is more up to
    date."""
    refused = {(1, 2): (9, 1), (2, 2): (2, 2), (1, 3): (2, 3), (3, 3): (9, 2)}

    for own, last in refused.items():
        assert not follower(*own, term=5).ask(vote(6, last)).response.granted, (own, last)


def test_5_4_1_a_candidate_whose_log_is_as_up_to_date_gets_the_vote():
    """PAP-28: section 5.4.1"""
    granted = {(1, 2): (3, 2), (2, 2): (4, 2), (1, 1): (1, 2), (2, 3): (2, 4)}

    for own, last in granted.items():
        assert follower(*own, term=5).ask(vote(6, last)).response.granted, (own, last)


def test_5_4_1_the_end_of_the_log_that_a_candidate_tells_is_the_true_one():
    """PAP-27: section 5.4.1"""
    node = follower(1, 3, term=5, config={"pre_vote_disabled": True})

    node.play(Candidate)
    node.runtime.run()

    asked = {(c.request.last_log_index, c.request.last_log_term) for c in node.transport.calls}
    assert asked == {(3, 3)}


# ---- 5.4.2: entries of earlier terms ----


@pytest.mark.parametrize(("upto", "committed"), [(1, 0), (2, 0), (3, 0), (4, 4)])
def test_5_4_2_only_entries_of_the_own_term_commit_by_counting(upto, committed):
    """PAP-29, ETC-43, ETC-44: section 5.4.2; the entry of the own term is the no-op, at 4."""
    leadership = Leadership(3, entries(2, terms=(1, 2)), servers("s1", "s2", "s3"))

    leadership.store("s2", upto=upto)

    assert leadership.commit_index == committed


def test_5_4_2_figure_3_7():
    """Section 5.4.2, Figure 3.7: an entry of term 2 that a majority holds may still be lost.

    (a) s1 leads term 2 and gives its entry, here at 2, to s2 alone. (b) s5 leads term 3 with
    another entry there. (c) s1 leads term 4 and gives the old entry to s3: a majority has it.
    """
    leadership = Leadership(4, entries(2, terms=(2,)))
    leadership.store("s2", "s3", upto=2)

    held = sorted(leadership.role.commitment.match_indexes().values(), reverse=True)
    assert held[2] == 2, "three of five have the entry of term 2"
    assert leadership.commit_index == 0, "and it is not committed"

    # (d) So s5, elected by s2, s3 and s4, whose logs end in term 2 at the latest, may replace it.
    s3 = follower(2, term=4, configuration=FIVE, local_id="s3")
    assert s3.ask(vote(5, (2, 3), "s5")).response.granted
    assert s3.ask(append(5, (1, 1), entries(2, terms=(3,)), leader="s5")).response.success
    assert stored_terms(s3) == [1, 3]


def test_5_4_2_figure_3_7_with_an_entry_of_the_own_term():
    """Section 5.4.2, Figure 3.7 (e): with an entry of term 4 on a majority s5 cannot win."""
    leadership = Leadership(4, entries(2, terms=(2,)))

    leadership.store("s2", "s3", upto=3)

    assert leadership.commit_index == 3
    s3 = follower(2, 4, term=4, configuration=FIVE, local_id="s3")
    assert not s3.ask(vote(5, (2, 3), "s5")).response.granted


# ---- state machine safety ----


def test_5_4_3_nothing_is_applied_before_it_is_committed():
    """Section 5.4.3"""
    node = follower(1, 1, 1)

    node.ask(append(1, (4, 1), commit=3))

    assert node.fsm.commands() == [b"2/1", b"3/1"]


def test_5_4_3_what_is_applied_is_never_replaced():
    """Section 5.4.3: a leader that asks for it belongs to another history; the node halts."""
    node = follower(1, 1, 1)
    node.ask(append(1, (4, 1), commit=3))

    with pytest.raises(CommittedConflictError):
        node.ask(append(2, (2, 1), entries(3, terms=(2,)), commit=3))

    assert (stored_terms(node), node.fsm.commands()) == ([1, 1, 1, 1], [b"2/1", b"3/1"])


def test_5_4_3_a_commit_index_says_nothing_of_entries_that_were_not_compared():
    """Section 5.3 and departure 1: the suffix here may be that of a leader long gone."""
    node = follower(1, 2, 2)

    node.ask(append(3, (2, 1), commit=4))

    assert node.core.state.commit_index == 2
    assert node.fsm.commands() == [b"2/1"]


# ---- 4.1: one membership change at a time ----


def change(leadership, kind, server_id):
    future = IndexFuture(leadership.node.host)
    deadline = Deadline(leadership.node.runtime, None)
    message = ChangeConfiguration(kind, server_id, f"{server_id}:1", 0, future, deadline)
    leadership.node.core.inbox.submit(message, deadline)
    leadership.node.runtime.run()
    return future


def test_4_1_one_change_at_a_time():
    """Section 4.1: the next change waits until the one before is committed."""
    leadership = Leadership(2, [], servers("s1", "s2", "s3"))
    leadership.store("s2", upto=2)

    change(leadership, ChangeKind.ADD_VOTER, "s4")
    second = change(leadership, ChangeKind.ADD_VOTER, "s5")
    members = leadership.node.core.membership
    assert (members.latest, second.done()) == (servers("s1", "s2", "s3", "s4"), False)
    leadership.store("s2", "s3", upto=4)

    assert members.latest == FIVE


def test_4_1_no_change_before_an_entry_of_the_own_term_is_committed():
    """Section 4.1, as corrected: else two leaders' changes could be decided by majorities that
    do not overlap."""
    leadership = Leadership(2, [], servers("s1", "s2", "s3"), committed=1)
    assert leadership.node.core.membership.is_stable()

    change(leadership, ChangeKind.ADD_VOTER, "s4")
    assert leadership.node.core.membership.latest == servers("s1", "s2", "s3")
    leadership.store("s2", upto=2)

    assert leadership.node.core.membership.latest == servers("s1", "s2", "s3", "s4")


def test_4_1_a_configuration_is_in_force_when_it_is_in_the_log():
    """Section 4.1: not when it is committed; and no longer when it is truncated."""
    bigger = servers("n1", "n2", "n3", "n4")
    node = follower(1)

    node.ask(append(1, (2, 1), [configuration_entry(3, 1, bigger)]))
    assert node.core.membership.latest == bigger
    node.ask(append(2, (2, 1), entries(3, terms=(2,))))

    assert node.core.membership.latest == servers("n1", "n2", "n3")


def test_4_1_the_new_majority_decides_about_the_change_itself():
    """Section 4.1: a voter added counts for its own entry."""
    leadership = Leadership(2, [], servers("s1", "s2"))
    leadership.store("s2", upto=2)
    future = change(leadership, ChangeKind.ADD_VOTER, "s3")
    assert not future.done(), "the leader alone is no majority of three"

    leadership.store("s3", upto=3)

    assert future.result(0) is None
