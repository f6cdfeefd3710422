"""The events thread and the level channel, stepped on the test's own thread."""

import sys

import pytest

import raft.observer
from raft.observer import (
    Events,
    LatestValue,
    LeaderObservation,
    Observation,
    Observer,
    ResumedHeartbeatObservation,
)
from raft.runtime import QueueEmpty
from raft.testing.manual import ManualRuntime
from raft.types import RaftState

NODE = object()


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def events(runtime):
    events = Events(runtime)
    runtime.spawn("events", events.run)
    return events


def drained(channel):
    return [channel.get(block=False).data for _ in range(channel.qsize())]


def emit(runtime, events, *data):
    for item in data:
        events.emit(Observation(NODE, item))
    runtime.run()


def test_an_observer_gets_observations_in_order(runtime, events):
    observer = Observer(runtime.queue())
    events.register(observer)

    emit(runtime, events, RaftState.CANDIDATE, RaftState.LEADER, LeaderObservation("a:1", "a"))

    assert drained(observer.channel) == [
        RaftState.CANDIDATE,
        RaftState.LEADER,
        LeaderObservation("a:1", "a"),
    ]
    assert (observer.observed, observer.dropped) == (3, 0)


def test_an_observation_names_its_node(runtime, events):
    observer = Observer(runtime.queue())
    events.register(observer)

    emit(runtime, events, RaftState.LEADER)

    assert observer.channel.get(block=False).raft is NODE


def test_a_filter_lets_through_what_it_wants(runtime, events):
    observer = Observer(runtime.queue(), filter=lambda o: isinstance(o.data, RaftState))
    events.register(observer)

    emit(runtime, events, ResumedHeartbeatObservation("b"), RaftState.FOLLOWER)

    assert drained(observer.channel) == [RaftState.FOLLOWER]
    assert (observer.observed, observer.dropped) == (1, 0)


def test_what_finds_no_room_is_dropped_and_counted(runtime, events):
    observer = Observer(runtime.queue(1))
    events.register(observer)

    emit(runtime, events, RaftState.CANDIDATE, RaftState.LEADER)

    assert drained(observer.channel) == [RaftState.CANDIDATE]
    assert (observer.observed, observer.dropped) == (1, 1)


def test_a_blocking_observer_gets_everything_once_it_reads(runtime, events):
    observer = Observer(runtime.queue(1), blocking=True)
    events.register(observer)

    emit(runtime, events, RaftState.CANDIDATE, RaftState.LEADER)
    runtime.advance(60.0)
    first = observer.channel.get(block=False).data
    runtime.run()

    assert (first, drained(observer.channel)) == (RaftState.CANDIDATE, [RaftState.LEADER])
    assert (observer.observed, observer.dropped) == (2, 0)


def test_emitting_never_waits_for_a_blocking_observer(runtime, events):
    observer = Observer(runtime.queue(1), blocking=True)
    events.register(observer)

    emit(runtime, events, *[RaftState.LEADER] * 100)

    assert observer.observed == 1


def test_what_waits_for_a_blocking_observer_has_a_bound(runtime, events, monkeypatch):
    monkeypatch.setattr(raft.observer, "_MOST_WAITING", 3)
    observer = Observer(runtime.queue(1), blocking=True)
    events.register(observer)

    emit(runtime, events, *[RaftState.LEADER] * 8)

    # The events thread takes none before all eight were emitted.
    assert (observer.channel.qsize(), observer.dropped) == (1, 5)
    events.close()


def test_a_blocking_observer_does_not_hold_up_the_end(runtime, events):
    observer = Observer(runtime.queue(1), blocking=True)
    events.register(observer)
    emit(runtime, events, RaftState.CANDIDATE, RaftState.LEADER)

    events.close()
    runtime.advance(1.0)

    assert (observer.observed, observer.dropped) == (1, 1)


def test_each_of_several_observers_is_told(runtime, events):
    observers = [Observer(runtime.queue()) for _ in range(3)]
    for observer in observers:
        events.register(observer)

    emit(runtime, events, RaftState.LEADER)

    assert [drained(o.channel) for o in observers] == [[RaftState.LEADER]] * 3


def test_an_observer_taken_off_the_list_hears_no_more(runtime, events):
    observer = Observer(runtime.queue())
    events.register(observer)
    emit(runtime, events, RaftState.CANDIDATE)

    events.deregister(observer)
    events.deregister(observer)
    emit(runtime, events, RaftState.LEADER)

    assert drained(observer.channel) == [RaftState.CANDIDATE]


