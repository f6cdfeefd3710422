"""Three processes with SQLite on disk; `kill -9` ten times while a client writes all along."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.kv.tour import Process, Tour, Writer, call, wait_for

ROUNDS = 10
SEED = 20261123


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    tour = Tour(tmp_path)
    yield tour
    tour.stop()


def state_of(node: Process) -> Any:
    """Every key of a node, by its own snapshot of the state: two equal ones are equal states."""
    status, answer = call("GET", f"{node.http}/dump", timeout=10.0)
    assert status == 200
    return answer


def has_read(leader: Process | None) -> bool:
    """Have a leader show that its state holds all that was acknowledged."""
    if leader is None:
        return False
    return call("GET", f"{leader.http}/kv/key-1?consistent=1", timeout=10.0)[0] == 200


def common_state(nodes: list[Process]) -> Any:
    """Return the state of all nodes once it is the same."""
    states = [state_of(node) for node in nodes]
    return states[0] if all(state == states[0] for state in states) else None


@pytest.mark.timeout(180)  # ten restarts of a process and up to ten elections at default timeouts
def test_no_acknowledged_write_is_lost_in_ten_rounds_of_kill_9(tour: Tour) -> None:
    chance = random.Random(SEED)
    tour.start_three()
    writer: Writer = tour.writer
    writer.start()
    wait_for("the first writes", lambda: len(writer.acknowledged) >= 20)

    for _ in range(ROUNDS):
        before = len(writer.acknowledged)
        victim = chance.choice(tour.nodes)
        victim.kill()
        wait_for("writes with two nodes", lambda n=before: len(writer.acknowledged) > n + 10)
        victim.start()
        wait_for(f"{victim.id} to be back", victim.status)

    writer.stop()
    assert writer.failure is None
    print(
        f"acknowledged={len(writer.acknowledged)} unknown={len(writer.unknown)} seed={SEED}",
    )
    # Leadership may still change hands, and what was unknown may still come.
    wait_for("a linearizable read", lambda: has_read(tour.leader()))
    written = wait_for("three equal states", lambda: common_state(tour.nodes))["values"]
    assert {key: written.get(key) for key in writer.acknowledged} == writer.acknowledged
    # What is there beyond that may only be what had an unknown outcome.
    assert {key for key in written if key not in writer.acknowledged} <= set(writer.unknown)
