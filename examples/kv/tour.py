"""The tour of `make demo`: three processes, a failover, a return, a fourth node. Ends by itself."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAIT_SECONDS = 30.0
POLL_SECONDS = 0.05
WRITE_TIMEOUT = 3.0
REFUSED, NO_ANSWER = -1, 0  # in place of an HTTP status


def say(text: str) -> None:
    """Tell the reader what happens."""
    print(text, flush=True)


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


def call(method: str, url: str, body: Any = None, timeout: float = 5.0) -> tuple[int, Any]:
    """Make an HTTP call; return (status, JSON answer).

    The status is REFUSED when there was nobody to send to, and NO_ANSWER when the call broke off.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{url}", data=data, method=method)
    try:
        return exchange(request, timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return (REFUSED if isinstance(reason, ConnectionRefusedError) else NO_ANSWER), None


def exchange(request: urllib.request.Request, timeout: float) -> tuple[int, Any]:
    """Send a request; return (status, JSON answer), also of an answer that is an error."""
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def wait_for(what: str, condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Poll until something is true and return it; a tour that waits too long has failed."""
    give_up = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < give_up:
        found = condition()
        if found:
            return found
        pause.wait(POLL_SECONDS)
    raise SystemExit(f"gave up after {seconds:.0f} s waiting for {what}")


@dataclass
class Process:
    """One node of the cluster in a process of its own."""

    id: str
    folder: Path
    first: bool
    join: str | None
    raft: str = field(default_factory=free_address)
    http: str = field(default_factory=free_address)
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, over whatever its folder holds."""
        command = [sys.executable, "-m", "examples.kv.node", "--id", self.id]
        command += ["--raft", self.raft, "--http", self.http, "--data", str(self.folder / self.id)]
        command += ["--bootstrap"] if self.first else ["--join", str(self.join)]
        with (self.folder / f"{self.id}.log").open("ab") as log:
            self.child = subprocess.Popen(
                [*command, "--verbose"], stdout=log, stderr=log, start_new_session=True
            )

    def child_pid(self) -> int:
        """Return the process id, 0 before the start."""
        return self.child.pid if self.child else 0

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def stop(self) -> None:
        """End the process in good order."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    def status(self) -> Any:
        """Return the node's own view, None when it does not answer."""
        code, answer = call("GET", f"{self.http}/status", timeout=2.0)
        return answer if code == 200 else None


class Writer:
    """Writes all along, to whoever leads; remembers what was acknowledged, and the longest gap."""

    def __init__(self, nodes: list[Process]) -> None:
        self._nodes = nodes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.acknowledged: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.times: list[float] = []
        self.failure: str | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join(WRITE_TIMEOUT * 2)

    def longest_gap(self, since: float) -> float:
        """Return the longest time between two acknowledged writes since a moment."""
        moments = [since] + [t for t in self.times if t >= since]
        return max((b - a for a, b in itertools.pairwise(moments)), default=0.0)

    def _run(self) -> None:
        number = 0
        target = self._nodes[0].http
        while not self._stop.is_set():
            number += 1
            key = f"key-{number}"
            status, answer = call("PUT", f"{target}/kv/{key}", number, WRITE_TIMEOUT)
            if status == 200:
                self.acknowledged[key] = number
                self.times.append(time.monotonic())
                continue
            if status in (NO_ANSWER, 504):
                self.unknown[key] = number  # it may be there or not; the next one gets a new key
            elif status not in (REFUSED, 421, 503):
                self.failure = f"PUT {key} was answered {status}: {answer}"
                return
            target = self._next_target(status, answer)

    def _next_target(self, status: int, answer: Any) -> str:
        if status == 421:
            return str(answer["leader"]["http"])
        self._stop.wait(POLL_SECONDS)
        return random.choice(self._nodes).http


class Tour:
    """The steps, in order."""

    def __init__(self, folder: Path) -> None:
        first = Process("node1", folder, first=True, join=None)
        others = [Process(f"node{n}", folder, first=False, join=first.http) for n in (2, 3)]
        self.nodes = [first, *others]
        self.folder = folder
        self.writer = Writer(self.nodes)

    def run(self) -> None:
        """Take all steps."""
        self.start_three()
        self.write_some()
        killed = self.kill_the_leader()
        self.bring_back(killed)
        self.grow_to_four()
        self.check_everything()

    def leader(self) -> Process | None:
        """Return the node that a majority of the running ones believes to lead."""
        named = [
            status["leader"]["id"] for node in self.nodes if (status := node.status()) is not None
        ]
        for node in self.nodes:
            if named.count(node.id) > len(self.nodes) // 2:
                return node
        return None

    def start_three(self) -> None:
        say("1. Starting three processes, each with its own SQLite log, talking over TCP.")
        for node in self.nodes:
            node.start()
            say(f"   {node.id}: raft {node.raft}, http {node.http}, pid {node.child_pid()}")
        wait_for("three members", lambda: self.count_members() == 3)
        leader = wait_for("a leader", self.leader)
        say(f"   {leader.id} leads.")

    def count_members(self) -> int:
        """Return how many voters every running node knows, with their addresses; 0 if unequal."""
        counts = set()
        for node in self.nodes:
            status = node.status()
            servers = status["servers"] if status else []
            counts.add(sum(1 for s in servers if s["http"] and s["suffrage"] == "voter"))
        return counts.pop() if len(counts) == 1 else 0

    def write_some(self) -> None:
        say("2. A client writes through the Flask views, all along from now on.")
        self.writer.start()
        wait_for("200 writes", lambda: len(self.writer.acknowledged) >= 200)
        say(f"   {len(self.writer.acknowledged)} writes acknowledged so far.")

    def kill_the_leader(self) -> Process:
        leader = wait_for("a leader", self.leader)
        before = len(self.writer.acknowledged)
        killed_at = time.monotonic()
        leader.kill()
        say(f"3. Killed {leader.id}, the leader, with SIGKILL.")
        successor = wait_for(
            "a new leader", lambda: (found := self.leader()) and found is not leader and found
        )
        wait_for("writes to go on", lambda: len(self.writer.acknowledged) > before + 50)
        gap = self.writer.longest_gap(killed_at)
        say(f"   {successor.id} leads now. No write was acknowledged for {gap:.2f} s.")
        return leader

    def bring_back(self, node: Process) -> None:
        say(f"4. Starting {node.id} again over what it had on disk.")
        node.start()
        wait_for(f"{node.id} to catch up", lambda: self.has_caught_up(node))
        say(f"   {node.id} has caught up.")

    def has_caught_up(self, node: Process) -> bool:
        """Tell whether a node has applied what its leader had committed a moment ago."""
        leader = self.leader()
        goal = leader.status() if leader else None
        status = node.status()
        return bool(goal and status and status["applied"] >= goal["applied"] - 50)

    def grow_to_four(self) -> None:
        fourth = Process("node4", self.folder, first=False, join=self.nodes[1].http)
        say(f"5. Growing the cluster: {fourth.id} joins, raft {fourth.raft}, http {fourth.http}.")
        fourth.start()
        self.nodes.append(fourth)
        wait_for("four members", lambda: self.count_members() == 4)
        wait_for(f"{fourth.id} to catch up", lambda: self.has_caught_up(fourth))
        say("   Four members, all caught up.")

    def check_everything(self) -> None:
        self.writer.stop()
        if self.writer.failure:
            raise SystemExit(self.writer.failure)
        leader = wait_for("a leader", self.leader)
        goal = call("GET", f"{leader.http}/kv/key-1?consistent=1")[0] == 200 and leader.status()
        say("6. The client stopped. Reading every acknowledged write from every node.")
        for node in self.nodes:
            wait_for(
                f"{node.id} to apply all",
                lambda node=node: (s := node.status()) and s["applied"] >= goal["applied"],
            )
            missing = [
                key
                for key, value in self.writer.acknowledged.items()
                if call("GET", f"{node.http}/kv/{key}") != (200, value)
            ]
            if missing:
                raise SystemExit(f"{node.id} lost {len(missing)} writes, such as {missing[:3]}")
            say(f"   {node.id}: all {len(self.writer.acknowledged)} acknowledged writes are there.")
        say(f"   {len(self.writer.unknown)} writes had an unknown outcome: there, or not.")

    def stop(self) -> None:
        """End all processes."""
        self.writer.stop()
        for node in self.nodes:
            node.stop()

    def keep(self) -> None:
        """Tell how to go on by hand."""
        node = self.leader() or self.nodes[0]
        other = next(other for other in self.nodes if other is not node)
        say("\nThe cluster is still up. Try:")
        say(f"   curl http://{node.http}/status")
        say(f"   curl -X PUT -d '\"hello\"' http://{node.http}/kv/greeting")
        say(f"   curl http://{other.http}/kv/greeting")
        say(f"   curl 'http://{node.http}/kv/greeting?consistent=1'")
        say(f"   curl -i -X DELETE http://{other.http}/kv/greeting")
        say(f"   kill -9 {node.child_pid()}      # the leader; then look at the others' /status")
        say("A node that does not lead answers a write 421 and names the leader.")
        pids = " ".join(str(n.child_pid()) for n in self.nodes)
        say(f"Stop it with:  kill {pids}   (data and logs are in {self.folder})")


def main() -> int:
    """Run the tour; with KEEP=1 in the environment leave the cluster up."""
    keep = os.environ.get("KEEP", "") not in ("", "0")
    folder = Path(tempfile.mkdtemp(prefix="raft-demo-"))
    tour = Tour(folder)
    began = time.monotonic()
    done = False
    try:
        tour.run()
        done = True
    finally:
        if done and keep:
            tour.writer.stop()
            tour.keep()
        else:
            tour.stop()
            if done:
                shutil.rmtree(folder)
            else:
                say(f"The tour failed; data and logs of the nodes are in {folder}.")
    say(f"Done in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
