"""Servers that come, go, and change what they are (scenario area MEM)."""

from __future__ import annotations

import threading

from raft import (
    Config,
    Configuration,
    ConfigurationChangedError,
    EnqueueTimeoutError,
    InvalidConfigurationError,
    LeadershipLostError,
    NoSuchServerError,
    NotLeaderError,
    RaftError,
    RaftState,
    ServerSuffrage,
)
from raft.engine.state import HardState
from raft.stores import InmemStore
from raft.testing.cluster import SCALE, Cluster, Member
from raft.testing.fsm import RecordingFSM
from tests.cluster.helpers import ANSWER, PROPAGATION, apply_count, stays_so


def ids(member: Member) -> list[str]:
    """Return who belongs to the cluster, as a member knows it."""
    return [s.id for s in member.node.get_configuration().configuration().servers]


def stay_follower(config: Config) -> None:
    config.shutdown_on_remove = False


def test_a_blank_node_joins() -> None:
    """MEM-01"""
    with Cluster(2) as cluster:
        joiner = cluster.add()

        cluster.leader().node.add_voter(joiner.id, joiner.address).result(ANSWER)

        assert len(cluster.followers()) == 2
        cluster.assert_same_state()
        cluster.wait_for(lambda: ids(joiner) == ["n1", "n2", "n3"])


class ConfigurationFSM(RecordingFSM):
    """Records the configurations it is handed."""

    def __init__(self, *watches: object) -> None:
        super().__init__(*watches)  # type: ignore[arg-type] # passed on as they come
        self.configurations: list[Configuration] = []

    def store_configuration(self, index: int, configuration: Configuration) -> None:
        self.configurations.append(configuration)


def test_every_fsm_is_handed_every_configuration() -> None:
    """MEM-02"""
    with Cluster(1, make_fsm=ConfigurationFSM) as cluster:
        for _ in range(2):
            joiner = cluster.add()
            cluster.leader().node.add_voter(joiner.id, joiner.address).result(ANSWER)

        def sizes(member: Member) -> list[int]:
            assert isinstance(member.fsm, ConfigurationFSM)
            return [len(c.servers) for c in member.fsm.configurations]

        cluster.wait_for(lambda: all(sizes(m) == [1, 2, 3] for m in cluster.members.values()))


def test_a_removed_follower_stays_a_follower() -> None:
    """MEM-03"""
    with Cluster(3) as cluster:
        leader, (removed, other) = cluster.leader(), cluster.followers()

        leader.node.remove_server(removed.id).result(ANSWER)

        cluster.wait_for(lambda: len(ids(leader)) == len(ids(other)) == 2)
        stays_so(
            cluster,
            "follower",
            3 * PROPAGATION,
            lambda: removed.node.state() is RaftState.FOLLOWER,
        )
        assert leader.is_leader()


def test_a_removed_follower_learns_of_its_removal() -> None:
    """H14: it would campaign for ever otherwise."""
    with Cluster(3) as cluster:
        leader, removed = cluster.leader(), cluster.followers()[0]

        leader.node.remove_server(removed.id).result(ANSWER)

        cluster.wait_for(lambda: removed.id not in ids(removed))


def test_a_leader_that_removes_itself_shuts_down() -> None:
    """MEM-04"""
    with Cluster(3) as cluster:
        old = cluster.leader()

        old.node.remove_server(old.id).result(ANSWER)

        cluster.wait_for(lambda: old.node.state() is RaftState.SHUTDOWN)
        cluster.stop(old)
        new = cluster.leader()
        assert new is not old
        assert len(ids(new)) == 2


def test_a_leader_that_removes_itself_can_stay_a_follower() -> None:
    """MEM-05"""
    with Cluster(3, configure=stay_follower) as cluster:
        old = cluster.leader()
        futures = []
        for number in range(100):
            if number == 80:
                old.node.remove_server(old.id).result(ANSWER)
                cluster.wait_for(lambda: not old.is_leader())
            futures.append(old.node.apply(b"%d" % number))

        errors = [future.error(ANSWER) for future in futures]

        assert errors[:80] == [None] * 80
        assert all(isinstance(error, NotLeaderError) for error in errors[80:])
        new = cluster.wait_for(
            lambda: next((m for m in cluster.running() if m is not old and m.is_leader()), None)
        )
        assert len(ids(new)) == 2
        assert old.node.state() is RaftState.FOLLOWER
        cluster.wait_for(lambda: old.id not in ids(old))
        cluster.wait_for_commands(80)


def test_a_removal_without_quorum_fails() -> None:
    """MEM-06"""
    with Cluster(4) as cluster:
        leader, (first, second, stayed) = cluster.leader(), cluster.followers()
        cluster.disconnect(first)
        cluster.disconnect(second)

        future = leader.node.remove_server(stayed.id)

        assert isinstance(future.error(ANSWER), LeadershipLostError | NotLeaderError)


def test_removing_a_server_that_is_no_member_changes_nothing() -> None:
    """MEM-08: the original appends the configuration as it was, and a typing error succeeds."""
    with Cluster(1) as cluster:
        leader = cluster.leader()
        before = leader.node.get_configuration().index()

        for change in (leader.node.remove_server("nobody"), leader.node.demote_voter("nobody")):
            assert isinstance(change.error(ANSWER), NoSuchServerError)

        assert leader.node.get_configuration().index() == before


