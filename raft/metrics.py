"""Metrics: what a node tells a sink of yours, by the original's names (docs/metrics.md).

`METRICS` says of each name what kind it is, and of what. Without a sink (`Config.metrics`) nothing
is measured: no clock is read and nothing is made. Whoever emits asks first whether there are
`Metrics`, or uses `count`, `measure` and `timed`, which do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import ParamSpec, Protocol, TypeAlias, TypeVar, runtime_checkable

from raft.errors import DeadlockError
from raft.logs import get_logger
from raft.messages import AppendEntriesRequest, Request
from raft.runtime import THREADS, Runtime
from raft.types import ServerID

P = ParamSpec("P")
R = TypeVar("R")

_log = get_logger(__name__)

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values that tell series of one metric apart, in the order of `Metric.labels`."""

NO_LABELS: Labels = ()


@runtime_checkable
class MetricsSink(Protocol):
    """Where metrics go. Called on the threads of consensus and of callers: it must not block.

    Several threads call at once, none of them under a lock of the node's. One of them is the
    program's own, so where a signal handler calls the node, a sink's lock may be that of what the
    handler has interrupted: the node must not wait for it then (`InmemSink`). What it raises is
    logged once and else ignored. Names have dots, as in the original ("raft.commitTime"); a timer
    is a sample in milliseconds.
    """

    def set_gauge(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Take the value that something has now."""

    def incr_counter(self, name: str, value: float = 1.0, labels: Labels = NO_LABELS) -> None:
        """Add to what has been counted."""

    def add_sample(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Take one of many values, of whose distribution one wants to know."""


# ---- what there is ----


class Kind(Enum):
    """What can be done with the values of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SAMPLE = "sample"


class Unit(Enum):
    """What the values of a metric are."""

    NUMBER = "number"
    MILLISECONDS = "ms"
    RATIO = "0 to 1"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of one name."""

    kind: Kind
    about: str
    unit: Unit = Unit.NUMBER
    labels: tuple[str, ...] = ()


def _counter(about: str, *labels: str) -> Metric:
    return Metric(Kind.COUNTER, about, labels=labels)


def _gauge(about: str, unit: Unit = Unit.NUMBER, *labels: str) -> Metric:
    return Metric(Kind.GAUGE, about, unit, labels)


def _sample(about: str, unit: Unit = Unit.NUMBER) -> Metric:
    return Metric(Kind.SAMPLE, about, unit)


def _timer(about: str, *labels: str) -> Metric:
    return Metric(Kind.SAMPLE, about, Unit.MILLISECONDS, labels)


METRICS: Mapping[str, Metric] = {
    "raft.apply": _counter("calls of apply and apply_log, refused ones included"),
    "raft.barrier": _counter("calls of barrier, refused ones included"),
    "raft.verify_leader": _counter("calls of verify_leader, refused ones included"),
    "raft.restore": _counter("calls of restore, refused ones included"),
    "raft.state.follower": _counter("times that this node became a follower"),
    "raft.state.candidate": _counter("rounds of campaigning that this node began"),
    "raft.state.leader": _counter("times that this node became leader"),
    "raft.transition.heartbeat_timeout": _counter("times that no leader was heard for too long"),
    "raft.transition.leader_lease_timeout": _counter("times that a leader lost its quorum"),
    "raft.transition.commit_stall": _counter("times that a leader committed nothing and gave up"),
    "raft.peers": _gauge("servers in the configuration, this one and non-voters included"),
    "raft.commitNumLogs": _gauge("entries of the last commit of this leader"),
    "raft.commitTime": _timer("an entry's way from the leader's main thread to a majority"),
    "raft.leader.dispatchLog": _timer("handing a batch of entries to peers and disk"),
    "raft.leader.dispatchNumLogs": _gauge("entries of the last batch that the leader dispatched"),
    "raft.leader.lastContact": _sample(
        "time since the leader heard another voter, when it looks at its lease", Unit.MILLISECONDS
    ),
    "raft.leader.oldestLogAge": _gauge("age of the leader's oldest entry", Unit.MILLISECONDS),
    "raft.restoreUserSnapshot": _timer("a user's snapshot taking the place of the leader's state"),
    "raft.rpc.processHeartbeat": _timer("answering a heartbeat, or passing it on to main"),
    "raft.rpc.appendEntries": _timer("answering AppendEntries"),
    "raft.rpc.appendEntries.storeLogs": _timer("making the entries of a request durable"),
    "raft.rpc.appendEntries.processLogs": _timer("committing what a request says is committed"),
    "raft.rpc.requestVote": _timer("answering RequestVote"),
    "raft.rpc.requestPreVote": _timer("answering RequestPreVote"),
    "raft.rpc.installSnapshot": _timer("taking in and installing a leader's snapshot"),
    "raft.candidate.electSelf": _timer("a vote request to one peer"),
    "raft.candidate.preElectSelf": _timer("a pre-vote request to one peer"),
    "raft.replication.appendEntries.rpc": _timer("AppendEntries to a peer, if answered", "peer_id"),
    "raft.replication.appendEntries.logs": _counter("entries that a peer answered", "peer_id"),
    "raft.replication.heartbeat": _timer("a heartbeat to a peer, if answered", "peer_id"),
    "raft.replication.installSnapshot": _timer("a snapshot to a peer, if answered", "peer_id"),
    "raft.fsm.apply": _timer("FSM.apply, one command"),
    "raft.fsm.applyBatch": _timer("BatchingFSM.apply_batch"),
    "raft.fsm.applyBatchNum": _sample("entries of a batch that a BatchingFSM had to do with"),
    "raft.fsm.store_config": _timer("ConfigurationStore.store_configuration"),
    "raft.fsm.snapshot": _timer("FSM.snapshot"),
    "raft.fsm.restore": _timer("FSM.restore, if it succeeded"),
    "raft.fsm.lastRestoreDuration": _gauge("how long the last restore took", Unit.MILLISECONDS),
    "raft.snapshot.takeSnapshot": _timer("taking a snapshot, from the wish to the end"),
    "raft.snapshot.create": _timer("SnapshotStore.create, for a snapshot of our own"),
    "raft.snapshot.persist": _timer("FSMSnapshot.persist"),
    "raft.compactLogs": _timer("the disk's time for deleting entries behind a snapshot"),
    "raft.removeOldLogs": _timer("the disk's time for deleting a log that a snapshot replaces"),
    "raft.thread.main.saturation": _sample("how busy the main thread was", Unit.RATIO),
    "raft.thread.fsm.saturation": _sample("how busy the FSM thread was", Unit.RATIO),
    "raft.net.getRPCType": _timer("waiting for the next request on an inbound connection"),
    "raft.net.rpcDecode": _timer("reading a request", "rpcType"),
    "raft.net.rpcEnqueue": _timer("handing a request over", "rpcType"),
    "raft.net.rpcRespond": _timer("waiting for the answer to a request", "rpcType"),
    # Beyond the original:
    "raft.role": _gauge("0 follower, 1 candidate, 2 leader, 3 shut down"),
    "raft.leaderKnown": _gauge("1 if a leader is known here, else 0"),
    "raft.certificate.secondsLeft": _gauge("seconds until this server's certificate ends"),
    "raft.replication.lag": _gauge(
        "entries that a peer lacks, as its leader knows", Unit.NUMBER, "peer_id"
    ),
    "raft.replication.failed": _counter("failures to send entries or snapshots", "peer_id"),
    "raft.replication.failedHeartbeats": _counter("heartbeats without an answer", "peer_id"),
    "raft.replication.snapshots": _counter("snapshots that were begun to be sent", "peer_id"),
    "raft.replication.failedSnapshots": _counter("snapshots that could not be sent", "peer_id"),
    "raft.voter.replaced": _counter("voters found with another data directory than before"),
    "raft.fsm.failedCommands": _counter("commands that FSM.apply answered by an exception"),
    "raft.fsm.pending": _gauge("entries committed and not applied yet"),
    "raft.term": _gauge("the term"),
    "raft.lastIndex": _gauge("the last index of the log"),
    "raft.commitIndex": _gauge("the last index known to be committed"),
    "raft.appliedIndex": _gauge("the last index that the FSM has applied"),
    "raft.store.liveBytes": _gauge("bytes in use in the log store's file", Unit.BYTES),
    "raft.store.freeBytes": _gauge("bytes free in the log store's file", Unit.BYTES),
    "raft.store.walBytes": _gauge("bytes of the log store's write-ahead log", Unit.BYTES),
}
"""All names, but for the legacy ones: the original's with the label `peer_id` come again with the
peer's id as their last part and without the label, unless `Config.no_legacy_telemetry` is set."""


def rpc_labels(request: Request) -> Labels:
    """Return the label that tells the types of requests apart."""
    if isinstance(request, AppendEntriesRequest) and request.is_heartbeat():
        return (("rpcType", "Heartbeat"),)
    return (("rpcType", type(request).__name__.removesuffix("Request")),)


# ---- emitting ----


class Metrics:
    """A sink as the node calls it: one that raises harms nobody. Itself a `MetricsSink`.

    Any thread, but never under a lock: the sink is foreign code. Moments are those of `now`.
    """

    def __init__(self, sink: MetricsSink, runtime: Runtime, *, legacy: bool = True) -> None:
        self._sink = sink
        self._legacy = legacy
        self._has_failed = False
        self.now = runtime.monotonic

    def set_gauge(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        try:
            self._sink.set_gauge(name, value, labels)
        except Exception as error:  # noqa: BLE001 - foreign code
            self._failed(name, error)

    def incr_counter(self, name: str, value: float = 1.0, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        try:
            self._sink.incr_counter(name, value, labels)
        except Exception as error:  # noqa: BLE001 - foreign code
            self._failed(name, error)

    def add_sample(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        try:
            self._sink.add_sample(name, value, labels)
        except Exception as error:  # noqa: BLE001 - foreign code
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.warning(
                "metrics sink failed, further errors are ignored name=%s", name, exc_info=error
            )

    def since(self, name: str, began: float, labels: Labels = NO_LABELS) -> None:
        """Emit a timer that began at a moment."""
        self.add_sample(name, (self.now() - began) * 1000.0, labels)

    def peer_since(self, name: str, began: float, peer: ServerID) -> None:
        """Emit a timer of one peer, and its legacy duplicate."""
        milliseconds = (self.now() - began) * 1000.0
        self.add_sample(name, milliseconds, (("peer_id", peer),))
        if self._legacy:
            self.add_sample(f"{name}.{peer}", milliseconds)

    def appended(self, peer: ServerID, began: float, entries: int) -> None:
        """Note that a peer answered AppendEntries with so many entries."""
        self.peer_since("raft.replication.appendEntries.rpc", began, peer)
        name = "raft.replication.appendEntries.logs"
        self.incr_counter(name, entries, (("peer_id", peer),))
        if self._legacy:
            self.incr_counter(f"{name}.{peer}", entries)


def count_for_peer(metrics: Metrics | None, name: str, peer: ServerID) -> None:
    """Count something of a peer, if there is a sink; without a legacy duplicate."""
    if metrics is not None:
        metrics.incr_counter(name, 1.0, (("peer_id", peer),))


class _Measure:
    """Emits how long a block took, however it ended."""

    __slots__ = ("_began", "_metrics", "_name")

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def __enter__(self) -> None:
        self._began = self._metrics.now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._metrics.since(self._name, self._began)


_UNMEASURED = nullcontext()
_READ_LIMIT = 5.0  # seconds; it takes microseconds, unless the thread waits for itself


def measure(metrics: Metrics | None, name: str) -> AbstractContextManager[None]:
    """Return what emits a timer for a `with` block, whether it raises or not."""
    return _UNMEASURED if metrics is None else _Measure(metrics, name)


def timed(metrics: Metrics | None, name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that emits a timer for each call; without metrics, the function itself."""
    if metrics is None:
        return function

    def timed_function(*args: P.args, **kwargs: P.kwargs) -> R:
        with _Measure(metrics, name):
            return function(*args, **kwargs)

    return timed_function


def timed_steps(metrics: Metrics | None, name: str, step: Callable[[], bool]) -> Callable[[], bool]:
    """Return a job in steps that emits, at its last one, the time of all of them together."""
    if metrics is None:
        return step
    spent = 0.0

    def timed_step() -> bool:
        nonlocal spent
        began = metrics.now()
        more = step()
        spent += metrics.now() - began
        if not more:
            metrics.add_sample(name, spent * 1000.0)
        return more

    return timed_step


def count(metrics: Metrics | None, name: str) -> None:
    """Count one."""
    if metrics is not None:
        metrics.incr_counter(name)


class Laps:
    """A stopwatch for what one thread does again and again, step by step.

    `labels` go with every step until the next start.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.start()

    def start(self) -> None:
        """Begin the first step now."""
        self.labels = NO_LABELS
        self._began = self._metrics.now()

    def lap(self, name: str) -> None:
        """Emit how long the step took that ends now; the next one begins."""
        self._metrics.since(name, self._began, self.labels)
        self._began = self._metrics.now()


class Saturation:
    """How much of its time a thread works instead of waiting for something to do; that thread's.

    Reports a ratio from 0 to 1 at most once in `interval` seconds, when the thread goes to sleep or
    wakes up. Time between two calls of the same method is not counted: nobody knows what it was.
    """

    def __init__(
        self, report: Callable[[float], None], now: Callable[[], float], interval: float = 1.0
    ) -> None:
        self._report = report
        self._now = now
        self._interval = interval
        self._is_asleep = False
        self._turned_at = self._reported_at = now()
        self._slept = self._lost = 0.0

    def sleeping(self) -> None:
        """Say that the thread has nothing to do."""
        self._turn(is_asleep=True)

    def working(self) -> None:
        """Say that the thread has something to do."""
        self._turn(is_asleep=False)

    def _turn(self, *, is_asleep: bool) -> None:
        now = self._now()
        passed = now - self._turned_at
        if is_asleep == self._is_asleep:
            self._lost += passed
        elif self._is_asleep:
            self._slept += passed
        self._is_asleep = is_asleep
        self._turned_at = now
        if now - self._reported_at >= self._interval:
            known = now - self._reported_at - self._lost
            self._reported_at = now
            ratio = (known - self._slept) / known if known > 0 else 0.0
            self._slept = self._lost = 0.0
            self._report(round(ratio, 2))

    def asleep_in(self, wait: Callable[P, R]) -> Callable[P, R]:
        """Return a function that counts as sleep and does what `wait` does."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            self.sleeping()
            result = wait(*args, **kwargs)
            self.working()
            return result

        return watched


def thread_saturation(metrics: Metrics | None, thread: str) -> Saturation | None:
    """Return what watches one of the node's threads, by its short name."""
    if metrics is None:
        return None
    name = f"raft.thread.{thread}.saturation"
    return Saturation(lambda ratio: metrics.add_sample(name, ratio), metrics.now)


# ---- a sink in memory ----

Key: TypeAlias = tuple[str, Labels]


@dataclass(slots=True)
class Aggregate:
    """What became of many values."""

    count: int = 0
    sum: float = 0.0
    min: float = float("inf")
    max: float = float("-inf")
    last: float = 0.0

    def add(self, value: float) -> None:
        """Take one more value."""
        self.count += 1
        self.sum += value
        self.min = min(self.min, value)
        self.max = max(self.max, value)
        self.last = value


@dataclass(slots=True)
class Interval:
    """What came in one interval, which began at `began` (seconds, monotonic), by name and labels.

    Of a counter `count` says how often it was incremented, and `sum` by how much in all.
    """

    began: float
    gauges: dict[Key, float] = field(default_factory=dict)
    counters: dict[Key, Aggregate] = field(default_factory=dict)
    samples: dict[Key, Aggregate] = field(default_factory=dict)


class InmemSink:
    """Keeps the metrics of the last `retain` seconds in memory, by intervals; for a status page.

    Any thread. A gauge is known from the interval on in which it was set, and only there.
    """

    def __init__(
        self, interval: float = 10.0, retain: float = 60.0, *, runtime: Runtime = THREADS
    ) -> None:
        if not interval > 0 or not retain >= interval:
            raise ValueError("interval must be positive, and retain no shorter")
        self._interval = interval
        self._runtime = runtime
        self._lock = runtime.lock()  # guards what is in _intervals; nobody but readers waits for it
        self._updates: deque[Callable[[Interval], None]] = deque()  # not in _intervals yet
        self._intervals: deque[Interval] = deque(maxlen=max(1, int(retain / interval)))

    def set_gauge(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        self._update(lambda now: now.gauges.__setitem__((name, labels), value))

    def incr_counter(self, name: str, value: float = 1.0, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        self._update(lambda now: now.counters.setdefault((name, labels), Aggregate()).add(value))

    def add_sample(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        self._update(lambda now: now.samples.setdefault((name, labels), Aggregate()).add(value))

    def _update(self, update: Callable[[Interval], None]) -> None:
        """Leave it to the one who has the lock; a signal handler may have interrupted that one."""
        self._updates.append(update)
        while self._updates and self._lock.acquire(False):
            try:
                while self._updates:
                    self._updates.popleft()(self._current())
            finally:
                self._lock.release()

    def _current(self) -> Interval:
        now = self._runtime.monotonic()
        if not self._intervals or now - self._intervals[-1].began >= self._interval:
            self._intervals.append(Interval(now - now % self._interval))
        return self._intervals[-1]

    def intervals(self) -> list[Interval]:
        """Return copies, oldest first; the last one is still filling. Without any, nothing came."""
        if not self._lock.acquire(True, _READ_LIMIT):
            raise DeadlockError("a signal handler reads metrics that it has interrupted")
        try:
            return [_copy(interval) for interval in self._intervals]
        finally:
            self._lock.release()


def _copy(interval: Interval) -> Interval:
    return Interval(
        interval.began,
        dict(interval.gauges),
        dict(_copies(interval.counters)),
        dict(_copies(interval.samples)),
    )


def _copies(aggregates: Mapping[Key, Aggregate]) -> Iterator[tuple[Key, Aggregate]]:
    for key, a in aggregates.items():
        yield key, Aggregate(a.count, a.sum, a.min, a.max, a.last)
