"""Elections, failover and slow links over a network that this machine makes up. Needs root.

`make wan` runs all; `make wan ARGS="far lag"` some. Each line says what was measured and whether
it is as it should be. Exit status: 0 when all is, 1 when not, 2 when the bench cannot work here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.wan.network import Network, can_run
from tests.wan.servers import Server, WanCluster, WanError, build_hashicorp

FAR = (0.1, 0.25, 0.35)  # seconds there and back
IDLE_SECONDS = 60.0
FAILOVERS = 8  # at a time
LONGEST_FAILOVER = 60.0
FAILOVER_RATIO = 1.3  # of hashicorp/raft's on the same network
LINE_RATE = 0.8  # of what the link can carry
NEAR = 0.02  # seconds there and back, where the rate is what matters
LONGEST_HOLE = 15.0  # seconds; commit_stall_timeout and a look or two
LONGEST_LAG = 150.0
SLOW_DISKS = (0.5, 1.0)
ELECTION_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    is_good: bool


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    hashicorp: tuple[str, ...] | None
    congestion_control: str

    def place(self, name: str) -> Path:
        """Return a folder for a cluster."""
        place = self.folder / name
        place.mkdir(parents=True)
        return place


def far(bench: Bench) -> Iterator[Finding]:
    """Default timeouts over a long way: nobody steps down, and a dead leader is replaced."""
    for round_trip in FAR:
        with Network(3, bench.congestion_control) as network:
            network.set_all(round_trip=round_trip)
            with WanCluster(network, bench.place(f"far-{round_trip}")) as cluster:
                cluster.wait_for_leader(LONGEST_FAILOVER)
                before = cluster.term()
                time.sleep(IDLE_SECONDS)
                elections = cluster.term() - before
                yield Finding(
                    f"{round_trip} s there and back, {IDLE_SECONDS:.0f} s: elections={elections}"
                    f" step-downs={cluster.step_downs()}",
                    elections == 0,
                )


def failover(bench: Bench) -> Iterator[Finding]:
    """How long until the next write after the leader was killed, beside hashicorp/raft."""
    for round_trip in FAR:
        ours = _failovers(bench, round_trip, "ours", None)
        theirs = _failovers(bench, round_trip, "theirs", bench.hashicorp)
        text = f"{round_trip} s there and back, failover: {_seconds(ours)}"
        if theirs:
            text += f", hashicorp/raft: {_seconds(theirs)}"
        limit = FAILOVER_RATIO * _mean(theirs) if theirs else LONGEST_FAILOVER
        yield Finding(text, _mean(ours) <= limit)


def _failovers(
    bench: Bench, round_trip: float, name: str, program: tuple[str, ...] | None
) -> list[float]:
    if name == "theirs" and program is None:
        return []
    more = {} if program is None else {"program": program}

    def run(number: int) -> float:
        place = bench.place(f"failover-{round_trip}-{name}-{number}")
        with Network(3, bench.congestion_control) as network:
            network.set_all(round_trip=round_trip)
            with WanCluster(network, place, **more) as cluster:
                cluster.wait_for_leader(LONGEST_FAILOVER)
                time.sleep(1.0)
                return cluster.failover(LONGEST_FAILOVER) or LONGEST_FAILOVER

    with ThreadPoolExecutor(FAILOVERS) as pool:  # they wait for the network, not for the processor
        return list(pool.map(run, range(FAILOVERS)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _seconds(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values) + f" (mean {_mean(values):.2f}) s"


def lag(bench: Bench) -> Iterator[Finding]:
    """A leader that needs a follower 10 MB behind, over a slow link, commits at line rate."""
    for megabits, size in ((1.0, 1000), (20.0, 16 * 1024)):
        with Network(3, bench.congestion_control) as network:
            network.set_all(round_trip=NEAR)
            with WanCluster(network, bench.place(f"lag-{megabits}")) as cluster:
                leader = cluster.wait_for_leader(LONGEST_FAILOVER)
                behind, other = (s for s in cluster.servers if s is not leader)
                slow, host = cluster.servers.index(behind), cluster.servers.index(leader)
                behind.kill()
                leader.ask("fill", 10_000_000 // size, size)
                last = leader.ask("state")["last"]
                network.set_link(host, slow, way=NEAR / 2, megabits=megabits)
                network.set_link(slow, host, way=NEAR / 2, megabits=megabits)
                cluster.restart(behind)
                newcomer = cluster.servers[slow]
                cluster.wait_until(
                    lambda new=newcomer: new.ask("state")["leader"], ELECTION_SECONDS
                )
                other.kill()
                rate, lacking = _rate_of_catching_up(cluster, newcomer, last, size)
                steps = cluster.step_downs()
                yield Finding(
                    f"{megabits:g} Mbit/s, 10 MB of {size} B behind: {rate:.2f} Mbit/s,"
                    f" {lacking} entries lacking in the end, step-downs={steps}",
                    steps == 0 and lacking == 0 and rate >= LINE_RATE * megabits,
                )


def _rate_of_catching_up(
    cluster: WanCluster, server: Server, last: int, size: int
) -> tuple[float, int]:
    """Return megabits a second of commands from the first that came on, and what is lacking."""
    first = server.ask("state")["last"]
    cluster.wait_until(lambda: server.ask("state")["last"] > first, LONGEST_FAILOVER)
    begun = server.ask("state")["last"]
    took = cluster.wait_until(lambda: server.ask("state")["last"] >= last, LONGEST_LAG)
    reached = server.ask("state")["last"]
    return (reached - begun) * size * 8 / took / 1e6, last - reached


def large(bench: Bench) -> Iterator[Finding]:
    """One command of 8 MiB, the largest by default, over slow links."""
    megabits, size = 5.0, 8 << 20
    ideal = size * 8 / (megabits * 1e6)
    for slow in (1, 2):
        with Network(3, bench.congestion_control) as network:
            network.set_all(round_trip=NEAR)
            with WanCluster(network, bench.place(f"large-{slow}")) as cluster:
                leader = cluster.wait_for_leader(LONGEST_FAILOVER)
                host = cluster.servers.index(leader)
                others = [n for n in range(3) if n != host]
                for other in others[:slow]:
                    network.set_link(host, other, way=NEAR / 2, megabits=megabits)
                    network.set_link(other, host, way=NEAR / 2, megabits=megabits)
                before = cluster.term()
                answer = leader.ask("apply", size)
                last = leader.ask("state")["last"]
                slowest = cluster.servers[others[0]]
                took = answer["seconds"] + cluster.wait_until(
                    lambda new=slowest, last=last: new.ask("state")["last"] >= last, ideal * 2
                )
                elections = cluster.term() - before
                yield Finding(
                    f"8 MiB, {slow} of 2 links at {megabits:g} Mbit/s: answered after"
                    f" {answer['seconds']:.1f} s {answer.get('error', '')}, everywhere after"
                    f" {took:.1f} s (ideal {ideal:.0f}), elections={elections}",
                    "error" not in answer and elections == 0 and took <= ideal / LINE_RATE,
                )


def disks(bench: Bench) -> Iterator[Finding]:
    """A leader is elected where the disks of both that are left are slow."""
    for delay in SLOW_DISKS:
        with (
            Network(3, bench.congestion_control) as network,
            WanCluster(network, bench.place(f"disks-{delay}")) as cluster,
        ):
            leader = cluster.wait_for_leader(LONGEST_FAILOVER)
            for server in cluster.servers:
                if server is not leader:
                    server.ask("disk", delay)
            took = cluster.failover(4 * ELECTION_SECONDS)
            yield Finding(
                f"{delay} s a write on both disks: a write after"
                f" {'never' if took is None else f'{took:.1f} s'}",
                took is not None and took <= ELECTION_SECONDS,
            )


def hole(bench: Bench) -> Iterator[Finding]:
    """Packets above 400 bytes from the leader vanish: another one leads, and writes go on."""
    with (
        Network(3, bench.congestion_control) as network,
        WanCluster(network, bench.place("hole")) as cluster,
    ):
        leader = cluster.wait_for_leader(LONGEST_FAILOVER)
        host = cluster.servers.index(leader)
        for other in range(3):
            network.set_link(host, other, way=NEAR / 2, largest=400)
        answer = leader.ask("apply", 1000)
        took = cluster.time_to_write(LONGEST_FAILOVER)
        is_another = cluster.leader() is not leader
        yield Finding(
            f"packets above 400 bytes vanish: {answer.get('error', 'written')!r} after"
            f" {answer['seconds']:.1f} s, the next write after"
            f" {'never' if took is None else f'{took:.1f} s'}, by another: {is_another}",
            "error" in answer and answer["seconds"] < LONGEST_HOLE and took is not None,
        )


MEASUREMENTS: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    "far": far,
    "failover": failover,
    "lag": lag,
    "large": large,
    "disks": disks,
    "hole": hole,
}


def main() -> int:
    """Run what was asked for and print a line for each finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--congestion-control", default="", help="reno, say; default: the kernel's")
    parser.add_argument("--keep", type=Path, help="a folder for logs and stores, to look at")
    arguments = parser.parse_args()
    if not can_run():
        print("this needs root and /dev/net/tun", file=sys.stderr)
        return 2
    all_good = True
    with tempfile.TemporaryDirectory(prefix="raft-wan-") as folder:
        place = arguments.keep or Path(folder)
        bench = Bench(place, build_hashicorp(place), arguments.congestion_control)
        for name in arguments.names or MEASUREMENTS:
            try:
                for finding in MEASUREMENTS[name](bench):
                    all_good = all_good and finding.is_good
                    print(f"{'ok  ' if finding.is_good else 'FAIL'} {finding.what}", flush=True)
            except WanError as error:
                all_good = False
                print(f"FAIL {name}: {error}", flush=True)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
