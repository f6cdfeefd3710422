"""Simulated servers that crash and come back.

A server is what outlives its incarnations: id, address, disk, the speed of its clock. An
incarnation is a process with a node, a transport and a blank FSM; a crash ends it between two
switch points, with not one line of clean-up, and the disk decides what it still got.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from raft.bootstrap import bootstrap_cluster
from raft.config import Config
from raft.engine.state import CLUSTER_ID_KEY
from raft.errors import (
    LogCorruptError,
    LogGapError,
    RaftInternalError,
    SnapshotError,
    UnsettledSnapshotError,
)
from raft.node import Raft
from raft.runtime import Deadline
from raft.snapshots.inmem import InmemSnapshotStore
from raft.stores.inmem import InmemStore
from raft.testing.invariants import Invariants
from raft.testing.simulation.disk import SimDisk, SimReplacingStore, SimSnapshotStore, SimStore
from raft.testing.simulation.machine import MarkedBatchingFSM, MarkedFSM
from raft.testing.simulation.network import SimNetwork, Witness
from raft.testing.simulation.oracle import Oracle
from raft.testing.simulation.primitives import SimEvent
from raft.testing.simulation.runtime import (
    ProcessState,
    Scheduler,
    SimRuntime,
    SimulationError,
)
from raft.testing.simulation.transport import SimTransport
from raft.types import (
    NO_INDEX,
    NO_TERM,
    Configuration,
    EntryID,
    Log,
    LogType,
    RaftState,
    Server,
    ServerAddress,
    ServerID,
)

_CALL_PERIOD = 0.1  # seconds between looks whether the process that is asked has died
_START_PERIOD = 0.1  # seconds between looks whether a starting process has died
_LONGEST_UPTIME = 10_000.0  # seconds that a monotonic clock may be ahead of another
_MOST_COMMITS_UNFIT = 60  # by a leader before it has noticed that its disk failed, and left
_NOTHING_SEEN = (NO_TERM, NO_INDEX, RaftState.FOLLOWER)
_LARGEST_WALL_ERROR = 3600.0  # seconds that the time of day may be wrong


class SimServer:
    """One server: its disk always, and a node while it is up.

    `lost` says why it must be rebuilt: it does not start any more.
    """

    def __init__(
        self, cluster: SimCluster, server_id: ServerID, address: ServerAddress, config: Config
    ) -> None:
        self.cluster = cluster
        self.id = server_id
        self.address = address
        self.config = config
        self.disk = SimDisk(cluster.scheduler, server_id, cluster.invariants)
        self.disk.on_store = cluster.oracle.restore_stored
        # Half of the servers cannot truncate and append in one transaction.
        self.make_store = SimReplacingStore if cluster.scheduler.pick(2) else SimStore
        self.make_fsm = MarkedBatchingFSM if cluster.scheduler.pick(2) else MarkedFSM
        self.clock_rate = cluster.draw_clock_rate()
        self.incarnation = 0
        self.lost = ""
        self.process: SimRuntime | None = None
        self.node: Raft | None = None
        self.fsm: MarkedFSM | None = None
        self.last_seen = _NOTHING_SEEN
        self.last_led = NO_TERM

    def __str__(self) -> str:
        return self.id

    def server(self) -> Server:
        """Return the server as a voter of a configuration."""
        return Server(self.id, self.address)

    def is_up(self) -> bool:
        """Tell whether there is a node that has not shut down."""
        return self.node is not None and self.node.state() is not RaftState.SHUTDOWN

    def is_running(self) -> bool:
        """Tell whether the process exists and is not paused."""
        return self.process is not None and self.process.state is ProcessState.RUNNING

    def is_leader(self) -> bool:
        """Tell whether the node believes to lead."""
        return self.node is not None and self.node.state() is RaftState.LEADER

    def run_clock(self, speed: float = 1.0) -> None:
        """Let the monotonic clock run so many times as fast as usual, until the next restart."""
        if self.process is not None:
            self.process.set_rate(self.clock_rate * speed)

    def start(self) -> None:
        """Start an incarnation over the disk as it is; waits until the node is made, or dead."""
        scheduler = self.cluster.scheduler
        if self.process is not None or self.lost:
            return
        self.incarnation += 1
        scheduler.note(f"start {self.id} incarnation={self.incarnation}")
        chance = scheduler.chance.random
        process = SimRuntime(scheduler, self.id, self.clock_rate, chance() * _LONGEST_UPTIME)
        process.wall_offset = (2.0 * chance() - 1.0) * _LARGEST_WALL_ERROR
        self.process = process
        self.disk.check()
        store = self.make_store(self.disk, process)
        snapshots = SimSnapshotStore(self.disk, process)
        transport = SimTransport(self.cluster.network, process, self.address)
        self.fsm = fsm = self.make_fsm(self._applied, self._restored, self._marked, self._disorder)

        def make() -> None:
            try:
                node = Raft(self.config, fsm, store, store, snapshots, transport, runtime=process)
            except (LogCorruptError, LogGapError, SnapshotError, OSError) as error:
                self._start_failed(process, error)
                return
            if process is self.process:
                self.node = node

        made = process.spawn(f"raft-{self.id}-start", make)
        while made.is_alive() and process.state is not ProcessState.DEAD:
            made.join(_START_PERIOD)

    def _start_failed(self, process: SimRuntime, error: Exception) -> None:
        self.cluster.scheduler.note(f"start of {self.id} failed: {error}")
        # What is spoiled nobody else is known to have, and what a lost snapshot held nobody may ask
        # for; another error may be over at the next start.
        for_good = isinstance(error, LogCorruptError) or self.disk.lacks_snapshot()
        if process is self.process and for_good:
            self.lost = str(error)

    def _applied(self, log: Log) -> None:
        term = None if self.node is None else self.node.current_term()
        self.cluster.invariants.applied(self.id, term, log)
        count = None if self.fsm is None else self.fsm.count() + 1
        self.cluster.oracle.applied(self.id, log, count)

    def _restored(self, log: Log) -> None:
        self.cluster.invariants.applied(self.id, None, log)
        self.cluster.oracle.applied(self.id, log)

    def _marked(self, mark: bytes) -> None:
        self.cluster.oracle.marked(self.id, mark)

    def _disorder(self, text: str) -> None:
        self.cluster.invariants.fail(f"order: {self.id} {text}")

    def crash(self) -> None:
        """End the incarnation where it stands."""
        if self.process is not None:
            self.cluster.scheduler.note(f"crash {self.id}")
            self.process.kill()
            self.disk.crash()
            self.process = self.node = self.fsm = None

    def lose(self, why: str) -> None:
        """Crash for good: it must be rebuilt."""
        self.crash()
        self.cluster.scheduler.note(f"lost {self.id}: {why}")
        self.lost = why

    def blank(self) -> None:
        """Empty the disk, so that the server may start anew; it must not be a member then."""
        self.crash()
        self.disk.wipe()
        self.cluster.invariants.rebuilt(self.id)
        self.lost = ""
        self.disk.was_replaced = False

    def forget(self) -> None:
        """Lose the disk, and start over an empty one under the same id, unknown to all others."""
        self.crash()
        self.disk.wipe()
        self.cluster.invariants.rebuilt(self.id)
        self.disk.was_replaced = True
        self.start()

    def revive(self) -> None:
        """Start an incarnation if there is none, or the node has shut itself down."""
        if not self.is_up():
            self.crash()
            self.start()

    def call(self, action: Callable[[Raft], Any], timeout: float) -> tuple[bool, Any]:
        """Run something on a task of this process; (False, None) when it does not come back.

        What the action raises is returned, not raised: a crash may come in between.
        """
        node, process = self.node, self.process
        if node is None or process is None:
            return False, None
        done = SimEvent(self.cluster.scheduler)
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(action(node))
            except Exception as error:  # noqa: BLE001 - an answer like any other
                outcome.append(error)
            done.set()

        process.spawn(f"raft-{self.id}-client", run)
        deadline = Deadline(process, timeout)
        while not done.wait(_CALL_PERIOD):
            if process.state is ProcessState.DEAD or deadline.is_over():
                return False, None
        return True, outcome[0]


class ServerWitness(Witness):
    """Knows the disks and the nodes of a cluster's servers."""

    def __init__(self, servers: Mapping[ServerID, SimServer]) -> None:
        self._servers = servers

    def has_term(self, server_id: ServerID, term: int) -> bool:
        """Look into the vote record."""
        return self._servers[server_id].disk.content.vote().term >= term

    def has_cluster_id(self, server_id: ServerID) -> bool:
        """Look for it among the values."""
        return CLUSTER_ID_KEY in self._servers[server_id].disk.content.values

    def has_durably(self, server_id: ServerID, index: int, term: int) -> bool:
        """Look into log and snapshots."""
        return self._servers[server_id].disk.has_durably(index, term)

    def last_entry(self, server_id: ServerID) -> EntryID:
        """Look at the end of the log."""
        return self._servers[server_id].disk.last_entry()

    def wrong_members(self, server_id: ServerID, index: int) -> str:
        """Compare with log and snapshots: the latest configuration there is in use (§4.1)."""
        server = self._servers[server_id]
        if server.node is None:
            return ""
        core = server.node._core
        used = core.membership.latest_index
        log, snapshots = server.disk.content.logs.get(used), server.disk.content.snapshots.values()
        if used < index:
            return f"uses the configuration of entry {used}, and has that of {index}"
        if log is None:
            is_there = used == NO_INDEX or any(meta.index >= used for meta, _ in snapshots)
            # Known to be committed: by the others alone, or given up here behind a spoiled entry.
            is_there |= used <= core.state.commit_index
        else:
            is_there = log.type is LogType.CONFIGURATION or not log.is_intact()
        return "" if is_there else f"uses the configuration of entry {used}, which it has not"


