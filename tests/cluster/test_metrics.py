"""That a live node emits every metric of the table, with its kind and labels."""

import sys
import threading
from functools import partial

import pytest

from raft import Configuration, InmemSink, NotLeaderError, Raft, Server
from raft.engine import lifecycle
from raft.engine.gauges import Gauges
from raft.metrics import METRICS, Kind
from raft.runtime import THREADS
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import SCALE, Cluster, fast_config
from raft.testing.fsm import BatchingRecordingFSM, ConfigurationRecordingFSM, RecordingFSM
from raft.transport import TCPTransport
from raft.types import RaftState
from raftsqlite import SQLiteStore
from tests.cluster.helpers import ANSWER, apply_count

OWN_PEER_METRICS = {
    "lag",
    "failed",
    "failedHeartbeats",
    "snapshots",
    "failedSnapshots",
}  # have no legacy names
PEER_METRICS = [
    name
    for name, metric in METRICS.items()
    if "peer_id" in metric.labels and name.split(".")[-1] not in OWN_PEER_METRICS
]


class RefusingFSM(ConfigurationRecordingFSM):
    """Answers one command by an exception."""

    def apply(self, log):
        answer = super().apply(log)
        if log.data == b"bad":
            raise ValueError("bad")
        return answer


class RaisingSink:
    """A sink that raises whatever it is given."""

    def fail(self, *_):
        raise RuntimeError("no such host")

    set_gauge = incr_counter = add_sample = fail


def seen(*sinks):
    """Return what came in, as (kind, name, labels' names), without legacy names."""
    found = set()
    for interval in (i for sink in sinks for i in sink.intervals()):
        for kind, keys in (
            (Kind.GAUGE, interval.gauges),
            (Kind.COUNTER, interval.counters),
            (Kind.SAMPLE, interval.samples),
        ):
            found |= {(kind, name, tuple(n for n, _ in labels)) for name, labels in keys}
    return found


def expected(names):
    return {(METRICS[name].kind, name, METRICS[name].labels) for name in names}


def legacy(names, peers):
    return {(METRICS[name].kind, f"{name}.{peer}", ()) for name in names for peer in peers}


def sink_of(member):
    return member.config.metrics


def drive(cluster, leader):
    """Have a cluster do once whatever is measured; all but what needs time alone."""
    apply_count(leader, 10)
    with pytest.raises(ValueError, match="bad"):
        leader.node.apply(b"bad").result(ANSWER)
    leader.node.barrier().result(ANSWER)
    leader.node.verify_leader().result(ANSWER)
    taken = leader.node.snapshot()
    taken.result(ANSWER)

    late = cluster.add()  # the log is compacted, so it gets the snapshot
    leader.node.add_nonvoter(late.id, late.address).result(ANSWER)
    cluster.wait_for_commands(11)
    meta, reader = taken.open()
    leader.node.restore(meta, reader)
    apply_count(leader, 1)
    cluster.assert_same_state()

    cluster.disconnect(leader)
    cluster.wait_for(lambda: leader.node.state() is not RaftState.LEADER)
    cluster.heal()
    cluster.leader()
    cluster.followers()


def test_every_metric_is_emitted_with_its_kind_and_labels(tmp_path, monkeypatch):
    """LOG-05 among them: the original's emitter takes its period as an argument, so does ours."""
    monkeypatch.setattr(lifecycle, "Gauges", partial(Gauges, period=0.02 * SCALE))

    def configure(config):
        config.metrics = InmemSink()
        config.trailing_logs = 0

    with (
        SQLiteStore(tmp_path / "raft.db", unsafe_no_sync=True) as store,
        Cluster(2, bootstrap=False, configure=configure, make_fsm=RefusingFSM) as cluster,
    ):
        cluster.add(logs=store, stable=store, make_fsm=BatchingRecordingFSM)
        cluster.bootstrap()
        leader = cluster.leader()
        if leader.id == "n3":
            leader.node.leadership_transfer().result(ANSWER)
            leader = cluster.leader()
        drive(cluster, leader)
        # Those of the network, and of disasters that have tests of their own, are not caused here.
        wanted = {name for name in METRICS if not name.startswith("raft.net.")}
        wanted -= {"raft.transition.commit_stall", "raft.voter.replaced"}
        wanted.discard("raft.replication.failedSnapshots")
        wanted.discard("raft.certificate.secondsLeft")  # of TLS

        def found():
            return seen(*map(sink_of, cluster.members.values()))

        # A thread tells how busy it was once in a second, when it turns to work or to sleep. The
        # main thread always does; the FSM thread, which is older, needs something to do.
        (busy,) = expected(["raft.thread.main.saturation"])
        members = cluster.members.values()
        cluster.wait_for(lambda: all(busy in seen(sink_of(member)) for member in members))
        apply_count(cluster.leader(), 1)
        assert expected(wanted) - found() == set()
        assert found() - expected(wanted) <= legacy(PEER_METRICS, cluster.members)
        assert legacy(PEER_METRICS, ["n4"]) <= found()

        ages = [
            age
            for interval in sink_of(leader).intervals()
            for (name, _), age in interval.gauges.items()
            if name == "raft.leader.oldestLogAge"
        ]
        assert ages
        assert all(0 <= age < 60_000 for age in ages)


