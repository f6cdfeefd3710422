"""The receiver of AppendEntries: Figure 3.1 row by row, and the departures that live there."""

from dataclasses import replace

import pytest

from raft.engine.append_entries import answer_heartbeat
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import (
    ClusterMismatchError,
    CommittedConflictError,
    RemoteError,
    ShutdownNotAppliedError,
    StorageFailedError,
    UnsupportedProtocolError,
)
from raft.messages import AppendEntriesRequest
from raft.observer import LeaderObservation
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.stores import InmemStore
from raft.testing.script import Asked, ScriptedNode, configuration_entry, entries, header, servers
from raft.types import EntryID, Log, LogType, RaftState


def node_with(*terms, **more):
    """A node whose log has these terms from index 2 on, behind a configuration of term 1."""
    return ScriptedNode(log=entries(2, terms=terms), **more)


def append(term, prev=(0, 0), logs=(), commit=0, leader="n2"):
    """A request; `prev` is the index and the term of the entry before."""
    return AppendEntriesRequest(header(leader), term, *prev, tuple(logs), commit)


def compacted(node, index):
    """Have a snapshot take the place of the log up to an index."""
    entry = EntryID(node.core.raft_log.term_at(index), index)
    node.core.raft_log.set_boundary(entry)
    while node.core.raft_log.compact_step(index):
        pass
    return node


def stored_terms(node):
    return [term for _, term in node.stored()]


# ---- terms (5.1) ----


def test_a_leader_of_the_past_is_refused():
    """PAP-04, ETC-48, GAP-01: Figure 3.1, AppendEntries 1."""
    node = node_with(3)

    asked = node.ask(append(2, (2, 3), entries(3, terms=(2,)), commit=2))

    assert (asked.response.success, asked.response.term) == (False, 3)
    assert (stored_terms(node), node.core.state.commit_index) == ([1, 3], 0)
    assert (node.core.state.leader(), node.core.state.last_contact) == (("", ""), None)


def test_a_newer_term_is_adopted_and_durable_before_the_answer():
    """PAP-01, GAP-02; section 5.1"""
    node = node_with(1)

    asked = node.ask(append(5))

    assert (asked.response.success, asked.response.term) == (True, 5)
    assert HardState.load(node.store) == HardState(5)
    assert (node.core.state.term, node.core.state.role) == (5, RaftState.FOLLOWER)


def test_a_newer_term_that_cannot_be_stored_changes_nothing():
    """Departure 2."""
    node = node_with(1)

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    asked = node.ask(append(5))

    assert isinstance(asked.error, StorageFailedError)
    assert (node.core.state.term, node.core.hard_state) == (1, HardState(1))


@pytest.mark.parametrize("term", [2, 3])
def test_a_candidate_yields_to_a_leader_of_its_term_or_a_newer_one(term):
    """PAP-02, PAP-13, GAP-03: section 5.2"""
    node = node_with(1, hard_state=HardState(2, "n1", "n1:1"))
    asked = Asked(append(term))

    node.play(Candidate, asked)

    assert asked.response.success
    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, term)
    assert node.core.state.leader() == ("n2:1", "n2")


def test_the_leader_is_known_from_its_first_request_on():
    node = node_with(1)

    node.ask(append(2, (9, 2), leader="n3"))

    assert node.core.state.leader() == ("n3:1", "n3")
    assert LeaderObservation("n3:1", "n3") in node.events


def test_a_refused_request_of_the_term_counts_as_contact_all_the_same():
    """H16"""
    node = node_with(1)
    node.runtime.advance(5.0)

    asked = node.ask(append(2, (9, 2)))

    assert not asked.response.success
    assert node.core.state.last_contact == node.runtime.now


# ---- log matching (5.3) ----


