"""Leadership that is handed over, on live nodes (scenario area XFR)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from raft import (
    Config,
    InvalidConfigError,
    LatestValue,
    LeadershipLostError,
    LeadershipTransferError,
    LeadershipTransferInProgressError,
    Log,
    NotLeaderError,
    RaftState,
)
from raft.testing.cluster import SCALE, Cluster, Member
from tests.cluster.helpers import ANSWER, HEARTBEAT, apply_count


def transfer(leader: Member, target: Member) -> None:
    leader.node.leadership_transfer_to_server(target.id, target.address).result(ANSWER)


def test_another_voter_takes_over() -> None:
    """XFR-07, ETC-80, ETC-81: and gives it back; a fresh lease does not stand in the way."""
    with Cluster(3) as cluster:
        first = cluster.leader()
        cluster.followers()

        first.node.leadership_transfer().result(ANSWER)
        second = cluster.leader()
        assert second is not first
        cluster.followers()
        transfer(second, first)

        assert cluster.leader() is first


def test_one_of_seven_that_was_named_takes_over() -> None:
    """XFR-10"""
    with Cluster(7) as cluster:
        leader = cluster.leader()
        target = cluster.followers()[3]

        transfer(leader, target)

        assert cluster.leader() is target


def test_a_writer_sees_only_errors_that_tell_it_to_try_again() -> None:
    """XFR-09"""
    expected = (NotLeaderError, LeadershipTransferInProgressError, LeadershipLostError)
    with Cluster(7) as cluster:
        leader = cluster.leader()
        target = cluster.followers()[0]
        stop, errors, written = threading.Event(), [], []

        def write() -> None:
            while not stop.is_set():
                node = cluster.leader().node
                error = node.apply(b"%d" % len(written)).error(ANSWER)
                if error is None:
                    written.append(error)
                else:
                    errors.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            cluster.wait_for(lambda: len(written) > 20, what="the writer")
            transfer(leader, target)
            before = len(written)
            cluster.wait_for(lambda: len(written) > before + 20, what="writes after it")
        finally:
            stop.set()
            writer.join()

        assert cluster.leader() is target
        assert [error for error in errors if not isinstance(error, expected)] == []


def test_a_target_that_is_behind_is_caught_up_first() -> None:
    """XFR-13, ETC-82"""

    def configure(config: Config) -> None:
        config.election_timeout = 2.0 * SCALE  # what catching up may take

    with Cluster(3, configure=configure) as cluster:
        leader = cluster.leader()
        target = cluster.followers()[0]
        futures = [leader.node.apply(b"%d" % n) for n in range(1000)]

        transfer(leader, target)

        assert cluster.leader() is target
        assert {future.error(ANSWER) for future in futures} == {None}
        assert len(cluster.assert_same_state()) == 1000


def test_a_target_that_needs_a_snapshot_gets_it_first() -> None:
    """ETC-83"""

    def configure(config: Config) -> None:
        config.trailing_logs = 5
        config.election_timeout = 20 * HEARTBEAT

    with Cluster(3, configure=configure) as cluster:
        leader = cluster.leader()
        target = cluster.followers()[0]
        cluster.disconnect(target)
        apply_count(leader, 50)
        leader.node.snapshot().result(ANSWER)
        cluster.wait_for(lambda: leader.logs.first_index() > 10, what="compaction")
        cluster.heal()

        transfer(leader, target)

        assert cluster.leader() is target
        assert target.fsm.restores > 0


def test_a_target_that_is_cut_off_leaves_the_leader_in_office() -> None:
    """XFR-12, ETC-85"""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        target = cluster.followers()[0]
        cluster.disconnect(target)
        leader.node.apply(b"x").result(ANSWER)

        error = leader.node.leadership_transfer_to_server(target.id, target.address).error(ANSWER)

        assert isinstance(error, LeadershipTransferError)
        assert leader.is_leader()
        assert leader.node.apply(b"y").result(ANSWER) == 2


def test_an_unknown_server_or_this_one_cannot_be_named() -> None:
    """XFR-11, XFR-14"""
    with Cluster(3) as cluster:
        leader = cluster.leader()

        unknown = leader.node.leadership_transfer_to_server("n9", "n9:1").error(ANSWER)
        itself = leader.node.leadership_transfer_to_server(leader.id, leader.address).error(ANSWER)

        assert "cannot find replication state" in str(unknown)
        assert "cannot transfer leadership to itself" in str(itself)
        assert leader.is_leader()


def test_each_of_three_leads_in_turn() -> None:
    """ETC-06"""
    with Cluster(3) as cluster:
        for member in list(cluster.members.values()):
            leader = cluster.leader()
            cluster.followers()
            if leader is not member:
                transfer(leader, member)
            assert cluster.leader() is member


# ---- other calls of the leader ----


def test_a_read_barrier_makes_every_answered_write_visible() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 10)
        before = leader.node.last_index()

        index = leader.node.read_barrier().result(ANSWER)

        assert index >= before
        assert len(leader.fsm.logs()) == 10
        assert leader.node.last_index() == before
        follower = cluster.followers()[0]
        assert isinstance(follower.node.read_barrier().error(ANSWER), NotLeaderError)


def test_a_leader_cut_off_confirms_no_read() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        cluster.disconnect(leader)

        assert isinstance(leader.node.read_barrier().error(ANSWER), NotLeaderError)


def test_a_new_voter_catches_up_before_it_votes() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 200)
        joining = cluster.add()

        leader.node.add_voter(joining.id, joining.address, catch_up=True).result(ANSWER)

        assert leader.node.get_configuration().configuration().has_vote(joining.id)
        assert joining.node.last_index() >= 200
        cluster.assert_same_state()


def test_extensions_travel_with_a_command() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()

        leader.node.apply_log(Log(7, 7, data=b"x", extensions=b"more")).result(ANSWER)

        cluster.wait_for_commands(1)
        for member in cluster.running():
            (log,) = member.fsm.logs()
            assert (log.data, log.extensions) == (b"x", b"more")


# ---- settings of a running node ----


def test_settings_can_be_reloaded() -> None:
    """CFG-01"""
    with Cluster(1, configure=lambda c: setattr(c, "leader_lease_timeout", 0.04)) as cluster:
        node = cluster.leader().node
        now = node.reloadable_config()
        assert (now.trailing_logs, now.snapshot_interval, now.snapshot_threshold) == (
            10240,
            120.0,
            8192,
        )

        wanted = replace(
            now,
            trailing_logs=12345,
            snapshot_interval=234.0,
            snapshot_threshold=6789,
            heartbeat_timeout=0.045,
            election_timeout=0.046,
        )
        node.reload_config(wanted)

        assert node.reloadable_config() == wanted


def test_settings_that_are_wrong_change_nothing() -> None:
    """CFG-02"""
    with Cluster(1) as cluster:
        node = cluster.leader().node
        before = node.reloadable_config()

        for wrong in (
            replace(before, trailing_logs=1, snapshot_interval=0.001),
            replace(before, trailing_logs=1, heartbeat_timeout=0.0),
            replace(before, trailing_logs=1, election_timeout=0.0),
        ):
            with pytest.raises(InvalidConfigError):
                node.reload_config(wrong)

        assert node.reloadable_config() == before


def test_a_shorter_snapshot_interval_counts_at_once() -> None:
    with Cluster(1, configure=lambda c: setattr(c, "snapshot_threshold", 5)) as cluster:
        leader = cluster.leader()
        apply_count(leader, 20)

        node = leader.node
        node.reload_config(replace(node.reloadable_config(), snapshot_interval=0.01))

        cluster.wait_for(lambda: leader.snapshots.list(), what="a snapshot")


def test_the_leader_keeps_its_followers_with_a_shorter_heartbeat_timeout() -> None:
    """The leader beats faster at once."""

    def slow(config: Config) -> None:
        config.heartbeat_timeout = config.election_timeout = 5.0 * SCALE

    with Cluster(1, configure=slow) as cluster:
        leader = cluster.leader(30)
        followers = [cluster.add(), cluster.add()]
        for follower in followers:
            leader.node.add_voter(follower.id, follower.address).result(ANSWER)
        term = leader.node.current_term()

        for member in (leader, *followers):
            faster = replace(
                member.node.reloadable_config(),
                heartbeat_timeout=0.3 * SCALE,
                election_timeout=0.3 * SCALE,
            )
            member.node.reload_config(faster)
        apply_count(leader, 20)

        assert leader.node.current_term() == term


def test_the_notify_channel_tells_when_leadership_comes_and_goes() -> None:
    """LIF-07: a level, as `leader_ch`; the node never waits for its reader (row 13)."""
    channel = LatestValue()
    with Cluster(1, configure=lambda c: setattr(c, "notify_ch", channel)) as cluster:
        assert channel.get(timeout=8 * HEARTBEAT + ANSWER) is True

        cluster.stop(cluster["n1"])

        assert channel.get(timeout=6 * HEARTBEAT + ANSWER) is False
        assert cluster["n1"].node.state() is RaftState.SHUTDOWN


# ---- handing over on the way out ----


def slow_to_campaign(config: Config) -> None:
    """Whoever leads soon after a leader has gone was told to."""
    config.heartbeat_timeout = config.election_timeout = 3.0 * SCALE


@pytest.fixture
def patient() -> Iterator[Cluster]:
    with Cluster(3, configure=slow_to_campaign) as cluster:
        yield cluster


@pytest.mark.parametrize("leave", ["shutdown", "with"])
def test_a_leader_that_is_shut_down_hands_over_first(patient: Cluster, leave: str) -> None:
    leader = patient.leader(20)
    apply_count(leader, 10)
    others = [member for member in patient.running() if member is not leader]

    if leave == "with":
        with leader.node:
            pass
    else:
        leader.node.shutdown(transfer=True).result(ANSWER)
    began = time.monotonic()
    patient.wait_for(lambda: any(m.is_leader() for m in others))

    assert time.monotonic() - began < 1.5 * SCALE


def test_a_leader_without_anybody_else_is_shut_down_at_once() -> None:
    with Cluster(1) as cluster:
        node = cluster.leader().node

        node.shutdown(transfer=True).result(ANSWER)

        assert node.failure is None


def test_a_leader_that_nobody_answers_is_shut_down_within_a_bound() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        cluster.disconnect(leader)

        leader.node.shutdown(transfer=True).result(ANSWER)
