"""What a server knows to be committed, though its own log does not have it (departure 21)."""

import pytest

from raft.engine.told import TOLD_KEY, Told, forget_told
from raft.messages import AppendEntriesRequest, RequestPreVoteRequest, RequestVoteRequest
from raft.testing.script import ScriptedNode, entries, header, servers
from raft.types import EntryID


def told(node, prev, commit, logs=(), term=5):
    """Have a leader send a request that follows an entry, which is given as (term, index)."""
    return node.ask(
        AppendEntriesRequest(header("n2"), term, prev[1], prev[0], tuple(logs), commit)
    ).response


def answers(node, *last, term=6):
    """Return what candidates are told whose logs end with these (term, index)."""
    asked = [node.ask(RequestPreVoteRequest(header("n3"), term, i, t)).response for t, i in last]
    return [(answer.granted, answer.reason) for answer in asked]


def vote(node, last, term=6):
    return node.ask(RequestVoteRequest(header("n3"), term, last[1], last[0])).response.granted


def without_leader(node):
    node.core.set_leader("", "")
    return node


REFUSED = (False, "log ends before what is committed at index 60")


def test_an_emptied_server_helps_nobody_who_lacks_what_is_committed():
    """Seed 262: an old member that never heard of its removal counted on it, and led."""
    node = ScriptedNode(configuration=servers())
    assert not told(node, (4, 60), 60).success

    got = answers(without_leader(node), (1, 1), (4, 59), (3, 70), (4, 60), (5, 61))

    assert got == [REFUSED, REFUSED, REFUSED, (True, ""), (True, "")]
    assert not vote(node, (1, 1))
    assert vote(node, (4, 60), term=7)


def test_an_entry_that_may_not_be_committed_tells_its_index_alone():
    node = ScriptedNode(configuration=servers())
    told(node, (4, 60), 50)

    got = answers(without_leader(node), (1, 49), (1, 50))

    assert [granted for granted, _ in got] == [False, True]


def test_it_is_known_while_the_log_catches_up():
    node = ScriptedNode(configuration=servers())
    told(node, (0, 0), 60, entries(1, terms=[4, 4]))

    got = answers(without_leader(node), (4, 2), (4, 60))

    assert [granted for granted, _ in got] == [False, True]


def test_it_outlives_a_restart_of_a_blank_server_and_costs_others_no_write():
    node = ScriptedNode(configuration=servers())
    told(node, (4, 60), 60)
    again = Told(node.store, node.core.raft_log)
    again.load()
    assert again.upto == EntryID(4, 60)

    told(node, (0, 0), 61, entries(1, terms=[4, 4]))
    node.store.writes.clear()
    told(node, (4, 2), 70, entries(3, terms=[4]))

    assert node.core.told.upto.index == 70
    assert not any(TOLD_KEY in str(write).encode() for write in node.store.writes)


@pytest.mark.parametrize("commit", [0, 1, 3])
def test_a_follower_that_keeps_up_takes_no_note(commit):
    node = ScriptedNode(log=entries(2, terms=[1, 1]))
    told(node, (1, 3), commit, entries(4, terms=[5]))

    assert node.core.told.upto == EntryID(0, 0)


def test_a_recovery_by_hand_forgets_it():
    node = ScriptedNode(configuration=servers())
    told(node, (4, 60), 60)

    forget_told(node.store)

    again = Told(node.store, node.core.raft_log)
    again.load()
    assert again.upto == EntryID(0, 0)
