"""A follower that was down while the log was compacted comes back by a 200 MB snapshot over TCP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.kv.tour import free_address
from tests.processes.member import Child

SIZE = 200_000_000
MOST_GROWTH = 64 * 1024 * 1024
HEARTBEAT_TIMEOUT = 1.0  # the default
PATIENCE = 60.0


@pytest.fixture
def children(tmp_path: Path) -> Iterator[dict[str, Child]]:
    addresses = {f"n{i}": free_address() for i in (1, 2, 3)}
    children: dict[str, Child] = {}
    try:
        for node_id in addresses:
            children[node_id] = Child(node_id, addresses, tmp_path)
        yield children
    finally:
        for child in children.values():
            child.kill()


@pytest.mark.timeout(180)  # 200 MB are written to disk four times
def test_a_large_snapshot_is_sent_while_heartbeats_and_writes_go_on(
    children: dict[str, Child],
) -> None:
    leader = children[children["n1"].ask(do="leader")]
    leader.ask(do="apply", commands=["first"])
    behind = next(child for child in children.values() if child is not leader)
    behind.kill()
    leader.ask(do="apply", commands=[f"fill {SIZE}"], seconds=60)
    leader.ask(do="apply", commands=["x" * 100] * 100)
    leader.ask(do="snapshot")
    leader.ask(do="watch")
    before = leader.ask(do="stats")

    behind.start()
    behind.ask(do="watch")
    slowest = 0.0
    give_up = time.monotonic() + PATIENCE
    while (follower := behind.ask(do="stats"))["restores"] == 0:
        assert time.monotonic() < give_up, follower
        began = time.monotonic()
        leader.ask(do="apply", commands=["y"])
        slowest = max(slowest, time.monotonic() - began)
    leader.ask(do="apply", commands=["z"] * 10)
    goal = leader.ask(do="stats")
    while (follower := behind.ask(do="stats"))["applied_index"] != goal["commit_index"]:
        assert time.monotonic() < give_up, follower
        threading.Event().wait(0.01)

    print(f"{follower=} slowest write {slowest:.3f} s, leader grew by {goal['grown']}")
    assert int(follower["last_snapshot_index"]) >= int(before["last_snapshot_index"]) > 0
    assert (goal["state"], goal["term"]) == ("Leader", before["term"])
    assert follower["silence"] < HEARTBEAT_TIMEOUT
    assert slowest < HEARTBEAT_TIMEOUT
    assert goal["grown"] < MOST_GROWTH
    assert follower["grown"] < MOST_GROWTH
