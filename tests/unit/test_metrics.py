"""What metrics are made of: the saturation of a thread, the guarded sink, the sink in memory."""

import logging

import pytest

from raft import Config, InvalidConfigError, validate_config
from raft.messages import AppendEntriesRequest, RequestPreVoteRequest, RPCHeader
from raft.metrics import (
    Aggregate,
    InmemSink,
    Laps,
    Metrics,
    MetricsSink,
    Saturation,
    count,
    measure,
    rpc_labels,
    timed,
    timed_steps,
)
from raft.testing.manual import ManualRuntime

PEER = (("peer_id", "n2"),)


class Failing:
    """A sink that raises whatever it is given."""

    def __init__(self):
        self.calls = 0

    def fail(self, *_):
        self.calls += 1
        raise RuntimeError("no such host")

    set_gauge = incr_counter = add_sample = fail


class Clock:
    """Milliseconds that only the test lets pass."""

    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


class Watched:
    """A saturation with a window in milliseconds, and what it has reported."""

    def __init__(self, window):
        self.reports = []
        self.clock = Clock()
        self.saturation = Saturation(self.reports.append, self.clock, window)

    def after(self, milliseconds, turn):
        self.clock.now += milliseconds
        getattr(self.saturation, turn)()


def made(runtime=None, **options):
    runtime = runtime or ManualRuntime()
    sink = InmemSink(runtime=runtime)
    return runtime, sink, Metrics(sink, runtime, **options)


# ---- saturation ----


def test_saturation_is_the_share_of_time_that_is_not_slept():
    """UTL-09."""
    watched = Watched(window=100)

    watched.saturation.sleeping()
    watched.after(50, "working")
    watched.after(75, "sleeping")
    watched.after(90, "working")
    watched.after(10, "sleeping")
    watched.after(100, "working")

    assert watched.reports == [0.6, 0.1, 0.0]


def test_a_second_sleep_is_lost_time():
    """UTL-10."""
    watched = Watched(window=50)

    watched.saturation.sleeping()
    watched.after(10, "working")
    watched.after(10, "sleeping")
    watched.after(10, "sleeping")
    watched.after(10, "working")
    watched.after(10, "sleeping")

    assert watched.reports == [0.5]


def test_a_second_waking_is_lost_time():
    """UTL-11."""
    watched = Watched(window=30)

    watched.saturation.sleeping()
    watched.after(10, "working")
    watched.after(10, "working")
    watched.after(10, "sleeping")

    assert watched.reports == [0.5]


def test_time_before_the_first_sleep_is_lost_when_working_comes_first():
    """UTL-12."""
    watched = Watched(window=10)

    watched.after(10, "working")
    watched.after(5, "sleeping")
    watched.after(5, "working")

    assert watched.reports == [0.0, 0.5]


def test_saturation_is_reported_once_in_an_interval_and_never_without_a_turn():
    watched = Watched(window=100)

    watched.after(99, "sleeping")
    assert watched.reports == []
    watched.after(1000, "working")

    assert watched.reports == [0.09]


def test_a_wait_counts_as_sleep():
    watched = Watched(window=100)

    def wait(milliseconds):
        watched.clock.now += milliseconds
        return "news"

    watched.clock.now += 25
    assert watched.saturation.asleep_in(wait)(0) == "news"
    watched.clock.now += 50
    watched.saturation.asleep_in(wait)(25)

    assert watched.reports == [0.75]


# ---- what the node calls ----


def test_a_sink_that_raises_is_logged_once_and_else_ignored(caplog):
    sink = Failing()
    metrics = Metrics(sink, ManualRuntime())

    with caplog.at_level(logging.WARNING, "raft.metrics"):
        metrics.set_gauge("raft.peers", 3)
        metrics.incr_counter("raft.apply")
        metrics.since("raft.commitTime", 0.0)
        metrics.appended("n2", 0.0, 1)

    assert sink.calls == 7
    assert [record.getMessage() for record in caplog.records] == [
        "metrics sink failed, further errors are ignored name=raft.peers"
    ]


def test_timers_are_samples_in_milliseconds():
    runtime, sink, metrics = made()

    began = metrics.now()
    runtime.now += 0.25
    metrics.since("raft.commitTime", began)

    assert sink.intervals()[0].samples == {("raft.commitTime", ()): Aggregate(1, *[250.0] * 4)}


def test_metrics_of_a_peer_come_with_a_label_and_under_the_legacy_name():
    _, sink, metrics = made()

    metrics.appended("n2", metrics.now(), 4)

    (interval,) = sink.intervals()
    rpc, logs = "raft.replication.appendEntries.rpc", "raft.replication.appendEntries.logs"
    assert set(interval.samples) == {(rpc, PEER), (f"{rpc}.n2", ())}
    assert set(interval.counters) == {(logs, PEER), (f"{logs}.n2", ())}
    assert interval.counters[logs, PEER].sum == 4


def test_legacy_names_can_be_left_out():
    _, sink, metrics = made(legacy=False)

    metrics.appended("n2", metrics.now(), 4)

    (interval,) = sink.intervals()
    assert [*interval.samples, *interval.counters] == [
        ("raft.replication.appendEntries.rpc", PEER),
        ("raft.replication.appendEntries.logs", PEER),
    ]