class NodeFailedError(SimulationError):
    """A node has shut itself down because of a bug; `__cause__` is what it died of."""


class SimCluster:
    """Servers n1, n2, ... in one simulated world; driven from a task of that world.

    There may be another cluster, with another `prefix`, in the same network.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        configure: Callable[[Config], None],
        prefix: str = "n",
        network: SimNetwork | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.invariants = Invariants(sees_commits=True)
        self.oracle = Oracle(self.invariants.fail)
        self.network = network or SimNetwork(scheduler, self.invariants)
        self.servers: dict[ServerID, SimServer] = {}
        self.leader_changes = 0
        self.clock_drift = 0.0  # clocks run by up to this part too fast or too slow
        self.on_leader: Callable[[SimServer], None] = lambda _: None
        self.on_snapshot: Callable[[SimServer], None] = lambda _: None
        self.configure = configure
        self._prefix = prefix
        self._last_leader = ""
        self._unfit: dict[ServerID, int] = {}  # commits of leaders since their disks failed
        if network is not None:
            return  # of another cluster, which is the one that is looked at
        scheduler.on_step = self.check
        self.network.witness = ServerWitness(self.servers)

    def add(self, address: ServerAddress = "") -> SimServer:
        """Add a blank server that is down, under an id and usually an address of its own."""
        server_id = f"{self._prefix}{len(self.servers) + 1}"
        config = Config(local_id=server_id)
        self.configure(config)
        server = SimServer(self, server_id, address or f"{server_id}:1", config)
        self.servers[server_id] = server
        server.disk.on_snapshot = lambda: self.on_snapshot(server)
        return server

    def bootstrap(self, servers: list[SimServer], cluster_id: str | None = None) -> None:
        """Put the first configuration on blank disks, as a script does before the first start."""
        configuration = Configuration([server.server() for server in servers])
        for server in servers:
            # Scripts are not simulated: they write to a store in memory, which becomes the disk.
            store = InmemStore()
            snapshots = InmemSnapshotStore()
            bootstrap_cluster(server.config, store, store, snapshots, configuration, cluster_id)
            first = store.get_log(store.first_index())
            server.disk.stored([first])
            server.disk.content.logs[first.index] = first
            for key in (b"HardState", b"ClusterID"):
                server.disk.content.values[key] = store.get(key)

    def draw_clock_rate(self) -> float:
        """Draw how fast a server's clock runs."""
        return 1.0 + self.clock_drift * (2.0 * self.scheduler.chance.random() - 1.0)

    def check(self, process: SimRuntime) -> None:
        """Look at a node's numbers after each of its steps; ends the run at a violation."""
        server = self.servers.get(process.name)
        if server is not None and server.process is process and server.node is not None:
            state = server.node._core.state  # nobody is inside between switch points
            term, commit_index, role = server.last_seen
            if (
                state.commit_index != commit_index
                or state.term != term
                or state.role is not role
                or role is RaftState.SHUTDOWN
            ):
                self._look(server, state.term, state.commit_index, state.role)
        if self.invariants.violations:
            try:
                self.invariants.check()
            except AssertionError as error:
                self.scheduler.stop(error)

    def _look(self, server: SimServer, term: int, commit_index: int, role: RaftState) -> None:
        """Check what has changed of a node."""
        seen, server.last_seen = server.last_seen, (term, commit_index, role)
        self.invariants.progressed(server.id, server.incarnation, term, commit_index)
        committed = server.disk.content.logs.get(commit_index)
        if committed is not None and committed.is_intact():
            # Known earlier than by its application, and of any type.
            self.invariants.applied(server.id, term, committed)
        if role is RaftState.LEADER:
            self._note_leader(server, term)
            self._check_disk(server)
            if seen[0] == term and seen[1] < commit_index:
                self.invariants.committed_own(term)
                self._check_commit(server, term, commit_index)
        elif role is RaftState.SHUTDOWN:
            self._look_for_failure(server)

    def _check_commit(self, leader: SimServer, term: int, index: int) -> None:
        """Check that a majority has on disk what a leader has just found to be committed."""
        node = leader.node
        if node is None:
            return
        members = node._core.membership  # of the one change at a time, either may have counted
        counts = []
        for configuration in (members.latest, members.committed):
            voters = [self.servers[voter.id] for voter in configuration.voters()]
            have = [voter.id for voter in voters if voter.disk.had_durably(index, term)]
            if len(have) * 2 > len(voters):
                return
            counts.append(f"{have} of {[voter.id for voter in voters]}")
        self.invariants.fail(f"commit: {leader.id} at {index} of term {term}: {counts}")

    def _check_disk(self, leader: SimServer) -> None:
        """Check that a leader whose disk has failed soon leads no more (departure 8)."""
        is_unfit = leader.node is not None and leader.node._core.disk.is_unfit
        commits = self._unfit.get(leader.id, 0) + 1 if is_unfit else 0
        self._unfit[leader.id] = commits
        if commits > _MOST_COMMITS_UNFIT:
            self.invariants.fail(f"disk: {leader.id} leads on though its disk has failed")

    def _look_for_failure(self, server: SimServer) -> None:
        """See why a node has shut itself down; there are reasons for which it should."""
        failure = None if server.node is None or server.lost else server.node.failure
        if isinstance(failure, UnsettledSnapshotError) or (
            isinstance(failure, RaftInternalError) and "no other voter has it" in str(failure)
        ):
            server.lost = str(failure)
        elif failure is not None:
            error = NodeFailedError(f"{server.id} failed: {failure!r}")
            error.__cause__ = failure
            self.scheduler.stop(error)

    def _note_leader(self, server: SimServer, term: int) -> None:
        self.invariants.led(server.id, term)
        if server.last_led != term and server.node is not None:
            server.last_led = term
            voters = [voter.id for voter in server.node._core.membership.latest.voters()]
            if not self.invariants.elected(server.id, term, voters):
                self.invariants.fail(f"election: {server.id} leads term {term} without a majority")
        name = f"{server.id}/{term}"
        if name != self._last_leader and term >= int(self._last_leader.partition("/")[2] or 0):
            self._last_leader = name
            self.leader_changes += 1
            self.scheduler.note(f"leader {server.id} term={term}")
            self.on_leader(server)

    def cut_off(self, side: Collection[SimServer]) -> None:
        """Cut these off from all others, in place of all that was cut."""
        others = [s.address for s in self.servers.values() if s not in side]
        self.network.partition([server.address for server in side], others)

    def revive(self) -> None:
        """Start every server that is down."""
        for server in self.servers.values():
            server.revive()

    def up(self) -> list[SimServer]:
        """Return the servers with a live node."""
        return [server for server in self.servers.values() if server.is_up()]

    def leader(self) -> SimServer | None:
        """Return the running leader of the highest term, if there is one."""
        leaders = [server for server in self.up() if server.is_leader() and server.is_running()]
        return max(
            leaders, key=lambda s: s.node.current_term() if s.node is not None else 0, default=None
        )

    def wait_for(self, predicate: Callable[[], Any], timeout: float, what: str) -> Any:
        """Return the predicate's first true value; fail when there is none in virtual time."""
        until = self.scheduler.now + timeout
        while not (value := predicate()):
            if self.scheduler.now >= until:
                raise SimulationError(f"waited {timeout:g} s for {what}: {self.describe()}")
            self.scheduler.sleep(0.05)
        return value

    def describe(self) -> str:
        """Return one line about all servers."""
        parts = []
        for server in self.servers.values():
            node = server.node
            if node is None:
                parts.append(f"{server.id}: {server.lost or 'down'}")
                continue
            parts.append(
                f"{server.id}: {node.state()} term={node.current_term()}"
                f" commit={node.commit_index()} applied={node.applied_index()}"
                f" disk={server.disk.last_entry()}"
            )
        return "; ".join(parts)
