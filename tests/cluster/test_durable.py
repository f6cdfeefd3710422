"""Nodes with SQLite on disk and TCP between them, several in one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raft import Config, Configuration, Raft, RaftState, Server
from raft.snapshots import FileSnapshotStore
from raft.testing.cluster import SCALE, wait_for
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore
from tests.cluster.helpers import ANSWER

START_STOP_ROUNDS = 100
SLOW_SECONDS = 3.0
SLOW_STEPS = 50_000  # of a loop inside SQLite, between two looks at the clock: about 20 ms


class Trio:
    """Three durable nodes of one cluster in this process."""

    def __init__(self, folder: Path, configure: Callable[[Config], None]) -> None:
        ids = ("n1", "n2", "n3")
        transports = {i: TCPTransport("127.0.0.1:0") for i in ids}
        self.stores = {i: SQLiteStore(folder / f"{i}.db") for i in ids}
        self.fsms = {i: RecordingFSM() for i in ids}
        self.nodes: dict[str, Raft] = {}
        for i in ids:
            config = Config(local_id=i)
            configure(config)
            snapshots = FileSnapshotStore(folder / i, retain=1)
            store = self.stores[i]
            self.nodes[i] = Raft(config, self.fsms[i], store, store, snapshots, transports[i])
        everybody = [Server(i, transports[i].local_addr()) for i in ids]
        self.nodes["n1"].bootstrap_cluster(Configuration(everybody)).result(ANSWER)

    def leader(self) -> str:
        """Wait until one leads and all know it; return its id."""

        def agreed() -> str | None:
            named = {node.leader_with_id()[1] for node in self.nodes.values()}
            leaders = [i for i, node in self.nodes.items() if node.state() is RaftState.LEADER]
            return leaders[0] if named == set(leaders) and len(leaders) == 1 else None

        found: str = wait_for(agreed, what="an agreed leader")
        return found

    def stop(self) -> None:
        """Shut all nodes down and close their stores."""
        for future in [node.shutdown() for node in self.nodes.values()]:
            future.result(ANSWER + 10)
        for store in self.stores.values():
            store.close()


def quick(config: Config) -> None:
    config.heartbeat_timeout = config.election_timeout = 0.05 * SCALE
    config.leader_lease_timeout = 0.05 * SCALE


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(240)  # a hundred clusters, each with an election and a dozen fsyncs
def test_a_hundred_starts_and_stops_leave_nothing_behind(tmp_path: Path) -> None:
    def round_trip(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        trio = Trio(folder, quick)
        try:
            futures = [trio.nodes[trio.leader()].apply(b"x") for _ in range(5)]
        finally:
            trio.stop()
        assert all(future.done() for future in futures)

    round_trip(0)  # whatever the process makes once is made now
    threads, files = threading.active_count(), descriptors()

    for number in range(1, START_STOP_ROUNDS + 1):
        round_trip(number)

    wait_for(lambda: threading.active_count() <= threads, what="threads to end")
    wait_for(lambda: descriptors() <= files, what="descriptors to be closed")


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    trio = Trio(tmp_path, lambda _: None)
    yield trio
    trio.stop()


class Sampler:
    """Notes the longest time a thread was kept from running, and the longest silence of nodes."""

    def __init__(self, nodes: list[Raft]) -> None:
        self.longest_pause = self.longest_silence = 0.0
        self._nodes = nodes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(0.002):
            now = time.monotonic()
            self.longest_pause = max(self.longest_pause, now - last)
            last = now
            for node in self._nodes:
                contact = node.last_contact() or now
                self.longest_silence = max(self.longest_silence, now - contact)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()


def slow_down(store: SQLiteStore, index: int) -> None:
    """Make the transaction that stores an entry take over three seconds, inside SQLite.

    So long by the clock, however busy the machine is: ten seconds would be a stall.
    """
    begun: list[float] = []

    def is_over() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] > SLOW_SECONDS

    with store._database.writing("slow down") as connection:
        connection.create_function("is_over", 0, is_over)
        connection.execute(
            f"""
            CREATE TEMP TRIGGER slow AFTER INSERT ON log WHEN new.idx = {index}
            BEGIN
                SELECT (
                    WITH RECURSIVE counter(n) AS
                    (
                        SELECT 1 UNION ALL SELECT n + 1 FROM counter
                        WHERE n % {SLOW_STEPS} OR NOT is_over()
                    )
                    SELECT max(n) FROM counter
                );
            END
            """
        )


@pytest.mark.parametrize("of_leader", [True, False], ids=["leader", "follower"])
def test_a_commit_held_up_for_seconds_stops_neither_process_nor_heartbeats(
    trio: Trio, of_leader: bool
) -> None:
    """Whoever's disk it is: the other two make a majority, and nobody starts an election."""
    leader = trio.leader()
    node = trio.nodes[leader]
    node.barrier().result(ANSWER)
    term, index = node.current_term(), node.last_index() + 1
    victim = leader if of_leader else next(i for i in trio.nodes if i != leader)
    followers = [n for i, n in trio.nodes.items() if i != leader]
    # What a peer still lacks of before may have to be read from the disk that is held up.
    wait_for(lambda: all(n.last_index() == index - 1 for n in followers), 30, "equal logs")
    slow_down(trio.stores[victim], index)

    with Sampler(followers) as sampler:
        began = time.monotonic()
        assert node.apply(b"slow").result(ANSWER) == 1
        assert node.apply(b"next").result(ANSWER) == 2
        answered = time.monotonic() - began
        wait_for(lambda: trio.stores[victim].last_index() >= index + 1, 30, "the slow commit")
        held_up = time.monotonic() - began

    assert held_up > SLOW_SECONDS
    assert answered < SLOW_SECONDS / 3
    assert sampler.longest_pause < SLOW_SECONDS / 6
    assert sampler.longest_silence < 1.0  # heartbeat_timeout
    assert (trio.leader(), node.current_term()) == (leader, term)
    wait_for(lambda: all(len(fsm.logs()) == 2 for fsm in trio.fsms.values()))
