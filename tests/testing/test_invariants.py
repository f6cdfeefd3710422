"""The checks of Raft's safety properties: each finds a breach of its own, and nothing else."""

import itertools

import pytest

from raft.messages import AppendEntriesRequest, InstallSnapshotRequest, RPCHeader, TimeoutNowRequest
from raft.testing.invariants import Invariants, InvariantViolation, Vote
from raft.types import EntryID, Log, LogType


def entry(index, term, data=b""):
    return Log(index, term, data=data or b"%d/%d" % (index, term)).sealed()


def log(*terms):
    return [entry(index, term) for index, term in enumerate(terms, 1)]


@pytest.fixture
def invariants():
    return Invariants()


def test_a_clean_history_passes(invariants):
    for node in "abc":
        invariants.stored(node, 0, log(1, 1, 2))
        invariants.applied(node, 2, entry(1, 1))
        invariants.progressed(node, 1, 2, 3)
    invariants.led("a", 1)
    invariants.led("b", 2)
    invariants.voted("c", 2, "b")
    invariants.voted("c", 2, "b")

    invariants.check()


def test_two_leaders_of_one_term_are_found_by_what_they_send(invariants):
    invariants.sent(AppendEntriesRequest(RPCHeader("a", "a:1"), 3))
    invariants.sent(TimeoutNowRequest(RPCHeader("b", "b:1")))
    assert invariants.violations == []

    invariants.sent(InstallSnapshotRequest(RPCHeader("b", "b:1"), 3, 1, 1))

    with pytest.raises(InvariantViolation, match="election safety: a and b both lead term 3"):
        invariants.check()


def test_two_votes_in_one_term_are_found(invariants):
    invariants.voted("c", 2, "a")
    invariants.voted("c", 3, "b")
    invariants.voted("c", 2, "b")

    assert invariants.violations == ["vote: c voted for a and b in term 2"]


def test_a_vote_record_that_takes_back_its_vote_or_its_term_is_found(invariants):
    records = [Vote(1, ""), Vote(1, "a"), Vote(1, "a"), Vote(3, ""), Vote(3, "b"), Vote(4, "")]
    for before, after in itertools.pairwise(records):
        invariants.recorded("c", before, after)
    assert invariants.violations == []

    invariants.recorded("c", Vote(3, "b"), Vote(3, ""))
    invariants.recorded("c", Vote(3, "b"), Vote(3, "a"))
    invariants.recorded("c", Vote(3, ""), Vote(2, "a"))

    assert invariants.violations == [
        "vote: c voted for b in term 3, and now its record says nobody",
        "vote: c voted for b in term 3, and now its record says a",
        "vote: the term of c fell from 3 to 2",
    ]


def test_a_change_of_members_before_a_commit_of_the_term_is_found():
    invariants = Invariants(sees_commits=True)
    first = Log(1, 1, LogType.CONFIGURATION).sealed()
    invariants.stored("a", 0, [first])
    invariants.committed_own(2)
    invariants.stored("a", 2, [Log(4, 2, LogType.CONFIGURATION).sealed()])
    assert invariants.violations == []

    change = Log(5, 3, LogType.CONFIGURATION).sealed()
    invariants.stored("a", 2, [change])
    invariants.stored("b", 2, [change])

    (found,) = invariants.violations
    assert found.startswith("membership: entry 5 changes it, but nothing of term 3 was committed")


def test_another_entry_of_the_same_index_and_term_is_found(invariants):
    invariants.stored("a", 0, [entry(1, 1, b"x")])
    invariants.stored("b", 0, [entry(1, 1, b"y")])

    assert invariants.violations == ["log matching: b has another entry 1 of term 1"]


def test_another_entry_before_the_same_is_found(invariants):
    invariants.stored("a", 0, log(1, 1, 3))
    invariants.stored("b", 2, [entry(3, 3)])

    (found,) = invariants.violations
    assert "at b entry 3 of term 3 follows one of term 2, elsewhere one of term 1" in found


def test_an_entry_before_that_was_not_seen_contradicts_nothing(invariants):
    invariants.stored("a", None, [entry(3, 3)])
    invariants.stored("b", 0, log(1, 1, 3))
    invariants.stored("c", None, [entry(3, 3)])

    invariants.check()


