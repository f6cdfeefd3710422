"""Commands a second through three durable processes: `make bench`.

Three processes on loopback, each with a SQLite log; callers in the leader's process; 100-byte
commands. Before and after, the disk's own fsync, because on shared machines only ratios mean much.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raft import Config, Configuration, Log, Raft, Server, SnapshotReader, SnapshotSink
from raft.futures import ApplyFuture
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

COMMAND = b"x" * 100
CALLERS = (1, 8, 64, 256)
OUTSTANDING = 1024
ANSWER_SECONDS = 30.0


class CountingFSM:
    """Does next to nothing, so that the library is what is measured."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, log: Log) -> int:
        """Count a command."""
        self.count += 1
        return self.count

    def snapshot(self) -> CountingFSM:
        """Return a view: the count as it is."""
        return self

    def persist(self, sink: SnapshotSink) -> None:
        """Write the count."""
        sink.write(b"%d" % self.count)

    def release(self) -> None:
        """Nothing to let go of."""

    def restore(self, reader: SnapshotReader) -> None:
        """Read the count."""
        self.count = int(reader.read())


# ---- one node in a process of its own ----


def run_node(node_id: str, addresses: dict[str, str], folder: Path) -> None:
    """Be one node; take orders on standard input, answer on standard output, one JSON a line."""
    configuration = Configuration([Server(i, a) for i, a in addresses.items()])
    folder.mkdir(parents=True)
    with SQLiteStore(folder / "raft.db") as store:
        snapshots = FileSnapshotStore(folder, retain=1)
        transport = TCPTransport(addresses[node_id])
        with Raft(Config(local_id=node_id), CountingFSM(), store, store, snapshots, transport) as n:
            if node_id == min(addresses):
                n.bootstrap_cluster(configuration).result(5)
            for line in sys.stdin:
                print(json.dumps(obey(n, json.loads(line))), flush=True)


def obey(node: Raft, order: dict[str, Any]) -> Any:
    """Carry out one order."""
    if order["do"] == "leader":
        return node.wait_for_leader(30)[1]
    if order["do"] == "cpu":
        times = os.times()
        return times.user + times.system
    if order["do"] == "callers":
        return measure_callers(node, order["count"], order["seconds"])
    return measure_outstanding(node, order["count"], order["seconds"])


def measure_callers(node: Raft, count: int, seconds: float) -> dict[str, float]:
    """Have threads apply one command after the other, each waiting for its answer."""
    waits: list[list[float]] = [[] for _ in range(count)]
    end = time.monotonic() + seconds

    def caller(own: list[float]) -> None:
        while (began := time.monotonic()) < end:
            node.apply(COMMAND, ANSWER_SECONDS).result(ANSWER_SECONDS)
            own.append(time.monotonic() - began)

    began = time.monotonic()
    run_all([lambda own=own: caller(own) for own in waits])
    return summary([w for own in waits for w in own], time.monotonic() - began)


def measure_outstanding(node: Raft, count: int, seconds: float) -> dict[str, float]:
    """Have one thread keep so many commands unanswered."""
    waits: list[float] = []
    pending: deque[tuple[float, ApplyFuture]] = deque()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        while len(pending) < count:
            pending.append((time.monotonic(), node.apply(COMMAND, ANSWER_SECONDS)))
        for _ in range(count // 4):
            sent, future = pending.popleft()
            future.result(ANSWER_SECONDS)
            waits.append(time.monotonic() - sent)
    for sent, future in pending:
        future.result(ANSWER_SECONDS)
        waits.append(time.monotonic() - sent)
    return summary(waits, time.monotonic() - began)


def run_all(targets: list[Callable[[], None]]) -> None:
    """Run each on a thread of its own, and wait for all."""
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def summary(waits: list[float], seconds: float) -> dict[str, float]:
    """Return rate and percentiles, the latter in milliseconds."""
    waits.sort()
    return {
        "rate": len(waits) / seconds,
        "p50": waits[len(waits) // 2] * 1e3,
        "p99": waits[len(waits) * 99 // 100] * 1e3,
    }


# ---- the table ----


class Node:
    """The parent's end of one node's process."""

    def __init__(self, node_id: str, addresses: dict[str, str], folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_apply", "--node", node_id]
        command += ["--addresses", json.dumps(addresses), "--folder", str(folder)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order: Any) -> Any:
        """Send an order and return the answer."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(order) + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def measure_fsync(folder: Path, count: int = 200) -> float:
    """Return the median of write and fsync of 4 KiB, in milliseconds."""
    waits = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(count):
            began = time.monotonic()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            waits.append(time.monotonic() - began)
    return statistics.median(waits) * 1e3


def free_address() -> str:
    """Return a loopback address that nobody uses now.

    Below the ports that the system gives to outgoing connections, so that none takes it meanwhile.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return f"127.0.0.1:{port}"
    raise SystemExit("no port from 20000 to 32000 is free on 127.0.0.1")


def bench(folder: Path, seconds: float) -> None:
    """Print the table."""
    addresses = {f"n{i}": free_address() for i in range(3)}
    nodes = {i: Node(i, addresses, folder / i) for i in addresses}
    fsync = measure_fsync(folder)
    try:
        leader = nodes[min(nodes)].ask(do="leader")
        print(f"leader {leader}; fsync of 4 KiB: p50 {fsync:.3f} ms before the runs")
        header = f"{'':>18} {'ops/s':>8} {'p50 ms':>8} {'p99 ms':>8}"
        print(header + "".join(f" {'CPU ' + i:>8}" for i in nodes))
        loads = [("callers", n) for n in CALLERS] + [("outstanding", OUTSTANDING)]
        nodes[leader].ask(do="callers", count=8, seconds=1.0)  # warm up
        found = {load: run(nodes, leader, load, seconds) for load in loads}
    finally:
        for node in nodes.values():
            node.stop()
    after = measure_fsync(folder)
    print(f"fsync of 4 KiB: p50 {after:.3f} ms after the runs")
    judge(found, max(fsync, after))


def run(
    nodes: dict[str, Node], leader: str, load: tuple[str, int], seconds: float
) -> dict[str, float]:
    """Run one load and print its line; CPU is in seconds, for the whole run."""
    kind, count = load
    before = {i: node.ask(do="cpu") for i, node in nodes.items()}
    result: dict[str, float] = nodes[leader].ask(do=kind, count=count, seconds=seconds)
    used = [node.ask(do="cpu") - before[i] for i, node in nodes.items()]
    line = f"{count:>6} {kind:<11} {result['rate']:>8.0f} {result['p50']:>8.2f}"
    print(line + f" {result['p99']:>8.2f}" + "".join(f" {cpu:>8.2f}" for cpu in used))
    return result


def judge(found: dict[tuple[str, int], dict[str, float]], fsync: float) -> None:
    """Print the ratios that the architecture is held to."""
    one, many = found["callers", 1], found["callers", 64]
    pipelined = found["outstanding", OUTSTANDING]
    bound = 3 * fsync + 1.5
    print(f"one caller's p50 {one['p50']:.2f} ms, bound 3 x fsync + 1.5 ms = {bound:.2f} ms")
    print(f"64 callers / one caller: {many['rate'] / one['rate']:.1f} (bound 5)")
    print(
        f"{OUTSTANDING} outstanding / 64 callers: {pipelined['rate'] / many['rate']:.1f} (bound 2)"
    )


def main() -> None:
    """Run the benchmark, or one of its nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--addresses", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        run_node(options.node, options.addresses, options.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="raft-bench-", dir=options.folder))
    try:
        bench(folder, options.seconds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
