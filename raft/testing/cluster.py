"""Clusters of real nodes on real threads in one process, for tests.

    with Cluster(3) as cluster:
        leader = cluster.leader()
        leader.node.apply(b"x").result(5)
        cluster.disconnect(leader)
        ...
        cluster.heal()
        cluster.assert_same_state()

Everything is in memory. Leaving the `with` block shuts all nodes down and fails when one of Raft's
safety properties did not hold (`raft.testing.invariants`). Timeouts are short, and multiplied by
the environment variable RAFT_TEST_SCALE: raise it on a machine that is slow or busy.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from raft.config import Config
from raft.interfaces import LogStore, SnapshotStore, StableStore
from raft.node import Raft
from raft.snapshots.inmem import InmemSnapshotStore
from raft.stores.inmem import InmemStore
from raft.testing.fsm import RecordingFSM
from raft.testing.invariants import Invariants
from raft.transport.inmem import InmemTransport
from raft.types import (
    Configuration,
    Log,
    RaftState,
    Server,
    ServerAddress,
    ServerID,
    ServerSuffrage,
)

SCALE = float(os.environ.get("RAFT_TEST_SCALE", "1"))
"""What all durations of tests on real threads are multiplied by."""

_PATIENCE = 10.0  # seconds that a wait may take before the test fails, times SCALE
_POLL_PERIOD = 0.002  # seconds between two looks at a predicate
_SHUTDOWN_SECONDS = 20.0  # for one node; shutdown itself is bounded by Config.shutdown_timeout

MakeFSM = Callable[[Callable[[Log], None], Callable[[Log], None]], RecordingFSM]


def fast_config(server_id: ServerID) -> Config:
    """Return a configuration whose elections take a fraction of a second, times SCALE."""
    return Config(
        local_id=server_id,
        heartbeat_timeout=0.1 * SCALE,
        election_timeout=0.1 * SCALE,
        leader_lease_timeout=0.1 * SCALE,
        commit_timeout=0.005 * SCALE,
    )


def wait_for(
    predicate: Callable[[], Any], timeout: float | None = None, what: str = "the condition"
) -> Any:
    """Return the predicate's first true value; fail when there is none in time (times SCALE)."""
    seconds = (_PATIENCE if timeout is None else timeout) * SCALE
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := predicate()):
        if time.monotonic() >= until:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        pause.wait(_POLL_PERIOD)
    return value


class WatchedStore(InmemStore):
    """An `InmemStore` that reports what it is given to store."""

    def __init__(self, server_id: ServerID, invariants: Invariants) -> None:
        super().__init__()
        self._server_id = server_id
        self._invariants = invariants

    def _store(self, logs: Any) -> None:
        if logs:
            before = self._logs.get(logs[0].index - 1)
            prev_term = 0 if logs[0].index == 1 else None if before is None else before.term
            self._invariants.stored(self._server_id, prev_term, logs)
        super()._store(logs)


class WatchedTransport(InmemTransport):
    """An `InmemTransport` that reports the requests sent."""

    def __init__(self, address: ServerAddress, timeout: float, invariants: Invariants) -> None:
        super().__init__(address, timeout)
        self._invariants = invariants

    def begin(self, server_id: ServerID, address: ServerAddress, request: Any, *rest: Any) -> Any:
        """Send a request."""
        self._invariants.sent(request)
        return super().begin(server_id, address, request, *rest)


@dataclass(slots=True)
class Member:
    """One server of a cluster: its node while it runs, and what outlives a restart."""

    id: ServerID
    address: ServerAddress
    config: Config
    logs: LogStore
    stable: StableStore
    snapshots: SnapshotStore
    make_fsm: MakeFSM
    fsm: RecordingFSM
    transport: InmemTransport
    node: Raft
    is_running: bool = True

    def server(self, suffrage: ServerSuffrage = ServerSuffrage.VOTER) -> Server:
        """Return this member as a configuration names it."""
        return Server(self.id, self.address, suffrage)

    def is_leader(self) -> bool:
        """Tell whether the node runs and believes to lead."""
        return self.is_running and self.node.state() is RaftState.LEADER


