"""User restores that are not committed yet, on a follower and at start (departure 19)."""

import io
from dataclasses import replace

import pytest

from raft.engine.inbox import RestoreStored
from raft.engine.state import HardState
from raft.errors import (
    LogCorruptError,
    NothingNewToSnapshotError,
    SnapshotError,
    UnsettledSnapshotError,
)
from raft.futures import Future, IndexFuture
from raft.messages import AppendEntriesRequest, InstallSnapshotRequest, RequestVoteRequest
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.snapshots.inmem import InmemSnapshotStore
from raft.testing.fsm import RecordedSnapshot
from raft.testing.script import Asked, ScriptedNode, entries, header, servers
from raft.types import NO_TERM, EntryID, Log, RaftState

MEMBERS = servers("n1", "n2", "n3")
TERM, INDEX = 2, 50  # of the restore
RESTORED = EntryID(TERM, INDEX)


def content(*indexes):
    pieces = []

    class Sink:
        write = pieces.append

    RecordedSnapshot([log for log in entries(2, terms=(1,) * 20) if log.index in indexes]).persist(
        Sink()
    )
    return b"".join(pieces)


BY_HAND, COMMITTED = content(2), content(2, 3, 4)


def send(node, term, index, last_term, data, unsettled=False):
    """Have a follower take a leader's snapshot."""
    request = InstallSnapshotRequest(
        header("n2"), term, index, last_term, MEMBERS, 1, len(data), unsettled=unsettled
    )
    asked = Asked(request, io.BytesIO(data))
    node.core.inbox.deliver(asked.rpc)
    node.runtime.run()
    return asked


def append(node, term, prev, prev_term, logs=(), commit=0):
    return node.deliver(
        AppendEntriesRequest(header("n2"), term, prev, prev_term, tuple(logs), commit)
    )


def holding(restored=BY_HAND):
    """A follower with three committed entries that took a user restore from the leader of TERM."""
    node = ScriptedNode(configuration=MEMBERS, log=entries(2, terms=(1, 1, 1)))
    node.start(Follower)
    append(node, TERM, 4, 1, commit=4)
    assert send(node, TERM, INDEX, TERM, restored, unsettled=True).response.success
    return node


def marks(node):
    return [meta.unsettled for meta in node.snapshots.list()]


def test_it_shows_but_counts_for_nothing_committed():
    node = holding()

    published = node.core.state.published()
    assert node.fsm.commands() == [b"2/1"]
    assert (published.last_log, published.commit_index) == (RESTORED, 4)
    assert node.stored() == []
    assert marks(node) == [True]


def test_its_own_index_settles_it():
    node = holding()

    append(node, TERM, INDEX, TERM, commit=INDEX)

    assert (node.core.unsettled.meta, marks(node)) == (None, [False])


def test_a_commit_index_behind_it_settles_it():
    node = holding()

    append(node, TERM, INDEX, TERM, entries(INDEX + 1, terms=(TERM,)), commit=INDEX + 1)

    assert node.core.unsettled.meta is None
    assert marks(node) == [False]
    assert node.core.state.commit_index == INDEX + 1


def test_it_is_sent_again_and_acknowledged_at_once():
    node = holding()
    restores = node.fsm.restores

    assert send(node, TERM, INDEX, TERM, BY_HAND, unsettled=True).response.success
    assert node.fsm.restores == restores


def test_what_the_same_leader_sent_before_it_changes_nothing():
    """Late requests of the term that restored prove nothing."""
    node = holding()

    early = append(node, TERM, 4, 1, entries(5, terms=(1,)))
    first = append(node, TERM, 0, 0, entries(1, terms=(1,)))
    older = send(node, TERM, 3, 1, COMMITTED)

    assert not early.response.success
    assert not first.response.success
    assert older.response.success
    assert node.core.state.published().last_log == RESTORED
    assert node.fsm.commands() == [b"2/1"]


def test_a_later_leader_that_lacks_it_is_refused_until_it_sends_a_snapshot():
    node = holding()

    assert not append(node, TERM + 1, 60, TERM + 1).response.success
    assert not append(node, TERM + 1, INDEX, 1).response.success
    assert not append(node, TERM + 1, 4, 1).response.success
    asked = send(node, TERM + 1, 4, 1, COMMITTED)

    assert asked.response.success
    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1"]
    published = node.core.state.published()
    assert (published.last_log, published.last_snapshot) == (EntryID(1, 4), EntryID(1, 4))
    assert node.core.unsettled.meta is None
    assert marks(node) == [False]


