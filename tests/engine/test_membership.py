import pytest

from raft.engine.inbox import ChangeKind
from raft.engine.membership import Membership, next_configuration
from raft.errors import (
    ConfigurationChangedError,
    InvalidConfigurationError,
    NoSuchServerError,
)
from raft.testing.script import servers
from raft.types import EMPTY_CONFIGURATION, Configuration, Server, ServerSuffrage

VOTER, NONVOTER, STAGING = ServerSuffrage.VOTER, ServerSuffrage.NONVOTER, ServerSuffrage.STAGING
ADD, ADD_NONVOTER = ChangeKind.ADD_VOTER, ChangeKind.ADD_NONVOTER
DEMOTE, REMOVE = ChangeKind.DEMOTE_VOTER, ChangeKind.REMOVE_SERVER
PROMOTE = ChangeKind.PROMOTE


def make(*members):
    """Servers given as "id suffrage address", the address new for what a change has moved."""
    kinds = {"v": VOTER, "n": NONVOTER, "s": STAGING}
    split = (member.split() for member in members)
    return Configuration([Server(i, address, kinds[kind]) for i, kind, address in split])


EMPTY = make()
SINGLE = make("id1 v old1")
PAIR = make("id1 v old1", "id2 v old2")
ONE_OF_EACH = make("id1 v old1", "id2 s old2", "id3 n old3")

# id, start, command, target, expected. "Add staging" is the original's old name of adding a voter.
TABLE = [
    ("CON-20", EMPTY, ADD, "id1", ["id1 v new1"]),
    ("CON-21", SINGLE, ADD, "id2", ["id1 v old1", "id2 v new2"]),
    ("CON-22", SINGLE, ADD, "id1", ["id1 v new1"]),
    ("CON-23", ONE_OF_EACH, ADD, "id2", ["id1 v old1", "id2 v new2", "id3 n old3"]),
    ("CON-24", ONE_OF_EACH, ADD, "id3", ["id1 v old1", "id2 s old2", "id3 v new3"]),
    ("CON-25", EMPTY, ADD, "id1", ["id1 v new1"]),
    ("CON-26", SINGLE, ADD, "id2", ["id1 v old1", "id2 v new2"]),
    ("CON-27", PAIR, ADD, "id1", ["id1 v new1", "id2 v old2"]),
    ("CON-28", ONE_OF_EACH, ADD, "id2", ["id1 v old1", "id2 v new2", "id3 n old3"]),
    ("CON-29", ONE_OF_EACH, ADD, "id3", ["id1 v old1", "id2 s old2", "id3 v new3"]),
    ("CON-30", SINGLE, ADD_NONVOTER, "id2", ["id1 v old1", "id2 n new2"]),
    ("CON-31", SINGLE, ADD_NONVOTER, "id1", ["id1 v new1"]),
    ("CON-32", ONE_OF_EACH, ADD_NONVOTER, "id2", ["id1 v old1", "id2 s new2", "id3 n old3"]),
    ("CON-33", ONE_OF_EACH, ADD_NONVOTER, "id3", ["id1 v old1", "id2 s old2", "id3 n new3"]),
    ("CON-35", PAIR, DEMOTE, "id2", ["id1 v old1", "id2 n old2"]),
    ("CON-36", ONE_OF_EACH, DEMOTE, "id2", ["id1 v old1", "id2 n old2", "id3 n old3"]),
    ("CON-37", ONE_OF_EACH, DEMOTE, "id3", ["id1 v old1", "id2 s old2", "id3 n old3"]),
    ("CON-39", PAIR, REMOVE, "id2", ["id1 v old1"]),
    ("CON-40", ONE_OF_EACH, REMOVE, "id2", ["id1 v old1", "id3 n old3"]),
    ("CON-41", ONE_OF_EACH, REMOVE, "id3", ["id1 v old1", "id2 s old2"]),
    ("CON-42", SINGLE, PROMOTE, "id2", ["id1 v old1"]),
    ("CON-43", SINGLE, PROMOTE, "id1", ["id1 v old1"]),
    ("CON-44", ONE_OF_EACH, PROMOTE, "id2", ["id1 v old1", "id2 v old2", "id3 n old3"]),
    ("CON-45", ONE_OF_EACH, PROMOTE, "id3", ["id1 v old1", "id2 s old2", "id3 n old3"]),
]


