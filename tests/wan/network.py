"""Hosts on one machine with slow links between them: namespaces and a router. Needs root."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
_QUEUE_SECONDS = 0.2  # of a link's rate that its queue holds
_SHORTEST_QUEUE = 64 * 1024  # bytes
_NO_LIMIT = 1 << 30
_numbers = itertools.count()  # of the networks of this process


def can_run() -> bool:
    """Tell whether this process may make network namespaces."""
    return os.geteuid() == 0 and Path("/dev/net/tun").exists()


def address(host: int) -> str:
    """Return the IP address of a host."""
    return f"10.77.0.{host + 1}"


class Network:
    """So many hosts; use it in a `with`. All links begin without delay and limit."""

    def __init__(self, count: int, congestion_control: str = "") -> None:
        self._count = count
        self._congestion_control = congestion_control
        self._prefix = f"raftwan{os.getpid()}-{next(_numbers)}-"
        self._made: list[str] = []
        self._router: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def set_link(
        self, source: int, target: int, *, way: float, megabits: float = 0.0, largest: int = 0
    ) -> None:
        """Set one direction: seconds that it takes, megabits a second, largest packet (0: any)."""
        rate = megabits * 1e6 / 8
        limit = max(_SHORTEST_QUEUE, int(rate * _QUEUE_SECONDS)) if rate else _NO_LIMIT
        self._order(f"{source} {target} {way} {rate} {limit} {largest}")

    def set_all(self, *, round_trip: float, megabits: float = 0.0) -> None:
        """Set all links alike."""
        for source in range(self._count):
            for target in range(self._count):
                if source != target:
                    self.set_link(source, target, way=round_trip / 2, megabits=megabits)

    def start(self, host: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Run a program on a host, whose standard streams are pipes of lines."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self._name(host), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def _name(self, host: int) -> str:
        return f"{self._prefix}{host}"

    def _make(self) -> None:
        for host in range(self._count):
            name = self._name(host)
            _ip("netns", "add", name)
            self._made.append(name)
        self._router = subprocess.Popen(
            [sys.executable, "-m", "tests.wan.router", self._prefix, str(self._count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._read("ready")
        for host, name in enumerate(self._made):
            _ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", "t0")
            _ip("-n", name, "link", "set", "t0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            if self._congestion_control:
                setting = f"net.ipv4.tcp_congestion_control={self._congestion_control}"
                _run("ip", "netns", "exec", name, "sysctl", "-qw", setting)

    def _order(self, line: str) -> None:
        assert self._router is not None
        assert self._router.stdin is not None
        self._router.stdin.write(line + "\n")
        self._router.stdin.flush()
        self._read("ok")

    def _read(self, expected: str) -> None:
        assert self._router is not None
        assert self._router.stdout is not None
        line = self._router.stdout.readline().strip()
        if line != expected:
            raise RuntimeError(f"the router said {line!r} instead of {expected!r}")

    def _remove(self) -> None:
        if self._router is not None:
            self._router.kill()
            self._router.communicate()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._made.clear()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True)
