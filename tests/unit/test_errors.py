"""What a caller may conclude from the type of an error."""

import inspect

import pytest

from raft import errors
from raft.errors import NotAppliedError, OutcomeUnknownError, RaftError, RaftShutdownError

NOT_APPLIED = [
    "CantBootstrapError",
    "CommandTooLargeError",
    "ConfigurationChangedError",
    "DiskFullError",
    "EnqueueTimeoutError",
    "InvalidConfigurationError",
    "LeadershipTransferInProgressError",
    "NoSuchServerError",
    "NotLeaderError",
    "NotVoterError",
    "RestoreFailedError",
    "RestoreInProgressError",
    "ShutdownNotAppliedError",
]
UNKNOWN = [
    "AbortedByRestoreError",
    "LeadershipLostError",
    "ResultTimeoutError",
    "ShutdownOutcomeUnknownError",
    "StorageFailedError",
]
ALL = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
}


def leaves_below(base):
    return sorted(name for name, kind in ALL.items() if issubclass(kind, base) and kind is not base)


def test_what_certainly_has_no_effect_may_be_sent_again():
    assert leaves_below(NotAppliedError) == NOT_APPLIED


def test_what_may_have_taken_effect_is_of_unknown_outcome():
    assert leaves_below(OutcomeUnknownError) == UNKNOWN


def test_no_error_says_both():
    assert set(NOT_APPLIED) & set(UNKNOWN) == set()


def test_shutdown_says_which_of_the_two():
    assert leaves_below(RaftShutdownError) == [
        "ShutdownNotAppliedError",
        "ShutdownOutcomeUnknownError",
    ]


def test_everything_but_the_fsms_own_halt_has_one_base():
    strangers = [name for name, kind in ALL.items() if not issubclass(kind, RaftError)]

    assert strangers == ["FSMHaltError"]


def test_names_end_in_error_and_each_says_what_it_means():
    assert [name for name in ALL if not name.endswith("Error")] == []
    assert [name for name, kind in ALL.items() if not kind.__doc__] == []


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("EnqueueTimeoutError", TimeoutError),
        ("RPCTimeoutError", TimeoutError),
        ("CommandTooLargeError", ValueError),
        ("InvalidConfigError", ValueError),
        ("InvalidConfigurationError", ValueError),
        ("ConfigurationChangedError", ValueError),
        ("LogNotFoundError", LookupError),
        ("KeyNotFoundError", LookupError),
    ],
)
def test_errors_that_python_has_a_name_for_are_that_too(name, builtin):
    assert issubclass(ALL[name], builtin)


def test_not_leader_names_the_leader():
    error = errors.NotLeaderError(leader_id="n2", leader_address="n2:1")

    assert (error.leader_id, error.leader_address) == ("n2", "n2:1")
    assert str(error) == "node is not the leader; the leader is n2 at n2:1"


def test_not_leader_without_a_known_leader_has_empty_texts():
    error = errors.NotLeaderError()

    assert (error.leader_id, error.leader_address) == ("", "")
    assert str(error) == "node is not the leader"


def test_a_compacted_entry_is_one_that_is_not_found():
    assert issubclass(errors.LogCompactedError, errors.LogNotFoundError)


def test_a_committed_conflict_is_a_broken_invariant():
    assert issubclass(errors.CommittedConflictError, errors.RaftInternalError)
