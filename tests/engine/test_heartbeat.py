"""The beat thread of one peer, whose answers the test gives."""

from itertools import pairwise

import pytest

from raft.engine.heartbeat import Heartbeats, Links
from raft.engine.inbox import BeatAnswered, NewerTermSeen
from raft.engine.plausible import FURTHEST_AHEAD
from raft.errors import PeerUnreachableError
from raft.messages import AppendEntriesResponse
from raft.observer import FailedHeartbeatObservation, ResumedHeartbeatObservation
from raft.testing.script import ScriptedNode, header
from raft.types import Server

TERM = 3
TIMEOUT = 1.0


class Bench:
    def __init__(self, chance=0.0):
        self.node = ScriptedNode(
            config={
                "heartbeat_timeout": TIMEOUT,
                "election_timeout": TIMEOUT,
                "leader_lease_timeout": TIMEOUT,
            }
        )
        core = self.node.core
        self.runtime, self.transport = core.runtime, core.transport
        self.runtime.chance = chance
        self.posted, self.observed, self.resumed = [], [], []
        self.sequence = 0
        links = Links(
            runtime=core.runtime,
            config=core.config,
            threads=core.threads,
            log=core.raft_log,
            snapshots=core.snapshots,
            transport=core.transport,
            header=header("n1"),
            term=TERM,
            progress=None,
            commit_index=lambda: 7,
            verify_sequence=lambda: self.sequence,
            post=self.posted.append,
            emit=self.observed.append,
        )
        self.stopped = core.runtime.event()
        self.heart = Heartbeats(
            links, Server("n2", "n2:1"), self.stopped, lambda: self.resumed.append(self.runtime.now)
        )
        core.threads.spawn("beat", self.heart.run)
        self.runtime.run()

    @property
    def beat(self):
        """The heartbeat that waits for an answer."""
        (call,) = self.transport.open_calls()
        return call

    def answer(self, success=True, term=TERM):
        self.beat.answer(AppendEntriesResponse(header("n2"), term, 0, success))
        self.runtime.run()

    def fail(self):
        self.beat.answer(PeerUnreachableError("cut off"))
        self.runtime.run()

    def next_beat(self):
        while not self.transport.open_calls():
            self.runtime.advance(0.001)


@pytest.fixture
def bench():
    return Bench()


def test_a_heartbeat_is_empty(bench):
    """PAP-06, ETC-53: it depends on nothing that could have to be waited for."""
    bench.runtime.advance(0.1)

    assert bench.beat.request.is_heartbeat()
    assert bench.beat.request.term == TERM


@pytest.mark.parametrize(("chance", "period"), [(0.0, 0.1), (0.5, 0.15)])
def test_heartbeats_go_out_ten_times_a_timeout_up_to_twice_as_slowly(chance, period):
    bench = Bench(chance)
    bench.transport.respond = lambda _: AppendEntriesResponse(header("n2"), TERM, 0, True)

    bench.runtime.advance(period * 10.5)

    assert len(bench.transport.calls) == 10


def test_contact_is_when_the_answer_came(bench):
    """The way is no silence: no lease could be shorter than it."""
    bench.runtime.advance(0.1)
    bench.runtime.advance(0.5)
    came_at = bench.runtime.now

    bench.answer()
    bench.runtime.advance(0.01)

    assert bench.heart.last_contact == came_at


def test_an_answer_of_no_honest_server_is_a_failure_and_ends_nothing(bench):
    bench.runtime.advance(0.1)

    bench.answer(success=False, term=TERM + FURTHEST_AHEAD + 1)
    bench.runtime.advance(1.0)

    assert bench.beat
    assert bench.posted == []
    assert [type(event) for event in bench.observed] == [FailedHeartbeatObservation]


# ---- verification (departure 5) ----


def test_a_round_that_began_before_the_request_confirms_nothing(bench):
    """Departure 5."""
    bench.runtime.advance(0.1)
    assert bench.beat

    bench.sequence = 1
    bench.answer()

    assert bench.posted == []


