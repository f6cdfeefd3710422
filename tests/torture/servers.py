"""The bench's end of the servers: processes that are killed, stopped and started, and asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path
from typing import Any

from examples.kv.tour import free_address
from tests.torture.links import Links
from tests.torture.member import Settings

SOURCE = Path(__file__).with_name("faulty_disk.c")
START_SECONDS = 15.0
ASK_SECONDS = 4.0  # for any answer; a member takes no longer over a command
WATCH_SECONDS = 0.05  # between two looks at a server
FRESH_SECONDS = 0.5  # for which a look counts
POLL_SECONDS = 0.05


class TortureError(Exception):
    """The bench itself cannot go on, or found something; the message says what."""


class Disk(IntEnum):
    """How a server's disk fails; the numbers are those of `faulty_disk.c`."""

    FINE = 0
    SYNC_FAILS = 1
    SYNC_HANGS = 2
    ALMOST_FULL = 3
    FULL = 4


class NothingSentError(Exception):
    """The order never left: it has certainly no effect."""


class NoAnswerError(Exception):
    """The order left, and nobody knows what became of it."""


class Line:
    """One client's connection to one server; dialed when it is needed."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._socket: socket.socket | None = None
        self._file: Any = None

    def ask(self, order: dict[str, Any], seconds: float = ASK_SECONDS) -> dict[str, Any]:
        """Return the answer to an order."""
        if self._socket is None:
            port = self._server.client_port
            if port is None:
                raise NothingSentError(f"{self._server.id} is down")
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), seconds)
            except OSError as error:
                raise NothingSentError(str(error)) from error
            self._file = self._socket.makefile("rb")
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            line = self._file.readline()
            if not line:
                raise ConnectionError("closed")
            answer: dict[str, Any] = json.loads(line)
            return answer
        except OSError as error:
            self.hang_up()
            raise NoAnswerError(str(error)) from error

    def hang_up(self) -> None:
        """Close the connection; the next order dials anew."""
        if self._socket is not None:
            self._file.close()
            self._socket.close()
        self._socket = None


class ServerProcess:
    """One server: its folder always, and a process while it is up."""

    def __init__(self, server_id: str, folder: Path, library: Path, timeout: float) -> None:
        self.id = server_id
        self.folder = folder / server_id
        self.bind = free_address()
        self.client_port: int | None = None
        self.links: dict[str, int] = {}
        self.reads_are_stale = False
        self.disk = Disk.FINE
        self.starts = 0
        self.status: dict[str, Any] = {}
        self.seen_at = 0.0
        self._timeout = timeout
        self._library = library
        self._log = folder / f"{server_id}.log"
        self._switch = folder / f"{server_id}.disk"
        self._switch.write_bytes(bytes([Disk.FINE]))
        self._process: subprocess.Popen[str] | None = None

    def __str__(self) -> str:
        return self.id

    def start(self) -> bool:
        """Start a process if there is none; False when it did not come up."""
        if self._process is not None:
            if self._process.poll() is None:
                return True
            self.kill()
        self.starts += 1
        settings = Settings(
            self.id,
            str(self.folder),
            self.bind,
            self.links,
            self._timeout,
            self.reads_are_stale,
        )
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.member", json.dumps(asdict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"LD_PRELOAD": str(self._library), "FAULTY_DISK": self._switch},
                text=True,
            )
        self._process = process
        assert process.stdout is not None
        # A process that hangs in its start is ended, which ends the wait for its line.
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        self.client_port = int(line) if line else None
        return bool(line)

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        process, self._process, self.client_port = self._process, None, None
        self.status = {}
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def pause(self) -> None:
        """Stop the process where it stands."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped process go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def set_disk(self, disk: Disk) -> None:
        """Have the disk fail from now on, or work again."""
        self.disk = disk
        with self._switch.open("r+b") as switch:
            switch.write(bytes([disk]))

    def wipe(self) -> None:
        """Lose everything: the folder of a process that is down."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_leader(self) -> bool:
        """Tell whether the server said a moment ago that it leads."""
        fresh = time.monotonic() - self.seen_at < FRESH_SECONDS
        return fresh and self.status.get("state") == "Leader"

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give one order on a connection of its own; the answer is empty when there is none."""
        line = Line(self)
        try:
            return line.ask(order)
        except (NothingSentError, NoAnswerError):
            return {}
        finally:
            line.hang_up()

    def times_logged(self, text: str) -> int:
        """Return how often the log says something."""
        return self.log().count(text)

    def log(self) -> str:
        """Return what the server has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log()[-3000:]


class World:
    """All servers, the links between them, and who leads; use it with `with`."""

    def __init__(self, count: int, folder: Path, timeout: float) -> None:
        library = build_faulty_disk(folder)
        self.servers = {
            name: ServerProcess(name, folder, library, timeout)
            for name in (f"n{number + 1}" for number in range(count))
        }
        self.links = Links({server.id: server.bind for server in self.servers.values()})
        for server in self.servers.values():
            server.links = self.links.ports[server.id]
        self.looks = self.looks_with_leader = 0
        self.terms: set[int] = set()  # that had a leader
        self._ended = threading.Event()
        self._watchers = [
            threading.Thread(target=self._watch, args=[server], daemon=True)
            for server in self.servers.values()
        ]
        self._watchers.append(threading.Thread(target=self._count_leaders, daemon=True))

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for server in self.servers.values():
            server.resume()
            server.kill()
        self.links.__exit__()

    def begin(self) -> None:
        """Start all servers as one cluster."""
        for server in self.servers.values():
            if not server.start():
                raise TortureError(f"{server} did not start:\n{server.tail()}")
        next(iter(self.servers.values())).ask({"do": "bootstrap", "servers": list(self.servers)})
        for watcher in self._watchers:
            watcher.start()

    def leader(self) -> ServerProcess | None:
        """Return the server that claims to lead, of the highest term."""
        claiming = [server for server in self.servers.values() if server.is_leader()]
        return max(claiming, key=lambda server: server.status.get("term", 0), default=None)

    def wait_for(self, what: str, predicate: Callable[[], Any], seconds: float) -> Any:
        """Return the predicate's first true value."""
        give_up = time.monotonic() + seconds
        pause = threading.Event()
        while not (found := predicate()):
            if time.monotonic() > give_up:
                states = {s.id: s.status for s in self.servers.values()}
                raise TortureError(f"waited {seconds:.0f} s in vain for {what}: {states}")
            pause.wait(POLL_SECONDS)
        return found

    def _watch(self, server: ServerProcess) -> None:
        line = Line(server)
        while not self._ended.wait(WATCH_SECONDS):
            try:
                status = line.ask({"do": "status"}, FRESH_SECONDS).get("ok")
            except (NothingSentError, NoAnswerError):
                continue
            if status is not None:
                server.status, server.seen_at = status, time.monotonic()
        line.hang_up()

    def _count_leaders(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            leader = self.leader()
            self.looks += 1
            if leader is not None:
                self.looks_with_leader += 1
                self.terms.add(leader.status.get("term", 0))


def build_faulty_disk(folder: Path) -> Path:
    """Compile the library that makes disks fail; the bench is nothing without it."""
    library = folder / "faulty_disk.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise TortureError("a C compiler is needed for failing disks: install gcc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library
