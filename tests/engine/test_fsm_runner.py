import errno
from itertools import pairwise

from raft.engine.fsm_restores import Trial
from raft.engine.inbox import Apply, FSMPoisoned
from raft.errors import (
    FSMFailedError,
    LeadershipLostError,
    NothingNewToSnapshotError,
    RaftError,
    ShutdownOutcomeUnknownError,
    SnapshotError,
)
from raft.futures import ApplyFuture, Future
from raft.testing.fsm import RecordedSnapshot, RecordingFSM
from raft.testing.script import ScriptedNode, entries, servers
from raft.types import EntryID, LogType


def node_with(count, fsm=None, **more):
    """A node with so many commands behind its configuration, none of them applied."""
    return ScriptedNode(log=entries(2, terms=(1,) * count), fsm=fsm or RecordingFSM(), **more)


def waiting(index):
    """A caller who waits for an entry."""
    return index, Apply(LogType.COMMAND, b"", b"", ApplyFuture())


def write_snapshot(node, index, term, commands, configuration=None):
    sink = node.snapshots.create(1, index, term, configuration or servers("n1"), 1)
    logs = [log for log in entries(2, terms=(1,) * 99) if log.index <= index][:commands]
    RecordedSnapshot(logs).persist(sink)
    sink.close()
    return node.snapshots.list()[0]


def capture(node):
    future = Future(node.host)
    node.core.fsm.capture(future)
    node.runtime.run()
    return future


class Broken(RecordingFSM):
    """Cannot be restored while `trouble` is set."""

    trouble = ValueError("half read")

    def restore(self, reader):
        if self.trouble:
            self._logs = []
            raise self.trouble
        super().restore(reader)


def test_what_is_committed_is_applied_and_published():
    node = node_with(3)

    node.core.fsm.commit(3)
    node.runtime.run()

    assert node.fsm.commands() == [b"2/1", b"3/1"]
    assert (node.core.state.applied_index, node.core.fsm.pending()) == (3, 0)


def test_nothing_beyond_the_commit_index_is_applied():
    node = node_with(3)

    node.core.fsm.commit(2)
    node.core.fsm.commit(1)
    node.runtime.run()

    assert node.core.state.applied_index == 2


def test_callers_are_answered_as_their_entries_are_applied():
    node = node_with(3)
    first, second = waiting(2), waiting(3)

    node.core.fsm.commit(4, [first, second])
    node.runtime.run()

    assert (first[1].future.result(0), second[1].future.result(0)) == (1, 2)


def test_what_the_fsm_raises_is_the_callers_answer():
    def refuse(log):
        raise ValueError("no such account")

    node = node_with(1, RecordingFSM(refuse))
    caller = waiting(2)

    node.core.fsm.commit(2, [caller])
    node.runtime.run()

    assert isinstance(caller[1].future.error(0), ValueError)
    assert (node.core.state.applied_index, node.crashes) == (2, [])


def test_the_main_thread_never_waits_for_a_slow_fsm():
    node = node_with(3)
    door = node.runtime.event()
    node.fsm._on_apply = lambda _: door.wait()

    node.core.fsm.commit(4)
    node.runtime.run()
    assert (node.core.state.applied_index, node.core.fsm.pending()) == (0, 4)
    door.set()
    node.runtime.run()

    assert node.core.state.applied_index == 4


def test_entries_are_applied_in_batches_of_the_configured_size():
    node = node_with(5, config={"max_append_entries": 2})
    seen = []
    set_applied = node.core.state.set_applied
    node.core.state.set_applied = lambda index: (seen.append(index), set_applied(index))

    node.core.fsm.commit(6)
    node.runtime.run()

    assert seen == [2, 4, 6]


def test_a_fault_of_the_machine_halts_before_anything_later_is_applied():
    def fail(log):
        if log.index == 3:
            raise OSError(errno.EIO, "disk")

    node = node_with(3, RecordingFSM(fail))

    node.core.fsm.commit(4)
    node.runtime.run()

    assert [type(crash) for crash in node.crashes] == [FSMFailedError]
    assert node.fsm.commands() == [b"2/1"]


# ---- restoring ----


def test_a_restore_comes_before_applying():
    node = node_with(5)
    meta = write_snapshot(node, 4, 1, 3)

    node.core.fsm.commit(5)
    node.core.fsm.restore(meta)
    node.runtime.run()

    assert (node.fsm.restores, node.core.state.applied_index) == (1, 5)
    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1", b"5/1"]


def test_a_restore_that_fails_poisons():
    """Departure 9."""
    node = node_with(5, Broken())
    node.core.fsm.commit(5)
    node.runtime.run()

    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.run()

    assert node.core.fsm.restores.poison is Broken.trouble
    assert node.core.state.applied_index == 0
    assert node.core.inbox.take(node.runtime.now) == FSMPoisoned(Broken.trouble)
    assert node.crashes == []


