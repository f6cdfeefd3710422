"""A leader without a snapshot to send takes one, or hands over."""

from raft.engine.inbox import SnapshotWanted
from raft.errors import SnapshotError
from raft.messages import TimeoutNowRequest
from raft.testing.script import servers
from tests.roles.bench import TERM, Bench


class Wanting(Bench):
    """A leader whose snapshots are taken by the test."""

    def __init__(self, configuration=None, storing=("n2", "n3")):
        super().__init__(configuration or servers("n1", "n2", "n3"), storing, election_timeout=0.1)
        self.attempts = []
        self.core.take_snapshot = self.attempts.append

    def want(self, term=TERM):
        self.core.inbox.post(SnapshotWanted(term))
        self.runtime.run()

    def end(self, error=None):
        self.attempts[-1](error)
        self.runtime.run()

    def asked_to_campaign(self):
        return [c for c in self.transport.calls if isinstance(c.request, TimeoutNowRequest)]


def test_a_snapshot_is_taken_at_once_and_then_no_more_than_now_and_then():
    bench = Wanting()

    for _ in range(5):
        bench.want()
    assert len(bench.attempts) == 1
    bench.runtime.advance(1.1)
    bench.want()
    assert len(bench.attempts) == 2


def test_what_another_leadership_wanted_does_not_count():
    bench = Wanting()

    bench.want(TERM - 1)

    assert bench.attempts == []


def test_a_snapshot_that_is_there_is_offered_at_once():
    bench = Wanting()
    before = len(bench.transport.calls)
    bench.want()

    bench.end()

    assert len(bench.transport.calls) > before
    assert bench.asked_to_campaign() == []


def test_a_leader_that_cannot_take_one_hands_over():
    bench = Wanting()
    bench.want()

    bench.end(SnapshotError("the directory cannot be written"))

    assert len(bench.asked_to_campaign()) == 1


def test_a_leader_alone_leads_on():
    bench = Wanting(servers("n1"), storing=())
    bench.want()

    bench.end(SnapshotError("the directory cannot be written"))

    assert bench.asked_to_campaign() == []
    assert bench.leader.transfers.refusal() is None
