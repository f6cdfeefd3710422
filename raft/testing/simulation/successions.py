"""Faults that take a leader from its cluster at a bad moment, until the others have another one."""

from __future__ import annotations

from collections.abc import Callable

from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.faults import Deck, ServerFaults
from raft.testing.simulation.harm import may_harm
from raft.testing.simulation.operations import Action, Operations
from raft.testing.simulation.runtime import SimRuntime
from raft.types import EntryID

_LONGEST_SUCCESSION = 3.0  # seconds that the others are given to elect somebody
_LONGEST_STORING = 1.0  # seconds that a leader is given to store what it is to restore
_LONGEST_SHOW = 0.2  # seconds that an uncommitted restore is there before its leader is lost
_MOST_BARRIERS = 6  # that a leader appends in vain
_LONGEST_ANSWER = 3.0
_LONGEST_DELUSION = 1.0  # seconds that a leader believes to lead beside another one
_FAST, _SLOW = 2.0, 0.2  # speeds of clocks
_LOOK_PERIOD = 0.02  # seconds between two looks


class Successions:
    """Each runs on the nemesis' own task, so that nothing else strikes before it is over."""

    def __init__(self, cluster: SimCluster, operations: Operations, servers: ServerFaults) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._operations = operations
        self._servers = servers
        self._world = SimRuntime(cluster.scheduler, "world")
        self.deck: Deck = [
            (4, self.restore_in_vain),
            (2, self.outdate_leader),
            (2, self.delude_leader),
            (3, self.lose_needed_snapshots),
        ]

    def repair(self) -> None:
        """Undo nothing: networks, disks and processes are others' to repair."""

    def restore_in_vain(self) -> bool:
        """Lose a leader between a user's restore and its commit, as often with those who have it.

        Either it is cut off before, or what it restores takes long to send, so that the others
        hear it lead while they do not have that. Afterwards who was lost may start once more.
        """
        leader, chance = self._cluster.leader(), self._scheduler.chance.random
        plan = self._operations.plan_restore
        restore = None if leader is None else plan(leader, may_fail=False)
        if leader is None or restore is None:
            return False
        side = self._minority(leader)
        if len(side) > 1:  # the others hear it lead, and do not get what it sends
            ways = self._cluster.network.ways
            for other in self._others(side):
                ways.swallowing[leader.address, other.address] = None
        elif self._scheduler.pick(2):
            self._cluster.cut_off(side)
        else:
            self._cluster.network.snapshot_slowness = 10.0 ** (1.0 + 2.0 * chance())
        restore()
        self._wait(leader.disk.has_unsettled, _LONGEST_STORING)
        self._wait(lambda: all(_holds_what(leader, each) for each in side), _LONGEST_STORING)
        self._scheduler.sleep(_LONGEST_SHOW * chance())
        self._lose(side)
        self._cluster.network.ways.swallowing.clear()
        self._wait(lambda: self._successor(side) is not None, _LONGEST_SUCCESSION)
        self._scheduler.sleep(0.5 * chance())
        self._bring_back(side)
        return True

    def outdate_leader(self) -> bool:
        """Cut a leader off while it appends what nobody else gets, and compact the others' logs.

        It needs a snapshot then that ends where it has entries of its own. That may come twice, the
        second time late, or fail to be restored at first; and often whoever has stored one crashes
        before the log is dropped.
        """
        leader, network = self._cluster.leader(), self._cluster.network
        if leader is None:
            return False
        side = self._minority(leader)
        self._cluster.cut_off(side)
        for _ in range(_MOST_BARRIERS):
            self._ask_soon(leader, lambda node: node.barrier(1.0).result(1.0))
        self._wait(lambda: self._successor(side) is not None, _LONGEST_SUCCESSION)
        successor = self._successor(side)
        if successor is not None:
            self._wait(lambda: _has_committed(successor), _LONGEST_STORING)
            for server in self._others(side):
                self._operations.compact(server)
        self._scheduler.sleep(0.2 * self._scheduler.chance.random())
        if self._scheduler.pick(2):
            self._servers.crash_at_next_snapshot(leader)
        elif leader.fsm is not None:
            leader.fsm.fails_to_restore = self._scheduler.pick(2)
        network.duplication = 0.5 * self._scheduler.pick(2)
        network.heal()
        return True

    def delude_leader(self) -> bool:
        """Let all to a leader with a slow clock come late, and the others have fast ones.

        They have another leader before it hears what they have answered to it as followers.
        """
        leader, chance = self._cluster.leader(), self._scheduler.chance.random
        if leader is None:
            return False
        for server in self._others([leader]):
            server.run_clock(_FAST)
        leader.run_clock(_SLOW)
        self._cluster.network.ways.lag[leader.address] = 0.8 + 0.6 * chance()
        self._wait(lambda: self._successor([leader]) is not None, _LONGEST_SUCCESSION)
        self._scheduler.sleep(_LONGEST_DELUSION * chance())
        self._cluster.network.ways.lag.clear()
        return True

    def lose_needed_snapshots(self) -> bool:
        """Have a leader lose its snapshots while somebody needs one: it must take another.

        Nobody else does, where nobody takes any without being asked.
        """
        leader = self._cluster.leader()
        if leader is None or not self._operations.is_quiet() or not may_harm(self._cluster, leader):
            return False
        others = self._others([leader])
        laggard = others[self._scheduler.pick(len(others))]
        self._cluster.cut_off([laggard])
        for _ in range(_MOST_BARRIERS):
            self._ask_soon(leader, lambda node: node.barrier(1.0).result(1.0))
        self._scheduler.sleep(_LONGEST_SHOW)
        self._operations.compact(leader)
        self._wait(lambda: _lacks_what_follows(leader, laggard), _LONGEST_STORING)
        leader.disk.lose_snapshots()
        self._cluster.network.heal()
        return True

    # ---- parts ----

    def _ask_soon(self, server: SimServer, action: Action) -> None:
        """Ask a node for something, without waiting."""

        def ask() -> None:
            server.call(action, _LONGEST_ANSWER)

        self._world.spawn("nemesis-ask", ask)

    def _minority(self, leader: SimServer) -> list[SimServer]:
        """Draw who shares a leader's fate: too few to elect anybody."""
        if leader.node is None:
            return [leader]
        voters = leader.node.get_configuration().result().voters()
        others = [self._cluster.servers[v.id] for v in voters if v.id != leader.id]
        most = max(1, (len(voters) - 1) // 2)
        count = max(self._scheduler.pick(most), self._scheduler.pick(most))
        return [leader, *self._scheduler.chance.sample(others, count)]

    def _others(self, side: list[SimServer]) -> list[SimServer]:
        return [server for server in self._cluster.servers.values() if server not in side]

    def _lose(self, side: list[SimServer]) -> None:
        """Cut these off, or crash them."""
        if self._scheduler.pick(2):
            self._cluster.cut_off(side)
            return
        for server in side:
            server.crash()

    def _bring_back(self, side: list[SimServer]) -> None:
        """Have them run, often from the start, and sometimes heard again."""
        if self._scheduler.pick(2):
            for server in side:
                server.crash()
        for server in side:
            server.revive()
        if self._scheduler.pick(2):
            self._cluster.network.heal()

    def _successor(self, side: list[SimServer]) -> SimServer | None:
        others = self._others(side)
        return next((s for s in others if s.is_leader() and s.is_running()), None)

    def _wait(self, predicate: Callable[[], bool], seconds: float) -> None:
        until = self._scheduler.now + seconds
        while not predicate() and self._scheduler.now < until:
            self._scheduler.sleep(_LOOK_PERIOD)


def _lacks_what_follows(leader: SimServer, laggard: SimServer) -> bool:
    """Tell whether a leader can bring a server up by a snapshot alone."""
    content = leader.disk.content
    first = min(content.logs, default=leader.disk.last_entry().index + 1)
    return bool(content.snapshots) and first > laggard.disk.last_entry().index + 1


def _holds_what(leader: SimServer, other: SimServer) -> bool:
    """Tell whether a server has the snapshot that a leader was given."""
    ends = [(m.term, m.index) for m, _ in other.disk.content.snapshots.values() if m.unsettled]
    given = [(m.term, m.index) for m, _ in leader.disk.content.snapshots.values() if m.unsettled]
    return not given or given[0] in ends or other.disk.last_entry() >= EntryID(*given[0])


def _has_committed(server: SimServer) -> bool:
    """Tell whether a leader has committed an entry of its own term."""
    if server.node is None:
        return True  # it is gone
    log = server.disk.content.logs.get(server.node.commit_index())
    return log is not None and log.term == server.node.current_term()
