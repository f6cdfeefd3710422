"""An interpreter that stands still again and again, under load, must cost no election.

`make stalls MINUTES=n`: two clusters of three durable processes at default timeouts, with clients.
In one, every process has its interpreter's lock held for 200 ms again and again, half of the time;
in the other for 600 ms every five seconds, which is longer than the leader's lease; there the
followers take turns: a leader whose whole quorum stands still for a lease must step down. A C
extension that computes without letting go of the lock does the same. A server may ask by a pre-vote
whether it could win, in vain: that is counted. Exit status: 0 when neither cluster had an election,
1 when one had, 2 when the check could not be made.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.clients import Clients, History
from tests.torture.servers import ServerProcess, TortureError, World

CLIENTS = 2
THOUGHT = 0.05  # seconds between an answer and the next operation, on average
LEADER_SECONDS = 30.0
_TELLING = ("WARNING", "entering state", "vote")  # in lines that are shown of a faulty run
_LINES_BEFORE = 3


@dataclass
class Pattern:
    """How long the lock is held, and how long it is free in between, on average; in seconds."""

    held: float
    free: float
    followers_take_turns: bool = False
    holds: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"held {self.held:.1f} s, free {self.free:.1f} s"

    def hold_again_and_again(
        self, server: ServerProcess, turn: AbstractContextManager[object], ended: threading.Event
    ) -> None:
        """Have one server stand still until the end, each time when it is its turn."""
        chance = random.Random(server.id)
        while not ended.wait(self.free * (0.5 + chance.random())):
            with turn:
                answer = server.ask({"do": "hold", "seconds": self.held})
            if "ok" not in answer:
                self.faults.append(f"{server} did not answer")
                return
            self.holds += 1

    def run(self, folder: Path, seconds: float) -> None:
        """Hold the locks of a cluster for so long; its faults say what was wrong."""
        history = History()
        with World(3, folder, timeout=0.0) as world:
            world.begin()
            leader = world.wait_for("a leader", world.leader, LEADER_SECONDS)
            term = leader.status["term"]
            campaigns = -_campaigns(world)
            clients = Clients(world, history, CLIENTS, THOUGHT, seed=1)
            ended = threading.Event()
            turns = threading.Lock() if self.followers_take_turns else nullcontext()
            holders = [
                threading.Thread(
                    target=self.hold_again_and_again,
                    args=[server, nullcontext() if server is leader else turns, ended],
                )
                for server in world.servers.values()
            ]
            for holder in holders:
                holder.start()
            ended.wait(seconds)
            ended.set()
            for holder in holders:
                holder.join()
            clients.end()
            end = world.wait_for("the leader", world.leader, LEADER_SECONDS)
            campaigns += _campaigns(world)
            if (end.id, end.status["term"]) != (leader.id, term):
                self.faults.append(
                    f"{leader} led in term {term}, and in the end {end} in {end.status['term']}:\n"
                    + "\n".join(_story(server) for server in world.servers.values())
                )
        if not history.outcomes["acknowledged"]:
            self.faults.append("nothing was acknowledged")
        print(
            f"{self}: holds={self.holds} acknowledged={history.outcomes['acknowledged']}"
            f" elections={max(world.terms) - term} campaigns={campaigns}"
        )


def _campaigns(world: World) -> int:
    """Return how often a server has begun to ask for votes, in vain or not."""
    return sum(server.times_logged("starting election") for server in world.servers.values())


def _story(server: ServerProcess) -> str:
    """Return what a server has logged of elections, and what came right before."""
    lines = server.log().splitlines()
    told = [i for i, line in enumerate(lines) if any(word in line for word in _TELLING)]
    shown = sorted({i for at in told for i in range(max(at - _LINES_BEFORE, 0), at + 1)})
    return "\n".join(["", str(server), *(lines[i] for i in shown)])


def main() -> int:
    """Run both patterns side by side."""
    parser = argparse.ArgumentParser(prog="make stalls", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    seconds = parser.parse_args().minutes * 60
    patterns = [Pattern(0.2, 0.2), Pattern(0.6, 4.4, followers_take_turns=True)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stalls-") as folder:

        def run(number: int, pattern: Pattern) -> None:
            place = Path(folder) / str(number)
            place.mkdir()
            try:
                pattern.run(place, seconds)
            except TortureError as error:
                pattern.faults.append(str(error))

        threads = [threading.Thread(target=run, args=item) for item in enumerate(patterns)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"seconds={time.monotonic() - begun:.0f}")
    for pattern in patterns:
        for fault in pattern.faults:
            print(f"FAULT {pattern}: {fault}")
    return 1 if any(pattern.faults for pattern in patterns) else 0


if __name__ == "__main__":
    sys.exit(main())
