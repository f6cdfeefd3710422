"""What clients were told, held against what the state machines did: the client oracle.

Every command is sent once, under a name of its own, and every restore has its own mark. A state is
known by its *version*: the index of the newest command or user restore in it. As entries at equal
indexes are equal everywhere (`raft.testing.invariants`), a state of a higher version holds all of a
lower one, unless a user restore came in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from raft.errors import RaftError
from raft.testing.simulation.machine import NO_MARK, MarkedFSM, unpack_state
from raft.types import NO_INDEX, Log, ServerID, SnapshotMeta


class Floor(NamedTuple):
    """What a read must show at least."""

    version: int = NO_INDEX
    restore: int = NO_INDEX  # where the newest user restore stands that has certainly happened


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
        self._floor = Floor()  # of every read from now on

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
        try:
            mark, _ = unpack_state(data)
        except (ValueError, RaftError):
            return  # a backup that nobody can read: no state goes back to it
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
        self._raise_floor(index)

    def refused(self, command: bytes) -> None:
        """Note that a command certainly has no effect."""
        self.commands.refused[command] = None
        if command in self._applied:
            self._fail(f"oracle: {command!r} was refused, but is at {self._applied[command]}")

    def restored(self, mark: bytes) -> None:
        """Note that a user was told that a restore has taken hold."""
        index = self._restore_indexes[mark]
        self.restores.acknowledged[mark] = index
        self._raise_floor(index, index)

    def restore_refused(self, mark: bytes) -> None:
        """Note that a restore certainly has no effect."""
        self.restores.refused[mark] = None
        if mark in self._shown:
            self._fail(f"oracle: restore {mark!r} was refused, but a state machine showed it")

    # ---- reads: linearizable ----

    def begin_read(self) -> Floor:
        """Return what a read that begins now must show at least."""
        return self._floor

    def end_read(self, node: ServerID, fsm: MarkedFSM, floor: Floor) -> None:
        """Check what a read shows; the next one must not show less.

        A user restore that it shows has happened: a state that does not go back to it, or to a
        later one, is a lie from now on, however many commands it has.
        """
        self.reads += 1
        version, restore = self.version(fsm), self._restore_indexes[fsm.mark]
        if version < floor.version:
            self._fail(
                f"oracle: stale read at {node}: version {version}, {floor.version} was known before"
            )
        if restore < floor.restore:
            self._fail(
                f"oracle: {node} shows a state of restore {fsm.mark!r} at {restore}, but the one"
                f" at {floor.restore} was shown or acknowledged before"
            )
        self._raise_floor(version, restore)

    def _raise_floor(self, version: int, restore: int = NO_INDEX) -> None:
        self._floor = Floor(max(self._floor.version, version), max(self._floor.restore, restore))

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
            if self._floor.restore > begin:
                found.append(f"{node} lost the restore at {self._floor.restore}, known to users")
        states = {(fsm.mark, tuple(fsm.commands())) for fsm in machines.values()}
        if len(states) > 1:
            found.append("the state machines differ")
        return found
