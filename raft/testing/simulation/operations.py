"""What operators do to a simulated cluster: members, snapshots, transfers, restores, settings.

Each is asked of a node on a task of its process, and nobody waits for the answer but the oracle.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from raft.codec import encode_hard_state
from raft.engine.state import HARD_STATE_KEY
from raft.errors import NoSuchServerError, NotAppliedError, OutcomeUnknownError, SnapshotError
from raft.node import Raft
from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.faults import Deck, Targets
from raft.testing.simulation.harm import are_all_whole, may_forget
from raft.testing.simulation.machine import pack_state
from raft.testing.simulation.runtime import SimRuntime, SimTask, SimulationError
from raft.types import Configuration, ServerID, SnapshotMeta

_CALL_SECONDS = 4.0
_CATCH_UP_SECONDS = 8.0
_MOST_VOTERS = 6
_STRANGE_TERM = 50  # later than what a run gets to, mostly
_LONGEST_SWAP = 2.0  # seconds that two servers have each other's address
_LARGEST_LEAP = 40  # indexes by which a snapshot given by a user may be ahead

Action = Callable[[Raft], object]


class Operations:
    """Draws what operators ask for. Its methods run on a task of the world.

    A server that must not vote is rebuilt before the membership is changed otherwise, and nothing
    is harmed while a change is under way: else more could be lost than a majority survives.
    """

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._targets = Targets(cluster)
        self._world = SimRuntime(cluster.scheduler, "world")
        self._changing = 0  # changes and restores under way
        self._restores = 0
        self._reloaded: dict[ServerID, None] = {}
        self._given_up: dict[ServerID, None] = {}  # rebuilt under another id
        self._stranger: SimServer | None = None
        self._mistaken: dict[ServerID, None] = {}  # members that the stranger was told of
        self.rebuilt = 0
        self.tasks: list[SimTask] = []
        self.deck: Deck = [
            (6, self.change_membership),
            (2, self.take_snapshot),
            (3, self.transfer_leadership),
            (3, self.restore),
            (1, self.reload_settings),
            (1, self.mistake),
            (1, self.swap_addresses),
        ]

    def repair(self) -> None:
        """Set all settings back, and have what is lost rebuilt."""
        for server_id in self._reloaded:
            server = self._cluster.servers[server_id]
            if server.is_up():
                self._spawn(partial(settings_back, server))
        self._reloaded.clear()
        if self._changing == 0 and self.lost():
            self._spawn(lambda: self.rebuild(self.lost()[0]))

    def is_quiet(self) -> bool:
        """Tell whether no change and no restore is under way."""
        return self._changing == 0

    def lost(self) -> list[SimServer]:
        """Return the servers that must be rebuilt."""
        return [s for s in self._cluster.servers.values() if s.lost and s.id not in self._given_up]

    # ---- asking ----

    def _spawn(self, target: Callable[[], object]) -> None:
        self._changing += 1

        def run() -> None:
            try:
                target()
            finally:
                self._changing -= 1

        self.tasks.append(self._world.spawn("operator", run))

    def _ask(self, server: SimServer, action: Action, seconds: float = _CALL_SECONDS) -> object:
        """Ask a node for something and return the answer; `OutcomeUnknownError` for none."""
        has_ended, outcome = server.call(action, seconds + 2.0)
        if not has_ended:
            outcome = OutcomeUnknownError("no answer")
        self._scheduler.note(f"{server.id} answered {outcome!r}")
        return outcome

    # ---- membership ----

    def change_membership(self) -> bool:
        """Have the leader make a membership change, or several that are asked for at once."""
        leader = self._cluster.leader()
        if leader is None or leader.node is None or not are_all_whole(self._cluster):
            return False
        configuration = leader.node.get_configuration().result()
        changes = [
            draw_change(configuration, target, self._scheduler.pick(3), self._scheduler.pick(2) > 0)
            for target in self._targets.some(1 if self._scheduler.pick(3) else 2)
        ]
        if not self._scheduler.pick(4):
            self._cluster.cut_off([leader])  # what it appends now is truncated later
        for change in changes:
            if change is not None:
                self._spawn(partial(self._ask, leader, change, _CATCH_UP_SECONDS))
        return any(changes)

    def rebuild(self, server: SimServer) -> bool:
        """Remove a lost server, and add it anew, empty, or another one in its place.

        False when the removal is not known to be committed: a server that has forgotten its vote
        must not come back before.
        """
        leader = self._cluster.leader()
        if leader is None:
            return False
        seconds = _CALL_SECONDS / 2

        def remove(node: Raft) -> None:
            try:
                node.remove_server(server.id, 0, seconds).result(4)
            except NoSuchServerError:
                node.verify_leader().result(4)  # then an earlier call has removed it, committed

        removal = self._ask(leader, remove)
        if isinstance(removal, Exception):
            return False
        self.rebuilt += 1
        fresh = server
        is_mistaken = server.id in self._mistaken  # a blank server would rightly join strangers
        if not is_mistaken and may_forget(self._cluster, server) and self._scheduler.pick(2):
            server.blank()
        else:
            self._given_up[server.id] = None
            # Often at the same address: what is meant for the old one must not be answered.
            same = not is_mistaken and self._scheduler.pick(2)
            fresh = self._cluster.add(server.address if same else "")
        fresh.start()
        self._ask(leader, add_caught_up(fresh), _CATCH_UP_SECONDS)
        return True

    # ---- the rest ----

    def take_snapshot(self) -> None:
        """Have a node take a snapshot now."""
        server = self._targets.one()
        self._spawn(lambda: self._ask(server, lambda node: node.snapshot().result(_CALL_SECONDS)))

    def transfer_leadership(self) -> bool:
        """Have the leader hand over, to anybody or to a certain server."""
        leader, target = self._cluster.leader(), self._targets.one()
        if leader is None:
            return False
        action = transfer_to(target) if self._scheduler.pick(2) else transfer_to_anybody
        self._spawn(lambda: self._ask(leader, action))
        return True

    def restore(self) -> bool:
        """Have the whole cluster start over from a snapshot of some state of before."""
        leader = self._cluster.leader()
        ask = None if leader is None else self.plan_restore(leader)
        if ask is not None:
            ask()
        return ask is not None

    def plan_restore(
        self, leader: SimServer, *, may_fail: bool = True
    ) -> Callable[[], None] | None:
        """Return what has a leader restore some state of before; None when it may not be asked."""
        source = self._targets.one()
        if leader.node is None or source.fsm is None:
            return None
        if not self.is_quiet() or not are_all_whole(self._cluster):
            return None
        self._restores += 1
        mark = b"restore-%d" % self._restores
        logs = source.fsm.logs()
        data = pack_state(mark, logs[: self._scheduler.pick(len(logs) + 1)])
        index = leader.node.last_index() + self._scheduler.pick(_LARGEST_LEAP)
        meta = SnapshotMeta("by-user", index, 1, Configuration(), 0, len(data))
        flaw = self._scheduler.pick(6)
        if not may_fail:
            pass
        elif flaw < 2:
            data = b"\xff" * len(data)  # a backup that no state machine can read
        elif flaw == 2 and leader.fsm is not None:
            leader.fsm.fails_to_restore = 1  # once: later it could be read, and must not be there
        return lambda: self._spawn(lambda: self._restore(leader, mark, meta, data))

    def _restore(self, leader: SimServer, mark: bytes, meta: SnapshotMeta, data: bytes) -> None:
        oracle, is_spoilt = self._cluster.oracle, data.startswith(b"\xff")
        outcome = self._ask(leader, lambda node: node.restore(meta, io.BytesIO(data)), 8.0)
        if outcome is None and not is_spoilt:
            oracle.restored(mark)
        elif isinstance(outcome, NotAppliedError | SnapshotError):
            oracle.restore_refused(mark)
            if self._scheduler.pick(2):
                leader.crash()  # before another snapshot takes the place of a copy left behind
                leader.start()
        elif not isinstance(outcome, OutcomeUnknownError):
            self._scheduler.stop(SimulationError(f"restore was answered by {outcome!r}"))

    def compact(self, server: SimServer) -> None:
        """Have a node take a snapshot, and from now on keep nothing that one covers."""

        def compact(node: Raft) -> object:
            node.reload_config(replace(node.reloadable_config(), trailing_logs=0))
            return node.snapshot().result(_CALL_SECONDS)

        self._reloaded[server.id] = None
        self._spawn(partial(self._ask, server, compact))

    def reload_settings(self) -> None:
        """Give a node other timeouts, and another idea of when to take snapshots."""
        server, chance = self._targets.one(), self._scheduler.chance
        heartbeat = server.config.heartbeat_timeout * (0.8 + 0.8 * chance.random())
        election = heartbeat * (1.0 + 0.5 * chance.random())
        threshold, trailing = chance.choice((4, 30)), chance.choice((0, 1, 20))

        def reload(node: Raft) -> None:
            node.reload_config(
                replace(
                    node.reloadable_config(),
                    heartbeat_timeout=heartbeat,
                    election_timeout=election,
                    snapshot_threshold=threshold,
                    trailing_logs=trailing,
                )
            )

        self._reloaded[server.id] = None
        self._spawn(lambda: self._ask(server, reload))

    def mistake(self) -> bool:
        """Have the leader of another cluster take one of our servers for a member of its own."""
        victim = self._targets.one()
        if not victim.disk.content.logs or self._stranger is not None:
            return False
        self._stranger = stranger = start_stranger(self._cluster)
        self._mistaken[victim.id] = None
        self._spawn(partial(self._let_in, stranger, victim))
        return True

    def swap_addresses(self) -> bool:
        """Start two servers under each other's address, for a while."""
        pair = self._targets.some(2)
        if len(pair) < 2 or not self.is_quiet() or self.lost():
            return False  # others shall know servers by their right address
        for seconds in (_LONGEST_SWAP * self._scheduler.chance.random(), 0.0):
            for server in pair:
                server.crash()
            pair[0].address, pair[1].address = pair[1].address, pair[0].address
            for server in pair:
                server.start()
            self._scheduler.sleep(seconds)
        return True

    def _let_in(self, stranger: SimServer, victim: SimServer) -> None:
        self._scheduler.sleep(1.0)  # until it leads
        self._ask(stranger, lambda node: node.add_nonvoter(victim.id, victim.address).result(4))


