"""One durable server in a process of its own, with a port for the clients of the torture bench.

Run as `python -m tests.torture.member SETTINGS`, SETTINGS being the JSON of `Settings`. It prints
the port when it is ready, and ends with its standard input, so that it never outlives the bench.
Clients send one JSON a line, and get one back: {"ok": answer}, or {"refused": why, "leader": id}
when there was certainly no effect, or {"unknown": why}.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import socketserver
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import (
    Config,
    Configuration,
    Log,
    NotAppliedError,
    Raft,
    RaftError,
    RaftState,
    Server,
    SnapshotReader,
    SnapshotSink,
)
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

ENQUEUE_SECONDS = 0.5
ANSWER_SECONDS = 3.0
CHANGE_SECONDS = 10.0
WATCH_SECONDS = 0.2
LIBC = ctypes.PyDLL(None)  # keeps the interpreter's lock during a call, unlike CDLL


@dataclass(frozen=True)
class Settings:
    """How a member runs; `links` names the port through which it reaches each other server."""

    id: str
    folder: str
    bind: str  # host:port where the links come in
    links: dict[str, int]
    timeout: float  # seconds of heartbeat and election timeout; 0 for the defaults
    reads_are_stale: bool = False  # a bug put in on purpose, which the bench must find

    @property
    def address(self) -> str:
        """The address in configurations; nobody dials it, the links know the way."""
        return f"{self.id}:1"


class Registers:
    """Keys with values, and compare-and-set."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, log: Log) -> bool:
        """Carry out `[key, value]` or `[key, value, expected]`; True unless it was not expected."""
        key, value, *expected = json.loads(log.data)
        if expected and self.values.get(key) != expected[0]:
            return False
        self.values[key] = value
        return True

    def snapshot(self) -> RegistersSnapshot:
        """Return a copy."""
        return RegistersSnapshot(dict(self.values))

    def restore(self, reader: SnapshotReader) -> None:
        """Replace all by a copy."""
        pieces = []
        while piece := reader.read(1 << 20):
            pieces.append(piece)
        self.values = json.loads(b"".join(pieces))


class RegistersSnapshot:
    """All keys at one moment."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def persist(self, sink: SnapshotSink) -> None:
        """Write them as JSON."""
        sink.write(json.dumps(self._values).encode())

    def release(self) -> None:
        """Nothing to let go of."""


class Links:
    """Finds a peer behind the link that leads from here to there."""

    def __init__(self, links: dict[str, int]) -> None:
        self._links = links

    def server_addr(self, server_id: str) -> str:
        """Return the address of the link."""
        return f"127.0.0.1:{self._links[server_id]}"


class Member:
    """A node and what clients may ask of it."""

    def __init__(self, settings: Settings, node: Raft, registers: Registers) -> None:
        self._settings = settings
        self._node = node
        self._registers = registers

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order, and tell what is known of its effect."""
        try:
            return {"ok": getattr(self, f"_do_{order.pop('do')}")(**order)}
        except NotAppliedError as error:
            return {"refused": repr(error), "leader": getattr(error, "leader_id", "")}
        except (RaftError, TimeoutError) as error:
            return {"unknown": repr(error)}

    def _do_write(self, key: str, value: str) -> bool:
        return self._apply([key, value])

    def _do_cas(self, key: str, expected: str | None, value: str) -> bool:
        return self._apply([key, value, expected])

    def _apply(self, command: list[str | None]) -> bool:
        data = json.dumps(command).encode()
        return bool(self._node.apply(data, ENQUEUE_SECONDS).result(ANSWER_SECONDS))

    def _do_read(self, key: str) -> str | None:
        if not self._settings.reads_are_stale:
            self._node.read_barrier(ANSWER_SECONDS).result(ANSWER_SECONDS)
        return self._registers.values.get(key)

    def _do_status(self) -> dict[str, Any]:
        node = self._node
        return {
            "state": str(node.state()),
            "term": node.current_term(),
            "applied": node.applied_index(),
            "last": node.last_index(),
            "servers": {s.id: s.suffrage.name for s in self._configuration().servers},
            "installs": int(node.stats()["last_snapshot_index"]),
        }

    def _do_digest(self) -> list[Any]:
        """Return the applied index and a digest of all that is there; comparable when at rest."""
        index = self._node.applied_index()
        everything = json.dumps(sorted(self._registers.values.items()))
        return [index, hashlib.sha256(everything.encode()).hexdigest()]

    def _configuration(self) -> Configuration:
        return self._node.get_configuration().result(1.0)

    def _do_bootstrap(self, servers: list[str]) -> None:
        configuration = Configuration([Server(name, f"{name}:1") for name in servers])
        self._node.bootstrap_cluster(configuration).result(CHANGE_SECONDS)

    def _do_add(self, server: str) -> None:
        """Make a server a voter, once it has the log."""
        self._node.add_voter(server, f"{server}:1", catch_up=True).result(CHANGE_SECONDS)

    def _do_demote(self, server: str) -> None:
        self._node.demote_voter(server).result(CHANGE_SECONDS)

    def _do_remove(self, server: str) -> None:
        self._node.remove_server(server).result(CHANGE_SECONDS)

    def _do_snapshot(self) -> None:
        self._node.snapshot().result(CHANGE_SECONDS)

    def _do_transfer(self) -> None:
        self._node.leadership_transfer().result(CHANGE_SECONDS)

    def _do_hold(self, seconds: float) -> None:
        """Hold the interpreter's lock for less than a second: no other thread runs meanwhile."""
        LIBC.usleep(int(seconds * 1_000_000))


def serve(member: Member) -> int:
    """Take orders on a port of its own, a thread each connection; return the port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                for line in self.rfile:
                    answer = json.dumps(member.answer(json.loads(line)))
                    self.wfile.write(answer.encode() + b"\n")
            except OSError:
                pass  # the client has gone

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="clients", daemon=True).start()
    return int(server.server_address[1])


def exit_with_node(node: Raft) -> None:
    """End the process when the node has shut itself down: the bench starts it again."""
    pause = threading.Event()
    while node.state() is not RaftState.SHUTDOWN:
        pause.wait(WATCH_SECONDS)
    os._exit(3 if node.failure is not None else 0)


def configuration_of(settings: Settings) -> Config:
    """Return the node's configuration: snapshots often, few entries kept, so that many install."""
    config = Config(
        local_id=settings.id,
        snapshot_interval=2.0,
        snapshot_threshold=200,
        trailing_logs=20,
        disk_stall_timeout=2.0,
    )
    if settings.timeout:
        config.heartbeat_timeout = config.election_timeout = settings.timeout
        config.leader_lease_timeout = 0.75 * settings.timeout
    return config


def main(settings: Settings) -> None:
    """Be one server until standard input ends."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    )
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    transport = TCPTransport(
        settings.bind, advertise=settings.address, server_address_provider=Links(settings.links)
    )
    with SQLiteStore(folder / "raft.db") as store:
        registers = Registers()
        snapshots = FileSnapshotStore(folder, retain=2)
        with Raft(
            configuration_of(settings), registers, store, store, snapshots, transport
        ) as node:
            port = serve(Member(settings, node, registers))
            threading.Thread(target=exit_with_node, args=[node], daemon=True).start()
            print(port, flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
