import pytest

from raft.engine.inbox import VerifyLeader
from raft.errors import NotLeaderError
from raft.futures import Future
from raft.roles.lease import SHORTEST_CHECK, Lease, Verifications, quorum_contact
from raft.testing.script import servers

THREE = servers("n1", "n2", "n3")
FIVE = servers("n1", "n2", "n3", "n4", "n5")
NOW, LEASE = 100.0, 0.5


def contact(configuration, local_id="n1", **seconds_ago):
    heard = {server_id: NOW - seconds for server_id, seconds in seconds_ago.items()}
    return quorum_contact(configuration, local_id, heard, NOW, LEASE)


@pytest.mark.parametrize(
    ("configuration", "seconds_ago", "in_contact"),
    [
        (servers("n1"), {}, True),
        (THREE, {"n2": 0.1}, True),
        (THREE, {"n2": LEASE}, True),
        (THREE, {"n2": 0.6, "n3": 0.6}, False),
        (THREE, {}, False),
        (FIVE, {"n2": 0.1}, False),
        (FIVE, {"n2": 0.1, "n3": 0.1}, True),
        (servers("n1", "n2", "n3", nonvoters=["n4"]), {"n4": 0.1}, False),
    ],
)
def test_a_quorum_of_voters_must_have_answered_within_the_lease(
    configuration, seconds_ago, in_contact
):
    """ETC-30, ETC-31"""
    assert contact(configuration, **seconds_ago)[0] is in_contact


def test_a_leader_that_is_no_voter_does_not_count_itself():
    without_us = servers("n2", "n3")

    assert not contact(without_us, n2=0.1)[0]
    assert contact(without_us, n2=0.1, n3=0.1)[0]


def test_the_next_look_is_when_the_oldest_contact_would_run_out():
    assert contact(THREE, n2=0.1, n3=0.3)[1] == pytest.approx(0.2)


def test_looks_are_never_closer_than_the_shortest_check():
    assert contact(THREE, n2=LEASE)[1] == SHORTEST_CHECK


# ---- verification (departure 5) ----


def settle(verifications, configuration, local_id):
    """Answer what is settled, as the leader does."""
    for message in verifications.settle(configuration, local_id):
        message.future.respond(None)


def request(verifications):
    message = VerifyLeader(Future())
    verifications.add(message)
    return message.future


def test_a_quorum_of_confirmations_answers():
    verifications = Verifications()
    future = request(verifications)

    settle(verifications, THREE, "n1")
    assert not future.done()
    verifications.confirm("n2", 1)
    settle(verifications, THREE, "n1")

    assert future.error(0) is None


def test_a_single_voter_confirms_itself():
    verifications = Verifications()
    future = request(verifications)

    settle(verifications, servers("n1"), "n1")

    assert future.done()


def test_confirmations_of_others_than_voters_do_not_count():
    """Departure 5."""
    verifications = Verifications()
    future = request(verifications)

    verifications.confirm("n4", 1)
    verifications.confirm("n9", 1)
    settle(verifications, servers("n1", "n2", "n3", nonvoters=["n4"]), "n1")

    assert not future.done()


def test_a_confirmation_counts_for_what_was_asked_before_its_round_only():
    """Departure 5."""
    verifications = Verifications()
    first, second = request(verifications), request(verifications)

    verifications.confirm("n2", 1)
    settle(verifications, THREE, "n1")

    assert (first.done(), second.done()) == (True, False)


def test_one_round_confirms_everybody_who_asked_before_it():
    verifications = Verifications()
    futures = [request(verifications) for _ in range(5)]

    verifications.confirm("n3", verifications.sequence)
    settle(verifications, THREE, "n1")

    assert all(future.done() for future in futures)


def test_a_late_confirmation_of_an_older_round_takes_nothing_back():
    verifications = Verifications()
    future = request(verifications)
    verifications.confirm("n2", 1)

    verifications.confirm("n2", 0)
    settle(verifications, THREE, "n1")

    assert future.done()


def test_everybody_is_told_when_leadership_ends():
    verifications = Verifications()
    futures = [request(verifications) for _ in range(2)]

    verifications.fail_all(NotLeaderError())

    assert [type(future.error(0)) for future in futures] == [NotLeaderError] * 2


# ---- stalls of the process ----


def test_a_lease_is_looked_at_several_times_before_it_is_over():
    lease = Lease(1.0, now=0.0)

    assert lease.look_at == pytest.approx(0.2)
    assert lease.look(0.2) == 0.0
    assert (lease.is_over(0.9), lease.is_over(1.0)) == (False, True)


def test_a_stall_of_the_process_is_excused_by_one_whole_lease():
    lease = Lease(1.0, now=0.0)

    stalled = lease.look(5.0)

    assert stalled == pytest.approx(4.8)
    assert (lease.is_over(5.9), lease.is_over(6.0)) == (False, True)


def test_further_stalls_are_excused_by_their_length_up_to_one_lease():
    """Half of the time held for 0.2 s, a leader had not even half a lease to be answered."""
    lease = Lease(1.0, now=0.0)
    lease.look(0.5)  # at 1.5 now

    assert lease.look(0.6) == 0.0
    assert lease.look(1.1) == pytest.approx(0.3)
    assert (lease.is_over(1.9), lease.is_over(2.0)) == (False, True)
    assert lease.look(2.2) > 0.0
    assert (lease.is_over(2.4), lease.is_over(2.5)) == (False, True)  # no more than one
    assert lease.look(2.9) > 0.0
    assert lease.is_over(2.9)

    lease.renew(3.0, 1.0)
    assert lease.look(8.0) > 0.0
    assert (lease.is_over(8.9), lease.is_over(9.0)) == (False, True)


def test_the_time_of_stalls_is_taken_off_a_contact_that_waited_meanwhile():
    """It counts from when the question was sent, and the answer could not be read."""
    lease = Lease(LEASE, NOW)
    lease.look(NOW + 0.35)
    lease.look(NOW + 0.7)

    def in_contact(sent_at, now):
        heard = {"n2": NOW + sent_at}
        return quorum_contact(THREE, "n1", heard, NOW + now, LEASE, lease.stalled_since)[0]

    assert lease.stalled_since(NOW + 0.3) == LEASE  # no more than one
    assert lease.stalled_since(NOW + 0.4) == pytest.approx(0.35)
    assert lease.stalled_since(NOW + 0.7) == 0.0
    assert in_contact(sent_at=0.3, now=1.29)
    assert not in_contact(sent_at=0.3, now=1.31)
    assert in_contact(sent_at=0.4, now=1.24)
    assert not in_contact(sent_at=0.4, now=1.26)
    assert not in_contact(sent_at=0.7, now=1.21)


def test_looking_a_little_late_is_no_stall():
    lease = Lease(1.0, now=0.0)

    assert lease.look(0.3) == 0.0
    assert lease.is_over(1.0)