def test_entries_then_go_on_behind_that_snapshot():
    """What was known to be committed before the restore comes once more, and no further."""
    node = holding()
    send(node, TERM + 1, 3, 1, content(2, 3))

    asked = append(node, TERM + 1, 3, 1, entries(4, terms=(1, 3, 3)), commit=5)

    assert asked.response.success
    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1", b"5/3"]
    assert node.core.state.commit_index == 5


def test_a_later_leader_with_its_whole_log_halts_the_node():
    """Nothing here can be taken back: it has to be rebuilt."""
    node = holding()

    assert append(node, TERM + 1, 0, 0).response.success
    append(node, TERM + 1, 0, 0, entries(1, terms=(1, 1, 1, 1, 3)))

    (crash,) = node.crashes
    assert isinstance(crash, UnsettledSnapshotError)
    assert "empty its directory" in str(crash)


def test_a_later_leader_that_has_it_goes_on_behind_it():
    node = holding()

    asked = append(node, TERM + 1, INDEX, TERM, entries(INDEX + 1, terms=(3,)), commit=INDEX + 1)

    assert asked.response.success
    assert marks(node) == [False]


def test_it_counts_as_the_end_of_the_log_in_elections():
    node = holding()
    node.core.inbox.close()

    started = node.restarted()

    assert started.core.raft_log.last() == RESTORED
    played = started.play(Candidate)
    assert (played.role, started.core.raft_log.last_index()) == (RaftState.CANDIDATE, INDEX)


def test_no_snapshot_is_taken_of_it():
    node = holding()
    future = Future(node.host)

    node.core.fsm.capture(future)
    node.runtime.run()

    assert isinstance(future.error(0), SnapshotError)


def test_readers_do_not_see_it():
    node = holding()
    slow = node.fsm.restore
    door = node.runtime.event()

    def restore(reader):
        door.wait()
        slow(reader)

    node.fsm.restore = restore
    send(node, TERM, INDEX + 5, TERM, BY_HAND, unsettled=True)
    future = IndexFuture(node.host)
    node.core.fsm.answer_when_applied(4, future)
    door.set()
    node.runtime.run()
    assert not future.done()

    append(node, TERM, INDEX + 5, TERM, entries(INDEX + 6, terms=(2,)), commit=INDEX + 6)

    assert future.result(0) == 4


def asks_for_a_vote(node, last_index, last_term, term=4):
    node.core.set_leader("", "")
    return node.deliver(RequestVoteRequest(header("n3"), term, last_index, last_term)).response


def test_who_went_back_does_not_vote_before_it_has_everything_again():
    """The restore outranked whoever lacks what this node has acknowledged; now a mark has to."""
    node = holding()  # entry 4 is committed
    send(node, TERM + 1, 3, 1, content(2, 3))
    assert node.core.raft_log.last() == EntryID(1, 3)

    assert not asks_for_a_vote(node, 3, 1).granted
    assert not node.restarted().core.damage.is_whole()


def test_an_entry_of_a_later_leader_shows_that_it_has_everything_again():
    node = holding()
    send(node, TERM + 1, 3, 1, content(2, 3))
    append(node, TERM + 1, 3, 1, entries(4, terms=(1,)))
    assert not node.core.damage.is_whole()

    append(node, TERM + 1, 4, 1, entries(5, terms=(TERM + 1,)))

    assert node.core.damage.is_whole()
    assert asks_for_a_vote(node, 5, TERM + 1).granted


def test_an_install_that_could_not_drop_the_log_is_made_up_for():
    """The FSM has the restore, so the node must know of it."""
    node = ScriptedNode(configuration=MEMBERS, log=entries(2, terms=(1, 1, 1)))
    node.start(Follower)
    append(node, TERM, 4, 1, commit=4)

    def failing(name):
        if name.startswith("delete"):
            raise OSError("disk")

    node.store.before_write = failing
    send(node, TERM, INDEX, TERM, BY_HAND, unsettled=True)
    node.store.before_write = lambda _: None
    node.runtime.advance(0.5)

    assert node.core.unsettled.meta is not None
    assert node.core.raft_log.last() == RESTORED
    assert node.stored() == []


