"""What goes wrong in a simulated cluster, and how each fault is undone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.harm import may_forget, may_harm
from raft.testing.simulation.runtime import SimRuntime, SimTask
from raft.types import ServerID

# A fault says False when there was nothing it could do.
Fault: TypeAlias = Callable[[], bool | None]
Deck: TypeAlias = list[tuple[int, Fault]]  # with how often each is drawn

_STORM_SECONDS = 3.0
_ALIGNING_SECONDS = 0.8  # longer than anybody waits for a leader
_LONGEST_SUCCESSION = 3.0  # seconds that a paused leader is given to be succeeded
_LONGEST_ABSENCE = 1.0  # seconds that it stays away then
_SLOW_BEFORE = 20.0
_LONGEST_SLOWNESS = 0.3  # seconds that messages are slow before
_MOST_STUTTERS = 8
_LONGEST_STUTTER = 0.6  # seconds that a held GIL stops a process: that must be survived
_NEWEST = 3  # entries at the end of a log that a power cut may spoil
_SHORT_BREAK = 0.4  # seconds; two power cuts may come before anybody leads
_WILDEST = 2.0  # by which a clock may be too fast or too slow
_BETWEEN_WRITES = 0.002  # seconds; the next write has hardly begun
_SLOWEST_VOTE = 0.4  # seconds: the election timeout
_LONGEST_STALL = 12.0  # seconds; six times as long as a slow clock takes for the timeout
_LARGEST_JUMP = 86_400.0  # seconds by which the time of day jumps


class Targets:
    """Draws whom something happens to."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster

    def one(self) -> SimServer:
        """Return any server that is not lost."""
        servers = [s for s in self._cluster.servers.values() if not s.lost]
        return servers[self._cluster.scheduler.pick(len(servers))]

    def some(self, count: int) -> list[SimServer]:
        """Return so many of them, each another."""
        servers = [s for s in self._cluster.servers.values() if not s.lost]
        return self._cluster.scheduler.chance.sample(servers, min(count, len(servers)))

    def leader(self) -> SimServer:
        """Return the leader, or any server where there is none."""
        return self._cluster.leader() or self.one()


def cut_power(cluster: SimCluster) -> None:
    """Crash all servers, and start them again."""
    for server in cluster.servers.values():
        server.crash()
    for server in cluster.servers.values():
        server.start()


