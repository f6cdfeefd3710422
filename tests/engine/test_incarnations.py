"""Which data directory of a voter counts (departure 21)."""

from dataclasses import replace

import pytest

from raft.codec import dumps
from raft.engine.incarnations import INCARNATION_KEY, NOTES_KEY, Verdict
from raft.messages import AppendEntriesRequest, Note, RequestVoteRequest, RPCHeader
from raft.observer import VoterReplacedObservation
from raft.testing.script import ScriptedNode, configuration_entry, entries, servers

THREE = servers("n1", "n2", "n3")
B, OTHER = "0b0b0b0b0b0b0b0b", "1c1c1c1c1c1c1c1c"


def node_with(configuration=THREE, **more):
    return ScriptedNode(configuration=configuration, log=entries(2, terms=(1,)), **more)


def note(node, server_id="n2", incarnation=B):
    node.core.incarnations.plan(server_id, incarnation)()


def verdict(node, incarnation, server_id="n2"):
    return node.core.incarnations.verdict(server_id, incarnation)


def from_directory(incarnation, server_id="n2"):
    return RPCHeader(server_id, f"{server_id}:1", incarnation=incarnation)


def test_a_data_directory_gets_its_incarnation_once():
    node = node_with()

    again = node.restarted()

    assert node.core.header.incarnation == again.core.header.incarnation != ""
    assert node.store.get(INCARNATION_KEY).decode() == again.core.header.incarnation


def test_the_first_incarnation_is_new_then_known_and_another_one_is_another():
    node = node_with()

    assert verdict(node, B) is Verdict.NEW
    note(node)
    assert (verdict(node, B), verdict(node, OTHER)) == (Verdict.KNOWN, Verdict.ANOTHER)


def test_a_note_counts_only_once_it_is_durable():
    node = node_with()

    write = node.core.incarnations.plan("n2", B)

    assert verdict(node, B) is Verdict.NEW
    write()
    assert verdict(node, B) is Verdict.KNOWN
    assert NOTES_KEY in node.store._values


def test_notes_outlive_a_restart():
    node = node_with()
    note(node)

    again = node.restarted()

    assert (verdict(again, B), verdict(again, OTHER)) == (Verdict.KNOWN, Verdict.ANOTHER)


def test_what_says_nothing_counts():
    node = node_with()
    note(node)

    assert verdict(node, "") is Verdict.KNOWN


def test_two_notes_planned_at_once_are_both_kept():
    node = node_with()
    first = node.core.incarnations.plan("n2", B)
    second = node.core.incarnations.plan("n3", OTHER)

    first()
    second()

    assert (verdict(node, B), verdict(node, OTHER, "n3")) == (Verdict.KNOWN, Verdict.KNOWN)


def test_an_id_removed_and_added_again_is_another_server():
    node = node_with()
    note(node)
    members = node.core.membership

    members.append(3, servers("n1", "n3"))
    members.append(4, THREE)

    assert verdict(node, OTHER) is Verdict.NEW


def test_a_restart_finds_that_an_id_was_removed_and_added_again():
    node = node_with()
    note(node)
    node.store.store_logs(
        [
            configuration_entry(3, 1, servers("n1", "n3")),
            configuration_entry(4, 1, THREE),
        ]
    )

    assert verdict(node.restarted(), OTHER) is Verdict.NEW


def test_a_note_of_after_it_was_added_again_outlives_a_restart():
    node = node_with()
    node.store.store_logs(
        [
            configuration_entry(3, 1, servers("n1", "n3")),
            configuration_entry(4, 1, THREE),
        ]
    )
    again = node.restarted()
    note(again)

    assert verdict(again.restarted(), OTHER) is Verdict.ANOTHER


def test_a_voter_that_was_demoted_and_promoted_is_the_same():
    node = node_with()
    note(node)
    members = node.core.membership

    members.append(3, servers("n1", "n3", nonvoters=["n2"]))
    members.append(4, THREE)

    assert verdict(node, OTHER) is Verdict.ANOTHER


def test_of_two_voters_both_are_needed_so_either_may_have_forgotten():
    node = node_with(servers("n1", "n2"))
    note(node)

    assert verdict(node, OTHER) is Verdict.NEW


