"""What goes wrong in a simulated cluster: which fault when, and how each is undone."""

from __future__ import annotations

from collections.abc import Callable

from raft.node import Raft
from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.runtime import SimRuntime, SimTask
from raft.types import Configuration, ServerID

_LONGEST_PEACE = 1.0  # seconds between two faults
_REPAIR_CHANCE = 0.45  # that everything is repaired before the next fault
_CALL_SECONDS = 4.0
_STORM_SECONDS = 3.0
_MOST_VOTERS = 6


class Nemesis:
    """Draws faults from the seed. Its methods run on a task of the world."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._world = SimRuntime(cluster.scheduler, "world")
        self._calls: list[SimTask] = []
        self._storms_until = 0.0
        cluster.on_leader = self._on_leader
        cluster.network.on_vote = self._on_vote
        self.count = 0
        self._faults: list[tuple[int, Callable[[], None]]] = [
            # weight, fault
            (4, self.crash_one),
            (4, self.crash_leader),
            (1, self.crash_all),
            (3, self.partition),
            (3, self.isolate_leader),
            (2, self.close_one_way),
            (2, self.lose_messages),
            (2, self.slow_network),
            (2, self.pause_one),
            (1, self.slow_disk),
            (1, self.fail_disk),
            (4, self.storm),
            (5, self.change_membership),
            (2, self.take_snapshot),
        ]

    def run(self, until: float) -> None:
        """Let faults strike until a moment."""
        scheduler = self._scheduler
        deck = [fault for weight, fault in self._faults for _ in range(weight)]
        while scheduler.now < until:
            scheduler.sleep(scheduler.chance.random() * _LONGEST_PEACE)
            if scheduler.chance.random() < _REPAIR_CHANCE:
                self.repair()
                scheduler.sleep(scheduler.chance.random() * _LONGEST_PEACE)
            fault = deck[scheduler.pick(len(deck))]
            self.count += 1
            scheduler.note(f"fault {fault.__name__}")
            fault()

    def end(self) -> None:
        """Repair everything, and let no membership change be under way."""
        self.repair()
        for call in self._calls:
            call.join()
        self.repair()

    def repair(self) -> None:
        """Undo every fault: all servers are up and reach each other."""
        self._scheduler.note("repair")
        self._storms_until = 0.0
        network = self._cluster.network
        network.heal()
        network.loss = network.duplication = 0.0
        network.slowness = 1.0
        for server in self._cluster.servers.values():
            server.disk.slowness = 1.0
            server.disk.failures = 0
            if server.process is not None:
                server.process.resume()
        self._cluster.revive()

    def _one(self) -> SimServer:
        servers = list(self._cluster.servers.values())
        return servers[self._scheduler.pick(len(servers))]

    def _leader(self) -> SimServer:
        return self._cluster.leader() or self._one()

    # ---- faults ----

    def crash_one(self) -> None:
        """Crash a server; often it comes back at once."""
        server = self._one()
        server.crash()
        if self._scheduler.pick(2):
            server.start()

    def crash_leader(self) -> None:
        """Crash the leader; sometimes it comes back at once."""
        server = self._leader()
        server.crash()
        if not self._scheduler.pick(3):
            server.start()

    def crash_all(self) -> None:
        """Cut the power of all servers, and give it back."""
        for server in self._cluster.servers.values():
            server.crash()
        for server in self._cluster.servers.values():
            server.start()

    def partition(self) -> None:
        """Cut the cluster in two."""
        sides: tuple[list[str], list[str]] = ([], [])
        for server in self._cluster.servers.values():
            sides[self._scheduler.pick(2)].append(server.address)
        self._cluster.network.partition(*sides)

    def isolate_leader(self) -> None:
        """Cut the leader off."""
        leader = self._leader()
        others = [s.address for s in self._cluster.servers.values() if s is not leader]
        self._cluster.network.partition([leader.address], others)

    def close_one_way(self) -> None:
        """Let one server not be heard by another."""
        self._cluster.network.close_way(self._leader().address, self._one().address)
        self._cluster.network.close_way(self._one().address, self._one().address)

    def lose_messages(self) -> None:
        """Lose and repeat some of all messages."""
        self._cluster.network.loss = 0.2 * self._scheduler.chance.random()
        self._cluster.network.duplication = 0.3 * self._scheduler.chance.random()

    def slow_network(self) -> None:
        """Let every message take longer."""
        self._cluster.network.slowness = 1.0 + 30.0 * self._scheduler.chance.random()

    def pause_one(self) -> None:
        """Stop a process for a while, as SIGSTOP does."""
        server = self._leader() if self._scheduler.pick(2) else self._one()
        process = server.process
        if process is not None:
            process.pause()
            self._scheduler.call_later(2.0 * self._scheduler.chance.random(), process.resume)

    def slow_disk(self) -> None:
        """Let one disk take long for each write, up to stalls."""
        self._one().disk.slowness = 10.0 ** (3.0 * self._scheduler.chance.random())

    def fail_disk(self) -> None:
        """Let the next writes of one disk fail."""
        self._one().disk.failures = 1 + self._scheduler.pick(2)

    def take_snapshot(self) -> None:
        """Have a node take a snapshot now."""
        self._call(self._one(), lambda node: node.snapshot().result(_CALL_SECONDS))

    # ---- faults that strike at a certain moment ----

    def storm(self) -> None:
        """For a while, crash whoever wins an election, and many who vote: Figure 3.7, again and
        again, and votes that are asked for twice.
        """
        scheduler, network = self._scheduler, self._cluster.network
        network.slowness = 1.0 + 15.0 * scheduler.chance.random()
        network.duplication = 0.5
        self._leader().crash()
        self._storms_until = scheduler.now + _STORM_SECONDS
        for _ in range(2):
            scheduler.sleep(_STORM_SECONDS / 2)
            self._one().revive()

    def _on_leader(self, server: SimServer) -> None:
        if self._scheduler.now < self._storms_until:
            self._bounce(server, 0.1, 1.0)

    def _on_vote(self, server_id: ServerID) -> None:
        if self._scheduler.now < self._storms_until and self._scheduler.pick(2):
            self._bounce(self._cluster.servers[server_id], 0.005, 0.02)

    def _bounce(self, server: SimServer, seconds: float, pause: float) -> None:
        """Crash a server within so many seconds, and start it again; may be called on no task."""
        chance, process = self._scheduler.chance.random, server.process

        def strike() -> None:
            if server.process is process and process is not None:
                server.crash()
                self._scheduler.call_later(chance() * pause, revive)

        def revive() -> None:
            self._calls.append(self._world.spawn("nemesis-revive", server.start))

        self._scheduler.call_later(chance() * seconds, strike)

    # ---- membership ----

    def change_membership(self) -> None:
        """Have the leader make one membership change."""
        leader = self._leader()
        if leader.node is None:
            return
        configuration = leader.node.get_configuration().result()
        target = self._one()
        change = draw_change(configuration, target, self._scheduler.pick(3))
        if change is not None:
            self._call(leader, change)

    def _call(self, server: SimServer, action: Callable[[Raft], object]) -> None:
        """Ask a node for something, without waiting for the answer."""

        def ask() -> None:
            has_ended, outcome = server.call(action, _CALL_SECONDS + 2.0)
            answer = repr(outcome) if has_ended else "nothing"
            self._scheduler.note(f"{server.id} answered {answer}")

        self._calls.append(self._world.spawn("nemesis-call", ask))


def draw_change(
    configuration: Configuration, target: SimServer, kind: int
) -> Callable[[Raft], object] | None:
    """Return the membership change of this kind, one of three, that fits a server; or none."""
    seconds = _CALL_SECONDS / 2
    voters = len(configuration.voters())
    is_voter = configuration.has_vote(target.id)
    if configuration.server(target.id) is None or (kind == 0 and not is_voter):
        if kind == 2 or voters >= _MOST_VOTERS:
            return lambda n: n.add_nonvoter(target.id, target.address, 0, seconds).result(4)
        return lambda n: n.add_voter(target.id, target.address, 0, seconds).result(4)
    if voters <= 2 and is_voter:
        return None
    if kind == 1:
        return lambda n: n.demote_voter(target.id, 0, seconds).result(4)
    return lambda n: n.remove_server(target.id, 0, seconds).result(4)