def test_a_restore_that_fails_keeps_no_caller_waiting():
    """Their entries are committed; when one of the retries succeeds nobody can say."""
    node = node_with(3, Broken())
    before, after = waiting(3), waiting(4)
    meta = write_snapshot(node, 2, 1, commands=1)

    node.core.fsm.restore(meta)
    node.core.fsm.commit(3, [before])
    node.runtime.run()
    node.core.fsm.commit(4, [after])

    assert isinstance(before[1].future.error(0), LeadershipLostError)
    assert isinstance(after[1].future.error(0), LeadershipLostError)


def test_a_poisoned_fsm_applies_nothing_and_is_not_captured():
    """Departure 9."""
    node = node_with(5, Broken())
    node.core.fsm.commit(2)
    node.runtime.run()
    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.run()
    before = node.fsm.commands()

    node.core.fsm.commit(6)
    failed = capture(node)

    assert node.fsm.commands() == before
    assert isinstance(failed.error(0), SnapshotError)


def test_a_failed_restore_is_tried_again_with_growing_patience():
    """Departure 9."""
    tries = []

    class Counting(Broken):
        def restore(self, reader):
            tries.append(node.runtime.now)
            super().restore(reader)

    node = node_with(5, Counting())

    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.advance(1.0)

    waits = [round(later - earlier, 6) for earlier, later in pairwise(tries)]
    assert waits == [0.1, 0.2, 0.4]


def test_a_restore_that_succeeds_at_last_heals():
    node = node_with(5, Broken())
    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.run()

    node.fsm.trouble = None
    node.runtime.advance(0.1)
    node.core.fsm.commit(6)
    node.runtime.run()

    assert (node.core.fsm.restores.poison, node.core.state.applied_index) == (None, 6)
    assert len(node.fsm.commands()) == 5


def test_the_newest_snapshot_is_the_one_tried_again():
    node = node_with(9, Broken())
    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.run()

    write_snapshot(node, 7, 1, 6)
    node.runtime.advance(0.1)  # fails once more, and looks for the newest
    node.fsm.trouble = None
    node.runtime.advance(0.2)

    assert node.core.state.applied_index == 7


def test_an_older_snapshot_that_the_log_does_not_go_on_from_any_more_gives_way():
    """It was chosen after a failure, while the log was still there that the newer one replaced."""
    node = node_with(9, Broken())
    write_snapshot(node, 4, 1, 3)
    sink = node.snapshots.create(1, 20, 1, servers("n1"), 1, unsettled=True)
    RecordedSnapshot(entries(18, terms=(1, 1))).persist(sink)
    sink.close()
    node.core.fsm.restore(node.snapshots.list()[0])
    node.runtime.run()

    node.core.raft_log.drop_all(EntryID(1, 20))
    node.core.raft_log.replace_suffix(21, entries(21, terms=(1,)))
    node.fsm.trouble = None
    node.runtime.advance(0.1)  # the older one, which is restored
    node.core.fsm.commit(21)
    node.runtime.run()

    assert (node.crashes, node.core.state.applied_index) == ([], 21)
    assert node.fsm.commands() == [b"18/1", b"19/1", b"21/1"]


def test_a_restore_asked_for_meanwhile_is_not_lost():
    node = node_with(9, Broken())
    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.runtime.run()

    node.fsm.trouble = None
    node.core.fsm.restore(write_snapshot(node, 7, 1, 6))
    node.runtime.run()

    assert (node.core.fsm.restores.poison, node.core.state.applied_index) == (None, 7)


def test_callers_whose_entries_a_snapshot_swallowed_are_told_unknown():
    node = node_with(5)
    swallowed, later = waiting(3), waiting(5)

    node.core.fsm.restore(write_snapshot(node, 4, 1, 3))
    node.core.fsm.commit(5, [swallowed, later])
    node.runtime.run()

    assert isinstance(swallowed[1].future.error(0), LeadershipLostError)
    assert later[1].future.result(0) == 4


# ---- capturing ----


def test_a_capture_is_taken_between_batches():
    node = node_with(3)
    node.core.fsm.commit(3)
    node.runtime.run()

    view = capture(node).result(0)

    assert (view.last.index, view.configuration) == (3, node.configuration)


def test_a_capture_that_fails_is_only_that_callers_problem():
    class NoView(RecordingFSM):
        def snapshot(self):
            raise ValueError("busy")

    node = node_with(3, NoView())
    node.core.fsm.commit(3)
    node.runtime.run()

    failed = capture(node)
    node.core.fsm.commit(4)
    node.runtime.run()

    assert isinstance(failed.error(0), ValueError)
    assert (node.core.state.applied_index, node.crashes) == (4, [])


