"""What the metrics thread emits, and when."""

import pytest

from raft.engine.gauges import Gauges
from raft.engine.state import HardState
from raft.engine.stats import describe
from raft.metrics import InmemSink
from raft.testing.script import ScriptedNode, entries
from raft.types import Log, RaftState


class Bench:
    def __init__(self, log=(), period=10.0, **methods):
        self.sink = InmemSink()
        self.node = ScriptedNode(log=log, hard_state=HardState(1), config={"metrics": self.sink})
        self.core, self.runtime = self.node.core, self.node.runtime
        for name, method in methods.items():
            setattr(self.node.store, name, method)
        self.core.threads.spawn("metrics", Gauges(self.core, self.core.metrics, period).run)

    def gauges(self):
        return {name: value for i in self.sink.intervals() for (name, _), value in i.gauges.items()}

    def age(self):
        return self.gauges().get("raft.leader.oldestLogAge")


def test_a_leader_tells_the_age_of_its_oldest_entry_every_ten_seconds():
    """LOG-05: the period is an argument, as the original's is; time is virtual."""
    bench = Bench()
    bench.node.store.store_log(Log(1, 1, data=b"x", appended_at=bench.runtime.wall_time_ns()))
    bench.core.become(RaftState.LEADER)

    bench.runtime.advance(9.99)
    assert bench.age() is None
    bench.runtime.advance(0.02)
    assert bench.age() == pytest.approx(10_000, abs=1)
    bench.runtime.advance(10)
    assert bench.age() == pytest.approx(20_000, abs=1)


def test_only_a_leader_tells_the_age_of_its_log():
    bench = Bench(log=entries(2, terms=(1, 1)))

    bench.runtime.advance(10)

    assert bench.age() is None
    assert bench.gauges()["raft.lastIndex"] == bench.core.raft_log.last_index() > 0


def fail(*_):
    raise OSError("no disk")


@pytest.mark.parametrize(
    ("log", "methods"),
    [
        ((), {}),  # nothing there
        ([Log(1, 1, data=b"x")], {}),  # appended by who says not when
        ([Log(1, 1, data=b"x", appended_at=1)], {"get_log": fail}),
    ],
)
def test_an_age_that_nobody_knows_is_zero(log, methods):
    bench = Bench(**methods)
    if log:
        bench.node.store.store_logs(log)
    bench.core.become(RaftState.LEADER)

    bench.runtime.advance(10)

    assert bench.age() == 0


def test_a_store_tells_what_it_takes_as_far_as_it_knows():
    bench = Bench(stats=lambda: {"live_bytes": 7, "pages": 3, "wal_bytes": 9})

    bench.runtime.advance(10)

    stores = {n: v for n, v in bench.gauges().items() if n.startswith("raft.store.")}
    assert stores == {"raft.store.liveBytes": 7, "raft.store.walBytes": 9}


def test_a_store_that_cannot_be_measured_stops_nothing():
    bench = Bench(stats=fail)

    bench.runtime.advance(20)

    assert bench.gauges()["raft.term"] == 1


def test_the_thread_ends_with_the_main_thread():
    bench = Bench()

    bench.core.main_ended.set()
    bench.runtime.advance(60)

    assert bench.gauges() == {}


def test_it_is_seen_how_long_a_certificate_is_valid_yet():
    bench = Bench()
    day = 86400
    end = bench.runtime.wall_time_ns() / 1e9 + 30 * day
    bench.core.transport.certificate_end = lambda: end

    bench.runtime.advance(10.1)

    left = bench.gauges()["raft.certificate.secondsLeft"]
    assert left == pytest.approx(30 * day, abs=60)
    assert describe(bench.core)["certificate_days_left"] == "30.0"


def test_role_and_whether_a_leader_is_known_are_seen():
    bench = Bench()

    bench.runtime.advance(10.1)
    assert (bench.gauges()["raft.role"], bench.gauges()["raft.leaderKnown"]) == (0, 0)
    bench.core.set_leader("n2", "n2:1")
    bench.runtime.advance(10.1)

    assert bench.gauges()["raft.leaderKnown"] == 1
