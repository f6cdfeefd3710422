import pytest

from raft.engine.disk import PROBE_KEY, Disk
from raft.errors import StorageFailedError
from raft.stores import InmemStore
from raft.testing.manual import ManualRuntime

STALL = 10.0


class Careful(InmemStore):
    """A store with housekeeping, that can be opened anew; notes both."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes
        self.trouble = None

    def maintain(self):
        self.notes.append("maintain")
        if self.trouble:
            raise self.trouble

    def reopen(self):
        self.notes.append("reopen")
        if self.trouble:
            raise self.trouble

    def set(self, key, value):
        self.notes.append(f"set {key.decode()}")
        super().set(key, value)


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store(notes):
    return Careful(notes)


@pytest.fixture
def disk(runtime):
    disk = Disk(runtime, [], STALL)
    runtime.spawn("disk", disk.run)
    return disk


@pytest.fixture
def careful_disk(runtime, store):
    disk = Disk(runtime, [store, store], STALL)
    runtime.spawn("disk", disk.run)
    return disk


def noting(notes, text):
    return lambda *_: notes.append(text)


def failing(*_):
    raise OSError("no space")


def test_writes_are_done_in_order_and_each_is_reported(runtime, disk, notes):
    disk.submit("a", noting(notes, "a"), noting(notes, "a done"))
    disk.submit("b", noting(notes, "b"), noting(notes, "b done"))
    assert notes == []

    runtime.run()

    assert notes == ["a", "a done", "b", "b done"]


def test_a_write_is_done_when_it_is_reported(runtime, disk):
    seen = []

    write = disk.submit("a", lambda: seen.append((write.begun, write.done)), seen.append)
    assert (write.begun, write.done) == (False, False)
    runtime.run()

    assert seen == [(True, False), write]
    assert (write.done, write.error) == (True, None)


def test_behind_a_write_that_failed_nothing_is_written_until_a_probe_succeeds(runtime, disk, notes):
    """Law 4: what comes later in the log must not be stored without what failed."""
    failed = disk.submit("a", failing)
    refused = disk.submit("b", noting(notes, "b"))
    runtime.run()
    assert isinstance(failed.error, OSError)
    assert isinstance(refused.error, StorageFailedError)
    assert notes == []

    disk.probe(InmemStore(), lambda _: None)
    fine = disk.submit("c", noting(notes, "c"))
    runtime.run()

    assert (fine.error, notes) == (None, ["c"])


def test_a_disk_that_failed_is_unfit_until_a_probe_is_durable(runtime, disk):
    """Departure 8."""
    disk.submit("a", failing)
    runtime.run()
    assert not disk.is_fit()

    disk.submit("b", lambda: None)
    runtime.run()
    assert not disk.is_fit(), "a success proves nothing about what was lost before"

    disk.probe(InmemStore(), lambda _: None)
    runtime.run()
    assert disk.is_fit()


def test_a_probe_opens_the_stores_anew_before_it_writes(runtime, careful_disk, store, notes):
    """Departure 8."""
    careful_disk.submit("a", failing)
    runtime.run()
    notes.clear()

    careful_disk.probe(store, noting(notes, "done"))
    runtime.run()

    assert notes == ["reopen", f"set {PROBE_KEY.decode()}", "done", "maintain"]


def test_a_probe_that_fails_leaves_the_disk_unfit(runtime, careful_disk, store):
    careful_disk.submit("a", failing)
    store.trouble = OSError("still broken")

    probe = careful_disk.probe(store, lambda _: None)
    runtime.run()

    assert probe.error is store.trouble
    assert not careful_disk.is_fit()


def test_a_write_under_way_for_too_long_is_a_stall(runtime, disk):
    """Departure 8."""
    door = runtime.event()
    disk.submit("a", door.wait)

    runtime.advance(STALL)
    assert (disk.is_stalled(), disk.is_fit()) == (False, True)
    runtime.advance(0.001)

    assert (disk.is_stalled(), disk.is_fit()) == (True, False)


def test_a_write_that_overran_leaves_the_disk_unfit_although_it_ended(runtime, disk):
    """Departure 8."""
    door = runtime.event()
    write = disk.submit("a", door.wait)
    runtime.advance(STALL + 1.0)

    door.set()
    runtime.run()

    assert (write.done, write.error) == (True, None)
    assert (disk.is_stalled(), disk.is_fit()) == (False, False)


def test_waiting_for_a_write_is_no_stall(runtime, disk):
    runtime.advance(STALL * 2)

    assert not disk.is_stalled()


def test_a_disk_is_idle_when_nothing_waits_or_is_under_way(runtime, disk):
    assert disk.is_idle()
    door = runtime.event()
    disk.submit("a", door.wait)
    assert not disk.is_idle()
    runtime.run()
    assert not disk.is_idle()

    door.set()
    runtime.run()

    assert disk.is_idle()


# ---- background work and upkeep ----


def steps(notes, name, count):
    left = [count]

    def step():
        notes.append(name)
        left[0] -= 1
        return left[0] > 0

    return step


def test_background_work_is_done_step_by_step(runtime, disk, notes):
    disk.submit_background(steps(notes, "step", 3))

    runtime.run()

    assert notes == ["step"] * 3


def test_writes_come_between_the_steps_of_background_work(runtime, disk, notes):
    def step():
        notes.append("step")
        if notes.count("step") == 2:
            disk.submit("write", noting(notes, "write"))
        return notes.count("step") < 4

    disk.submit_background(step)
    runtime.run()

    assert notes == ["step", "step", "write", "step", "step"]


def test_several_background_jobs_take_turns(runtime, disk, notes):
    disk.submit_background(steps(notes, "a", 2))
    disk.submit_background(steps(notes, "b", 2))

    runtime.run()

    assert notes == ["a", "b", "a", "b"]


def test_background_work_that_fails_makes_the_disk_unfit_and_is_dropped(runtime, disk, notes):
    disk.submit_background(failing)
    disk.submit_background(steps(notes, "next", 1))

    runtime.run()

    assert (disk.is_fit(), notes) == (False, ["next"])


def test_background_work_that_overran_makes_the_disk_unfit(runtime, disk):
    """Departure 8: whatever it was that took so long, the disk is not to be trusted."""
    door = runtime.event()
    disk.submit_background(lambda: door.wait() and False)
    runtime.advance(STALL + 1.0)
    assert disk.is_stalled()

    door.set()
    runtime.run()

    assert not disk.is_fit()


def test_upkeep_follows_the_answer_once_for_a_store_given_twice(runtime, careful_disk, notes):
    careful_disk.submit("a", noting(notes, "a"), noting(notes, "a done"))

    runtime.run()

    assert notes == ["a", "a done", "maintain"]


def test_upkeep_that_fails_is_reported_and_no_more(runtime, careful_disk, store, caplog):
    store.trouble = OSError("checkpoint")

    write = careful_disk.submit("a", lambda: None)
    runtime.run()

    assert (write.error, careful_disk.is_fit()) == (None, True)
    assert "store maintenance failed" in caplog.text


def test_upkeep_does_not_follow_a_write_that_failed(runtime, careful_disk, notes):
    careful_disk.submit("a", failing)

    runtime.run()

    assert notes == []


def test_a_write_that_failed_has_the_store_look_how_full_it_is(runtime):
    """A disk may get full between two looks; the space kept back is for what comes then."""

    class Full(InmemStore):
        def is_full(self):
            return True

    disk = Disk(runtime, [Full()], STALL)
    runtime.spawn("disk", disk.run)

    disk.submit("a", failing)
    runtime.run()

    assert disk.is_full


def test_stopping_does_the_writes_that_wait_and_drops_the_background(runtime, disk, notes):
    disk.submit("a", noting(notes, "a"))
    disk.submit_background(steps(notes, "step", 1))

    disk.stop()
    runtime.run()

    assert notes == ["a"]