def test_a_log_that_is_spoiled_where_the_snapshot_ends_gives_the_restore_up_only_with_the_next():
    """Found by the simulation: the restore was gone, and counted as committed."""
    node = ScriptedNode(configuration=MEMBERS, config={"recent_log_bytes": 0})
    node.start(Follower)
    send(node, TERM, INDEX, TERM, BY_HAND, unsettled=True)
    append(node, TERM, INDEX, TERM, entries(INDEX + 1, terms=(TERM, TERM)))
    node.store.store_logs([replace(node.store.get_log(INDEX + 2), data=b"spoiled")])

    asked = send(node, TERM + 1, INDEX + 2, TERM + 1, COMMITTED)
    assert isinstance(asked.error, LogCorruptError)
    assert node.core.unsettled.meta is not None
    node.runtime.advance(0.5)
    asked = send(node, TERM + 1, INDEX + 2, TERM + 1, COMMITTED)

    assert asked.response.success
    assert node.core.unsettled.meta is None
    assert (node.core.raft_log.last(), node.stored()) == (EntryID(TERM + 1, INDEX + 2), [])
    assert node.crashes == []


def test_a_poisoned_fsm_is_not_given_a_restore_that_nobody_adopted():
    node = ScriptedNode(configuration=MEMBERS, log=entries(2, terms=(1, 1, 1)))
    node.start(Follower)
    append(node, TERM, 4, 1, commit=4)
    sink = node.snapshots.create(1, INDEX, TERM, MEMBERS, 1, unsettled=True)
    sink.write(BY_HAND)
    sink.close()

    send(node, TERM, 6, TERM, b"not a snapshot")
    node.runtime.advance(1.0)

    assert node.core.fsm.restores.poison is not None


def test_who_is_still_going_back_takes_the_next_snapshot_all_the_same(monkeypatch):
    """How far the FSM is by then says nothing. It stayed behind, until it heard of more entries."""
    node = holding()
    door, restore = node.runtime.event(), node.fsm.restore
    monkeypatch.setattr(node.fsm, "restore", lambda reader: door.wait() and restore(reader))

    assert send(node, TERM + 1, 4, 1, COMMITTED).response.success
    assert send(node, TERM + 1, 6, 1, content(2, 3, 4, 5, 6)).response.success
    door.set()
    node.runtime.run()

    assert node.core.state.applied_index == 6
    assert node.fsm.commands() == [b"%d/1" % index for index in range(2, 7)]


# ---- at start ----


def test_a_restore_whose_index_the_log_has_never_happened():
    """Its leader was told that storing it failed, and went on with a command at that index."""
    snapshots = InmemSnapshotStore()
    sink = snapshots.create(1, 5, TERM, MEMBERS, 1, unsettled=True)
    sink.write(BY_HAND)
    sink.close()

    node = ScriptedNode(
        configuration=MEMBERS, log=entries(2, terms=(1, 1, 1, TERM, TERM)), snapshots=snapshots
    )

    assert node.core.raft_log.boundary() == EntryID(0, 0)
    assert node.core.unsettled.meta is None
    assert node.fsm.restores == 0
    node.runtime.run()
    assert snapshots.list() == []


def stored(log, *, also_settled=None):
    """A node over a log and an unsettled snapshot, as a crash may leave them."""
    snapshots = InmemSnapshotStore()
    if also_settled is not None:
        sink = snapshots.create(1, *also_settled, MEMBERS, 1)
        sink.write(COMMITTED)
        sink.close()
    sink = snapshots.create(1, INDEX, TERM, MEMBERS, 1, unsettled=True)
    sink.write(BY_HAND)
    sink.close()
    return ScriptedNode(
        configuration=MEMBERS, log=log, snapshots=snapshots, hard_state=HardState(TERM + 1)
    )


def test_a_crash_before_the_log_was_dropped_is_made_up_for():
    node = stored(entries(2, terms=(1, 1, 2)))

    assert node.stored() == []
    assert node.core.raft_log.last() == RESTORED
    assert node.core.state.commit_index == 0
    assert node.core.unsettled.meta is not None
    assert node.fsm.commands() == [b"2/1"]


