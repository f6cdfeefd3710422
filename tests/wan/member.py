"""One durable server of the WAN measurements, in a process of its own.

Run as `python -m tests.wan.member ID FOLDER ADDRESS PEERS`, PEERS being `id=host:port,...` of all.
Orders come on standard input, one line each; each is answered by one line of JSON:

    bootstrap         found the cluster of all peers
    state             role, term, last and committed index
    apply SIZE        write one command; seconds that it took, or the error
    fill COUNT SIZE   write so many commands, many at a time; seconds
    disk SECONDS      have each write of the store take so much longer

It logs to FOLDER/log and ends with its standard input.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raft import Config, Configuration, Log, Raft, RaftError, Server
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

_ANSWER_SECONDS = 120.0
_OUTSTANDING = 256


class SlowStore(SQLiteStore):
    """A store whose writes take longer, as on a slow disk."""

    delay = 0.0

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value, late."""
        time.sleep(self.delay)
        super().set(key, value)

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries, late."""
        time.sleep(self.delay)
        super().store_logs(logs)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Replace the end of the log, late."""
        time.sleep(self.delay)
        super().replace_suffix(first, logs)


class Sizes:
    """A state machine that adds up what it was given."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, log: Log) -> int:
        """Add the length of a command."""
        self.total += len(log.data)
        return self.total

    def snapshot(self) -> Any:
        """Refuse: these measurements need the log alone."""
        raise RuntimeError("no snapshots here")

    def restore(self, reader: Any) -> None:
        """Refuse, too."""
        raise RuntimeError("no snapshots here")


class Member:
    """A node and what the bench may ask of it."""

    def __init__(self, node: Raft, store: SlowStore, configuration: Configuration) -> None:
        self._node = node
        self._store = store
        self._configuration = configuration

    def answer(self, order: str, *arguments: str) -> dict[str, Any]:
        """Carry an order out."""
        orders: dict[str, Callable[..., dict[str, Any]]] = {
            "bootstrap": self._bootstrap,
            "state": self._state,
            "apply": self._apply,
            "fill": self._fill,
            "disk": self._disk,
        }
        began = time.monotonic()
        try:
            answer = orders[order](*arguments)
        except (RaftError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        return answer | {"seconds": time.monotonic() - began}

    def _bootstrap(self) -> dict[str, Any]:
        self._node.bootstrap_cluster(self._configuration).result(_ANSWER_SECONDS)
        return {}

    def _state(self) -> dict[str, Any]:
        node = self._node
        return {
            "role": str(node.state()),
            "term": node.current_term(),
            "last": node.last_index(),
            "committed": node.commit_index(),
            "leader": node.leader_with_id()[1],
        }

    def _apply(self, size: str) -> dict[str, Any]:
        self._node.apply(os.urandom(int(size))).result(_ANSWER_SECONDS)
        return {}

    def _fill(self, count: str, size: str) -> dict[str, Any]:
        data, waiting = os.urandom(int(size)), deque[Any]()
        for _ in range(int(count)):
            waiting.append(self._node.apply(data))
            if len(waiting) >= _OUTSTANDING:
                waiting.popleft().result(_ANSWER_SECONDS)
        while waiting:
            waiting.popleft().result(_ANSWER_SECONDS)
        return {}

    def _disk(self, seconds: str) -> dict[str, Any]:
        self._store.delay = float(seconds)
        return {}


def main(local_id: str, folder: str, bind: str, peers: str) -> None:
    """Run one member until standard input ends."""
    logging.basicConfig(
        filename=Path(folder) / "log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    servers = [Server(*peer.split("=")) for peer in peers.split(",")]
    store = SlowStore(Path(folder) / "raft.db")
    transport = TCPTransport(bind)
    config = Config(local_id=local_id, max_command_bytes=16 << 20, snapshot_threshold=10**9)
    node = Raft(config, Sizes(), store, store, FileSnapshotStore(Path(folder)), transport)
    member = Member(node, store, Configuration(servers))
    print(json.dumps({"ready": local_id}), flush=True)
    for line in sys.stdin:
        print(json.dumps(member.answer(*line.split())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