def test_an_observer_without_a_channel_only_filters(runtime, events):
    seen = []
    events.register(Observer(None, filter=lambda o: bool(seen.append(o.data)) or True))

    emit(runtime, events, RaftState.LEADER)

    assert seen == [RaftState.LEADER]


def test_a_filter_that_raises_does_not_end_the_thread(runtime, events, caplog):
    def fail(_):
        raise ValueError("user code")

    broken, healthy = Observer(runtime.queue(), filter=fail), Observer(runtime.queue())
    events.register(broken)

    emit(runtime, events, RaftState.CANDIDATE)
    events.deregister(broken)
    events.register(healthy)
    emit(runtime, events, RaftState.LEADER)

    assert drained(healthy.channel) == [RaftState.LEADER]
    assert "callback or observer failed" in caplog.text


def test_callbacks_run_on_the_events_thread(runtime, events):
    ran_on = []

    events.run_callback(lambda: ran_on.append(runtime.current()))
    assert ran_on == []
    runtime.run()

    assert ran_on != [runtime.current()]


def test_a_callback_that_raises_does_not_end_the_thread(runtime, events, caplog):
    seen = []

    events.run_callback(lambda: 1 // 0)
    events.run_callback(lambda: seen.append("next"))
    runtime.run()

    assert seen == ["next"]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_that_exits_does_not_end_the_thread(runtime, events, caplog):
    seen = []

    events.run_callback(lambda: sys.exit("user code"))
    events.run_callback(lambda: seen.append("next"))
    runtime.run()

    assert seen == ["next"]
    assert "SystemExit" in caplog.text


def test_a_filter_that_raises_takes_nothing_from_the_others(runtime, events):
    healthy = Observer(runtime.queue())
    events.register(Observer(None, filter=lambda _: 1 // 0))
    events.register(healthy)

    emit(runtime, events, RaftState.LEADER)

    assert drained(healthy.channel) == [RaftState.LEADER]


def test_a_blocking_observer_taken_off_the_list_holds_nobody_up(runtime, events):
    seen = []
    observer = Observer(runtime.queue(1), blocking=True)
    events.register(observer)
    emit(runtime, events, RaftState.CANDIDATE, RaftState.LEADER)

    events.deregister(observer)
    events.run_callback(lambda: seen.append("next"))
    runtime.advance(1.0)

    assert (seen, observer.dropped) == (["next"], 1)


def test_closing_runs_what_was_handed_over_before(runtime, events):
    seen = []
    events.run_callback(lambda: seen.append("before"))

    events.close()
    runtime.run()

    assert seen == ["before"]


def test_after_closing_a_callback_runs_at_once(runtime, events):
    seen = []
    events.close()
    runtime.run()

    events.run_callback(lambda: seen.append("late"))

    assert seen == ["late"]


def test_after_closing_nothing_is_observed(runtime, events):
    observer = Observer(runtime.queue())
    events.register(observer)
    events.close()

    emit(runtime, events, RaftState.LEADER)

    assert drained(observer.channel) == []


def test_a_reader_gets_the_latest_value(runtime):
    """UTL-08"""
    channel = LatestValue(runtime)

    channel.put(False)
    assert channel.get(block=False) is False
    for _ in range(4):
        channel.put(False)
    channel.put(True)

    assert channel.get(block=False) is True
    with pytest.raises(QueueEmpty):
        channel.get(block=False)


def test_a_missed_flap_shows_as_the_same_value_again(runtime):
    """Departure 13: levels, not edges."""
    channel = LatestValue(runtime)
    channel.put(True)
    assert channel.get(block=False) is True

    channel.put(False)
    channel.put(True)

    assert channel.get(block=False) is True


def test_a_reader_waits_as_long_as_it_says(runtime):
    channel = LatestValue(runtime)
    began = runtime.now

    with pytest.raises(QueueEmpty):
        channel.get(timeout=2.0)

    assert runtime.now - began == 2.0


def test_a_waiting_reader_is_woken(runtime):
    channel, got = LatestValue(runtime), []
    runtime.spawn("reader", lambda: got.append(channel.get(timeout=5.0)))
    runtime.run()

    channel.put(True)
    runtime.run()

    assert got == [True]
