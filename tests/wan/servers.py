"""Clusters over a slow network: durable servers, one on each host, and what is asked of them."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.wan.network import ROOT, Network, address

_PORT = 7000
_START_SECONDS = 30.0
_ORDER_SECONDS = 150.0
_BUILD_SECONDS = 300.0
_POLL = 0.02

OURS = (sys.executable, "-m", "tests.wan.member")


class WanError(Exception):
    """The bench could not do its work."""


def build_hashicorp(folder: Path) -> tuple[str, ...] | None:
    """Build the member over hashicorp/raft; None where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    program = folder / "wan_member"
    subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=ROOT / "tests" / "wan" / "hashicorp",
        env=os.environ | {"CGO_ENABLED": "0"},
        check=True,
        timeout=_BUILD_SECONDS,
    )
    return (str(program),)


class Server:
    """One process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self.is_up = True

    def ask(self, *order: object) -> dict[str, Any]:
        """Give an order and return what it says."""
        self.send(*order)
        return self.receive(_ORDER_SECONDS)

    def send(self, *order: object) -> None:
        """Give an order; `receive` gets the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, order)) + "\n")
        self._process.stdin.flush()

    def has_answered(self) -> bool:
        """Tell whether `receive` would return at once."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def receive(self, timeout: float) -> dict[str, Any]:
        """Return the next answer."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise WanError(f"no answer in {timeout} s, see {self._log}")
        line = self._process.stdout.readline()
        if not line:
            raise WanError(f"a server has ended, see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End the process, as `kill -9` does."""
        self._process.kill()
        self._process.communicate()
        self.is_up = False

    def step_downs(self) -> int:
        """Count how often it gave leadership up by itself."""
        return self._log.read_text(errors="replace").count("stepping down")


class WanCluster:
    """Servers on the hosts of a network, server `n1` on the first; use it in a `with`."""

    def __init__(
        self, network: Network, folder: Path, count: int = 3, program: tuple[str, ...] = OURS
    ) -> None:
        self._network = network
        self._folder = folder
        self._program = program
        self._count = count
        self.servers: list[Server] = []

    def __enter__(self) -> Self:
        try:
            for host in range(self._count):
                self.servers.append(self._start(host))
            for server in self.servers:
                server.receive(_START_SECONDS)
            self.servers[0].ask("bootstrap")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all that run."""
        for server in self.up():
            server.kill()

    def up(self) -> list[Server]:
        """Return the servers that run."""
        return [server for server in self.servers if server.is_up]

    def restart(self, server: Server) -> None:
        """Start a killed server again, over its folder."""
        host = self.servers.index(server)
        self.servers[host] = self._start(host)
        self.servers[host].receive(_START_SECONDS)

    def _start(self, host: int) -> Server:
        folder = self._folder / f"n{host + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        peers = ",".join(f"n{n + 1}={address(n)}:{_PORT}" for n in range(self._count))
        arguments = (f"n{host + 1}", str(folder), f"{address(host)}:{_PORT}", peers)
        process = self._network.start(host, [*self._program, *arguments])
        return Server(process, folder / "log")

    # ---- what is going on ----

    def leader(self) -> Server | None:
        """Return who leads in the latest term."""
        states = [(server.ask("state"), server) for server in self.up()]
        leading = [(s["term"], server) for s, server in states if s["role"] == "Leader"]
        return max(leading, key=lambda found: found[0], default=(0, None))[1]

    def term(self) -> int:
        """Return the latest term that a server is in."""
        return max(int(server.ask("state")["term"]) for server in self.up())

    def step_downs(self) -> int:
        """Count how often leaders gave leadership up by themselves."""
        return sum(server.step_downs() for server in self.servers)

    def wait_for_leader(self, seconds: float) -> Server:
        """Wait for one that has committed something of its own."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            leader = self.leader()
            if leader is not None and "error" not in leader.ask("apply", 100):
                return leader
            time.sleep(_POLL)
        raise WanError(f"no leader in {seconds} s")

    def failover(self, seconds: float) -> float | None:
        """Kill the leader; return how long it took until a command was applied, None for longer."""
        leader = self.leader()
        if leader is None:
            raise WanError("there is no leader to be killed")
        leader.kill()
        return self.time_to_write(seconds)

    def time_to_write(self, seconds: float) -> float | None:
        """Return how long it takes until a command is applied, None for longer."""
        began = time.monotonic()
        try:
            self.wait_for_leader(seconds)
        except WanError:
            return None
        return time.monotonic() - began

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for something and return how long it took; `seconds` when it never came."""
        began = time.monotonic()
        while not condition() and time.monotonic() - began < seconds:
            time.sleep(0.1)
        return time.monotonic() - began