def test_a_log_that_goes_on_behind_it_keeps_it():
    node = stored(entries(2, terms=(1,)))
    node.store.store_logs(entries(INDEX + 1, terms=(3,)))

    started = node.restarted()

    assert started.core.raft_log.last() == EntryID(3, INDEX + 1)
    assert started.core.unsettled.meta is not None


@pytest.mark.parametrize("is_spoiled", [False, True])
def test_a_later_leaders_snapshot_that_was_not_installed_yet_replaces_it_at_start(is_spoiled):
    """Found by the simulation: with entries behind the restore the node did not start."""
    node = stored(entries(2, terms=(1,)))
    behind = list(entries(INDEX + 1, terms=(TERM, TERM)))
    if is_spoiled:
        behind[-1] = replace(behind[-1], data=b"spoiled")
    node.store.store_logs(behind)
    sink = node.snapshots.create(1, INDEX - 1, TERM + 1, MEMBERS, 1)
    sink.write(COMMITTED)
    sink.close()

    started = node.restarted()
    started.runtime.run()

    core = started.core
    assert (core.raft_log.last(), started.stored()) == (EntryID(TERM + 1, INDEX - 1), [])
    assert (core.unsettled.meta, core.damage.is_whole()) == (None, True)
    assert [meta.unsettled for meta in started.snapshots.list()] == [False]
    assert core.state.applied_index == INDEX - 1


def test_a_restore_that_a_newer_snapshot_has_followed_is_removed_at_start():
    """A crash, or a disk that failed, kept it from that before, and nothing else ever would."""
    node = stored(entries(2, terms=(1,)))
    sink = node.snapshots.create(1, INDEX + 9, TERM + 1, MEMBERS, 1)
    sink.write(COMMITTED)
    sink.close()
    node.store.store_logs(entries(INDEX + 10, terms=(TERM + 1,)))

    started = node.restarted()
    started.runtime.run()

    assert started.core.raft_log.last() == EntryID(TERM + 1, INDEX + 10)
    assert [meta.index for meta in started.snapshots.list()] == [INDEX + 9]


def test_entries_of_a_later_leader_prove_that_it_never_happened():
    """They may be acknowledged: an unsettled snapshot must not take their place."""
    node = stored(entries(2, terms=(1, 1, 3)))

    assert [index for index, _ in node.stored()] == [1, 2, 3, 4]
    assert node.core.unsettled.meta is None
    assert node.fsm.restores == 0


@pytest.mark.parametrize(
    ("spoiled", "terms"), [(4, (1, 3, 3)), (INDEX, (1,) * (INDEX - 2) + (TERM, TERM))]
)
def test_a_damaged_entry_does_not_decide_whether_it_happened(spoiled, terms):
    """Both ways something that was acknowledged may be lost."""
    log = entries(2, terms=terms)
    log[spoiled - 2] = Log(spoiled, NO_TERM)  # what a store makes of a row that it cannot read

    with pytest.raises(LogCorruptError, match=f"entry {spoiled} is damaged.* took hold"):
        stored(log)


def test_an_older_settled_snapshot_serves_instead():
    node = stored(entries(2, terms=(1, 1, 1, 3)), also_settled=(4, 1))

    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1"]
    assert node.core.state.commit_index == 4


def test_what_a_lost_leader_has_stored_is_removed():
    node = ScriptedNode(configuration=MEMBERS, log=entries(2, terms=(1,)))
    node.start(Follower)
    sink = node.snapshots.create(1, INDEX, TERM, MEMBERS, 1, unsettled=True)
    sink.close()
    (meta,) = node.snapshots.list()

    node.core.inbox.post(RestoreStored(TERM, object(), meta, None))
    node.runtime.run()

    assert list(node.snapshots.list()) == []


def test_a_restore_that_the_fsm_does_not_take_poisons_it():
    """Departure 9: as any other."""
    node = ScriptedNode(configuration=MEMBERS, log=entries(2, terms=(1,)))
    node.start(Follower)

    send(node, TERM, INDEX, TERM, b"not a snapshot", unsettled=True)

    assert node.core.fsm.restores.poison is not None


def test_nothing_applied_is_nothing_to_snapshot():
    node = stored(entries(2, terms=(1,)))
    future = Future(node.host)

    node.core.fsm.capture(future)
    node.runtime.run()

    assert isinstance(future.error(0), NothingNewToSnapshotError)