class NetworkFaults:
    """Messages do not arrive, or late, or twice."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._scheduler = cluster.scheduler
        self._targets = Targets(cluster)
        self.deck: Deck = [
            (3, self.partition),
            (3, self.isolate_leader),
            (2, self.bridge),
            (2, self.close_one_way),
            (1, self.cut_link),
            (2, self.lose_messages),
            (2, self.slow_network),
            (1, self.slow_snapshots),
            (1, self.throttle),
            (1, self.swallow_entries),
        ]

    def repair(self) -> None:
        """Let all messages through, once and in good time."""
        self._network.heal()
        self._network.loss = self._network.duplication = 0.0
        self._network.slowness = self._network.snapshot_slowness = 1.0
        self._network.ways.clear()

    def _sides(self) -> tuple[list[str], list[str]]:
        sides: tuple[list[str], list[str]] = ([], [])
        for server in self._cluster.servers.values():
            sides[self._scheduler.pick(2)].append(server.address)
        return sides

    def partition(self) -> None:
        """Cut the cluster in two."""
        self._network.partition(*self._sides())

    def isolate_leader(self) -> None:
        """Cut the leader off."""
        self._cluster.cut_off([self._targets.leader()])

    def bridge(self) -> None:
        """Cut the cluster in two, but for one server that is heard by all."""
        middle = self._targets.leader() if self._scheduler.pick(2) else self._targets.one()
        self._network.bridge(middle.address, *self._sides())

    def close_one_way(self) -> None:
        """Let one server not be heard by another."""
        self._network.close_way(self._targets.leader().address, self._targets.one().address)
        self._network.close_way(self._targets.one().address, self._targets.one().address)

    def cut_link(self) -> None:
        """Cut the link between the leader and another; both reach the rest."""
        one, other = self._targets.leader().address, self._targets.one().address
        self._network.close_way(one, other)
        self._network.close_way(other, one)

    def lose_messages(self) -> None:
        """Lose and repeat some of all messages."""
        self._network.loss = 0.2 * self._scheduler.chance.random()
        self._network.duplication = 0.3 * self._scheduler.chance.random()

    def slow_network(self) -> None:
        """Let every message take longer."""
        self._network.slowness = 1.0 + 30.0 * self._scheduler.chance.random()

    def slow_snapshots(self) -> None:
        """Let snapshots take as long to send as if they were large."""
        self._network.snapshot_slowness = 10.0 ** (3.0 * self._scheduler.chance.random())

    def throttle(self) -> None:
        """Let little pass from one server, or all, in a second: heartbeats wait behind entries."""
        rate = 10.0 ** (2.5 + 2.0 * self._scheduler.chance.random())
        servers = list(self._cluster.servers.values())
        for server in servers if self._scheduler.pick(2) else [self._targets.leader()]:
            self._network.ways.rates[server.address] = rate

    def swallow_entries(self) -> bool:
        """Let all that is large vanish behind the leader: heartbeats pass, and entries do not.

        It must let go, unless there is nothing to commit, or it does so alone.
        """
        leader = self._cluster.leader()
        if leader is None or leader.node is None:
            return False
        node, scheduler = leader.node, self._scheduler
        term, committed = node.current_term(), node.commit_index()
        self._network.ways.swallowing[leader.address] = None
        until = scheduler.now + _LONGEST_STALL
        while leader.is_leader() and (node.current_term(), node.commit_index()) == (
            term,
            committed,
        ):
            scheduler.sleep(0.1)
            if scheduler.now > until and node.last_index() > committed:
                self._cluster.invariants.fail(f"stall: {leader} leads on and commits nothing")
            elif scheduler.now > until:
                break
        return True


class DiskFaults:
    """Disks are slow, full, fail, forget and spoil what they hold."""

    def __init__(self, cluster: SimCluster, may_harm_now: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._targets = Targets(cluster)
        self._may_harm_now = may_harm_now
        self.deck: Deck = [
            (1, self.slow_disk),
            (1, self.slow_votes),
            (2, self.fail_disk),
            (1, self.fill_disk),
            (2, self.spoil),
            (2, self.spoil_in_power_cut),
            (1, self.wipe),
            (2, self.come_back_empty),
            (2, self.lose_snapshots),
        ]

    def repair(self) -> None:
        """Let disks be fast and have room; what is lost, or has forgotten, is to be rebuilt."""
        for server in self._cluster.servers.values():
            server.disk.slowness = 1.0
            server.disk.vote_seconds = 0.0
            server.disk.failures = 0
            server.disk.is_full = False
            if server.disk.was_replaced and not server.lost:
                server.lose("it came back empty")

    def slow_disk(self) -> None:
        """Let one disk take long for each write, up to stalls."""
        self._targets.one().disk.slowness = 10.0 ** (3.0 * self._scheduler.chance.random())

    def slow_votes(self) -> None:
        """Let each vote take up to an election timeout to be written, on all disks."""
        seconds = _SLOWEST_VOTE * self._scheduler.chance.random()
        for server in self._cluster.servers.values():
            server.disk.vote_seconds = seconds

    def fail_disk(self) -> None:
        """Let the next writes of one disk fail; often it tries for long before it says so."""
        server = self._targets.leader() if self._scheduler.pick(2) else self._targets.one()
        if self._scheduler.pick(2):
            server.disk.slowness = 10.0 ** (0.5 + self._scheduler.chance.random())
        server.disk.failures = 1 + self._scheduler.pick(2)

    def fill_disk(self) -> None:
        """Let one disk have hardly any room."""
        self._targets.leader().disk.is_full = True

    def spoil(self) -> bool:
        """Change an entry on a disk, where enough others are whole; often the server restarts."""
        server = self._targets.one()
        indexes = list(server.disk.content.logs)
        if not indexes or not self._may_harm(server):
            return False
        server.disk.spoil(indexes[self._scheduler.pick(len(indexes))])
        if self._scheduler.pick(2):
            server.crash()
            server.start()
        return True

    def spoil_in_power_cut(self) -> bool:
        """Cut the power of all, once or twice; one disk loses some of the newest it has stored.

        Nobody leads when that comes to light, so whoever lacks something is asked for its vote.
        """
        server, chance = self._targets.one(), self._scheduler.chance.random
        newest = sorted(server.disk.content.logs)[-_NEWEST:]
        if not newest or not self._may_harm(server):
            return False
        server.disk.spoil(newest[self._scheduler.pick(len(newest))])
        for _ in range(1 + self._scheduler.pick(2)):
            cut_power(self._cluster)
            self._scheduler.sleep(_SHORT_BREAK * chance())
        return True

    def wipe(self) -> bool:
        """Lose a disk with all that is on it, where enough others are whole."""
        server = self._targets.one()
        if not self._may_harm(server):
            return False
        server.lose("its disk is gone")
        server.disk.wipe()
        return True

    def come_back_empty(self) -> bool:
        """Lose a disk; the server comes back over an empty one, and nobody is told (departure 21).

        Often the others are cut off from each other then, so that its vote would decide.
        """
        server = self._targets.one()
        # A blank server rightly joins strangers, once some take it for a member of theirs.
        if self._cluster.network.strangers or not self._may_harm(server):
            return False
        if not may_forget(self._cluster, server):
            return False
        if self._scheduler.pick(2):
            self._cluster.cut_off([self._targets.leader()])
        server.forget()
        return True

    def lose_snapshots(self) -> bool:
        """Lose the snapshots of a server, most often of the leader; another may need them soon."""
        server = self._targets.leader() if self._scheduler.pick(3) else self._targets.one()
        if not server.disk.content.snapshots or not self._may_harm(server):
            return False
        server.disk.lose_snapshots()
        return True

    def _may_harm(self, server: SimServer) -> bool:
        return self._may_harm_now() and may_harm(self._cluster, server)


class ServerFaults:
    """Processes crash, stop for a while, and have wrong clocks."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._targets = Targets(cluster)
        self._world = SimRuntime(cluster.scheduler, "world")
        self._storms_until = 0.0
        self._fragile_until = 0.0
        self._fragile: dict[ServerID, None] = {}
        self.tasks: list[SimTask] = []
        cluster.on_leader = self._on_leader
        cluster.on_snapshot = self._on_snapshot
        cluster.network.on_vote = self._on_vote
        self.deck: Deck = [
            (4, self.crash_one),
            (4, self.crash_leader),
            (1, self.crash_all),
            (2, self.pause_one),
            (3, self.outlive_leader),
            (1, self.stutter),
            (1, self.jump_clock),
            (2, self.run_clocks_wild),
            (1, self.fail_restores),
            (6, self.storm),
            (2, self.crash_at_snapshots),
        ]

    def repair(self) -> None:
        """Have all processes run."""
        self._storms_until = self._fragile_until = 0.0
        self._fragile.clear()
        self._scheduler.spread = 1.0
        for server in self._cluster.servers.values():
            server.run_clock()
            if server.process is not None:
                server.process.resume()
            if server.fsm is not None:
                server.fsm.fails_to_restore = 0
        self._cluster.revive()

    def crash_one(self) -> None:
        """Crash a server; often it comes back at once."""
        server = self._targets.one()
        server.crash()
        if self._scheduler.pick(2):
            server.start()

    def crash_leader(self) -> None:
        """Crash the leader; sometimes it comes back at once."""
        server = self._targets.leader()
        server.crash()
        if not self._scheduler.pick(3):
            server.start()

    def crash_all(self) -> None:
        """Cut the power of all servers, and give it back."""
        cut_power(self._cluster)

    def pause_one(self) -> None:
        """Stop a process for a while, as SIGSTOP does."""
        server = self._targets.leader() if self._scheduler.pick(2) else self._targets.one()
        self._pause(server, 2.0 * self._scheduler.chance.random())

    def outlive_leader(self) -> bool:
        """Stop the leader until another one leads: what it then believes is out of date.

        Often all messages are slow before, so that answers come while it is stopped.
        """
        leader, network = self._cluster.leader(), self._cluster.network
        if leader is None or leader.process is None:
            return False
        process, scheduler = leader.process, self._scheduler
        slowness = network.slowness
        if scheduler.pick(2):
            network.slowness = _SLOW_BEFORE
            scheduler.sleep(_LONGEST_SLOWNESS * scheduler.chance.random())
        process.pause()
        network.slowness = slowness
        until = scheduler.now + _LONGEST_SUCCESSION
        while self._cluster.leader() is None and scheduler.now < until:
            scheduler.sleep(0.05)
        scheduler.sleep(_LONGEST_ABSENCE * scheduler.chance.random())
        process.resume()
        return True

    def stutter(self) -> None:
        """Stop a process again and again for a moment, as a held GIL does."""
        server, chance = self._targets.leader(), self._scheduler.chance.random
        at = 0.0
        for _ in range(1 + self._scheduler.pick(_MOST_STUTTERS)):
            seconds = _LONGEST_STUTTER * chance()
            self._scheduler.call_later(at, partial(self._pause, server, seconds))
            at += seconds + 0.3 * chance()

    def _pause(self, server: SimServer, seconds: float) -> None:
        process = server.process
        if process is not None:
            process.pause()
            self._scheduler.call_later(seconds, process.resume)

    def jump_clock(self) -> bool:
        """Set a server's time of day; nothing may depend on it."""
        process = self._targets.one().process
        if process is None:
            return False
        process.wall_offset += _LARGEST_JUMP * (2.0 * self._scheduler.chance.random() - 1.0)
        return True

    def run_clocks_wild(self) -> None:
        """Let every server's clock run at its own speed, from half to twice the right one.

        Often that of the leader is the slowest: it believes for long that it leads.
        """
        for server in self._cluster.servers.values():
            server.run_clock(_WILDEST ** (2.0 * self._scheduler.chance.random() - 1.0))
        if self._scheduler.pick(2):
            self._targets.leader().run_clock(1.0 / _WILDEST)

    def fail_restores(self) -> bool:
        """Let a state machine, or each, fail half way through the next snapshots."""
        machines = [s.fsm for s in self._cluster.servers.values() if s.fsm is not None]
        if not machines:
            return False
        if self._scheduler.pick(2):
            machines = [machines[self._scheduler.pick(len(machines))]]
        for fsm in machines:
            fsm.fails_to_restore = 1 + self._scheduler.pick(2)
        return True

    # ---- crashes at a certain moment ----

    def crash_at_snapshots(self) -> None:
        """For a while, crash many a server that has just made a snapshot durable."""
        self._fragile_until = self._scheduler.now + 2 * _STORM_SECONDS

    def crash_at_next_snapshot(self, server: SimServer) -> None:
        """Crash this server before it can do much with its next snapshot."""
        self._fragile[server.id] = None

    def _on_snapshot(self, server: SimServer) -> None:
        if server.id in self._fragile:
            del self._fragile[server.id]
            self._bounce(server, _BETWEEN_WRITES, 1.0)
        elif self._scheduler.now < self._fragile_until and self._scheduler.pick(2):
            self._bounce(server, self._scheduler.chance.choice((_BETWEEN_WRITES, 0.02)), 1.0)

    def storm(self) -> None:
        """For a while, crash whoever wins an election, and many who vote: Figure 3.7, again and
        again, and votes that are asked for twice. Often all who campaign do so at once, and what
        is written takes as long as a message.
        """
        scheduler, network = self._scheduler, self._cluster.network
        network.slowness = 1.0 + 15.0 * scheduler.chance.random()
        network.duplication = 0.5
        scheduler.spread = scheduler.chance.choice((1.0, 0.2, 0.05))
        self._slow_all_disks(scheduler.chance.choice((1.0, 10.0)))
        self._targets.leader().crash()
        if scheduler.pick(2):
            for server in self._cluster.servers.values():
                self._pause(server, _ALIGNING_SECONDS)  # all wake up at once, and wait once more
        self._storms_until = scheduler.now + _STORM_SECONDS
        for _ in range(2):
            scheduler.sleep(_STORM_SECONDS / 2)
            self._targets.one().revive()
        scheduler.spread = 1.0
        self._slow_all_disks(1.0)

    def _slow_all_disks(self, slowness: float) -> None:
        for server in self._cluster.servers.values():
            server.disk.slowness = slowness

    def _on_leader(self, server: SimServer) -> None:
        if self._scheduler.now < self._storms_until:
            self._bounce(server, 0.1, 1.0)
            self._bounce(self._targets.one(), 0.1, 0.02)

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
            self.tasks.append(self._world.spawn("nemesis-revive", server.start))

        self._scheduler.call_later(chance() * seconds, strike)