def test_a_round_that_begins_after_the_request_confirms_it(bench):
    """Departure 5."""
    bench.sequence = 1
    bench.heart.beat_now()
    bench.runtime.run()

    bench.answer()

    assert bench.posted == [BeatAnswered(TERM, "n2", 1)]


def test_a_round_asked_for_while_one_is_under_way_follows_it(bench):
    """Departure 5."""
    bench.runtime.advance(0.1)
    bench.sequence = 1
    bench.heart.beat_now()

    bench.answer()
    assert bench.posted == []
    bench.answer()

    assert bench.posted == [BeatAnswered(TERM, "n2", 1)]


def test_the_same_request_is_confirmed_once(bench):
    bench.sequence = 1
    for _ in range(3):
        bench.next_beat()
        bench.answer()

    assert bench.posted == [BeatAnswered(TERM, "n2", 1)]


def test_a_refused_beat_confirms_nothing(bench):
    bench.sequence = 1
    bench.next_beat()

    bench.answer(success=False)

    assert bench.posted == []


def test_a_newer_term_ends_the_beats(bench):
    bench.next_beat()

    bench.answer(success=False, term=TERM + 1)
    bench.runtime.advance(5.0)

    assert bench.posted == [NewerTermSeen(TERM, TERM + 1)]
    assert len(bench.transport.calls) == 1


# ---- failures ----


def test_failed_beats_are_tried_again_no_later_than_half_a_timeout_apart(bench):
    """H17: a peer that is back must hear us before it campaigns."""
    times = []
    for _ in range(10):
        bench.next_beat()
        times.append(bench.runtime.now)
        bench.fail()

    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5], abs=0.002)


def test_the_first_answer_after_failures_is_told_to_the_replicator(bench):
    """Departure 12."""
    for _ in range(2):
        bench.next_beat()
        bench.fail()
    assert bench.resumed == []

    bench.next_beat()
    bench.answer()
    bench.next_beat()
    bench.answer()

    assert len(bench.resumed) == 1
    assert [type(o) for o in bench.observed] == [
        FailedHeartbeatObservation,
        FailedHeartbeatObservation,
        ResumedHeartbeatObservation,
    ]


def test_a_peer_whose_entries_were_answered_meanwhile_does_not_start_over(bench):
    """What is on its way would be sent again, over a link that is perhaps slow."""
    bench.next_beat()
    bench.fail()
    bench.runtime.advance(0.001)
    bench.heart.touch(header("n2"))

    bench.next_beat()
    bench.answer()

    assert bench.resumed == []
    assert isinstance(bench.observed[-1], ResumedHeartbeatObservation)


def test_a_peer_that_answered_something_else_is_beaten_at_once(bench):
    for _ in range(8):
        bench.next_beat()
        bench.fail()
    assert bench.transport.open_calls() == []

    bench.heart.end_backoff()
    bench.runtime.run()

    assert bench.beat


def test_a_request_for_a_round_does_not_hurry_a_peer_that_fails(bench):
    for _ in range(8):
        bench.next_beat()
        bench.fail()
    count = len(bench.transport.calls)

    bench.heart.beat_now()
    bench.runtime.run()

    assert len(bench.transport.calls) == count


def test_a_beat_without_an_answer_fails_in_a_heartbeat_timeout(bench):
    bench.next_beat()

    bench.runtime.advance(TIMEOUT)

    assert [type(o) for o in bench.observed] == [FailedHeartbeatObservation]


def test_a_peer_that_moved_is_beaten_at_its_new_address(bench):
    bench.heart.move(Server("n2", "elsewhere:1"))

    bench.next_beat()

    assert bench.beat.address == "elsewhere:1"


def test_stopping_ends_the_beats(bench):
    bench.stopped.set()
    bench.heart.wake()
    bench.runtime.advance(5.0)

    assert bench.transport.calls == []