def test_a_change_without_effect_is_a_new_equal_configuration() -> None:
    """MEM-07: adding a known voter."""
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        before = leader.node.get_configuration()

        change = leader.node.add_voter(follower.id, follower.address)
        change.result(ANSWER)

        after = leader.node.get_configuration()
        assert after.configuration() == before.configuration()
        assert after.index() == change.index() > before.index()


def test_a_server_from_a_far_term_costs_one_election() -> None:
    """It has no vote, so nobody asks it for one, and sees its term that way."""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        apply_count(leader, 3)
        far = leader.node.current_term() + 1000
        store = InmemStore()
        HardState(far).save(store)
        joiner = cluster.add(logs=store, stable=store)

        leader.node.add_nonvoter(
            joiner.id, joiner.address
        )  # its answer may be lost with the office
        cluster.wait_for(lambda: len(joiner.fsm.logs()) == 3, what="the log")

        assert cluster.leader().node.current_term() > far


def test_a_removed_follower_joins_again() -> None:
    """MEM-09"""
    with Cluster(3, configure=stay_follower) as cluster:
        leader, (follower, other) = cluster.leader(), cluster.followers()
        leader.node.remove_server(follower.id).result(ANSWER)
        cluster.wait_for(lambda: len(ids(leader)) == len(ids(other)) == 2)

        added = cluster.leader().node.add_voter(follower.id, follower.address).error(ANSWER)

        assert added is None or isinstance(added, LeadershipLostError)
        cluster.wait_for(lambda: all(len(ids(m)) == 3 for m in cluster.members.values()))
        assert len(cluster.followers()) == 2
        assert follower.node.state() is RaftState.FOLLOWER


def test_a_demoted_voter_goes_on_getting_the_log() -> None:
    with Cluster(3) as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]

        leader.node.demote_voter(follower.id).result(ANSWER)
        apply_count(leader, 10)

        configuration = leader.node.get_configuration().configuration()
        server = configuration.server(follower.id)
        assert server is not None
        assert server.suffrage is ServerSuffrage.NONVOTER
        assert len(cluster.assert_same_state()) == 10


def test_a_non_voter_does_not_count_for_commit() -> None:
    with Cluster(3) as cluster:
        leader, (first, second) = cluster.leader(), cluster.followers()
        leader.node.demote_voter(first.id).result(ANSWER)
        cluster.disconnect(second)

        future = leader.node.apply(b"x")

        assert isinstance(future.error(ANSWER), LeadershipLostError | NotLeaderError)


def test_a_stale_prev_index_is_refused() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        index = leader.node.get_configuration().index()
        leader.node.add_nonvoter("x", "x:1", prev_index=index).result(ANSWER)

        error = leader.node.remove_server("x", prev_index=index).error(ANSWER)

        assert isinstance(error, ConfigurationChangedError)
        assert "x" in ids(leader)


def test_the_last_voter_cannot_go() -> None:
    with Cluster(1) as cluster:
        leader = cluster.leader()

        assert isinstance(
            leader.node.remove_server(leader.id).error(ANSWER), InvalidConfigurationError
        )
        assert leader.node.apply(b"x").result(ANSWER) == 1


def test_a_change_that_cannot_be_made_in_time_says_so() -> None:
    """T28: the timeout covers the wait for the change before."""
    with Cluster(3) as cluster:
        leader = cluster.leader()
        slow = leader.node.add_voter("x", "x:1")
        slow.result(ANSWER)
        for follower in cluster.followers():
            if follower.id != "x":
                cluster.disconnect(follower)

        first = leader.node.add_nonvoter("y", "y:1")
        second = leader.node.add_nonvoter("z", "z:1", timeout=0.02)

        error = second.error(ANSWER)
        assert isinstance(error, EnqueueTimeoutError | NotLeaderError)
        assert isinstance(first.error(ANSWER), RaftError)


def patient(config: Config) -> None:
    """For what is not about elections, but keeps both cores busy."""
    config.heartbeat_timeout = config.election_timeout = 0.5 * SCALE
    config.leader_lease_timeout = 0.5 * SCALE


def test_membership_changes_while_commands_flow() -> None:
    with Cluster(3, configure=patient) as cluster:
        stop = threading.Event()
        results: list[BaseException | None] = []

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                future = cluster["n1"].node.apply(b"w-%d" % number)
                results.append(future.error(ANSWER))

        cluster.wait_for(lambda: cluster["n1"].node.leader_with_id()[1])
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                leader = cluster.leader()
                joiner = cluster.add()
                leader.node.add_nonvoter(joiner.id, joiner.address).result(ANSWER)
                leader.node.add_voter(joiner.id, joiner.address).result(ANSWER)
                leader.node.remove_server(joiner.id).result(ANSWER)
                cluster.stop(joiner)
        finally:
            stop.set()
            writer.join()

        assert len(cluster.followers()) == 2
        committed = cluster.assert_same_state()
        assert len(committed) == sum(error is None for error in results)


def test_the_restarted_cluster_knows_its_members() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        leader.node.add_nonvoter("x", "x:1").result(ANSWER)
        apply_count(leader, 5)
        cluster.assert_same_state()
        for member in list(cluster.members.values()):
            cluster.stop(member)

        for member in cluster.members.values():
            cluster.restart(member)

        cluster.leader()
        assert all("x" in ids(member) for member in cluster.members.values())
        cluster.wait_for_commands(5)