def test_another_command_applied_at_one_index_is_found(invariants):
    invariants.applied("a", 1, entry(1, 1, b"x"))
    invariants.applied("b", None, entry(1, 2, b"y"))

    (found,) = invariants.violations
    assert found.startswith("state machine safety: at 1 a applied b'x' of term 1, b b'y'")


def test_a_leader_whose_log_ends_before_what_is_committed_is_found(invariants):
    invariants.stored("a", 0, log(1, 1, 1))
    invariants.applied("a", 1, entry(3, 1))
    invariants.stored("b", 1, [entry(3, 2)])

    (found,) = invariants.violations
    assert "the leader of term 2 begins at 3 but 3 was committed before" in found


def test_a_leader_with_another_entry_where_one_is_committed_is_found(invariants):
    invariants.stored("a", 0, log(1, 2))
    invariants.applied("a", 2, entry(2, 2))
    invariants.stored("b", 0, log(1, 1))
    invariants.stored("b", 1, [entry(3, 3)])

    (found,) = invariants.violations
    assert "the leader of term 3 has term 1 at 2, where term 2 was committed before" in found


def test_a_leader_may_lack_what_was_committed_after_its_term(invariants):
    invariants.stored("a", 0, log(1, 3))
    invariants.applied("a", 3, entry(2, 3))
    invariants.stored("b", 1, [entry(2, 2)])

    invariants.check()


def test_numbers_that_fall_are_found_within_an_incarnation(invariants):
    invariants.progressed("a", 1, 5, 9)
    invariants.progressed("a", 2, 5, 3)
    assert invariants.violations == []

    invariants.progressed("a", 2, 4, 2)

    assert invariants.violations == [
        "a: term fell from 5 to 4",
        "a: commit index fell from 3 to 2",
    ]


def test_a_server_that_was_rebuilt_votes_as_another(invariants):
    invariants.voted("c", 2, "a")
    invariants.rebuilt("c")
    invariants.voted("c", 2, "b")

    invariants.check()


def test_a_leader_needs_the_votes_of_a_majority(invariants):
    invariants.voted("c", 2, "a")

    assert invariants.elected("a", 2, "abc")
    assert not invariants.elected("a", 2, "abde")
    assert not invariants.elected("b", 2, "abc")


def test_a_vote_by_a_log_that_lacks_what_was_acknowledged_is_found(invariants):
    invariants.acknowledged("a", EntryID(2, 9), 2)
    invariants.acknowledged("a", EntryID(2, 7), 2)
    invariants.overruled("a", 2, EntryID(1, 6))  # not by a later leader
    invariants.decided("a", 3, EntryID(3, 5))
    invariants.decided("b", 3, EntryID(1, 1))
    assert invariants.violations == []

    invariants.overruled("b", 3, EntryID(1, 1))
    invariants.decided("a", 2, EntryID(2, 8))  # asked before it followed, sent late
    assert invariants.violations == []
    invariants.decided("a", 3, EntryID(2, 8))

    (found,) = invariants.violations
    assert found.startswith("vote: a decides by ")


def test_what_a_later_leader_hears_of_is_not_all_that_was_acknowledged_before(invariants):
    """It may cut back what comes behind, before it is told of anything there."""
    invariants.acknowledged("a", EntryID(2, 9), 2)
    invariants.acknowledged("a", EntryID(1, 6), 3)
    invariants.overruled("a", 3, EntryID(1, 8))
    invariants.decided("a", 4, EntryID(1, 8))
    assert invariants.violations == []

    invariants.decided("a", 4, EntryID(1, 7))

    assert len(invariants.violations) == 1


def test_a_vote_by_a_log_that_a_later_leader_has_cut_back_is_none(invariants):
    invariants.acknowledged("a", EntryID(2, 9), 2)
    invariants.overruled("a", 3, EntryID(1, 6))
    invariants.decided("a", 4, EntryID(1, 6))
    assert invariants.violations == []

    invariants.acknowledged("a", EntryID(3, 7), 3)
    invariants.decided("a", 4, EntryID(1, 6))

    assert len(invariants.violations) == 1
