"""What no honest server sends is refused with an error, and changes nothing."""

import pytest

from raft.engine.plausible import FURTHEST_AHEAD, LARGEST_INDEX
from raft.engine.state import HardState
from raft.errors import RemoteError
from raft.messages import (
    AppendEntriesRequest,
    InstallSnapshotRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RequestVoteResponse,
    TimeoutNowRequest,
)
from raft.roles.candidate import Candidate
from raft.testing.script import ScriptedNode, entries, header, servers
from raft.types import RaftState

FROM = header("n2")
MEMBERS = servers("n1", "n2", "n3")
TOO_LATE = 1 + FURTHEST_AHEAD + 1  # the node is in term 1
IMPOSSIBLE = {
    "append in a term that cannot be": AppendEntriesRequest(FROM, TOO_LATE),
    "vote in a term that cannot be": RequestVoteRequest(FROM, TOO_LATE, 9, 9),
    "pre-vote in a term that cannot be": RequestPreVoteRequest(FROM, 2**64 - 1, 9, 9),
    "snapshot in a term that cannot be": InstallSnapshotRequest(FROM, TOO_LATE, 9, 1, MEMBERS),
    "a term before the first entry": AppendEntriesRequest(FROM, 3, 0, 1),
    "entries with a gap": AppendEntriesRequest(
        FROM, 3, 2, 1, (*entries(3, terms=(1,)), *entries(5, terms=(1,)))
    ),
    "an entry of a later term": AppendEntriesRequest(
        FROM, 3, 2, 1, tuple(entries(3, terms=(3, 4)))
    ),
    "a snapshot of a log that cannot be": InstallSnapshotRequest(
        FROM, 3, LARGEST_INDEX + 1, 1, MEMBERS
    ),
    "a snapshot of nothing": InstallSnapshotRequest(FROM, 3, 0, 0, MEMBERS),
    "a snapshot of a later term": InstallSnapshotRequest(FROM, 3, 9, 4, MEMBERS),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_refused_and_changes_nothing(name):
    node = ScriptedNode(log=entries(2, terms=(1,)))

    asked = node.ask(IMPOSSIBLE[name])

    assert isinstance(asked.error, RemoteError)
    assert HardState.load(node.store) == HardState(1)
    assert (node.core.state.leader(), node.store.writes, node.crashes) == (("", ""), [], [])


def test_a_term_as_far_ahead_as_can_be_is_adopted_and_elections_go_on():
    node = ScriptedNode(log=entries(2, terms=(1,)), config={"pre_vote_disabled": True})

    assert node.ask(AppendEntriesRequest(FROM, TOO_LATE - 1)).response.success
    node.play(Candidate)

    assert node.restarted().core.state.term == TOO_LATE


def test_an_answer_with_a_term_that_cannot_be_is_not_believed():
    node = ScriptedNode(log=entries(2, terms=(1,)), config={"pre_vote_disabled": True})
    liar = RequestVoteResponse(FROM, 2**64 - 1)
    node.transport.respond = lambda call: liar if call.server_id == "n2" else None

    node.play(Candidate, node.runtime.run)

    assert (node.core.state.term, node.core.state.role) == (2, RaftState.CANDIDATE)


def test_timeout_now_has_no_numbers():
    node = ScriptedNode(log=entries(2, terms=(1,)))

    assert node.ask(TimeoutNowRequest(FROM)).error is None
    assert node.core.state.role is RaftState.CANDIDATE