def start_stranger(cluster: SimCluster) -> SimServer:
    """Start a cluster of one server, in the same network and in a much later term."""
    other = SimCluster(cluster.scheduler, cluster.configure, "stranger", cluster.network)
    stranger = other.add()
    cluster.network.strangers[stranger.id] = None
    other.bootstrap([stranger], "another cluster")
    stranger.disk.content.values[HARD_STATE_KEY] = encode_hard_state(_STRANGE_TERM, "", "")
    stranger.start()
    return stranger


def settings_back(server: SimServer) -> None:
    """Give a node the settings that it was started with."""

    def reload(node: Raft) -> None:
        original, settings = server.config, node.reloadable_config()
        names = settings.__slots__
        node.reload_config(replace(settings, **{name: getattr(original, name) for name in names}))

    server.call(reload, _CALL_SECONDS)


def transfer_to_anybody(node: Raft) -> object:
    """Have a leader hand over to whom it chooses."""
    return node.leadership_transfer().result(_CALL_SECONDS)


def transfer_to(target: SimServer) -> Action:
    """Return the call that hands leadership to a server."""
    return lambda node: node.leadership_transfer_to_server(target.id, target.address).result(
        _CALL_SECONDS
    )


def add_caught_up(server: SimServer) -> Action:
    """Return the call that adds a voter once it has the log."""
    return lambda node: node.add_voter(
        server.id, server.address, 0, _CATCH_UP_SECONDS / 2, catch_up=True
    ).result(_CATCH_UP_SECONDS)


def draw_change(
    configuration: Configuration, target: SimServer, kind: int, catch_up: bool = False
) -> Action | None:
    """Return the membership change of this kind, one of three, that fits a server; or none."""
    seconds = _CALL_SECONDS / 2
    voters = len(configuration.voters())
    is_voter = configuration.has_vote(target.id)
    if configuration.server(target.id) is None or (kind == 0 and not is_voter):
        if kind == 2 or voters >= _MOST_VOTERS:
            return lambda n: n.add_nonvoter(target.id, target.address, 0, seconds).result(4)
        if catch_up:
            return add_caught_up(target)
        return lambda n: n.add_voter(target.id, target.address, 0, seconds).result(4)
    if voters <= 2 and is_voter:
        return None
    if kind == 1:
        return lambda n: n.demote_voter(target.id, 0, seconds).result(4)
    return lambda n: n.remove_server(target.id, 0, seconds).result(4)
