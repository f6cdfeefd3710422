"""Real processes under every fault that the bench knows, and a check of all that clients saw.

`make torture MINUTES=n` runs three servers for half of the time and five for the other half: each a
process with SQLite on disk, a proxy for each directed link between them, clients, a nemesis. At the
end everything is repaired; all servers must be voters of one cluster with equal states, every key
is read once more, and the history must be linearizable. What was refused as certainly not applied
is no part of the history: should it show all the same, a read has seen a value that nobody wrote.

Exit status: 0 when all is well, 1 when something was found (the folder with logs, stores and
histories is kept), 2 when the bench could not do its work.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.testing.linearizability import UndecidedError, violations
from tests.torture import porcupine
from tests.torture.clients import Clients, History, read_everything
from tests.torture.nemesis import Nemesis
from tests.torture.servers import TortureError, World

CLIENTS = 10
THOUGHT = 0.03  # seconds between an answer and the next operation, on average
FAST_TIMEOUT = 0.3  # seconds of heartbeat and election timeout
SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """One cluster for some time."""

    servers: int
    seconds: float
    seed: int
    timeout: float  # seconds; 0 for the defaults
    reads_are_stale: bool

    def run(self, folder: Path, history: History) -> dict[str, Any]:
        """Torture a cluster; return its figures, and fill the history."""
        begun = time.monotonic()
        pace = 1.0 if self.timeout else 3.0  # of faults: an election must fit in between
        with World(self.servers, folder, self.timeout) as world:
            for server in world.servers.values():
                server.reads_are_stale = self.reads_are_stale
            world.begin()
            world.wait_for("a first leader", world.leader, SETTLE_SECONDS)
            clients = Clients(world, history, CLIENTS, THOUGHT, self.seed)
            nemesis = Nemesis(world, self.seed, 2.5 * pace, 1.5 * pace)
            try:
                nemesis.run(begun + self.seconds)
                nemesis.end()
            finally:
                clients.end()
            read_everything(world, history)
            world.wait_for("equal states", lambda: _states_are_equal(world), SETTLE_SECONDS)
            return {
                "servers": self.servers,
                "seconds": round(time.monotonic() - begun),
                "faults": dict(nemesis.counts),
                "leaders": len(world.terms),
                "share with a leader": world.looks_with_leader / max(1, world.looks),
                "starts": sum(server.starts for server in world.servers.values()),
            }


def _states_are_equal(world: World) -> bool:
    digests = [server.ask({"do": "digest"}).get("ok") for server in world.servers.values()]
    return digests[0] is not None and all(digest == digests[0] for digest in digests)


def check(history: History, folder: Path, *, needs_porcupine: bool) -> list[str]:
    """Return what is wrong with a history, by our checker and by Porcupine."""
    path = folder / "history.jsonl"
    porcupine.save(history.done, path)
    try:
        found = violations(history.done)
    except UndecidedError as error:
        raise TortureError(str(error)) from error
    verdict = porcupine.check(path, folder)
    if verdict is None:
        if needs_porcupine:
            raise TortureError("Go is needed for Porcupine: install it")
        print("  Porcupine: not asked, there is no Go here")
    else:
        print(f"  Porcupine: {'linearizable' if verdict else 'NOT linearizable'}")
        if verdict != (not found):
            found.append("Porcupine and our own checker disagree")
    return found


def report(figures: dict[str, Any], history: History) -> None:
    """Print the figures of one round."""
    outcomes = history.outcomes
    faults = figures["faults"]
    print(
        f"servers={figures['servers']} seconds={figures['seconds']}"
        f" operations={len(history.done)} acknowledged={outcomes['acknowledged']}"
        f" unknown={outcomes['unknown']} refused={outcomes['refused']}"
        f" faults={sum(faults.values())} leaders={figures['leaders']}"
        f" starts={figures['starts']} share-with-a-leader={figures['share with a leader']:.1%}"
    )
    print("  " + " ".join(f"{name}={count}" for name, count in sorted(faults.items())))


def torture(rounds: list[Round], folder: Path, *, needs_porcupine: bool) -> int:
    """Run all rounds; return how many things were found."""
    found: list[str] = []
    operations = faults = 0
    for number, one in enumerate(rounds):
        place = folder / f"round-{number + 1}"
        place.mkdir()
        history = History()
        figures = one.run(place, history)
        report(figures, history)
        found += check(history, place, needs_porcupine=needs_porcupine)
        operations += len(history.done)
        faults += sum(figures["faults"].values())
    for text in found:
        print(f"VIOLATION {text}")
    print(f"operations={operations} faults={faults} violations={len(found)}")
    return len(found)


def parse_arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--servers", type=int, nargs="+", default=[3, 5])
    parser.add_argument(
        "--default-timeouts", action="store_true", help="not the short ones of a test"
    )
    parser.add_argument(
        "--stale-reads", action="store_true", help="put a bug in, which must be found"
    )
    parser.add_argument("--porcupine", action="store_true", help="fail without Go")
    return parser.parse_args()


def main() -> int:
    """Run the bench as the command line says."""
    options = parse_arguments()
    seconds = options.minutes * 60 / len(options.servers)
    timeout = 0.0 if options.default_timeouts else FAST_TIMEOUT
    print(f"seed={options.seed}", flush=True)
    rounds = [
        Round(count, seconds, options.seed + number, timeout, options.stale_reads)
        for number, count in enumerate(options.servers)
    ]
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        found = torture(rounds, folder, needs_porcupine=options.porcupine)
    except TortureError as error:
        print(f"{error}\nlogs and stores: {folder}", file=sys.stderr)
        return 2
    if found:
        print(f"logs, stores and histories: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
