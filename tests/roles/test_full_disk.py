"""A leader whose disk gets full (design: refused before anything is written or sent)."""

from raft.engine.inbox import ChangeKind
from raft.errors import DiskFullError, NotAppliedError
from raft.messages import TimeoutNowRequest
from raft.testing.script import servers
from raft.types import LogType
from tests.roles.bench import NOOP, Bench


def full(configuration=None, **config):
    """A leader whose store has said, after its last write, that the disk is almost full."""
    config = {"election_timeout": 0.1, "leader_lease_timeout": 0.05} | config
    bench = Bench(configuration or servers("n1", "n2", "n3"), storing=["n2", "n3"], **config)
    bench.is_full = True
    bench.core.disk._reserving = [Says(bench)]
    bench.core.disk.look_for_room()
    bench.runtime.run()
    return bench


class Says:
    def __init__(self, bench):
        self.bench = bench

    def is_full(self):
        return self.bench.is_full


def test_client_entries_are_refused_before_anything_is_written_or_sent():
    bench = full()

    for refused in (bench.node.apply(b"x"), bench.node.apply(b"", LogType.BARRIER)):
        error = refused.error(0)
        assert isinstance(error, DiskFullError)
        assert isinstance(error, NotAppliedError)
        assert "n1" in str(error)

    assert bench.core.raft_log.last_index() == NOOP
    assert bench.sent_to("n2") == {(NOOP, 2)}


def test_memberships_and_reads_go_on():
    bench = full()

    assert bench.change(ChangeKind.ADD_NONVOTER, "n4", "n4:1").result(0) is None
    assert bench.read().result(0) >= NOOP


def test_it_ends_when_space_is_back_without_a_write():
    bench = full()
    bench.is_full = False

    bench.runtime.advance(0.05)

    assert bench.node.apply(b"x").result(0) == 2


def asked(bench):
    return [c.server_id for c in bench.transport.calls if isinstance(c.request, TimeoutNowRequest)]


def test_after_some_time_in_office_leadership_is_handed_over():
    bench = full()

    bench.runtime.advance(0.9)
    assert asked(bench) == []
    bench.runtime.advance(0.2)

    assert asked(bench) == ["n2"]


def test_it_is_tried_again_but_not_all_the_time():
    bench = full()

    bench.runtime.advance(2.5)

    assert len(asked(bench)) == 2


def test_a_lone_voter_keeps_its_office():
    bench = full(servers("n1"))

    bench.runtime.advance(2.0)

    assert bench.is_leading()
    assert asked(bench) == []