@pytest.mark.parametrize("prev", [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_a_previous_entry_that_is_ours_too_matches(prev):
    """PAP-23, GAP-06: Figure 3.1, AppendEntries 2."""
    node = node_with(1, 2)

    assert node.ask(append(2, prev)).response.success


@pytest.mark.parametrize("prev", [(3, 1), (3, 3), (4, 2), (9, 9)])
def test_a_previous_entry_that_is_not_ours_is_refused_with_a_hint(prev):
    """PAP-24, GAP-06, GAP-07: Figure 3.1, AppendEntries 2."""
    node = node_with(1, 2)

    asked = node.ask(append(3, prev, entries(prev[0] + 1, terms=(3,))))

    assert (asked.response.success, asked.response.no_retry_backoff) == (False, True)
    assert (asked.response.term, asked.response.last_log) == (3, 3)
    assert stored_terms(node) == [1, 1, 2]


@pytest.mark.parametrize(
    ("prev", "new", "expected"),
    [
        pytest.param((3, 2), entries(4, terms=(3,)), [1, 1, 2, 3], id="new"),
        pytest.param((2, 1), entries(3, terms=(3, 4)), [1, 1, 3, 4], id="conflict"),
        pytest.param((1, 1), entries(2, terms=(1,)), [1, 1, 2], id="duplicate"),
        pytest.param((1, 1), entries(2, terms=(3,)), [1, 3], id="conflict at the start"),
        pytest.param((1, 1), entries(2, terms=(1, 2, 4)), [1, 1, 2, 4], id="overlapping"),
        pytest.param((3, 2), [], [1, 1, 2], id="nothing"),
    ],
)
def test_the_log_becomes_what_the_leader_has(prev, new, expected):
    """PAP-25, ETC-49: Figure 3.1, AppendEntries 3 and 4."""
    node = node_with(1, 2)

    asked = node.ask(append(4, prev, new))

    assert asked.response.success
    assert stored_terms(node) == expected
    assert asked.response.last_log == len(expected)


def test_an_old_request_that_arrives_late_truncates_nothing():
    """GAP-09, H8: only a conflict does, never a shorter list."""
    node = node_with(1, 1, 1)

    node.ask(append(1, (1, 1), entries(2, terms=(1,))))

    assert stored_terms(node) == [1, 1, 1, 1]
    assert node.store.writes == []


@pytest.mark.parametrize(
    ("prev", "new", "writes"),
    [
        pytest.param((3, 2), entries(4, terms=(2, 2)), ["store 4-5"], id="GAP-08"),
        pytest.param((1, 1), entries(2, terms=(1, 2)), [], id="GAP-09"),
        pytest.param((1, 1), entries(2, terms=(1, 2, 2)), ["store 4-4"], id="GAP-10"),
        pytest.param((1, 1), entries(2, terms=(2, 2)), ["replace 2 by 2-3"], id="GAP-11"),
        pytest.param((1, 1), entries(2, terms=(1, 3)), ["replace 3 by 3-3"], id="GAP-12"),
    ],
)
def test_only_what_is_not_there_yet_is_written(prev, new, writes):
    """GAP-08, GAP-09, GAP-10, GAP-11, GAP-12: Figure 3.1, AppendEntries 3 and 4."""
    node = node_with(1, 2, hard_state=HardState(3))

    asked = node.ask(append(3, prev, new))

    assert asked.response.success
    assert node.store.writes == writes
    assert node.stored()[-1] == (new[-1].index, new[-1].term)


def test_entries_out_of_order_are_refused():
    node = node_with(1)

    asked = node.ask(append(2, (2, 1), [*entries(3, terms=(2,)), *entries(5, terms=(2,))]))

    assert isinstance(asked.error, RemoteError)
    assert stored_terms(node) == [1, 1]


# ---- durable first ----


def test_what_is_acknowledged_is_durable():
    """Law 6."""
    node = node_with(1)
    door = node.runtime.event()
    node.store.before_write = lambda _: door.wait()
    node.start(Follower)

    asked = node.deliver(append(1, (2, 1), entries(3, terms=(1,))))
    assert not asked.is_answered
    door.set()
    node.runtime.run()

    assert asked.response.success
    assert stored_terms(node) == [1, 1, 1]


def test_a_duplicate_waits_for_the_disk_like_the_first():
    """Law 6: what is not durable yet is not acknowledged the second time, either."""
    node = node_with(1)
    door = node.runtime.event()
    node.store.before_write = lambda _: door.wait()
    node.start(Follower)
    request = append(1, (2, 1), entries(3, terms=(1,)))

    first, second = node.deliver(request), node.deliver(request)
    assert not second.is_answered
    door.set()
    node.runtime.run()

    assert first.response.success
    assert second.response.success


def test_entries_that_cannot_be_stored_are_not_acknowledged():
    node = node_with(1)

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    asked = node.ask(append(1, (2, 1), entries(3, terms=(1,)), commit=3))

    assert isinstance(asked.error, StorageFailedError)
    assert (node.core.raft_log.last(), node.core.state.commit_index) == (EntryID(1, 2), 0)


def test_after_a_failed_write_nothing_is_acknowledged_until_the_stores_were_read_anew():
    """Departure 8."""
    node = node_with(1)

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    node.ask(append(1, (2, 1), entries(3, terms=(1,))))
    node.store.before_write = lambda _: None

    assert isinstance(node.ask(append(1, (2, 1))).error, StorageFailedError)
    assert node.core.recover_disk()
    assert node.ask(append(1, (2, 1))).response.success


@pytest.mark.parametrize(
    ("prev", "new"),
    [((3, 1), entries(4, terms=(2,))), ((2, 1), entries(3, terms=(2,)))],
    ids=["storing", "deleting"],
)
def test_entries_that_a_store_has_raised_at_are_taken_when_the_leader_sends_them_again(prev, new):
    """GAP-13"""
    node = node_with(1, 1, hard_state=HardState(2))
    before = node.stored()

    def fail(_):
        raise OSError("disk")

    node.store.before_write = fail
    assert isinstance(node.ask(append(2, prev, new)).error, StorageFailedError)
    assert node.stored() == before
    node.store.before_write = lambda _: None
    node.core.recover_disk()

    assert node.ask(append(2, prev, new)).response.success
    assert node.stored()[-1] == (new[0].index, 2)


def test_after_a_half_done_truncation_the_log_is_what_the_store_still_has():
    """Departure 3 without the ability: truncated, then nothing appended (T4)."""

    class Plain:
        def __init__(self):
            self._inner = InmemStore()
            self.may_store = True

        def __getattr__(self, name):
            if name in ("get_range", "replace_suffix"):
                raise AttributeError(name)
            return getattr(self._inner, name)

        def store_logs(self, logs):
            if not self.may_store:
                raise OSError("disk")
            self._inner.store_logs(logs)

    store = Plain()
    store.store_logs([configuration_entry(1, 1, servers("n1")), *entries(2, terms=(1, 1))])
    HardState(1).save(store)
    node = ScriptedNode(store=store)
    store.may_store = False

    asked = node.ask(append(2, (1, 1), entries(2, terms=(2,))))
    assert isinstance(asked.error, StorageFailedError)
    store.may_store = True
    node.core.recover_disk()
    asked = node.ask(append(2, (2, 1)))

    assert (asked.response.success, asked.response.last_log) == (False, 1)


# ---- committing ----


@pytest.mark.parametrize(
    ("new", "commit", "applied"),
    [
        (entries(3, terms=(2,)), 3, 3),
        (entries(3, terms=(2, 2)), 3, 3),
        (entries(3, terms=(2, 2)), 4, 4),
        (entries(3, terms=(2, 2)), 9, 4),
    ],
)
def test_exactly_what_is_committed_is_applied_in_order(new, commit, applied):
    """PAP-22, GAP-14: Figure 3.1, AppendEntries 5."""
    node = node_with(1)

    node.ask(append(2, (2, 1), new, commit))

    assert (node.core.state.commit_index, node.core.state.applied_index) == (applied, applied)
    assert [log.index for log in node.fsm.logs()] == list(range(2, applied + 1))


@pytest.mark.parametrize(
    ("prev", "new", "commit"),
    [((2, 1), [], 2), ((2, 1), entries(3, terms=(1,)), 3), ((1, 1), [], 1)],
)
def test_only_what_the_request_has_shown_to_match_is_committed(prev, new, commit):
    """GAP-14, departure 1: what stands behind it here may be of another leader."""
    node = node_with(1, 1, 1, 1)

    node.ask(append(2, prev, new, commit=99))

    assert node.core.state.commit_index == commit


def test_the_commit_index_never_goes_down():
    """GAP-14, ETC-50, departure 1: empty requests tell it, heartbeats do not carry it."""
    node = node_with(1, 1, 1)
    node.ask(append(1, (4, 1), commit=4))

    asked = node.ask(append(1, (2, 1), commit=2))

    assert asked.response.success
    assert node.core.state.commit_index == 4


def test_a_refused_request_commits_nothing():
    node = node_with(1, 1)

    node.ask(append(2, (9, 2), commit=3))

    assert node.core.state.commit_index == 0


# ---- what is committed or snapshotted stays (departures 3 and 4) ----


def committed_node():
    node = node_with(1, 1, 1)
    node.ask(append(1, (3, 1), commit=3))
    return node


@pytest.mark.parametrize(
    ("prev", "new"),
    [((2, 1), entries(3, terms=(2,))), ((3, 2), []), ((1, 1), entries(2, terms=(2, 2)))],
)
def test_a_conflict_with_what_is_committed_halts(prev, new):
    """Departure 3."""
    node = committed_node()

    with pytest.raises(CommittedConflictError, match="is committed"):
        node.ask(append(2, prev, new))

    assert stored_terms(node) == [1, 1, 1, 1]


def test_a_conflict_above_what_is_committed_truncates():
    """Departure 3."""
    node = committed_node()

    assert node.ask(append(2, (3, 1), entries(4, terms=(2,)))).response.success

    assert stored_terms(node) == [1, 1, 1, 2]


@pytest.mark.parametrize("prev", [(1, 1), (2, 1), (3, 1)])
def test_a_previous_entry_that_a_snapshot_covers_matches(prev):
    """GAP-04, GAP-05, departure 4: else that acknowledgement loops for ever."""
    node = compacted(committed_node(), 3)

    asked = node.ask(append(1, prev, entries(prev[0] + 1, terms=(1,) * (6 - prev[0]))))

    assert asked.response.success
    assert node.stored() == [(4, 1), (5, 1), (6, 1)]


def test_entries_that_a_snapshot_covers_are_skipped():
    """Departure 4."""
    node = compacted(committed_node(), 4)

    assert node.ask(append(1, (1, 1), entries(2, terms=(1, 1)))).response.success

    assert node.stored() == []
    assert node.core.raft_log.last() == EntryID(1, 4)


@pytest.mark.parametrize(
    ("prev", "new"), [((3, 2), []), ((2, 1), entries(3, terms=(2,)))], ids=["previous", "entry"]
)
def test_another_entry_at_the_snapshots_index_halts(prev, new):
    """GAP-05, departure 4: what is there must have the snapshot's term, else departure 3."""
    node = compacted(committed_node(), 3)

    with pytest.raises(CommittedConflictError):
        node.ask(append(2, prev, new))


# ---- configurations ----


BIGGER = servers("n1", "n2", "n3", "n4")


def test_a_configuration_is_in_force_as_soon_as_it_is_stored():
    """Section 4.1"""
    node = node_with(1)

    node.ask(append(1, (2, 1), [configuration_entry(3, 1, BIGGER)]))

    members = node.core.membership
    assert (members.latest, members.latest_index) == (BIGGER, 3)
    assert (members.committed_index, members.is_stable()) == (1, False)
    assert node.core.state.published().configuration == BIGGER


def test_a_configuration_is_committed_with_its_entry():
    node = node_with(1)

    node.ask(append(1, (2, 1), [configuration_entry(3, 1, BIGGER)], commit=3))

    assert node.core.membership.is_stable()


def test_a_configuration_that_another_follows_is_never_truncated():
    """Section 4.1: the second would not have begun before the first was committed; departure 3."""
    node = node_with(1)
    node.ask(append(1, (2, 1), [configuration_entry(3, 1, BIGGER)]))

    with pytest.raises(CommittedConflictError):
        node.ask(append(2, (0, 0), entries(1, terms=(2,))))

    assert stored_terms(node) == [1, 1, 1]


def test_a_truncated_configuration_is_out_of_force():
    """Section 4.1"""
    node = node_with(1)
    node.ask(append(1, (2, 1), [configuration_entry(3, 1, BIGGER)]))

    node.ask(append(2, (2, 1), entries(3, terms=(2,))))

    members = node.core.membership
    assert (members.latest, members.latest_index) == (node.configuration, 1)


def test_committed_configurations_that_our_disk_had_lost_come_back_as_committed():
    """Law 3: a leader may know the next one committed before its own disk has either."""
    node = node_with(1)
    newest = servers("n1", "n2")
    members = node.core.membership
    members.append(3, BIGGER)
    members.append(4, newest)
    members.commit(4)

    node.ask(append(1, (2, 1), [configuration_entry(3, 1, BIGGER)]))

    assert (members.latest, members.latest_index) == (newest, 4)
    assert (members.committed_index, members.is_stable()) == (4, True)


def test_a_spoiled_configuration_is_refused_before_anything_is_stored():
    node = node_with(1)
    spoiled = Log(3, 1, LogType.CONFIGURATION, b"\x91").sealed()

    asked = node.ask(append(1, (2, 1), [spoiled]))

    assert asked.error is not None
    assert node.store.writes == []


# ---- checksums (departure 16) ----


def test_an_entry_changed_on_its_way_is_refused():
    """Departure 16."""
    node = node_with(1)
    (log,) = entries(3, terms=(1,))

    asked = node.ask(append(1, (2, 1), [replace(log, data=b"changed")]))

    assert isinstance(asked.error, RemoteError)
    assert node.store.writes == []


def test_an_entry_without_a_checksum_is_given_one():
    """Departure 16: a leader of the original sends none."""
    node = node_with(1)
    (log,) = entries(3, terms=(1,))

    node.ask(append(1, (2, 1), [replace(log, checksum=0)]))

    assert node.store.get_log(3) == log


# ---- cluster ids (departure 15) ----


def test_a_node_without_a_cluster_takes_its_leaders_before_it_acknowledges():
    """Departure 15."""
    node = node_with(1)

    node.ask(append(1, (2, 1), entries(3, terms=(1,))), cluster_id="c1")

    assert node.store.writes == ["set ClusterID", "store 3-3"]
    assert node.store.get(CLUSTER_ID_KEY) == b"c1"


def test_a_leader_of_another_cluster_is_refused():
    """Departure 15."""
    node = node_with(1)
    node.ask(append(1, (2, 1)), cluster_id="c1")

    asked = node.ask(append(1, (2, 1), entries(3, terms=(1,))), cluster_id="c2")

    assert isinstance(asked.error, ClusterMismatchError)
    assert stored_terms(node) == [1, 1]


def test_a_leader_that_does_not_say_matches_every_cluster():
    """Departure 15."""
    node = node_with(1)
    node.ask(append(1, (2, 1)), cluster_id="c1")

    assert node.ask(append(1, (2, 1))).response.success


# ---- the fast path of heartbeats (departure 6) ----


def beat(node, request):
    asked = Asked(request)
    answer_heartbeat(node.core, asked.rpc)
    return asked


def following(**more):
    node = node_with(1, **more)
    node.ask(append(1))
    node.runtime.advance(3.0)
    return node


def test_a_heartbeat_of_another_protocol_version_is_refused_as_all_requests_are():
    node = following()
    of_another = replace(append(1), header=replace(header("n2"), protocol_version=2))

    asked = beat(node, of_another)
    node.play(Follower)

    assert isinstance(asked.error, UnsupportedProtocolError)
    assert node.core.state.last_contact < node.runtime.now


def test_a_heartbeat_of_the_known_leader_is_answered_off_the_main_thread():
    """Departure 6."""
    node = following()

    asked = beat(node, append(1))

    assert (asked.response.success, asked.response.last_log) == (True, 2)
    assert node.core.state.last_contact == node.runtime.now


@pytest.mark.parametrize(
    "request_",
    [append(2), append(0), append(1, leader="n3")],
    ids=["newer term", "older term", "other leader"],
)
def test_a_heartbeat_that_would_change_something_goes_to_the_main_thread(request_):
    """Departure 6."""
    node = following()

    asked = beat(node, request_)

    assert not asked.is_answered
    assert node.core.inbox.take(node.runtime.now + 1.0) is asked.rpc
    assert (node.core.state.term, node.core.state.leader()) == (1, ("n2:1", "n2"))


def test_a_heartbeat_never_waits_for_the_disk():
    node = following()
    door = node.runtime.event()
    node.store.before_write = lambda _: door.wait()
    node.start(Follower)
    node.deliver(append(1, (2, 1), entries(3, terms=(1,))))

    assert beat(node, append(1)).response.success


def test_a_node_that_is_shut_down_answers_no_heartbeat():
    node = following()
    node.core.inbox.close()

    asked = beat(node, append(1))

    assert isinstance(asked.error, ShutdownNotAppliedError)


@pytest.mark.parametrize("kind", [LogType.ADD_PEER_DEPRECATED, LogType.REMOVE_PEER_DEPRECATED])
def test_peer_entries_of_an_old_protocol_are_refused(kind):
    """GAP-17, departure 17: nobody is taken for a member whose id is not known."""
    node = node_with(1)
    logs = [*entries(3, terms=(1,)), *entries(4, terms=(1,), kind=kind)]

    asked = node.ask(append(1, (2, 1), logs, commit=4))

    assert isinstance(asked.error, UnsupportedProtocolError)
    assert (stored_terms(node), node.core.state.commit_index) == ([1, 1], 0)
