from itertools import product

import pytest

from raft.engine.commitment import Commitment, majority_index
from raft.testing.manual import ManualRuntime
from raft.testing.script import servers

FIVE = servers("s1", "s2", "s3", "s4", "s5")


class Tracker(Commitment):
    """A commitment that tells whether it has announced an advance since last asked."""

    def __init__(self, configuration, start_index):
        self.announced = False
        super().__init__(ManualRuntime(), configuration, start_index, self._note)

    def _note(self):
        self.announced = True

    def matches(self, **indexes):
        for server_id, index in indexes.items():
            self.match(server_id, index)

    def was_announced(self):
        announced, self.announced = self.announced, False
        self.acknowledge()
        return announced


def test_voters_that_stay_keep_what_they_have():
    """COM-01"""
    tracker = Tracker(servers("a", "b", "c"), 0)
    tracker.matches(a=10, b=20, c=30)
    assert (tracker.commit_index, tracker.was_announced()) == (20, True)

    tracker.set_configuration(servers("c", "d", "e"))
    assert tracker.match_indexes() == {"c": 30, "d": 0, "e": 0}
    tracker.matches(e=40)

    assert (tracker.commit_index, tracker.was_announced()) == (30, True)


def test_a_smaller_match_than_before_is_ignored():
    """COM-02"""
    tracker = Tracker(FIVE, 4)

    tracker.matches(s1=8, s2=8)
    tracker.matches(s2=1, s3=8)

    assert tracker.commit_index == 8


def test_servers_that_are_no_voters_do_not_count():
    """COM-03"""
    tracker = Tracker(FIVE, 4)
    tracker.matches(s1=8, s2=8, s3=8)
    assert tracker.was_announced()

    tracker.matches(s90=10, s91=10, s92=10)

    assert (tracker.commit_index, tracker.was_announced()) == (8, False)


def test_the_commit_index_follows_the_majority_and_never_falls():
    """COM-04"""
    tracker = Tracker(FIVE, 0)
    seen = []

    def note():
        seen.append((tracker.commit_index, tracker.was_announced()))

    tracker.matches(s1=30, s2=20)
    note()
    tracker.matches(s3=10)
    note()
    tracker.matches(s4=15)
    note()
    tracker.set_configuration(servers("s1", "s2", "s3"))
    note()
    tracker.set_configuration(servers("s1", "s2", "s3", "s4"))
    note()
    tracker.matches(s2=25)
    note()
    tracker.matches(s4=23)
    note()

    assert seen == [
        (0, False),
        (10, True),
        (15, True),
        (20, True),
        (20, False),
        (20, False),
        (23, True),
    ]


def test_entries_of_earlier_terms_do_not_commit_by_counting():
    """COM-05; section 5.4.2"""
    tracker = Tracker(FIVE, 4)

    tracker.matches(s1=3, s2=3, s3=3)
    assert (tracker.commit_index, tracker.was_announced()) == (0, False)
    tracker.matches(s1=4, s2=4, s3=4)

    assert (tracker.commit_index, tracker.was_announced()) == (4, True)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_what_more_than_half_have_of_the_own_term_on_is_committed(size, start):
    """ETC-47: every combination of matches up to 2, with the own term's first entry at `start`."""
    names = ["s1", "s2", "s3", "s4"][:size]
    for matches in product(range(3), repeat=size):
        tracker = Tracker(servers(*names), start)

        tracker.matches(**dict(zip(names, matches, strict=True)))

        held = [i for i in (1, 2) if i >= start and 2 * sum(m >= i for m in matches) > size]
        assert tracker.commit_index == max(held, default=0), matches


def test_without_voters_nothing_commits():
    """COM-06"""
    tracker = Tracker(servers(), 4)

    tracker.matches(s1=10)
    tracker.set_configuration(servers())
    tracker.matches(s1=10)
    assert (tracker.commit_index, tracker.was_announced()) == (0, False)
    tracker.set_configuration(servers("s1"))
    tracker.matches(s1=10)
    assert (tracker.commit_index, tracker.was_announced()) == (10, True)
    tracker.set_configuration(servers())
    tracker.matches(s1=20)

    assert (tracker.commit_index, tracker.was_announced()) == (10, False)


