"""Starting, bootstrapping, stopping (scenario area LIF)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from raft import (
    CantBootstrapError,
    Configuration,
    InvalidConfigurationError,
    KeyNotFoundError,
    NoThreadError,
    NotVoterError,
    OutcomeUnknownError,
    RaftShutdownError,
    RaftState,
    Server,
    ServerSuffrage,
    bootstrap_cluster,
    get_configuration,
    has_existing_state,
    recover_cluster,
)
from raft.engine.recovery import RECOVERY_KEY
from raft.node import Raft
from raft.runtime import Task, ThreadRuntime
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import Cluster, fast_config
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from tests.cluster.helpers import ANSWER, HEARTBEAT, apply_count


def test_a_node_starts_and_stops() -> None:
    """LIF-01"""
    with Cluster(1) as cluster:
        shutdown = cluster["n1"].node.shutdown()

        assert shutdown.error(ANSWER) is None
        assert cluster["n1"].node.state() is RaftState.SHUTDOWN


def test_after_shutdown_every_call_is_answered_with_shutdown() -> None:
    """LIF-02; barrier, verify_leader and bootstrap too, which the original leaves out (GAP-15)."""
    with Cluster(1) as cluster:
        node = cluster.leader().node
        node.shutdown().result(ANSWER)

        futures = [
            node.apply(b""),
            node.barrier(),
            node.add_voter("x", "x:1"),
            node.add_nonvoter("x", "x:1"),
            node.remove_server("x"),
            node.demote_voter("x"),
            node.snapshot(),
            node.verify_leader(),
            node.bootstrap_cluster(Configuration()),
        ]

        for future in futures:
            assert isinstance(future.error(ANSWER), RaftShutdownError)
        assert node.shutdown().error(ANSWER) is None
        with pytest.raises(RaftShutdownError):
            node.wait_for_leader(ANSWER)


def test_a_running_blank_node_is_bootstrapped_once() -> None:
    """LIF-03"""
    with Cluster(3, bootstrap=False) as cluster:
        first = cluster["n1"]
        everybody = Configuration([member.server() for member in cluster.members.values()])

        first.node.bootstrap_cluster(everybody).result(ANSWER)

        leader = cluster.leader()
        assert len(cluster.followers()) == 2
        assert leader.node.apply(b"test").result(ANSWER) == 1
        cluster.wait_for_commands(1)
        again = first.node.bootstrap_cluster(Configuration([first.server()]))
        assert isinstance(again.error(ANSWER), CantBootstrapError)


def test_bootstrapping_again_alike_succeeds_on_every_server() -> None:
    """Also on one that another's entry has reached before, whatever its role is by then."""
    with Cluster(3, bootstrap=False) as cluster:
        everybody = Configuration([member.server() for member in cluster.members.values()])
        backwards = Configuration(everybody.servers[::-1])
        cluster["n1"].node.bootstrap_cluster(everybody).result(ANSWER)
        members = cluster.members.values()
        cluster.wait_for(lambda: all(member.node.last_index() for member in members))

        for member in members:
            member.node.bootstrap_cluster(backwards).result(ANSWER)
            other = member.node.bootstrap_cluster(everybody, "another cluster")
            assert isinstance(other.error(ANSWER), CantBootstrapError)


def test_a_node_that_is_no_voter_does_not_bootstrap() -> None:
    """LIF-04"""
    with Cluster(2, bootstrap=False) as cluster:
        first, second = cluster["n1"], cluster["n2"]
        configuration = Configuration([first.server(ServerSuffrage.NONVOTER), second.server()])

        future = first.node.bootstrap_cluster(configuration)

        assert isinstance(future.error(ANSWER), NotVoterError)
        assert not has_existing_state(first.logs, first.stable, first.snapshots)


def test_state_exists_after_a_blank_node_has_joined() -> None:
    """LIF-05"""
    with Cluster(2) as cluster:
        leader, blank = cluster.leader(), cluster.add()
        assert not has_existing_state(blank.logs, blank.stable, blank.snapshots)

        leader.node.add_voter(blank.id, blank.address).result(ANSWER)

        cluster.assert_same_state()
        assert has_existing_state(blank.logs, blank.stable, blank.snapshots)


def test_the_configuration_can_be_read_with_its_index() -> None:
    """LIF-06: live, and then from the stores of a stopped node."""
    with Cluster(2) as cluster:
        apply_count(cluster.leader(), 1)

        future = cluster.leader().node.get_configuration()

        assert {s.id for s in future.configuration().servers} == {"n1", "n2"}
        assert future.index() == 1
        for member in list(cluster.members.values()):
            cluster.stop(member)
            stores = (member.logs, member.stable, member.snapshots)
            offline = get_configuration(member.config, RecordingFSM(), *stores)
            assert offline == future.configuration()


def test_the_leadership_channel_holds_the_latest_value() -> None:
    """LIF-07, on `leader_ch`: True after the election, False after the end."""
    with Cluster(1) as cluster:
        channel = cluster["n1"].node.leader_ch()

        gained = channel.get(timeout=8 * HEARTBEAT + ANSWER)
        cluster.stop(cluster["n1"])

        assert gained is True
        assert channel.get(timeout=ANSWER) is False


def test_shutdown_answers_what_is_under_way() -> None:
    with Cluster(3) as cluster:
        leader = cluster.leader()
        for follower in cluster.followers():
            cluster.disconnect(follower)
        futures = [leader.node.apply(b"x") for _ in range(10)]

        leader.node.shutdown().result(ANSWER)

        assert all(future.done() and future.error() is not None for future in futures)