def test_a_change_to_two_voters_that_is_not_committed_is_not_enough():
    """What three had committed the two may lack."""
    node = node_with()
    node.core.membership.commit(1)
    note(node)

    node.core.membership.append(3, servers("n1", "n2"))

    assert verdict(node, OTHER) is Verdict.ANOTHER
    node.core.membership.commit(3)
    assert verdict(node, OTHER) is Verdict.NEW


# ---- learning from a leader ----


def told(node, *notes):
    request = AppendEntriesRequest(from_directory("", "n3"), 2, 2, 1, notes=notes)
    assert node.ask(request).response.success


def test_a_follower_takes_a_leaders_notes_over_before_it_answers():
    node = node_with()

    told(node, Note("n2", B, 1))

    assert verdict(node.restarted(), OTHER) is Verdict.ANOTHER


def test_a_follower_believes_its_own_note_unless_the_leaders_is_newer():
    node = node_with()
    note(node)

    told(node, Note("n2", OTHER, 1))
    assert verdict(node, B) is Verdict.KNOWN
    told(node, Note("n2", OTHER, 2))
    assert verdict(node, B) is Verdict.ANOTHER


def test_nobody_is_told_about_himself():
    node = node_with()

    told(node, Note("n1", OTHER, 9))

    assert node.core.incarnations.notes == ()


def test_what_is_known_is_not_written_again():
    node = node_with()
    told(node, Note("n2", B, 1))
    node.store.writes.clear()

    told(node, Note("n2", B, 1))

    assert node.store.writes == []


# ---- voting ----


@pytest.mark.parametrize(("incarnation", "granted"), [(B, True), ("", True), (OTHER, False)])
def test_a_candidate_that_has_forgotten_gets_no_vote(incarnation, granted):
    node = node_with()
    note(node)

    asked = node.ask(RequestVoteRequest(from_directory(incarnation), 5, 9, 4))

    assert asked.response.granted is granted
    assert node.core.hard_state.term == (5 if granted else 1)


def test_a_voter_that_has_forgotten_is_reported_with_what_to_do(caplog):
    node = node_with()
    note(node)

    for term in (5, 6):
        node.ask(RequestVoteRequest(from_directory(OTHER), term, 9, 4))

    assert node.events.count(VoterReplacedObservation("n2", B, OTHER)) == 1
    assert node.core.incarnations.replaced() == ["n2"]


# ---- pins: what the entry that gives a vote says ----


def pinned(index, incarnation, configuration=THREE):
    entry = configuration_entry(index, 1, configuration)
    extensions = dumps([["n2", incarnation, 0]])
    return replace(entry, extensions=extensions, checksum=0).sealed()


def stored(node, *logs):
    request = AppendEntriesRequest(from_directory("", "n3"), 2, 2, 1, entries=logs)
    assert node.ask(request).response.success


def test_a_server_that_knows_of_a_vote_knows_the_directory():
    node = node_with(servers("n1", "n3"))

    stored(node, pinned(3, B))

    assert (verdict(node, B), verdict(node, OTHER)) == (Verdict.KNOWN, Verdict.ANOTHER)
    assert verdict(node.restarted(), OTHER) is Verdict.ANOTHER


def test_a_restart_reads_pins_from_the_log():
    node = node_with(servers("n1", "n3"))
    node.store.store_logs([pinned(3, B)])

    assert verdict(node.restarted(), OTHER) is Verdict.ANOTHER


def test_a_pin_outlives_the_compaction_of_its_entry():
    node = node_with(servers("n1", "n3"))
    stored(node, pinned(3, B))
    node.runtime.run()

    assert B.encode() in node.store.get(NOTES_KEY)


def test_a_pin_of_a_server_that_was_added_again_takes_the_place_of_the_note():
    node = node_with()
    note(node)

    stored(node, configuration_entry(3, 1, servers("n1", "n3")), pinned(4, OTHER))

    assert (verdict(node, OTHER), verdict(node, B)) == (Verdict.KNOWN, Verdict.ANOTHER)


def test_extensions_of_somebody_else_say_nothing():
    node = node_with(servers("n1", "n3"))
    entry = replace(configuration_entry(3, 1, THREE), extensions=b"\xff", checksum=0).sealed()

    stored(node, entry)

    assert verdict(node, OTHER) is Verdict.NEW
