from contextlib import closing

import pytest

from raft.engine.inbox import SnapshotTaken
from raft.engine.snapshotter import Snapshotter
from raft.errors import (
    NothingNewToSnapshotError,
    ShutdownNotAppliedError,
    ShutdownOutcomeUnknownError,
    SnapshotError,
)
from raft.futures import SnapshotFuture
from raft.testing.fsm import RecordingFSM
from raft.testing.script import ScriptedNode, configuration_entry, entries, servers

INTERVAL = 10.0


class Bench:
    """A node with a snapshot thread; what it takes is handed to `taken`."""

    def __init__(self, count=3, fsm=None, log=None, applies=True, **config):
        config = {"snapshot_interval": INTERVAL, "snapshot_threshold": 100} | config
        log = entries(2, terms=(1,) * count) if log is None else log
        self.node = ScriptedNode(log=log, fsm=fsm or RecordingFSM(), config=config)
        self.taken = []
        core = self.node.core
        self.snapshotter = Snapshotter(
            runtime=core.runtime,
            config=core.config,
            host=self.node.host,
            fsm=core.fsm,
            log=core.raft_log,
            snapshots=core.snapshots,
            on_taken=self._take,
        )
        core.threads.spawn("snapshots", self.snapshotter.run)
        if applies:
            core.apply_committed(core.raft_log.last_index())
        core.runtime.run()

    def _take(self, message):
        assert isinstance(message, SnapshotTaken)
        self.taken.append(message.meta)
        self.node.core.snapshot_taken(message.meta)

    def request(self):
        future = SnapshotFuture(self.node.host)
        self.snapshotter.request(future)
        self.node.runtime.run()
        return future

    def indexes(self):
        return [meta.index for meta in self.taken]


class Watched:
    """A view that notes what is done with it."""

    def __init__(self, fails=False):
        self.fails = fails
        self.released = 0

    def persist(self, sink):
        sink.write(b"half")
        if self.fails:
            raise ValueError("user code")

    def release(self):
        self.released += 1


class WatchedFSM(RecordingFSM):
    def __init__(self, view):
        super().__init__()
        self.view = view

    def snapshot(self):
        return self.view


def test_a_snapshot_is_taken_when_asked_for():
    bench = Bench()

    future = bench.request()

    (listed,) = bench.node.snapshots.list()
    assert future.result(0) == listed.id
    assert (listed.index, listed.term, listed.configuration) == (4, 1, bench.node.configuration)
    assert bench.indexes() == [4]


def test_the_snapshot_just_taken_can_be_opened_once():
    future = Bench().request()

    meta, reader = future.open()

    assert (meta.index, bool(reader.read())) == (4, True)
    with pytest.raises(SnapshotError):
        future.open()


def test_a_snapshot_of_nothing_is_refused():
    bench = Bench(applies=False)

    assert isinstance(bench.request().error(0), NothingNewToSnapshotError)


def test_a_view_that_cannot_be_written_fails_that_snapshot_only():
    view = Watched(fails=True)
    bench = Bench(fsm=WatchedFSM(view))

    failed = bench.request()
    view.fails = False

    assert isinstance(failed.error(0), SnapshotError)
    assert view.released == 1
    assert bench.request().error(0) is None


def test_a_failed_snapshot_is_not_listed():
    bench = Bench(fsm=WatchedFSM(Watched(fails=True)))

    bench.request()

    assert (bench.node.snapshots.list(), bench.taken) == ([], [])


def close_half_way(sink):
    with closing(sink):
        sink.write(b"half")
        raise ValueError("user code")


@pytest.mark.parametrize("persist", [close_half_way, lambda sink: sink.cancel()])
def test_what_the_fsm_gave_up_is_not_listed_and_costs_no_entries(persist):
    """Neither may the log be deleted for it, nor may a node start from it."""
    view = Watched()
    view.persist = persist
    bench = Bench(fsm=WatchedFSM(view), trailing_logs=0)

    failed = bench.request()

    assert isinstance(failed.error(0), SnapshotError)
    assert (bench.node.snapshots.list(), bench.taken, view.released) == ([], [], 1)


def test_an_fsm_may_close_the_sink_itself():
    view = Watched()
    view.persist = lambda sink: sink.write(b"all") and sink.close()

    meta, reader = Bench(fsm=WatchedFSM(view)).request().open()

    assert (meta.index, reader.read()) == (4, b"all")


def test_a_view_is_released_once_when_all_went_well():
    view = Watched()

    Bench(fsm=WatchedFSM(view)).request()

    assert view.released == 1


