"""What happens to a simulated cluster: clients write, faults strike, and at the end all is healed.

Everything is drawn from the seed. Safety is checked all along; at the end there must be one leader,
equal logs and service, and every client must have been told the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from raft.config import Config
from raft.errors import NotAppliedError, OutcomeUnknownError, RaftError, RaftInternalError
from raft.node import Raft
from raft.testing.invariants import InvariantViolation
from raft.testing.simulation.cluster import NodeFailedError, SimCluster, SimServer
from raft.testing.simulation.machine import CommandRefusedError
from raft.testing.simulation.nemesis import Nemesis
from raft.testing.simulation.operations import transfer_to
from raft.testing.simulation.runtime import Scheduler, SimulationError
from raft.types import ServerSuffrage

SECONDS = 36.0  # of faults, usually
TIMEOUT = 0.4  # seconds of heartbeat and election timeout
_CLIENTS = 4
_DOUBTERS = 2
_LONGEST_THOUGHT = 0.12  # seconds between an answer and a client's next command
_LONGEST_DOUBT = 0.1  # seconds between two looks for somebody who leads wrongly
_PATIENCE = (0.5, 6.0)  # seconds that a client waits for an answer: some ask elsewhere soon
_READ_CHANCE = 0.2  # that a client reads instead
_LARGEST_DRIFT = 0.05  # that a clock may run too fast or too slow
_RECOVERY_SECONDS = 20 * TIMEOUT  # ten election timeouts, each of up to twice its length
_TRANSFER_SECONDS = 6.0
_LIMIT = 600.0  # virtual seconds after which a run is stuck
_NOTES_SHOWN = 60
_NO_THRESHOLD = 1 << 30  # entries: snapshots are taken where somebody asks, and not without need


@dataclass(frozen=True, slots=True)
class Result:
    """What a run was like."""

    seed: int
    nodes: int
    trace_hash: str
    seconds: float
    faults: int
    leader_changes: int
    acknowledged: int
    refused: int
    unknown: int
    reads: int
    installs: int
    rebuilt: int
    messages: int
    recovery: float
    strikes: Mapping[str, int]  # how often each fault struck, 0 for those that did not

    def line(self) -> str:
        """Return the result as one line of a table."""
        return (
            f"seed={self.seed} nodes={self.nodes} trace={self.trace_hash} faults={self.faults}"
            f" leaders={self.leader_changes} acknowledged={self.acknowledged}"
            f" refused={self.refused} unknown={self.unknown} reads={self.reads}"
            f" installs={self.installs} rebuilt={self.rebuilt} messages={self.messages}"
            f" recovery={self.recovery:.2f} seconds={self.seconds:.1f}"
        )


class SeedFailedError(SimulationError):
    """A seed found something; the message says what, and how to see it again.

    `found_by` is "invariant", "oracle" (a client was told something wrong, or the end state is),
    "liveness" (it did not recover in time, or hangs), "halt" (a node saw that something it rests
    on does not hold) or "crash" (somebody raised something else).
    """

    def __init__(self, message: str, found_by: str) -> None:
        super().__init__(message)
        self.found_by = found_by


class WrongEndError(SimulationError):
    """What is left at the end is not what clients were told, or not the same everywhere."""


def found_by(error: BaseException) -> str:
    """Return what a run was ended by, as `SeedFailedError` names it."""
    if isinstance(error, InvariantViolation):
        return "oracle" if str(error).startswith("oracle: ") else "invariant"
    if isinstance(error, WrongEndError):
        return "oracle"
    if isinstance(error, NodeFailedError):
        return "halt" if isinstance(error.__cause__, RaftInternalError) else "crash"
    return "liveness" if isinstance(error, SimulationError) else "crash"


def replay_command(seed: int, nodes: int, seconds: float) -> str:
    """Return the command that runs a seed again, bit for bit."""
    return f"python -m raft.testing.simulation --seed {seed} --nodes {nodes} --seconds {seconds:g}"


def run_seed(seed: int, nodes: int = 3, seconds: float = SECONDS) -> Result:
    """Run one world; raise `SeedFailedError` when anything in it went wrong."""
    scheduler = Scheduler(seed * 1000 + nodes)
    scenario = Scenario(scheduler, seed, nodes, seconds)
    try:
        scheduler.run(scenario.run, limit=_LIMIT)
    except Exception as error:
        notes = "\n".join(list(scheduler.trace.notes)[-_NOTES_SHOWN:])
        command = replay_command(seed, nodes, seconds)
        raise SeedFailedError(
            f"{notes}\n{type(error).__name__}: {error}\nreplay it with: {command}",
            found_by(error),
        ) from error
    return scenario.result()


class Scenario:
    """One run. Its methods are the bodies of tasks of the world's own process."""

    def __init__(self, scheduler: Scheduler, seed: int, nodes: int, seconds: float) -> None:
        self._scheduler = scheduler
        self._seed = seed
        self._nodes = nodes
        self._seconds = seconds
        self._draw = _draw_configuration(scheduler)
        self.cluster = SimCluster(scheduler, self._draw)
        self.cluster.clock_drift = _LARGEST_DRIFT * scheduler.pick(2)
        self.oracle = self.cluster.oracle
        self._nemesis = Nemesis(self.cluster)
        self._hint: SimServer | None = None
        self._is_closing = False
        self._recovery = 0.0

    def run(self) -> None:
        """Start, let things happen, heal, and look at what is left."""
        cluster, scheduler = self.cluster, self._scheduler
        voters = [cluster.add() for _ in range(self._nodes)]
        cluster.bootstrap(voters)
        cluster.add()  # blank, for the membership changes
        for server in cluster.servers.values():
            server.start()
        world = scheduler.current_task().process
        clients = [
            world.spawn(f"client-{number}", self._client(number)) for number in range(_CLIENTS)
        ]
        clients += [
            world.spawn(f"doubter-{number}", self._doubt(number)) for number in range(_DOUBTERS)
        ]
        self._nemesis.run(scheduler.now + self._seconds)
        self._nemesis.end()
        healed_at = scheduler.now
        cluster.wait_for(self._serves, _RECOVERY_SECONDS, "service after healing")
        self._recovery = scheduler.now - healed_at
        self._is_closing = True
        for client in clients:
            client.join()
        cluster.wait_for(self._is_settled, _RECOVERY_SECONDS, "equal logs")
        self._hand_around()
        cluster.wait_for(self._is_settled, _RECOVERY_SECONDS, "equal logs")
        self._check_end()

    def result(self) -> Result:
        """Return what the run was like."""
        cluster, told = self.cluster, self.oracle.commands
        return Result(
            self._seed,
            self._nodes,
            self._scheduler.trace.hash(),
            self._scheduler.now - 1000.0,
            self._nemesis.count,
            cluster.leader_changes,
            len(told.acknowledged),
            len(told.refused),
            len(told.unknown),
            self.oracle.reads,
            cluster.network.installs,
            self._nemesis.rebuilt,
            cluster.network.messages,
            self._recovery,
            self._nemesis.counts,
        )

    # ---- clients ----

    def _client(self, number: int) -> Callable[[], None]:
        def run() -> None:
            count = 0
            while not self._is_closing:
                count += 1
                if self._scheduler.chance.random() < _READ_CHANCE:
                    self._read()
                else:
                    self._send(b"c%d-%d" % (number, count))
                self._scheduler.sleep(self._scheduler.chance.random() * _LONGEST_THOUGHT)

        return run

    def _pick_server(self) -> SimServer | None:
        """Draw whom a client asks: mostly who is believed to lead; None when nobody runs."""
        # One that is paused gets the request all the same, and answers later.
        servers = [server for server in self.cluster.servers.values() if server.is_up()]
        server = self._hint
        is_silent = server is not None and not server.is_running() and self._scheduler.pick(2)
        if servers and (server not in servers or is_silent or self._scheduler.pick(8) == 0):
            server = servers[self._scheduler.pick(len(servers))]
        return server if servers else None

    def _doubt(self, number: int) -> Callable[[], None]:
        """Return a client that reads where it is least sure what may be shown.

        That is where a server may believe wrongly that it leads, once there is something new at the
        other one, or holds a user restore that is not known to be committed.
        """

        def run() -> None:
            count = 0
            while not self._is_closing:
                self._scheduler.sleep(self._scheduler.chance.random() * _LONGEST_DOUBT)
                leaders = [server for server in self.cluster.up() if server.is_leader()]
                leaders.sort(key=lambda server: server.last_led)
                if len(leaders) > 1:
                    count += 1
                    self._send(b"d%d-%d" % (number, count), leaders[-1])
                    self._read_at(leaders[0])
                elif leaders and leaders[0].disk.has_unsettled():
                    self._read_at(leaders[0])

        return run

    def _send(self, command: bytes, server: SimServer | None = None) -> bool:
        """Have one command applied somewhere, and note what is known of it; True if it is."""
        server = server or self._pick_server()
        if server is None:
            return False

        def apply(node: Raft) -> int:
            future = node.apply(command, timeout=1.0)
            with suppress(CommandRefusedError):  # an answer like any other
                future.result(4.0)
            return future.index()

        has_ended, outcome = server.call(apply, self._scheduler.chance.choice(_PATIENCE))
        self._note(command, server, has_ended, outcome)
        return has_ended and isinstance(outcome, int)

    def _note(self, command: bytes, server: SimServer, has_ended: bool, outcome: Any) -> None:
        oracle = self.oracle
        self._hint = None
        if has_ended and isinstance(outcome, int):
            self._hint = server
            oracle.acknowledged(command, outcome)
        elif has_ended and isinstance(outcome, NotAppliedError):
            oracle.refused(command)
            self._follow(outcome)
        elif not has_ended or isinstance(outcome, OutcomeUnknownError | TimeoutError):
            oracle.commands.unknown[command] = None
        else:
            self._scheduler.stop(UnknownAnswerError(f"{command!r} was answered by {outcome!r}"))

    def _follow(self, error: RaftError) -> None:
        """Ask whom a refusal names next."""
        self._hint = self.cluster.servers.get(getattr(error, "leader_id", ""))

    def _read(self) -> None:
        """Read somewhere."""
        server = self._pick_server()
        if server is not None:
            self._read_at(server)

    def _read_at(self, server: SimServer) -> None:
        """Read a state machine behind a barrier, and check that it shows nothing old."""
        if server.fsm is None:
            return
        fsm, floor = server.fsm, self.oracle.begin_read()
        mark = fsm.mark

        def read(node: Raft) -> None:
            node.read_barrier(timeout=1.0).result(4.0)
            # A user restore that began meanwhile may show, and may yet come to nothing.
            if fsm.mark == mark:
                self.oracle.end_read(server.id, fsm, floor)

        has_ended, outcome = server.call(read, 6.0)
        self._hint = server if has_ended and outcome is None else None
        if has_ended and isinstance(outcome, RaftError):
            self._follow(outcome)
        elif has_ended and outcome is not None and not isinstance(outcome, TimeoutError):
            self._scheduler.stop(UnknownAnswerError(f"a read was answered by {outcome!r}"))

    # ---- the end ----

    def _serves(self) -> bool:
        """Tell whether a command sent now is applied."""
        self.cluster.revive()
        leader = self.cluster.leader()
        if leader is None:
            return False
        self._hint = leader
        return self._send(b"probe-%d" % round(self._scheduler.now * 1e6))

    def _is_settled(self) -> bool:
        """Tell whether all members hold the same, and nothing is under way."""
        self.cluster.revive()  # a leader that was removed may have shut down meanwhile
        leader = self.cluster.leader()
        if leader is None or leader.node is None:
            return False
        members = self._members(leader)
        last = leader.node.last_index()
        return all(
            server.node is not None
            and server.is_up()
            and server.node.last_index() == last
            and server.node.applied_index() == last
            and server.disk.has_durably(last, leader.node.current_term())
            for server in members
        )

    def _hand_around(self) -> None:
        """Have every voter lead and serve: nothing of its earlier leaderships may hinder it."""
        for server in [s for s in self.cluster.up() if self._is_voter(s)]:
            takes_over = partial(self._takes_over, server)
            self.cluster.wait_for(takes_over, _RECOVERY_SECONDS, f"{server} to lead")
            self.cluster.wait_for(self._serves, _RECOVERY_SECONDS, f"service by {server}")

    def _is_voter(self, server: SimServer) -> bool:
        leader = self.cluster.leader()
        if leader is None or leader.node is None:
            return False
        return leader.node.get_configuration().result().has_vote(server.id)

    def _takes_over(self, server: SimServer) -> bool:
        """Tell whether a server leads, or have whoever does hand over to it."""
        leader = self.cluster.leader()
        if leader is not None and leader is not server:
            leader.call(transfer_to(server), _TRANSFER_SECONDS)
        return leader is server

    def _members(self, leader: SimServer) -> list[SimServer]:
        if leader.node is None:
            return []
        configuration = leader.node.get_configuration().result()
        return [
            self.cluster.servers[server.id]
            for server in configuration.servers
            if server.suffrage is not ServerSuffrage.STAGING
        ]

    def _check_end(self) -> None:
        leader = self.cluster.leader()
        if leader is None:
            raise SimulationError("the leader went away at the end")
        found = self.oracle.faults(
            {s.id: s.fsm for s in self._members(leader) if s.fsm is not None}
        )
        for server in self._members(leader):
            for index, log in server.disk.content.logs.items():
                theirs = leader.disk.content.logs.get(index, log)
                if theirs != log and theirs.is_intact() and log.is_intact():
                    found.append(f"{server.id} and {leader.id} differ at {index}")
        if found:
            raise WrongEndError("; ".join(found[:10]))