def test_without_metrics_nothing_is_made_and_no_function_is_wrapped():
    assert timed(None, "raft.fsm.apply", len) is len
    assert timed_steps(None, "raft.compactLogs", bool) is bool
    assert measure(None, "raft.fsm.apply") is measure(None, "raft.rpc.requestVote")
    count(None, "raft.apply")


def test_a_block_and_a_call_are_measured_however_they_end():
    runtime, sink, metrics = made()

    def fail():
        runtime.now += 0.5
        raise KeyError

    with pytest.raises(KeyError), measure(metrics, "raft.rpc.requestVote"):
        fail()
    with pytest.raises(KeyError):
        timed(metrics, "raft.fsm.apply", fail)()

    (interval,) = sink.intervals()
    assert [(name, a.last) for (name, _), a in interval.samples.items()] == [
        ("raft.rpc.requestVote", 500.0),
        ("raft.fsm.apply", 500.0),
    ]


def test_a_job_in_steps_is_measured_without_what_happens_between():
    runtime, sink, metrics = made()
    left = [True, False]

    def step():
        runtime.now += 0.1
        return left.pop(0)

    job = timed_steps(metrics, "raft.compactLogs", step)
    assert job()
    assert sink.intervals() == []
    runtime.now += 5.0
    assert not job()

    assert sink.intervals()[0].samples["raft.compactLogs", ()].sum == pytest.approx(200.0)


def test_laps_are_measured_one_after_the_other():
    runtime, sink, metrics = made()
    laps = Laps(metrics)

    runtime.now += 1.0
    laps.lap("raft.net.getRPCType")
    runtime.now += 2.0
    laps.labels = (("rpcType", "RequestVote"),)
    laps.lap("raft.net.rpcDecode")
    runtime.now += 4.0
    laps.start()
    laps.lap("raft.net.rpcEnqueue")

    assert {key: a.sum for key, a in sink.intervals()[0].samples.items()} == {
        ("raft.net.getRPCType", ()): 1000.0,
        ("raft.net.rpcDecode", (("rpcType", "RequestVote"),)): 2000.0,
        ("raft.net.rpcEnqueue", ()): 0.0,
    }


def test_requests_are_told_apart_by_the_originals_names():
    header = RPCHeader("n1", "n1:1")

    assert rpc_labels(AppendEntriesRequest(header, 1)) == (("rpcType", "Heartbeat"),)
    assert rpc_labels(AppendEntriesRequest(header, 1, 7)) == (("rpcType", "AppendEntries"),)
    assert rpc_labels(RequestPreVoteRequest(header, 1, 1, 1)) == (("rpcType", "RequestPreVote"),)


# ---- the sink in memory ----


def test_values_are_aggregated_by_name_labels_and_interval():
    runtime, sink, _ = made()

    for value in (3.0, 1.0, 2.0):
        sink.add_sample("raft.replication.heartbeat", value, PEER)
        sink.set_gauge("raft.peers", value)
        sink.incr_counter("raft.apply", value)
    sink.incr_counter("raft.apply", 1.0, PEER)
    runtime.now += 10.0
    sink.set_gauge("raft.peers", 9.0)

    first, second = sink.intervals()
    assert first.samples == {("raft.replication.heartbeat", PEER): Aggregate(3, 6.0, 1.0, 3.0, 2.0)}
    assert first.gauges == {("raft.peers", ()): 2.0}
    assert first.counters["raft.apply", ()].sum == 6.0
    assert first.counters["raft.apply", PEER].count == 1
    assert (second.gauges, second.began - first.began) == ({("raft.peers", ()): 9.0}, 10.0)


def test_old_intervals_are_dropped():
    runtime = ManualRuntime()
    sink = InmemSink(interval=1.0, retain=3.0, runtime=runtime)

    for value in range(5):
        sink.set_gauge("raft.peers", value)
        runtime.now += 1.0

    assert [i.gauges["raft.peers", ()] for i in sink.intervals()] == [2, 3, 4]


def test_what_is_returned_is_a_copy():
    _, sink, _ = made()
    sink.add_sample("raft.commitTime", 1.0)

    before = sink.intervals()[0]
    sink.add_sample("raft.commitTime", 1.0)

    assert before.samples["raft.commitTime", ()].count == 1


@pytest.mark.parametrize(("interval", "retain"), [(0, 1), (2, 1), (float("nan"), 1)])
def test_an_impossible_interval_is_refused(interval, retain):
    with pytest.raises(ValueError, match="interval"):
        InmemSink(interval, retain)


# ---- settings, names ----


def test_what_is_no_sink_is_refused():
    with pytest.raises(InvalidConfigError, match="it needs set_gauge, incr_counter and add_sample"):
        validate_config(Config(local_id="n1", metrics=print))


def test_the_nodes_own_metrics_are_a_sink_too():
    _, sink, metrics = made()

    assert isinstance(metrics, MetricsSink)
    assert isinstance(sink, MetricsSink)