def test_a_node_started_over_its_stores_has_its_log_and_applies_it_again() -> None:
    with Cluster(1) as cluster:
        apply_count(cluster.leader(), 20)

        member = cluster.restart(cluster["n1"])

        cluster.leader()
        cluster.wait_for_commands(20)
        assert member.node.current_term() >= 2


@pytest.mark.parametrize("other", [("n2", "n2:1"), Server("n2", "n2:1", 0)])  # type: ignore[arg-type]
def test_a_configuration_of_something_else_than_servers_is_refused(other: Any) -> None:
    """And the node stays what it is: it halted, or took its disk for a failed one."""
    with Cluster(1, bootstrap=False) as cluster:
        node = cluster["n1"].node
        own = cluster["n1"].server()

        error = node.bootstrap_cluster(Configuration([own, other]), "id").error(ANSWER)

        assert isinstance(error, InvalidConfigurationError)
        assert node.bootstrap_cluster(Configuration([own])).error(ANSWER) is None


def test_bootstrapping_with_something_else_than_a_configuration_is_refused_at_once() -> None:
    """The main thread never sees it: it would halt on it."""
    with Cluster(1, bootstrap=False) as cluster:
        node = cluster["n1"].node

        with pytest.raises(TypeError):
            node.bootstrap_cluster([cluster["n1"].server()])  # type: ignore[arg-type]

        assert node.state() is RaftState.FOLLOWER


@pytest.mark.parametrize("cluster_id", [5, b"c1", "\ud800", "c" * 1025])
def test_a_cluster_id_that_no_handshake_can_carry_is_refused_at_once(cluster_id: Any) -> None:
    """By a script, too. The disk would take the blame for some, and long ones be for good."""
    with Cluster(1, bootstrap=False) as cluster:
        member = cluster["n1"]
        stores = (member.logs, member.stable, member.snapshots)
        everybody = Configuration([member.server()])

        with pytest.raises((TypeError, ValueError)):
            member.node.bootstrap_cluster(everybody, cluster_id)
        with pytest.raises((TypeError, ValueError)):
            bootstrap_cluster(member.config, *stores, everybody, cluster_id)
        member.node.bootstrap_cluster(everybody, "c" * 1024).result(ANSWER)

        member.node.shutdown().result(ANSWER)
        with pytest.raises((TypeError, ValueError)):
            recover_cluster(member.config, RecordingFSM(), *stores, everybody, cluster_id)
        with pytest.raises(KeyNotFoundError):
            member.stable.get(RECOVERY_KEY)


def test_a_transport_that_fails_to_close_keeps_no_thread_and_no_caller() -> None:
    with Cluster(1) as cluster:
        member = cluster.leader()
        close = member.transport.close

        def fail() -> None:
            close()
            raise OSError("the socket is gone")

        member.transport.close = fail  # type: ignore[method-assign]
        cluster.stop(member)

        assert [t.name for t in threading.enumerate() if t.name.startswith("raft-")] == []


def test_a_bootstrap_that_shutdown_interrupts_may_or_may_not_have_happened() -> None:
    with Cluster(1, bootstrap=False) as cluster:
        member = cluster["n1"]
        begun, door, write = threading.Event(), threading.Event(), member.stable.set

        def slow(key: bytes, value: bytes) -> None:
            begun.set()
            door.wait(ANSWER)
            write(key, value)

        member.stable.set = slow  # type: ignore[method-assign]
        future = member.node.bootstrap_cluster(Configuration([member.server()]))
        assert begun.wait(ANSWER)
        down = member.node.shutdown()

        assert isinstance(future.error(ANSWER), OutcomeUnknownError)
        door.set()
        down.result(ANSWER)


# ---- no thread to be had ----


class Scarce(ThreadRuntime):
    """Has no thread for certain names, for as long as they are in `refused`."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.is_used_up = False

    def spawn(self, name: str, target: Callable[[], None]) -> Task:
        if self.is_used_up or name.rpartition("-")[2] in self.refused:
            raise RuntimeError("can't start new thread")
        return super().spawn(name, target)


def threads_of(server_id: str) -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(f"raft-{server_id}-")]


@pytest.mark.parametrize(
    "name", ["shutdown", "events", "disk", "fsm", "snapshots", "main", "accept"]
)
def test_a_node_that_cannot_start_leaves_nothing_running(name: str) -> None:
    """What runs on would vote and lead over stores that may be given to another node."""
    runtime, store, snapshots = Scarce(name), InmemStore(), InmemSnapshotStore()
    transport = TCPTransport("127.0.0.1:0", runtime=runtime)

    def start() -> Raft:
        config, fsm = fast_config("scarce"), RecordingFSM()
        return Raft(config, fsm, store, store, snapshots, transport, runtime=runtime)

    with pytest.raises(NoThreadError):
        start()
    assert threads_of("scarce") == []

    runtime.refused.clear()
    with start() as node:
        assert {"raft-scarce-main", "raft-scarce-accept"} <= set(threads_of("scarce"))
        node.bootstrap_cluster(Configuration([Server("scarce", transport.local_addr())])).result(
            ANSWER
        )
        node.wait_for_leader(ANSWER)
    assert threads_of("scarce") == []


def test_a_node_shuts_down_without_a_thread_for_it() -> None:
    runtime, store = Scarce(), InmemStore()
    transport = TCPTransport("127.0.0.1:0", runtime=runtime)
    config, snapshots = fast_config("scarce"), InmemSnapshotStore()
    node = Raft(config, RecordingFSM(), store, store, snapshots, transport, runtime=runtime)
    runtime.is_used_up = True

    node.shutdown().result(ANSWER)

    assert threads_of("scarce") == []
