import pytest

from raft.codec import encode_hard_state
from raft.engine.state import (
    CLUSTER_ID_KEY,
    HARD_STATE_KEY,
    LEGACY_TERM_KEY,
    LEGACY_VOTE_KEY,
    LEGACY_VOTE_TERM_KEY,
    UNKNOWN_CANDIDATE,
    HardState,
    NodeState,
    load_cluster_id,
)
from raft.errors import ProtocolError, RaftInternalError
from raft.stores import InmemStore
from raft.testing.manual import ManualRuntime
from raft.testing.script import ScriptedStore, servers
from raft.types import EntryID, RaftState


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def state(runtime):
    return NodeState(runtime)


# ---- the vote record ----


def test_term_and_vote_are_one_record(runtime):
    """Departure 2."""
    store = ScriptedStore(runtime)

    HardState(7, "n2", "n2:1").save(store)

    assert store.writes == ["set HardState"]
    assert store.get(HARD_STATE_KEY) == encode_hard_state(7, "n2", "n2:1")
    assert HardState.load(store) == HardState(7, "n2", "n2:1")


def test_a_new_term_clears_the_vote_in_the_same_record():
    store = InmemStore()
    HardState(7, "n2", "n2:1").save(store)

    HardState(8).save(store)

    assert HardState.load(store) == HardState(8, "", "")


def test_a_blank_store_has_term_0_and_no_vote():
    assert HardState.load(InmemStore()) == HardState(0, "", "")


def test_a_spoiled_record_is_not_taken_for_a_blank_one():
    store = InmemStore()
    store.set(HARD_STATE_KEY, b"\xff")

    with pytest.raises(ProtocolError):
        HardState.load(store)


def legacy(term=None, vote_term=None, vote=None):
    store = InmemStore()
    if term is not None:
        store.set_uint64(LEGACY_TERM_KEY, term)
    if vote_term is not None:
        store.set_uint64(LEGACY_VOTE_TERM_KEY, vote_term)
    if vote is not None:
        store.set(LEGACY_VOTE_KEY, vote)
    return store


def test_a_legacy_vote_of_the_current_term_is_cast_for_nobody_we_know():
    assert HardState.load(legacy(7, 7, b"n2:1")) == HardState(7, UNKNOWN_CANDIDATE)


@pytest.mark.parametrize(
    "store", [legacy(7), legacy(7, 6, b"n2:1"), legacy(7, 0)], ids=["none", "older", "zero"]
)
def test_a_legacy_vote_of_an_older_term_is_none(store):
    assert HardState.load(store) == HardState(7)


def test_a_legacy_vote_without_a_term_is_none():
    assert HardState.load(legacy(vote_term=7, vote=b"n2:1")) == HardState(0)


def test_our_own_record_comes_before_the_legacy_keys():
    store = legacy(7, 7, b"n2:1")

    HardState(9, "n3", "n3:1").save(store)

    assert HardState.load(store) == HardState(9, "n3", "n3:1")


def test_the_clusters_id_is_read_from_its_key():
    store = InmemStore()
    assert load_cluster_id(store) is None

    store.set(CLUSTER_ID_KEY, b"c1")

    assert load_cluster_id(store) == "c1"


# ---- published numbers ----


def test_the_term_never_falls(state):
    state.set_term(5)
    state.set_term(5)

    with pytest.raises(RaftInternalError):
        state.set_term(4)

    assert state.term == 5


def test_the_commit_index_never_falls(state):
    state.set_commit_index(5)
    state.set_commit_index(5)

    with pytest.raises(RaftInternalError):
        state.set_commit_index(4)

    assert state.commit_index == 5


def test_the_newest_snapshot_never_goes_back(state):
    state.set_last_snapshot(EntryID(2, 9))

    state.set_last_snapshot(EntryID(3, 8))

    assert state.published().last_snapshot == EntryID(2, 9)


def test_everything_published_is_one_copy(state):
    state.set_term(3)
    state.set_commit_index(7)
    state.set_applied(6)
    state.set_last_log(EntryID(3, 8))
    state.set_leader("n2", "n2:1")
    state.set_configuration(servers("n1"), 1)
    state.touch(5.0)

    before = state.published()
    state.set_term(4)

    assert (before.role, before.term, before.last_contact) == (RaftState.FOLLOWER, 3, 5.0)
    assert (before.commit_index, before.applied_index, before.last_log) == (7, 6, EntryID(3, 8))
    assert (before.leader_id, before.leader_address) == ("n2", "n2:1")
    assert (before.configuration, before.configuration_index) == (servers("n1"), 1)


@pytest.mark.parametrize("role", list(RaftState))
def test_a_transition_forgets_the_leader(state, role):
    state.set_leader("n2", "n2:1")

    changed = state.set_role(role)

    assert state.leader() == ("", "")
    assert changed is (role is not RaftState.FOLLOWER)


def test_setting_the_same_leader_again_is_no_news(state):
    assert state.set_leader("n2", "n2:1") is True
    assert state.set_leader("n2", "n2:1") is False
    assert state.set_leader("n2", "elsewhere:1") is True


# ---- the heartbeat's fast path ----


def following(state):
    state.set_term(3)
    state.set_leader("n2", "n2:1")


def test_a_heartbeat_that_changes_nothing_is_noted(state):
    following(state)

    assert state.contact(3, "n2", "n2:1", 7.5) is True

    assert state.last_contact == 7.5


@pytest.mark.parametrize(
    ("term", "leader_id", "address"),
    [(2, "n2", "n2:1"), (4, "n2", "n2:1"), (3, "n3", "n2:1"), (3, "n2", "n3:1")],
    ids=["older term", "newer term", "other leader", "other address"],
)
def test_a_heartbeat_that_would_change_something_is_not(state, term, leader_id, address):
    """Departure 6."""
    following(state)

    assert state.contact(term, leader_id, address, 7.5) is False

    assert (state.last_contact, state.term, state.leader()) == (None, 3, ("n2:1", "n2"))


@pytest.mark.parametrize("role", [RaftState.CANDIDATE, RaftState.LEADER, RaftState.SHUTDOWN])
def test_a_heartbeat_to_no_follower_is_not(state, role):
    """Departure 6."""
    following(state)
    state.set_role(role)
    state.set_leader("n2", "n2:1")

    assert state.contact(3, "n2", "n2:1", 7.5) is False

    assert (state.role, state.last_contact) == (role, None)


# ---- waiting for a leader ----


def test_a_known_leader_is_returned_at_once(state):
    state.set_leader("n2", "n2:1")

    assert state.wait_for_leader(0.0) == ("n2:1", "n2")


def test_waiting_for_a_leader_ends_when_there_is_one(runtime, state):
    found = []
    runtime.spawn("caller", lambda: found.append(state.wait_for_leader(None)))
    runtime.run()

    state.set_leader("n2", "n2:1")
    runtime.run()

    assert found == [("n2:1", "n2")]


def test_waiting_for_a_leader_ends_in_time(runtime, state):
    began = runtime.now

    assert state.wait_for_leader(2.5) is None

    assert runtime.now - began == 2.5


def test_waiting_for_a_leader_ends_with_the_node(runtime, state):
    found = []
    runtime.spawn("caller", lambda: found.append(state.wait_for_leader(None)))
    runtime.run()

    state.set_role(RaftState.SHUTDOWN)
    runtime.run()

    assert found == [None]
