"""Bugs put in on purpose: each must be found, or the checks of the simulation prove nothing.

Each starts a little before the first seed that found it when it was written, and goes on from
there, so that a change of schedule costs time and not the proof.
"""

import pytest

from raft.engine import commitment, core, raft_log, request_vote, state
from raft.errors import NotLeaderError
from raft.roles import leader
from raft.testing.simulation.scenario import SeedFailedError, run_seed

pytestmark = pytest.mark.timeout(120)

MOST_SEEDS = 60


def is_found(first_seed, nodes, text):
    """Run seeds until one fails in these words; a node that merely dies of the bug is no proof."""
    for seed in range(first_seed, first_seed + MOST_SEEDS):
        try:
            run_seed(seed, nodes)
        except SeedFailedError as error:
            if text in str(error):
                return True
    return False


def test_a_vote_that_is_forgotten_in_a_crash_is_found(monkeypatch):
    save = state.HardState.save
    monkeypatch.setattr(
        state.HardState, "save", lambda self, stable: save(state.HardState(self.term), stable)
    )

    assert is_found(9, nodes=5, text="InvariantViolation: vote: ")


def test_a_follower_that_acknowledges_before_its_disk_has_stored_is_found(monkeypatch):
    write = core.Core.write

    def write_later(self, name, action):
        if name == "entries":
            self.disk.submit(name, action)
        else:
            write(self, name, action)

    monkeypatch.setattr(core.Core, "write", write_later)

    assert is_found(0, nodes=3, text="not on its disk")


def test_a_vote_for_a_log_that_is_behind_is_found(monkeypatch):
    monkeypatch.setattr(request_vote, "_refusal_of_log", lambda *_: None)

    assert is_found(2, nodes=3, text="InvariantViolation: leader completeness")


def test_a_commit_by_less_than_a_majority_is_found(monkeypatch):
    monkeypatch.setattr(commitment, "majority_index", max)

    assert is_found(0, nodes=3, text="InvariantViolation: ")


def test_a_lost_command_that_is_called_not_applied_is_found(monkeypatch):
    monkeypatch.setattr(leader, "LeadershipLostError", NotLeaderError)

    assert is_found(0, nodes=3, text="applied refused")


def test_a_commit_index_kept_for_entries_that_no_quorum_has_is_found(monkeypatch):
    def stage(self, commit_index, logs):
        if self._tracking is not None:
            self._tracking.stage_commit_index(logs[-1].index)

    monkeypatch.setattr(raft_log.RaftLog, "_stage", stage)

    assert is_found(5, nodes=3, text="InvariantViolation: ")