@pytest.mark.parametrize(
    ("start", "kind", "target", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_one_change_makes_the_next_configuration(start, kind, target, expected):
    """ETC-72, and the row of the catalogue that the table names."""
    changed = next_configuration(start, 1, kind, target, f"new{target[-1]}")

    assert changed == make(*expected)


@pytest.mark.parametrize("kind", [DEMOTE, REMOVE])
def test_a_server_that_is_no_member_can_be_neither_demoted_nor_removed(kind):
    """CON-34, CON-38: the original appends the configuration as it was."""
    with pytest.raises(NoSuchServerError, match="no server 'id2': the members are id1"):
        next_configuration(SINGLE, 1, kind, "id2")


@pytest.mark.parametrize("text", [5, None, b"id2", "\ud800"], ids=repr)
def test_an_id_or_address_that_is_no_text_is_refused(text):
    """It could not be written down: the leader would halt on it."""
    for server_id, address in (("id2", text), (text, "new2")):
        with pytest.raises(InvalidConfigurationError):
            next_configuration(SINGLE, 1, ADD, server_id, address)


def test_a_stale_previous_index_is_refused():
    """CON-09"""
    with pytest.raises(ConfigurationChangedError, match="changed since 1"):
        next_configuration(SINGLE, 2, ADD, "id2", "new2", prev_index=1)


def test_the_current_previous_index_passes():
    """CON-10"""
    next_configuration(SINGLE, 2, ADD, "id2", "new2", prev_index=2)


def test_no_previous_index_is_no_check():
    """CON-11"""
    next_configuration(SINGLE, 2, ADD, "id2", "new2", prev_index=0)


def test_the_first_server_cannot_be_a_nonvoter():
    """CON-12"""
    with pytest.raises(InvalidConfigurationError, match="at least one voter"):
        next_configuration(EMPTY, 1, ADD_NONVOTER, "id1", "new1")


@pytest.mark.parametrize("kind", [DEMOTE, REMOVE])
def test_the_last_voter_stays(kind):
    """ETC-72"""
    with pytest.raises(InvalidConfigurationError, match="at least one voter"):
        next_configuration(ONE_OF_EACH, 1, kind, "id1")


@pytest.mark.parametrize(
    ("server_id", "address", "fault"),
    [("", "x", "empty ID"), ("id9", "", "empty address"), ("id9", "old1", "duplicate address")],
)
def test_a_change_to_what_cannot_work_is_refused(server_id, address, fault):
    with pytest.raises(InvalidConfigurationError, match=fault):
        next_configuration(SINGLE, 1, ADD, server_id, address)


def test_a_change_leaves_the_configuration_it_began_from():
    before = ONE_OF_EACH.clone()

    next_configuration(ONE_OF_EACH, 1, REMOVE, "id2")

    assert before == ONE_OF_EACH


# ---- committed and latest ----

OLD, NEW, NEWER = servers("a"), servers("a", "b"), servers("a", "b", "c")


def members_with(committed, latest):
    members = Membership()
    members.append(*committed)
    members.append(*latest)
    return members


def pairs(members):
    return (
        (members.committed_index, members.committed),
        (members.latest_index, members.latest),
    )


def test_both_halves_hold_values_that_cannot_be_edited():
    """CON-02: the committed and the latest one are values of their own."""
    members = members_with((1, OLD), (2, NEW))

    members.append_own(3, NEWER)

    assert pairs(members) == ((1, OLD), (3, NEWER))
    assert isinstance(members.latest.servers, tuple)


def test_a_blank_node_knows_nobody_and_is_stable():
    members = Membership()

    assert pairs(members) == ((0, EMPTY_CONFIGURATION), (0, EMPTY_CONFIGURATION))
    assert members.is_stable()


def test_a_configuration_is_in_force_as_soon_as_it_is_stored():
    members = members_with((1, OLD), (5, NEW))

    assert pairs(members) == ((1, OLD), (5, NEW))
    assert not members.is_stable()


def test_storing_the_next_one_shows_that_the_one_before_is_committed():
    members = members_with((1, OLD), (5, NEW))

    members.append(9, NEWER)

    assert pairs(members) == ((5, NEW), (9, NEWER))


def test_a_configuration_is_committed_with_its_index():
    members = members_with((1, OLD), (5, NEW))

    assert members.commit(4) is False
    assert not members.is_stable()
    assert members.commit(5) is True

    assert pairs(members) == ((5, NEW), (5, NEW))
    assert members.commit(6) is False


def test_voters_to_be_and_those_not_removed_for_good_may_lead():
    before, after = servers("n1", "n2", nonvoters=["n4"]), servers("n2", "n3", nonvoters=["n1"])
    members = members_with((1, before), (5, after))

    assert [members.may_lead(f"n{i}") for i in range(1, 6)] == [True, True, True, False, False]
    members.commit(5)

    assert [members.may_lead(f"n{i}") for i in range(1, 6)] == [False, True, True, False, False]


def test_truncation_at_or_below_the_latest_goes_back_to_the_committed():
    members = members_with((1, OLD), (5, NEW))

    members.truncate(6)
    assert members.latest_index == 5
    members.truncate(5)

    assert pairs(members) == ((1, OLD), (1, OLD))


def test_a_snapshots_configuration_is_committed_and_a_later_one_stays_the_latest():
    members = members_with((1, OLD), (9, NEWER))

    members.restore(5, NEW)

    assert pairs(members) == ((5, NEW), (9, NEWER))


def test_a_snapshots_configuration_replaces_an_older_latest():
    members = members_with((1, OLD), (3, NEW))

    members.restore(5, NEWER)

    assert pairs(members) == ((5, NEWER), (5, NEWER))


def test_with_the_log_its_configurations_are_forgotten():
    members = members_with((1, OLD), (9, NEWER))

    members.reset(5, NEW)

    assert pairs(members) == ((5, NEW), (5, NEW))