def test_there_is_nothing_to_capture_after_a_start_without_new_entries():
    node = node_with(3)
    write_snapshot(node, 4, 1, 3)
    node = node.restarted(fsm=RecordingFSM())

    failed = capture(node)

    assert isinstance(failed.error(0), NothingNewToSnapshotError)


# ---- the log may end before what is committed (law 3) ----


def test_committed_entries_that_the_log_lost_are_waited_for():
    """Law 3: a leader's commit may run ahead of its own disk; law 5: its tail is then dropped.

    The next leader sends the entries again, and whatever it commits goes on from there.
    """
    node = node_with(1)
    node.core.raft_log.append(entries(3, terms=(1, 1)))
    door = node.runtime.event()
    node.fsm._on_apply = lambda log: log.index == 2 and door.wait()
    node.core.fsm.commit(4)
    node.runtime.run()

    node.core.settle()
    door.set()
    node.runtime.run()
    assert (node.crashes, node.core.state.applied_index) == ([], 2)
    node.core.raft_log.replace_suffix(3, entries(3, terms=(1, 1, 2)))
    node.core.fsm.commit(5)
    node.runtime.run()

    assert (node.crashes, node.core.state.applied_index) == ([], 5)


# ---- ending ----


def test_stopping_first_applies_what_a_caller_waits_for():
    node = node_with(3)
    caller = waiting(3)

    node.core.fsm.commit(4, [caller])
    node.core.fsm.stop()
    node.runtime.run()

    assert caller[1].future.result(0) == 2


def test_stopping_applies_nothing_that_nobody_waits_for():
    node = node_with(3)

    node.core.fsm.commit(4)
    node.core.fsm.stop()
    node.runtime.run()

    assert node.core.state.applied_index == 0


def test_whoever_still_waits_is_answered():
    node = node_with(3)
    door = node.runtime.event()
    node.fsm._on_apply = lambda _: door.wait()
    caller, view = waiting(3), Future(node.host)
    node.core.fsm.commit(4, [caller])
    node.runtime.run()
    node.core.fsm.capture(view)

    node.core.fsm.stop()
    node.core.fsm.abandon()

    assert isinstance(caller[1].future.error(0), ShutdownOutcomeUnknownError)
    assert isinstance(view.error(0), ShutdownOutcomeUnknownError)


def test_a_capture_asked_for_after_the_end_is_refused():
    node = node_with(3)
    node.core.fsm.stop()
    node.runtime.run()

    assert isinstance(capture(node).error(0), RaftError)


def test_a_capture_that_waits_is_answered_when_the_fsm_halts():
    node = node_with(3)
    view = Future(node.host)

    def ask_and_fail(_):
        node.core.fsm.capture(view)
        raise OSError(errno.EIO, "disk")

    node.fsm._on_apply = ask_and_fail
    node.core.fsm.commit(4)
    node.runtime.run()

    assert isinstance(view.error(0), ShutdownOutcomeUnknownError)


def test_the_fsm_thread_knows_itself():
    node = node_with(1)
    seen = []
    node.fsm._on_apply = lambda _: seen.append(node.core.fsm.is_current())

    node.core.fsm.commit(2)
    node.runtime.run()

    assert seen == [True]
    assert not node.core.fsm.is_current()


def test_a_snapshot_that_comes_in_between_commits_none_of_the_entries_in_the_log():
    """They may be of another past: the snapshot is committed, the log it replaces is not."""
    node = node_with(5)
    meta = write_snapshot(node, index=5, term=2, commands=0)
    given = []
    apply, apply_some = node.core.fsm._machine.apply, node.core.fsm._apply_some

    def recording(logs):
        given.extend(log.index for log in logs)
        return apply(logs)

    def late():
        node.core.fsm._apply_some = apply_some
        node.core.fsm.restore(meta)  # the main thread, after the FSM thread has decided to apply
        apply_some()

    node.core.fsm._machine.apply = recording
    node.core.fsm._apply_some = late
    node.core.fsm.commit(2)
    node.runtime.run()

    assert given == []
    assert node.core.state.applied_index == 5


def test_no_read_is_answered_between_a_trial_that_fails_and_the_way_back():
    """What the trial has left is nobody's state."""
    node = node_with(3, Broken())
    node.core.fsm.commit(4)
    node.runtime.run()
    meta = write_snapshot(node, 4, 1, 3)
    restores, seen = node.core.fsm.restores, []
    look = restores._another_snapshot
    restores._another_snapshot = lambda: seen.append(restores.are_done()) or look()

    restores.try_out(Trial(meta, lambda error: seen.append(type(error).__name__)))
    node.runtime.run()

    assert seen[0] is False
    assert "RestoreFailedError" in seen