def test_legacy_names_are_left_out_when_nobody_wants_them():
    def configure(config):
        config.metrics = InmemSink()
        config.no_legacy_telemetry = True

    with Cluster(2, configure=configure) as cluster:
        leader = cluster.leader()
        apply_count(leader, 3)
        cluster.wait_for_commands(3)

        names = {name for _, name, _ in seen(*map(sink_of, cluster.members.values()))}

    assert "raft.replication.appendEntries.rpc" in names
    assert names <= METRICS.keys()


def test_calls_are_counted_also_when_they_are_refused():
    def configure(config):
        config.metrics = InmemSink()

    with Cluster(1, bootstrap=False, configure=configure) as cluster:
        node = cluster["n1"].node
        for call in (node.apply, node.apply, lambda _: node.barrier()):
            with pytest.raises(NotLeaderError):
                call(b"x").result(ANSWER)

        counters = sink_of(cluster["n1"]).intervals()[0].counters

    assert counters["raft.apply", ()].sum == 2
    assert counters["raft.barrier", ()].sum == 1


def test_a_sink_that_raises_hurts_nobody():
    def configure(config):
        config.metrics = RaisingSink()

    with Cluster(3, configure=configure) as cluster:
        apply_count(cluster.leader(), 5)
        cluster.wait_for_commands(5)
        cluster.leader().node.snapshot().result(ANSWER)

        assert [member.node.failure for member in cluster.members.values()] == [None] * 3


class KnownLock:
    """A lock that each thread knows to hold."""

    held = threading.local()

    def __init__(self):
        self._lock = threading.Lock()

    def acquire(self, *args, **kwargs):
        taken = self._lock.acquire(*args, **kwargs)
        if taken:
            self.mine().append(self)
        return taken

    def release(self):
        if self in self.mine():  # a lock used as a gate is opened by another thread
            self.mine().remove(self)
        self._lock.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()

    @classmethod
    def mine(cls):
        return cls.held.__dict__.setdefault("locks", [])


class LookingSink:
    """Notes what it is given, and what of it under a lock."""

    def __init__(self):
        self.names = set()
        self.locked = set()

    def look(self, name, *_):
        self.names.add(name)
        if KnownLock.mine():
            self.locked.add(name)

    set_gauge = incr_counter = add_sample = look


def test_a_sink_is_called_under_no_lock_of_the_nodes(monkeypatch):
    monkeypatch.setattr(lifecycle, "Gauges", partial(Gauges, period=0.02 * SCALE))
    monkeypatch.setattr(THREADS, "lock", KnownLock)
    monkeypatch.setattr(
        THREADS, "condition", lambda lock=None: threading.Condition(lock or KnownLock())
    )
    sink = LookingSink()

    def configure(config):
        config.metrics = sink
        config.trailing_logs = 0

    with Cluster(2, configure=configure, make_fsm=RefusingFSM) as cluster:
        drive(cluster, cluster.leader())

    assert len(sink.names) > 40
    assert sink.locked == set()


def test_without_a_sink_writing_calls_nothing_of_this(tmp_path):
    """No clock is read for metrics and nothing is made for them, on any thread of any node."""
    called = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename == sys.modules["raft.metrics"].__file__:
            called.add(frame.f_code.co_name)

    threading.setprofile(note)
    try:
        with Cluster(3) as cluster:
            leader = cluster.leader()
            cluster.followers()
            called.clear()
            apply_count(leader, 20)
            cluster.wait_for_commands(20)
            # These make nothing; the second is called where a busy machine has an election.
            assert called <= {"measure", "count"}
            assert not [t.name for t in threading.enumerate() if t.name.endswith("-metrics")]
    finally:
        threading.setprofile(None)


def test_a_network_transport_measures_what_it_takes_in():
    sinks = {server_id: InmemSink() for server_id in ("n1", "n2")}
    transports = {server_id: TCPTransport("127.0.0.1:0") for server_id in sinks}
    nodes = []
    try:
        for server_id, transport in transports.items():
            store = InmemStore()
            config = fast_config(server_id)
            config.metrics = sinks[server_id]
            stores = (store, store, InmemSnapshotStore())
            nodes.append(Raft(config, RecordingFSM(), *stores, transport))
        members = Configuration([Server(i, t.local_addr()) for i, t in transports.items()])
        nodes[0].bootstrap_cluster(members).result(ANSWER)
        nodes[0].wait_for_leader(ANSWER)
        leader = Cluster.wait_for(
            lambda: next((n for n in nodes if n.state() is RaftState.LEADER), None)
        )
        leader.apply(b"x").result(ANSWER)
        leader.leadership_transfer().result(ANSWER)

        def types(name):
            samples = {key for s in sinks.values() for i in s.intervals() for key in i.samples}
            return {labels[0][1] for found, labels in samples if found == name and labels}

        wanted = {"Heartbeat", "AppendEntries", "RequestVote", "RequestPreVote", "TimeoutNow"}
        for name in ("raft.net.rpcDecode", "raft.net.rpcEnqueue", "raft.net.rpcRespond"):
            Cluster.wait_for(lambda name=name: types(name) == wanted)
        net = {name for name in METRICS if name.startswith("raft.net.")}
        assert expected(net) <= seen(*sinks.values())
    finally:
        for node in nodes:
            node.shutdown().result(ANSWER)