def test_applying_goes_on_while_a_snapshot_is_written():
    class Slow(Watched):
        def persist(self, sink):
            door.wait()

    bench = Bench(fsm=WatchedFSM(Slow()))
    door = bench.node.runtime.event()
    future = bench.request()

    bench.node.core.raft_log.append(entries(5, terms=(1,)))
    bench.node.core.apply_committed(5)
    bench.node.runtime.run()

    assert (future.done(), bench.node.core.state.applied_index) == (False, 5)
    door.set()
    bench.node.runtime.run()
    assert bench.indexes() == [4]


def test_a_snapshot_is_taken_when_the_log_has_grown():
    bench = Bench(count=99)

    bench.node.runtime.advance(INTERVAL)

    assert bench.indexes() == [100]


def test_no_snapshot_is_taken_below_the_threshold():
    bench = Bench(count=98)

    bench.node.runtime.advance(INTERVAL * 5)

    assert bench.taken == []


def test_the_threshold_counts_from_the_last_snapshot():
    bench = Bench(count=99)
    bench.node.runtime.advance(INTERVAL * 3)
    assert bench.indexes() == [100]

    core = bench.node.core
    core.raft_log.append(entries(101, terms=(1,) * 100))
    core.disk.submit("entries", core.raft_log.store_tail)
    core.apply_committed(200)
    bench.node.runtime.advance(INTERVAL)

    assert bench.indexes() == [100, 200]


def test_the_log_is_looked_at_once_an_interval_up_to_twice_as_long():
    bench = Bench(count=99)
    bench.node.runtime.chance = 0.5
    bench.node.runtime.advance(INTERVAL - 0.1)
    assert bench.taken == []

    bench.node.runtime.advance(INTERVAL * 2)

    assert bench.indexes() == [100]


def test_a_snapshot_after_a_membership_change_alone_is_taken():
    """Departure 18: with the configuration as of there, and no command behind it."""
    bigger = servers("n1", "n2", "n3", "n4")
    bench = Bench(log=[configuration_entry(2, 1, bigger)])

    bench.request()

    assert (bench.taken[0].index, bench.taken[0].configuration) == (2, bigger)


def test_a_failure_on_its_own_is_tried_again_next_time(caplog):
    view = Watched(fails=True)
    bench = Bench(count=99, fsm=WatchedFSM(view))
    bench.node.runtime.advance(INTERVAL)
    assert "snapshot failed" in caplog.text

    view.fails = False
    bench.node.runtime.advance(INTERVAL)

    assert bench.indexes() == [100]


def test_a_view_that_cannot_be_released_fails_no_snapshot_that_stands(caplog):
    """Else its caller is told that there is none, and no entry is deleted for it, ever."""
    view = Watched()
    view.release = lambda: 1 / 0
    bench = Bench(fsm=WatchedFSM(view))

    future = bench.request()

    assert future.result(0) == bench.node.snapshots.list()[0].id
    assert bench.indexes() == [4]
    assert "could not be released" in caplog.text


@pytest.mark.parametrize("view", [None, object()])
def test_what_is_no_view_is_named_as_the_reason(view):
    error = Bench(fsm=WatchedFSM(view)).request().error(0)

    assert isinstance(error, SnapshotError)
    assert "persist" in str(error)


def test_compaction_follows_a_snapshot():
    bench = Bench(count=99, trailing_logs=10)

    bench.request()
    bench.node.runtime.run()

    assert bench.node.store.first_index() == 91


def test_a_request_after_the_end_is_refused():
    bench = Bench()
    bench.snapshotter.stop()
    bench.node.runtime.run()

    assert isinstance(bench.request().error(0), ShutdownNotAppliedError)


def test_whoever_still_waits_is_answered():
    bench = Bench()
    door = bench.node.runtime.event()
    bench.node.fsm.snapshot = lambda: door.wait()
    first, second = bench.request(), bench.request()

    bench.snapshotter.stop()
    bench.snapshotter.abandon()

    assert isinstance(first.error(0), ShutdownOutcomeUnknownError)
    assert isinstance(second.error(0), ShutdownNotAppliedError)


@pytest.mark.parametrize("where", ["snapshot", "persist"])
def test_user_code_that_ends_its_thread_answers_the_caller(where):
    def leave(*_):
        raise SystemExit(1)

    view = Watched()
    bench = Bench(fsm=WatchedFSM(view))
    setattr(bench.node.fsm if where == "snapshot" else view, where, leave)

    future = bench.request()

    assert isinstance(future.error(0), SystemExit)
    assert any(isinstance(crash, SystemExit) for crash in bench.node.crashes)
