"""What clients were told, held against what the state machines did: the client oracle.

Every command is sent once, under a name of its own, and every restore has its own mark. A state is
known by its *version*: the index of the newest command or user restore in it. As entries at equal
indexes are equal everywhere (`raft.testing.invariants`), a state of a higher version holds all of a
lower one, unless a user restore came in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raft.testing.simulation.machine import NO_MARK, MarkedFSM, unpack_state
from raft.types import NO_INDEX, Log, ServerID, SnapshotMeta


@dataclass(slots=True)
class Told:
    """What clients were told about their commands, or users about their restores."""

    acknowledged: dict[bytes, int] = field(default_factory=dict)  # with their indexes
    refused: dict[bytes, None] = field(default_factory=dict)  # certainly without effect
    unknown: dict[bytes, None] = field(default_factory=dict)


class Oracle:
    """Finds lies to clients while the cluster runs, and at its end. `fail` is told each.

    Called between two switch points, so that nothing else happens meanwhile.
    """

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self.commands = Told()
        self.restores = Told()
        self.reads = 0
        self._applied: dict[bytes, int] = {}  # every command that some FSM has applied
        self._counts: dict[int, int] = {}  # of the commands in a state, by its newest index
        self._restore_indexes: dict[bytes, int] = {NO_MARK: NO_INDEX}
        self._shown: dict[bytes, None] = {}  # marks that some FSM has taken over
        self._floor = NO_INDEX  # the version that every read from now on must have

    # ---- what the state machines do ----

    def applied(self, node: ServerID, log: Log, count: int | None = None) -> None:
        """Note that an FSM takes a command in: by itself, as its `count`th, or in a snapshot."""
        if count is not None and self._counts.setdefault(log.index, count) != count:
            there = self._counts[log.index]
            self._fail(f"oracle: {node} holds {count} commands at {log.index}, others {there}")
        index = self._applied.setdefault(log.data, log.index)
        if index != log.index:
            self._fail(f"oracle: {log.data!r} stands at {index} and, for {node}, at {log.index}")
        if log.data in self.commands.refused:
            self._fail(f"oracle: {node} applied {log.data!r}, which was certainly not applied")

    def restore_stored(self, meta: SnapshotMeta, data: bytes) -> None:
        """Note where a user restore stands; told of every snapshot about to be stored.

        The first one with a mark is the restore's own, whatever it says of itself.
        """
        mark, _ = unpack_state(data)
        self._restore_indexes.setdefault(mark, meta.index)

    def marked(self, node: ServerID, mark: bytes) -> None:
        """Note that an FSM takes over a state with this mark."""
        self._shown[mark] = None
        if mark in self.restores.refused:
            self._fail(f"oracle: {node} shows restore {mark!r}, which certainly had no effect")

    # ---- what clients are told ----

    def acknowledged(self, command: bytes, index: int) -> None:
        """Note an acknowledgement, by somebody who has applied the command."""
        self.commands.acknowledged[command] = index
        if self._applied.get(command) != index:
            at = self._applied.get(command)
            self._fail(f"oracle: {command!r} was acknowledged at {index}, but was applied at {at}")
        self._floor = max(self._floor, index)

    def refused(self, command: bytes) -> None:
        """Note that a command certainly has no effect."""
        self.commands.refused[command] = None
        if command in self._applied:
            self._fail(f"oracle: {command!r} was refused, but is at {self._applied[command]}")

    def restored(self, mark: bytes) -> None:
        """Note that a user was told that a restore has taken hold."""
        index = self._restore_indexes[mark]
        self.restores.acknowledged[mark] = index
        self._floor = max(self._floor, index)

    def restore_refused(self, mark: bytes) -> None:
        """Note that a restore certainly has no effect."""
        self.restores.refused[mark] = None
        if mark in self._shown:
            self._fail(f"oracle: restore {mark!r} was refused, but a state machine showed it")

    # ---- reads: linearizable ----

    def begin_read(self) -> int:
        """Return the version that a read which begins now must see at least."""
        return self._floor

    def end_read(self, node: ServerID, fsm: MarkedFSM, floor: int) -> None:
        """Check what a read shows; the next one must not show less."""
        self.reads += 1
        version = self.version(fsm)
        if version < floor:
            self._fail(f"oracle: stale read at {node}: version {version}, {floor} was known before")
        self._floor = max(self._floor, version)

    def version(self, fsm: MarkedFSM) -> int:
        """Return how new a state is."""
        return max(fsm.last_index(), self._restore_indexes[fsm.mark])

    # ---- the end ----

    def faults(self, machines: Mapping[ServerID, MarkedFSM]) -> list[str]:
        """Compare with what each state machine holds at the end; return what is wrong."""
        found = []
        for node, fsm in machines.items():
            begin = self._restore_indexes[fsm.mark]
            held = {log.data: log.index for log in fsm.logs()}
            if len(held) < len(fsm.logs()):
                found.append(f"{node} holds a command twice")
            found += [
                f"{node} lost acknowledged {command!r} at {index}"
                for command, index in self.commands.acknowledged.items()
                if index > begin and held.get(command) != index
            ]
            found += [
                f"{node} lost acknowledged restore {mark!r} at {index}"
                for mark, index in self.restores.acknowledged.items()
                if index > begin
            ]
        states = {(fsm.mark, tuple(fsm.commands())) for fsm in machines.values()}
        if len(states) > 1:
            found.append("the state machines differ")
        return found