class Cluster:
    """Servers n1, n2, ... connected with each other; use it with `with`. One thread drives it.

    The first `count` servers are bootstrapped as voters, unless `bootstrap` is False. `configure`
    may change each `Config` (the durations in it should be multiplied by SCALE); `make_fsm` takes
    the place of `RecordingFSM`.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        bootstrap: bool = True,
        configure: Callable[[Config], None] = lambda _: None,
        make_fsm: MakeFSM = RecordingFSM,
    ) -> None:
        self.invariants = Invariants()
        self.members: dict[ServerID, Member] = {}
        self._configure = configure
        self._make_fsm = make_fsm
        self._cut: set[tuple[ServerID, ServerID]] = set()  # ways that are closed: (from, to)
        try:
            for _ in range(count):
                self.add()
            if bootstrap:
                self.bootstrap()
        except BaseException:
            self._stop_all()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_all()
        if error is None:
            self.invariants.check()

    def _stop_all(self) -> None:
        running = self.running()
        for member in running:
            member.is_running = False
        for future in [member.node.shutdown() for member in running]:
            future.result(_SHUTDOWN_SECONDS)

    # ---- servers ----

    def __getitem__(self, server_id: ServerID) -> Member:
        return self.members[server_id]

    def running(self) -> list[Member]:
        """Return the members whose nodes run."""
        return [member for member in self.members.values() if member.is_running]

    def add(
        self,
        *,
        logs: LogStore | None = None,
        stable: StableStore | None = None,
        snapshots: SnapshotStore | None = None,
        make_fsm: MakeFSM | None = None,
    ) -> Member:
        """Start one more server, connected with all; it joins nothing by itself.

        Over blank stores in memory, or over those given.
        """
        server_id = f"n{len(self.members) + 1}"
        store = WatchedStore(server_id, self.invariants)
        config = fast_config(server_id)
        self._configure(config)
        make_fsm = make_fsm or self._make_fsm
        address = f"{server_id}:1"
        chosen = (logs or store, stable or store, snapshots or InmemSnapshotStore())
        member = self._start(server_id, address, config, chosen, make_fsm)
        self.members[server_id] = member
        self._rewire()
        return member

    def _start(
        self,
        server_id: ServerID,
        address: ServerAddress,
        config: Config,
        stores: tuple[LogStore, StableStore, SnapshotStore],
        make_fsm: MakeFSM,
    ) -> Member:
        nodes: list[Raft] = []  # the node, once it is made: restoring happens while it is made

        def on_apply(log: Log) -> None:
            self.invariants.applied(server_id, nodes[0].current_term() if nodes else None, log)

        def on_restore(log: Log) -> None:
            self.invariants.applied(server_id, None, log)

        transport = WatchedTransport(address, 0.5 * SCALE, self.invariants)
        fsm = make_fsm(on_apply, on_restore)
        nodes.append(Raft(config, fsm, *stores, transport))
        return Member(server_id, address, config, *stores, make_fsm, fsm, transport, node=nodes[0])

    def bootstrap(self, members: Iterable[Member] | None = None) -> None:
        """Bootstrap members, all by default, as the voters of one cluster."""
        chosen = self.running() if members is None else list(members)
        configuration = Configuration([member.server() for member in chosen])
        for member in chosen:
            member.node.bootstrap_cluster(configuration).result(_PATIENCE * SCALE)

    def stop(self, member: Member) -> None:
        """Shut a node down; its stores stay for `restart`."""
        member.is_running = False
        member.node.shutdown().result(_SHUTDOWN_SECONDS)

    def restart(self, member: Member) -> Member:
        """Shut a node down if it runs, and start one over the same stores, with a blank FSM.

        `member` itself is changed and returned.
        """
        if member.is_running:
            self.stop(member)
        stores = (member.logs, member.stable, member.snapshots)
        fresh = self._start(member.id, member.address, member.config, stores, member.make_fsm)
        member.fsm, member.transport, member.node = fresh.fsm, fresh.transport, fresh.node
        member.is_running = True
        self._rewire()
        return member

    # ---- connections ----

    def disconnect(self, member: Member) -> None:
        """Cut a server off from all others, both ways."""
        self.partition([member], [m for m in self.members.values() if m is not member])

    def partition(self, *groups: Iterable[Member]) -> None:
        """Cut every way between servers of different groups; others stay as they are."""
        sides = [list(group) for group in groups]
        for side in sides:
            others = [member for other in sides if other is not side for member in other]
            self._cut |= {(a.id, b.id) for a in side for b in others}
        self._rewire()

    def cut(self, source: Member, target: Member) -> None:
        """Cut the way from one server to another; the way back stays open."""
        self._cut.add((source.id, target.id))
        self._rewire()

    def heal(self, *members: Member) -> None:
        """Open all ways from and to these servers; all ways when none is named."""
        ids = [member.id for member in members] or list(self.members)
        self._cut = {(a, b) for a, b in self._cut if a not in ids and b not in ids}
        self._rewire()

    def _rewire(self) -> None:
        """Bring the transports of running nodes to what is cut and what is not."""
        running = self.running()
        for source in running:
            for target in self.members.values():
                if (source.id, target.id) in self._cut or not target.is_running:
                    source.transport.disconnect(target.address)
                elif target is not source:
                    source.transport.connect(target.address, target.transport)

    # ---- waiting ----

    wait_for = staticmethod(wait_for)

    def leader(self, timeout: float | None = None) -> Member:
        """Wait until exactly one running member leads, and return it.

        A leader that was just cut off counts as long as it has not noticed.
        """
        found: Member = wait_for(self._only_leader, timeout, "exactly one leader")
        return found

    def _only_leader(self) -> Member | None:
        leaders = [member for member in self.running() if member.is_leader()]
        return leaders[0] if len(leaders) == 1 else None

    def followers(self, timeout: float | None = None) -> list[Member]:
        """Wait until all other running members know the one leader, and return them."""
        wait_for(self._all_follow, timeout, "all to follow one leader")
        return [member for member in self.running() if not member.is_leader()]

    def _all_follow(self) -> bool:
        leader = self._only_leader()
        return leader is not None and all(
            member.node.leader_with_id()[1] == leader.id for member in self.running()
        )

    def wait_for_commands(self, count: int, timeout: float | None = None) -> None:
        """Wait until the FSM of every running member holds so many commands."""
        wait_for(
            lambda: all(len(member.fsm.logs()) >= count for member in self.running()),
            timeout,
            f"{count} commands in every FSM",
        )

    def assert_same_state(self, timeout: float | None = None) -> list[bytes]:
        """Wait until all running FSMs hold the same and nothing is under way; return the commands.

        The cluster must have a leader; members cut off from it make this fail.
        """
        try:
            wait_for(self._is_settled, timeout, "equal state machines")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.describe()}") from None
        return self.running()[0].fsm.commands()

    def _is_settled(self) -> bool:
        leader = self._only_leader()
        if leader is None:
            return False
        last = leader.node.last_index()
        states = [member.fsm.commands() for member in self.running()]
        return (
            all(m.node.applied_index() == last for m in self.running())
            and leader.node.last_index() == last
            and all(state == states[0] for state in states)
        )

    def describe(self) -> str:
        """Return one line about each server, for the message of a failed test."""
        parts = []
        for member in self.members.values():
            node = member.node
            parts.append(
                f"{member.id}: {node.state() if member.is_running else 'stopped'}"
                f" term={node.current_term()} last={node.last_index()}"
                f" commit={node.commit_index()} applied={node.applied_index()}"
                f" commands={len(member.fsm.logs())}"
            )
        return "; ".join(parts)
