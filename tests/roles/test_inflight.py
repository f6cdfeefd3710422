from raft.engine.inbox import Apply
from raft.errors import LeadershipLostError
from raft.futures import IndexFuture
from raft.metrics import Aggregate, InmemSink, Metrics
from raft.roles.inflight import Dispatches, InFlight
from raft.testing.manual import ManualRuntime
from raft.types import LogType


def waiting(*indexes):
    inflight = InFlight(None)
    for index in indexes:
        inflight.entries.append((index, Apply(LogType.COMMAND, b"", b"", IndexFuture())))
    return inflight


def test_what_is_committed_is_taken_out_in_order():
    inflight = waiting(4, 5, 6)

    assert [index for index, _ in inflight.committed(5)] == [4, 5]
    assert [index for index, _ in inflight.entries] == [6]
    assert inflight.committed(5) == []


def test_everybody_is_answered_when_leadership_is_lost():
    inflight = waiting(4, 5)
    futures = [apply.future for _, apply in inflight.entries]
    loss = LeadershipLostError("lost")

    inflight.fail_all(loss)

    assert [future.error(0) for future in futures] == [loss, loss]
    assert not inflight.entries


def test_the_time_to_commit_counts_from_the_dispatch_of_each_entry():
    runtime = ManualRuntime()
    sink = InmemSink(runtime=runtime)
    dispatches = Dispatches(Metrics(sink, runtime))

    dispatches.dispatched(runtime.now, 2, 2)
    runtime.now += 1.0
    dispatches.dispatched(runtime.now, 5, 3)
    runtime.now += 1.0
    dispatches.committed([1, 2, 3])
    runtime.now += 1.0
    dispatches.committed([5])  # 4 was aborted by a restore

    (interval,) = sink.intervals()
    assert interval.samples["raft.commitTime", ()] == Aggregate(4, 7000.0, 1000.0, 2000.0, 2000.0)
    assert interval.gauges["raft.commitNumLogs", ()] == 1
    assert interval.gauges["raft.leader.dispatchNumLogs", ()] == 3
