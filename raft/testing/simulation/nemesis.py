"""Who draws the faults: one after the other, with pauses, and now and then everything is repaired.

At the end all is healed that can heal; what is lost for good is rebuilt as an operator would.
"""

from __future__ import annotations

from raft.testing.simulation.cluster import SimCluster
from raft.testing.simulation.faults import DiskFaults, Fault, NetworkFaults, ServerFaults
from raft.testing.simulation.harm import configurations
from raft.testing.simulation.operations import Operations
from raft.testing.simulation.runtime import SimulationError
from raft.testing.simulation.successions import Successions

_LONGEST_PEACE = 1.0  # seconds between two faults
_REPAIR_CHANCE = 0.45  # that everything is repaired before the next fault
_REBUILD_SECONDS = 60.0  # that healing and rebuilding may take at the end


class Nemesis:
    """Draws faults from the seed. Its methods run on a task of the world."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._operations = Operations(cluster)
        self._servers = ServerFaults(cluster)
        self._groups = (
            self._servers,
            NetworkFaults(cluster),
            DiskFaults(cluster, self._operations.is_quiet),
            self._operations,
            Successions(cluster, self._operations, self._servers),
        )
        # How often each fault struck.
        self.counts = {fault.__name__: 0 for group in self._groups for _, fault in group.deck}

    @property
    def count(self) -> int:
        """How many faults have struck."""
        return sum(self.counts.values())

    @property
    def rebuilt(self) -> int:
        """How many servers were rebuilt."""
        return self._operations.rebuilt

    def run(self, until: float) -> None:
        """Let faults strike until a moment."""
        scheduler = self._scheduler
        deck = [
            fault for group in self._groups for weight, fault in group.deck for _ in range(weight)
        ]
        while scheduler.now < until:
            scheduler.sleep(scheduler.chance.random() * _LONGEST_PEACE)
            if scheduler.chance.random() < _REPAIR_CHANCE:
                self.repair()
                scheduler.sleep(scheduler.chance.random() * _LONGEST_PEACE)
            self._strike(deck[scheduler.pick(len(deck))])

    def _strike(self, fault: Fault) -> None:
        name = fault.__name__
        self._scheduler.note(f"fault {name}")
        if fault() is not False:
            self.counts[name] += 1

    def repair(self) -> None:
        """Undo every fault: all servers that are not lost are up and reach each other."""
        self._scheduler.note("repair")
        for group in self._groups:
            group.repair()

    def end(self) -> None:
        """Repair everything, wait for what operators asked for, and rebuild what is lost."""
        self.repair()
        until = self._scheduler.now + _REBUILD_SECONDS
        self._join()
        while not self._is_healed():
            if self._scheduler.now > until:
                raise SimulationError(f"not healed in time: {self._cluster.describe()}")
            self.repair()
            self._join()
            self._scheduler.sleep(_LONGEST_PEACE)
        self.repair()

    def _join(self) -> None:
        for task in (*self._servers.tasks, *self._operations.tasks):
            task.join()

    def _is_healed(self) -> bool:
        """Tell whether nothing is lost, and no user restore may yet turn out to be.

        Nodes whose log was spoiled heal by themselves; that is a part of the recovery.
        """
        members = {s.id for c in configurations(self._cluster) for s in c.servers}
        return not self._operations.lost() and not any(
            server.disk.has_unsettled()
            for i, server in self._cluster.servers.items()
            if i in members
        )
