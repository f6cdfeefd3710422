"""Starts, transfers and shutdowns that race with every public call: each must be answered in time.

`make races COUNT=n`: so many times three nodes on real threads are started and asked for anything
by several threads at once, from before there is a leader until after the shutdown; meanwhile
leaders hand over, and nodes are shut down and started again. A call that blocks must return by its
own deadline and a second more, every future must have been answered when its node has shut down,
and no thread may be left. Exit status: 0 when all was so, 1 when not.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from raft import Config, Configuration, Raft, RaftError, SnapshotMeta
from raft.errors import CantBootstrapError, UnsettledSnapshotError
from raft.testing.cluster import SCALE, Cluster, Member
from raft.testing.fsm import RecordedSnapshot
from raft.types import EMPTY_CONFIGURATION

TIMEOUT = 0.02 * SCALE  # seconds of heartbeat and election timeout
CALLERS = 4
CALLS = 12  # of each caller
LONGEST_PAUSE = 0.02  # seconds between two calls of one caller
LONGEST_WAIT = 0.05  # seconds that a call is allowed to block
GRACE = 1.0 * SCALE  # seconds beyond its deadline that a call may take
BUSY_SECONDS = 0.2  # of one race, at most, before everything is shut down


class LateError(AssertionError):
    """A call did not return, or a future was not answered, in time."""


def configure(config: Config) -> None:
    """Let elections take a moment, and snapshots be possible at any time."""
    config.heartbeat_timeout = config.election_timeout = TIMEOUT
    config.leader_lease_timeout = TIMEOUT
    config.trailing_logs = 2
    config.shutdown_on_remove = False  # nodes end when the race says so


class _Pieces(list[bytes]):
    """A sink for the bytes of a snapshot."""

    write = list.append


def _restore(node: Raft, wait: float) -> None:
    RecordedSnapshot([]).persist(pieces := _Pieces())
    data = b"".join(pieces)
    meta = SnapshotMeta("", 1, 1, EMPTY_CONFIGURATION, 1, len(data))
    node.restore(meta, io.BytesIO(data), wait)


def _transfer_to(node: Raft, _: float) -> Future[Any]:
    return node.leadership_transfer_to_server("n2", "n2:1")


CALLABLE: list[Callable[[Raft, float], Any]] = [
    lambda node, wait: node.apply(b"x", wait),
    lambda node, wait: node.apply(b"y", wait),
    lambda node, wait: node.barrier(wait),
    lambda node, wait: node.read_barrier(wait),
    lambda node, wait: node.add_voter("n4", "n4:1", 0, wait),
    lambda node, wait: node.add_voter("n4", "n4:1", 0, wait, catch_up=True),
    lambda node, wait: node.add_nonvoter("n5", "n5:1", 0, wait),
    lambda node, wait: node.demote_voter("n3", 0, wait),
    lambda node, wait: node.remove_server("n4", 0, wait),
    lambda node, _: node.verify_leader(),
    lambda node, _: node.get_configuration(),
    lambda node, _: node.leadership_transfer(),
    _transfer_to,
    lambda node, _: node.snapshot(),
    lambda node, wait: node.wait_for_leader(wait),
    lambda node, _: node.reload_config(node.reloadable_config()),
    lambda node, _: node.stats(),
    _restore,
]


class Race:
    """One cluster, from its start to its end."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._futures: list[Future[Any]] = []  # guarded by the interpreter: only appended to
        self._faults: list[str] = []
        self.answers: Counter[str] = Counter()

    def run(self) -> None:
        """Race; raise `LateError` when somebody was left waiting."""
        before = threading.active_count()
        with Cluster(3, bootstrap=False, configure=configure) as cluster:
            members = list(cluster.members.values())
            seeds = [self._chance.random() for _ in range(CALLERS)]
            callers = [
                threading.Thread(target=self._call_often, args=[members, random.Random(seed)])
                for seed in seeds
            ]
            for caller in callers:
                caller.start()
            self._bootstrap(members)
            self._disturb(cluster, members)
            begun = time.monotonic()
        self._check_time("shutdown", begun, 10.0)
        for caller in callers:
            caller.join(GRACE + CALLS * (LONGEST_PAUSE + LONGEST_WAIT))
            if caller.is_alive():
                self._faults.append("a caller is still waiting")
        for future in self._futures:
            if not future.done():
                self._faults.append(f"{type(future).__name__} was never answered")
            else:
                self.answers[type(future.exception()).__name__] += 1
        give_up = time.monotonic() + GRACE
        while threading.active_count() > before and time.monotonic() < give_up:
            threading.Event().wait(0.005)
        if threading.active_count() > before:
            self._faults.append(f"threads are left: {threading.enumerate()}")
        if self._faults:
            raise LateError("; ".join(self._faults))

    def _bootstrap(self, members: list[Member]) -> None:
        configuration = Configuration([member.server() for member in members])
        for member in members:
            future = member.node.bootstrap_cluster(configuration)
            # Who was quicker leads, and may have sent its own first entry.
            if not isinstance(future.exception(10.0), (CantBootstrapError, type(None))):
                self._faults.append(f"bootstrapping raised {future.exception()!r}")

    def _disturb(self, cluster: Cluster, members: list[Member]) -> None:
        chance, pause = self._chance, threading.Event()
        end = time.monotonic() + chance.random() * BUSY_SECONDS
        while time.monotonic() < end:
            pause.wait(chance.random() * 0.02)
            member = chance.choice(members)
            failures = [m.node.failure for m in members if m.node.failure is not None]
            if failures:
                # A restore that never was committed, and a leader that shows it (departure 19).
                if not isinstance(failures[0], UnsettledSnapshotError):
                    self._faults.append(f"a node died of {failures[0]!r}")
                return
            if chance.random() < 0.3:
                cluster.restart(member)

    def _call_often(self, members: list[Member], chance: random.Random) -> None:
        pause = threading.Event()
        for _ in range(CALLS):
            pause.wait(chance.random() * LONGEST_PAUSE)
            wait = chance.random() * LONGEST_WAIT
            call = chance.choice(CALLABLE)
            node = chance.choice(members).node
            begun = time.monotonic()
            try:
                answer = call(node, wait)
            except (RaftError, TimeoutError) as error:
                self.answers[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self._faults.append(f"a call raised {error!r}")
            else:
                if isinstance(answer, Future):
                    self._futures.append(answer)
            self._check_time("a call", begun, wait)

    def _check_time(self, what: str, begun: float, allowed: float) -> None:
        taken = time.monotonic() - begun
        if taken > allowed + GRACE:
            self._faults.append(f"{what} took {taken:.2f} s, allowed were {allowed:.2f} s")


def race(count: int, first_seed: int = 0) -> Counter[str]:
    """Run so many races; return what the answers were."""
    answers: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + count):
        one = Race(seed)
        try:
            one.run()
        except AssertionError as error:
            raise LateError(f"seed {seed}: {error}") from error
        answers += one.answers
    return answers


def main() -> int:
    """Race as the command line says."""
    parser = argparse.ArgumentParser(prog="make races", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    begun = time.monotonic()
    try:
        answers = race(options.count, options.seed)
    except LateError as error:
        print(f"FAULT {error}")
        return 1
    print(
        f"races={options.count} answers={sum(answers.values())}"
        f" seconds={time.monotonic() - begun:.0f} faults=0"
    )
    print("  " + " ".join(f"{name}={count}" for name, count in answers.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
