"""What goes wrong in the torture bench: which fault when, and how all of them are undone."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.torture.links import Pair
from tests.torture.servers import Disk, ServerProcess, World

SECOND_FAULT_CHANCE = 0.3
HEAL_SECONDS = 60.0


class Nemesis:
    """Strikes, waits, repairs, again and again. Durations are in seconds."""

    def __init__(self, world: World, seed: int, longest: float, longest_peace: float) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._longest = longest
        self._longest_peace = longest_peace
        self._pause = threading.Event()
        self._is_out: set[str] = set()  # servers that were removed or demoted
        self._may_come_back: set[str] = set()  # servers that were asked for without an answer
        self.counts: Counter[str] = Counter()
        self._deck: list[Callable[[], None]] = [
            fault
            for weight, fault in (
                (3, self.kill_one),
                (3, self.kill_leader),
                (1, self.kill_all),
                (1, self.pause_one),
                (2, self.pause_leader),
                (2, self.halve),
                (2, self.isolate_leader),
                (2, self.close_one_way),
                (2, self.bridge),
                (2, self.slow_links),
                (1, self.cut_connections),
                (2, self.remove_server),
                (1, self.wipe_removed_server),
                (1, self.demote_voter),
                (2, self.fall_behind),
                (2, self.transfer),
                (1, self.fill_disk_almost),
                (1, self.fill_disk),
                (2, self.fail_syncs),
                (1, self.hang_syncs),
            )
            for _ in range(weight)
        ]

    def run(self, until: float) -> None:
        """Let faults strike until a moment of the monotonic clock; then repair."""
        hand: list[Callable[[], None]] = []
        while time.monotonic() < until:
            for _ in range(2 if self._chance.random() < SECOND_FAULT_CHANCE else 1):
                if not hand:  # the whole deck is played before it is shuffled anew
                    hand = self._chance.sample(self._deck, len(self._deck))
                fault = hand.pop()
                self.counts[fault.__name__] += 1
                fault()
            self._wait(self._longest)
            self.repair()
            self._wait(self._longest_peace)

    def _wait(self, longest: float) -> None:
        self._pause.wait(longest * (0.2 + 0.8 * self._chance.random()))

    def repair(self) -> None:
        """Undo every fault that can be undone at once, and ask for the members that are out."""
        self._world.links.heal()
        for server in self._world.servers.values():
            server.set_disk(Disk.FINE)
            server.resume()
            server.start()
        self._take_in()

    def end(self) -> None:
        """Repair everything, and wait until all servers are voters of one cluster again."""

        def is_whole() -> bool:
            self.repair()
            leader = self._world.leader()
            if leader is None:
                return False
            servers = leader.status.get("servers", {})
            self._is_out = {name for name in self._world.servers if servers.get(name) != "VOTER"}
            return not self._is_out

        self._world.wait_for("all servers as voters", is_whole, HEAL_SECONDS)

    def _take_in(self) -> None:
        """Ask the leader for who is out; whom it does not get now it is asked for again."""
        leader = self._world.leader()
        for name in sorted(self._is_out):
            if leader is None:
                return
            answer = leader.ask({"do": "add", "server": name})
            if "ok" in answer:
                self._is_out.discard(name)
            elif "refused" not in answer:
                self._may_come_back.add(name)

    # ---- whom ----

    def _one(self) -> ServerProcess:
        return self._chance.choice(list(self._world.servers.values()))

    def _leader(self) -> ServerProcess:
        return self._world.leader() or self._one()

    def _follower(self) -> ServerProcess:
        leader = self._world.leader()
        return self._chance.choice([s for s in self._world.servers.values() if s is not leader])

    # ---- processes ----

    def kill_one(self) -> None:
        """End any process; half the time it is back at once."""
        self._kill(self._one())

    def kill_leader(self) -> None:
        """End the leader's process; half the time it is back at once."""
        self._kill(self._leader())

    def _kill(self, server: ServerProcess) -> None:
        server.kill()
        if self._chance.random() < 0.5 and server.disk is Disk.FINE:
            server.start()

    def kill_all(self) -> None:
        """End all processes, and start them again."""
        for server in self._world.servers.values():
            server.kill()
        self._may_come_back.clear()  # who was asked is no more
        for server in self._world.servers.values():
            if server.disk is Disk.FINE:
                server.start()

    def pause_one(self) -> None:
        """Stop any process for a while."""
        self._one().pause()

    def pause_leader(self) -> None:
        """Stop the leader's process for a while: it goes on believing that it leads."""
        self._leader().pause()

    # ---- links ----

    def halve(self) -> None:
        """Cut the cluster in two."""
        servers = list(self._world.servers)
        self._chance.shuffle(servers)
        middle = self._chance.randint(1, len(servers) - 1)
        self._world.links.close(between(servers[:middle], servers[middle:]))

    def isolate_leader(self) -> None:
        """Cut the leader off from all others."""
        leader = self._leader().id
        others = [name for name in self._world.servers if name != leader]
        self._world.links.close(between([leader], others))

    def close_one_way(self) -> None:
        """Let one server not be heard, or not hear."""
        one = self._leader().id if self._chance.random() < 0.5 else self._one().id
        ways = [(one, name) for name in self._world.servers if name != one]
        if self._chance.random() < 0.5:
            ways = [(b, a) for a, b in ways]
        self._world.links.close(ways)

    def bridge(self) -> None:
        """Cut the cluster in two, but for one server that reaches both sides."""
        servers = list(self._world.servers)
        self._chance.shuffle(servers)
        middle = len(servers) // 2
        self._world.links.close(between(servers[:middle], servers[middle + 1 :]))

    def slow_links(self) -> None:
        """Let all that one server sends and hears take longer."""
        one = self._one().id
        ways = between([one], [name for name in self._world.servers if name != one])
        self._world.links.slow(ways, 0.2 * self._chance.random())

    def cut_connections(self) -> None:
        """End every connection there is."""
        names = list(self._world.servers)
        self._world.links.cut([(a, b) for a in names for b in names if a != b])

    # ---- members ----

    def remove_server(self) -> None:
        """Have a server removed; it comes back with what it has."""
        self._remove()

    def wipe_removed_server(self) -> None:
        """Have a server removed; once that is sure, it comes back with nothing."""
        removed = self._remove()
        # A voter that forgets its vote breaks what Raft relies on: never one that may be a voter.
        if removed is not None and removed.id not in self._may_come_back:
            removed.kill()
            removed.wipe()

    def _remove(self) -> ServerProcess | None:
        """Return whom the leader has certainly removed."""
        target = self._one()
        self._is_out.add(target.id)
        answer = self._leader().ask({"do": "remove", "server": target.id})
        return target if "ok" in answer else None

    def demote_voter(self) -> None:
        """Take a server's vote away for a while."""
        leader, target = self._leader(), self._one()
        self._is_out.add(target.id)
        leader.ask({"do": "demote", "server": target.id})

    def fall_behind(self) -> None:
        """Stop a follower while the others go on and compact: it needs a snapshot then."""
        self._follower().pause()
        self._leader().ask({"do": "snapshot"})

    def transfer(self) -> None:
        """Have the leader hand over."""
        self._leader().ask({"do": "transfer"})

    # ---- disks ----

    def fill_disk_almost(self) -> None:
        """Leave a disk little room."""
        self._leader().set_disk(Disk.ALMOST_FULL)

    def fill_disk(self) -> None:
        """Leave a disk no room."""
        self._one().set_disk(Disk.FULL)

    def fail_syncs(self) -> None:
        """Let every fsync of a disk fail."""
        server = self._leader() if self._chance.random() < 0.5 else self._one()
        server.set_disk(Disk.SYNC_FAILS)

    def hang_syncs(self) -> None:
        """Let no fsync of a disk return."""
        server = self._leader() if self._chance.random() < 0.5 else self._one()
        server.set_disk(Disk.SYNC_HANGS)


def between(some: list[str], others: list[str]) -> list[Pair]:
    """Return the ways between two sides, in both directions."""
    return [pair for a in some for b in others for pair in ((a, b), (b, a))]