def test_a_single_voter_commits_alone():
    """COM-07"""
    tracker = Tracker(servers("s1"), 4)

    tracker.matches(s1=10)
    assert (tracker.commit_index, tracker.was_announced()) == (10, True)
    tracker.set_configuration(servers("s1"))
    assert (tracker.commit_index, tracker.was_announced()) == (10, False)
    tracker.matches(s1=12)

    assert (tracker.commit_index, tracker.was_announced()) == (12, True)


def test_a_nonvoter_of_the_configuration_does_not_count():
    tracker = Tracker(servers("a", nonvoters=["b", "c"]), 1)

    tracker.matches(b=9, c=9)

    assert tracker.commit_index == 0


def test_a_voter_added_anew_begins_at_0():
    tracker = Tracker(servers("a", "b"), 1)
    tracker.matches(b=9)

    tracker.set_configuration(servers("a"))
    tracker.set_configuration(servers("a", "b"))

    assert tracker.match_indexes() == {"a": 0, "b": 0}


def test_advances_are_announced_once_until_acknowledged():
    calls = []
    tracker = Commitment(ManualRuntime(), servers("a"), 1, lambda: calls.append(1))

    tracker.match("a", 1)
    tracker.match("a", 2)
    assert len(calls) == 1
    assert tracker.acknowledge() == 2
    tracker.match("a", 3)

    assert len(calls) == 2


def test_a_server_that_is_watched_is_reported_once():
    reached = []
    tracker = Commitment(
        ManualRuntime(), servers("a"), 1, lambda: None, lambda *report: reached.append(report)
    )
    tracker.watch("b", 3)

    for index in (2, 3, 4):
        tracker.match("b", index)

    assert reached == [("b", 3)]


def test_what_a_retired_source_reports_is_another_machines():
    """A report was on its way when its server was removed; the id is back, and has nothing."""
    old, new = object(), object()
    tracker = Tracker(servers("a", "b"), 0)
    tracker.set_configuration(servers("a"))
    tracker.retire(old)
    tracker.set_configuration(servers("a", "b"))
    tracker.watch("b", 7)

    tracker.match("a", 9)
    tracker.match("b", 9, old)
    assert (tracker.commit_index, tracker.match_indexes()) == (0, {"a": 9, "b": 0})

    tracker.match("b", 5, new)
    assert tracker.commit_index == 5


def test_the_announcement_may_look_at_the_commitment():
    """It is made without the lock."""
    seen = []
    tracker = Commitment(
        ManualRuntime(), servers("a"), 1, lambda: seen.append(tracker.match_indexes())
    )

    tracker.match("a", 1)

    assert seen == [{"a": 1}]


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        ([], 0),
        ([7], 7),
        ([7, 0], 0),
        ([7, 5], 5),
        ([7, 5, 0], 5),
        ([9, 1, 9, 1], 1),
        ([9, 9, 9, 1], 9),
        ([1, 2, 3, 4, 5], 3),
    ],
)
def test_the_majority_index_is_what_more_than_half_have(matches, expected):
    assert majority_index(matches) == expected


# ---- incarnations (departure 21) ----


def test_an_incarnation_counts_once_it_is_admitted_with_what_it_reported_before():
    commitment = Tracker(servers("n1", "n2", "n3"), 1)
    commitment.match("n1", 5)
    commitment.match("n2", 5, None, "first")
    assert commitment.commit_index == 0

    commitment.admit("n2", "first")

    assert commitment.commit_index == 5


def test_another_incarnation_counts_for_nothing():
    commitment = Tracker(servers("n1", "n2", "n3"), 1)
    commitment.admit("n2", "first")
    commitment.match("n2", 5, None, "first")

    commitment.match("n2", 9, None, "second")
    commitment.admit("n2", None)
    commitment.match("n1", 9)

    assert commitment.commit_index == 0
    assert commitment.match_indexes()["n2"] == 0


def test_admitting_the_same_incarnation_again_takes_nothing_back():
    commitment = Tracker(servers("n1", "n2", "n3"), 1)
    commitment.admit("n2", "first")
    commitment.match("n2", 5, None, "first")

    commitment.admit("n2", "first")

    assert commitment.match_indexes()["n2"] == 5
