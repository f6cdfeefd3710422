"""A leader that is heard, and commits nothing."""

import pytest

from raft.engine.commitment import Commitment
from raft.engine.replication import Reach
from raft.errors import LeadershipLostError, OutcomeUnknownError
from raft.roles.follower import Follower
from raft.roles.stall import CommitWatch
from raft.testing.script import DEADLINE, ScriptedNode, servers
from raft.types import RaftState
from tests.roles.bench import Bench

STALL = 1.0
FIVE = servers("n1", "n2", "n3", "n4", "n5")


def test_a_leader_whose_entries_get_nowhere_gives_up_and_says_why(caplog):
    """Heartbeats are answered, so the lease would never end."""
    bench = Bench(commit_stall_timeout=STALL)
    future = bench.node.apply(b"x")

    bench.runtime.advance(0.9 * STALL)
    assert bench.is_leading()
    bench.runtime.advance(0.3 * STALL)

    assert not bench.is_leading()
    assert isinstance(future.error(0), OutcomeUnknownError)
    assert "nothing was committed for 1.0 s though heartbeats are answered" in str(future.error(0))
    assert "does not get to n2, n3" in caplog.text


def test_a_leader_that_has_nothing_to_commit_goes_on():
    bench = Bench(commit_stall_timeout=STALL, storing=["n2"])
    bench.storing.clear()

    bench.runtime.advance(5 * STALL)

    assert bench.is_leading()


def test_a_voter_that_has_the_entry_shows_no_progress():
    """More of the log at one voter commits nothing where another two get none of it."""
    bench = Bench(FIVE, commit_stall_timeout=STALL, storing=["n2"])

    for number in range(12):
        bench.node.apply(b"%d" % number)
        bench.runtime.advance(0.1 * STALL)

    assert not bench.is_leading()


def test_who_led_in_vain_leaves_the_next_election_to_the_others():
    node = ScriptedNode()
    node.core.rest_until = node.runtime.now + 1.0

    node.play(Follower, DEADLINE, DEADLINE)
    assert node.core.state.role is RaftState.FOLLOWER
    node.runtime.advance(1.0)
    node.play(Follower, DEADLINE)

    assert node.core.state.role is RaftState.CANDIDATE


def test_others_have_longer_each_time_until_something_is_committed():
    pauses = []
    node = ScriptedNode(config={"commit_stall_timeout": STALL})
    for _ in range(5):
        Watch(node).advance(1.2 * STALL)
        pauses.append(round(node.core.rest_until - node.runtime.now, 1))
    node.core.apply_committed(1)
    Watch(node).advance(1.2 * STALL)

    assert pauses == [0.4, 0.8, 1.0, 1.0, 1.0]
    assert round(node.core.rest_until - node.runtime.now, 1) == 0.4


class Watch:
    """A watch over a leader of three that waits for `n2`, whose reach the test sets."""

    def __init__(self, node=None):
        self.node = node or ScriptedNode(config={"commit_stall_timeout": STALL})
        self.core = self.node.core
        voters = self.core.membership.latest
        commitment = Commitment(self.core.runtime, voters, 1, lambda: None)
        self.way, self.arrived, self.match = object(), 0.0, 0
        self.watch = CommitWatch(self.core, commitment, self)
        self.loss = None

    def reach(self):
        return {"n2": Reach(self.match, self.way, self.arrived)}

    def advance(self, seconds, rate=0.0):
        """Let time pass, with looks, while so much arrives in a second."""
        for _ in range(round(seconds / 0.02)):
            self.core.runtime.now += 0.02
            self.arrived += rate * 0.02
            self.loss = self.loss or self.watch.look(self.core.runtime.now)
            if self.loss is not None:
                break
        return self.loss


def test_a_leader_that_gave_up_is_counted():
    watch = Watch()
    counted = watch.core.metrics = Counted()

    watch.advance(1.1 * STALL)

    assert counted.names == ["raft.transition.commit_stall"]


class Counted:
    """Metrics that keep the names of what was counted."""

    def __init__(self):
        self.names = []

    def incr_counter(self, name):
        self.names.append(name)


def test_what_arrives_of_a_large_message_is_progress():
    watch = Watch()

    assert watch.advance(5 * STALL, rate=1000.0) is None
    assert isinstance(watch.advance(1.1 * STALL), LeadershipLostError)


def test_what_is_sent_again_is_progress_only_where_it_gets_further():
    """A message that fails at its end each time is no progress for ever."""
    watch = Watch()
    for _ in range(3):
        watch.way, watch.arrived = object(), 0.0
        watch.advance(0.6 * STALL, rate=1000.0)

    assert isinstance(watch.loss, LeadershipLostError)


@pytest.mark.parametrize("match", [1, 5])
def test_more_of_the_log_at_a_voter_that_lacks_the_entry_is_progress(match):
    watch = Watch()
    watch.advance(0.9 * STALL)

    watch.match = match

    assert watch.advance(0.9 * STALL) is None


def test_time_in_which_the_process_did_not_run_does_not_count():
    watch = Watch()
    watch.advance(0.1 * STALL)
    watch.core.runtime.now += 100.0

    assert watch.advance(0.5 * STALL) is None
