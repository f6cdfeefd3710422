from dataclasses import FrozenInstanceError, replace

import pytest

from raft.testing.script import entries, servers
from raft.types import (
    ENTRY_OVERHEAD,
    NO_ENTRY,
    Configuration,
    EntryID,
    Log,
    LogType,
    RaftState,
    Server,
    ServerSuffrage,
    check_configuration,
    check_name,
    plain,
)

VOTER, NONVOTER, STAGING = ServerSuffrage.VOTER, ServerSuffrage.NONVOTER, ServerSuffrage.STAGING
SAMPLE = Configuration(
    [Server("id0", "a0", NONVOTER), Server("id1", "a1", VOTER), Server("id2", "a2", STAGING)]
)


def test_a_clone_is_equal_and_neither_can_be_edited():
    """CON-01: here configurations are values, so that editing one is not possible at all."""
    clone = SAMPLE.clone()

    assert clone == SAMPLE
    with pytest.raises(FrozenInstanceError):
        clone.servers = ()
    with pytest.raises(FrozenInstanceError):
        clone.servers[0].address = "elsewhere"


@pytest.mark.parametrize(
    ("server_id", "has_vote"), [("id0", False), ("id1", True), ("id2", False), ("id9", False)]
)
def test_only_voters_have_a_vote(server_id, has_vote):
    """CON-03"""
    assert SAMPLE.has_vote(server_id) is has_vote


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        pytest.param([], "at least one voter", id="CON-04"),
        pytest.param([Server("id0", "a0", NONVOTER)], "at least one voter", id="CON-05"),
        pytest.param([Server("x", "a"), Server("x", "b")], "duplicate ID", id="CON-07"),
        pytest.param([Server("x", "a"), ("y", "b")], "no Server", id="no server"),
        pytest.param([Server("x", "a"), Server("y", "b", 0)], "no ServerSuffrage", id="a number"),
        pytest.param([Server("x", "a"), Server("y", "a")], "duplicate address", id="CON-08"),
        pytest.param([Server("", "a")], "empty ID", id="empty id"),
        pytest.param([Server("x", "")], "empty address", id="empty address"),
        pytest.param([Server("x", "a", STAGING)], "at least one voter", id="staging alone"),
    ],
)
def test_a_configuration_that_cannot_work_is_named_by_its_fault(members, fault):
    with pytest.raises(ValueError, match=fault):
        check_configuration(Configuration(members))


def test_a_voter_and_a_nonvoter_make_a_configuration():
    """CON-06"""
    check_configuration(Configuration(SAMPLE.servers[:2]))


@pytest.mark.parametrize(("voters", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_a_quorum_is_more_than_half_of_the_voters(voters, quorum):
    members = servers(*(f"n{n}" for n in range(voters)), nonvoters=["x", "y"])

    assert members.quorum() == quorum


def test_a_server_is_found_by_its_id():
    assert SAMPLE.server("id2") == Server("id2", "a2", STAGING)
    assert SAMPLE.server("id9") is None


def test_positions_are_ordered_by_term_and_then_by_index():
    """The order of section 5.4.1."""
    ordered = [NO_ENTRY, EntryID(1, 5), EntryID(1, 6), EntryID(2, 1), EntryID(3, 1)]
    shuffled = ordered[3:] + ordered[:3]

    assert sorted(shuffled) == ordered


@pytest.mark.parametrize(
    "change",
    [
        {"index": 8},
        {"term": 3},
        {"type": LogType.BARRIER},
        {"data": b"othe"},
        {"extensions": b"other"},
        {"appended_at": 6},
        {"data": b"dat", "extensions": b"aext"},
    ],
)
def test_the_checksum_covers_every_field(change):
    log = Log(7, 2, LogType.COMMAND, b"data", b"ext", 5).sealed()

    assert log.is_intact()
    assert not replace(log, **change).is_intact()


def test_an_entry_without_a_checksum_is_not_intact():
    assert not Log(1, 1).is_intact()


@pytest.mark.parametrize("change", [{"term": -1}, {"index": -1}, {"term": 2**64}])
def test_an_entry_with_a_number_that_none_can_have_is_not_intact(change):
    assert not replace(Log(1, 1).sealed(), **change).is_intact()


def test_sealing_keeps_a_checksum_that_is_there():
    spoiled = replace(entries(1, terms=(1,))[0], data=b"changed")

    assert spoiled.sealed() is spoiled


def test_times_before_the_epoch_have_a_checksum_too():
    assert Log(1, 1, appended_at=-1).sealed().is_intact()


def test_the_size_of_an_entry_counts_its_payload_and_an_overhead():
    assert Log(1, 1, data=b"12345", extensions=b"678").size() == 8 + ENTRY_OVERHEAD


def test_numbers_on_disk_and_wire_are_the_originals():
    assert [t.value for t in LogType] == [0, 1, 2, 3, 4, 5]
    assert (LogType.COMMAND, LogType.NOOP, LogType.BARRIER, LogType.CONFIGURATION) == (0, 1, 4, 5)
    assert [(s.name, s.value) for s in ServerSuffrage] == [
        ("VOTER", 0),
        ("NONVOTER", 1),
        ("STAGING", 2),
    ]


def test_a_role_is_shown_in_the_originals_words():
    assert [str(role) for role in RaftState] == ["Follower", "Candidate", "Leader", "Shutdown"]


# ---- ids, addresses, and what strangers say ----

CANNOT_BE_NAMES = [
    "",
    "a\nb",
    "a\x1b[2J",
    "a\u202eb",
    "\ud800",
    "n" * 1025,
    "ü" * 513,
    None,
    7,
    b"n1",
]


@pytest.mark.parametrize("name", CANNOT_BE_NAMES)
def test_a_name_that_would_forge_a_log_is_refused(name):
    with pytest.raises(ValueError, match="the name") as caught:
        check_name("the name", name)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("name", ["n1", "ü-server", "10.0.0.1:7000/a b", "n" * 1024])
def test_a_name_may_be_what_can_be_printed(name):
    check_name("the name", name)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("all is well", "all is well"),
        ("a\nnode=n1 term=9 forged", "a\\nnode=n1 term=9 forged"),
        ("\x1b[2Jü", "\\x1b[2Jü"),
        ("x" * 2000, "x" * 1000 + "..."),
    ],
)
def test_what_a_stranger_says_becomes_one_line(said, shown):
    assert plain(said) == shown