class UnknownAnswerError(NodeFailedError):
    """A client got an answer that no client should get."""


def _draw_configuration(scheduler: Scheduler) -> Callable[[Config], None]:
    """Draw the settings of all servers of a run."""
    chance = scheduler.chance
    threshold = chance.choice((8, 20, 60, _NO_THRESHOLD))
    trailing = chance.choice((0, 3, 10))
    entries = chance.choice((1, 2, 8, 64))
    recent = chance.choice((500, 4_000, 1 << 20))
    window = chance.choice((1, 2, 4))
    no_pre_vote = chance.random() < 0.4
    shutdown_on_remove = chance.random() < 0.5
    restore_committed = chance.random() < 0.5

    def configure(config: Config) -> None:
        config.heartbeat_timeout = TIMEOUT
        config.election_timeout = TIMEOUT
        config.leader_lease_timeout = TIMEOUT * 0.75
        config.commit_timeout = 0.1
        config.snapshot_interval = 1.5
        config.snapshot_threshold = threshold
        config.trailing_logs = trailing
        config.max_append_entries = entries
        config.recent_log_bytes = recent
        config.max_inflight_appends = window
        config.pre_vote_disabled = no_pre_vote
        config.shutdown_on_remove = shutdown_on_remove
        config.restore_committed_logs = restore_committed
        config.disk_stall_timeout = 2.0
        config.commit_stall_timeout = 1.0

    return configure
