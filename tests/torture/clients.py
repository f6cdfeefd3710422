"""Clients of the torture bench: they write, read and compare-and-set, and note what they saw."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

from raft.testing.linearizability import Kind, Operation
from tests.torture.servers import Line, NoAnswerError, NothingSentError, ServerProcess, World

KEYS_AT_A_TIME = 4
OPERATIONS_A_KEY = 120  # about; more make the check slow
WANDER_CHANCE = 0.15  # to ask any server: one that led before may still believe that it does
SETTLE_SECONDS = 60.0


class History:
    """All that clients did; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._operations = 0
        self.done: list[Operation] = []
        self.outcomes: Counter[str] = Counter()

    def next_client(self) -> int:
        """Return a number for a client. Who got no answer goes on under a new one."""
        return next(self._numbers)

    def next_key(self, chance: random.Random) -> str:
        """Return one of the keys of the moment; they are replaced before any has too many."""
        with self._lock:
            self._operations += 1
            epoch = self._operations // (KEYS_AT_A_TIME * OPERATIONS_A_KEY)
        return f"k{epoch}-{chance.randrange(KEYS_AT_A_TIME)}"

    def note(self, outcome: str, operation: Operation | None) -> None:
        """Take an operation down; None for what certainly had no effect."""
        with self._lock:
            self.outcomes[outcome] += 1
            if operation is not None:
                self.done.append(operation)

    def keys_used(self) -> list[str]:
        """Return all keys ever used."""
        return sorted({operation.key for operation in self.done})


class Client:
    """One client, on a thread of its own while it runs."""

    def __init__(self, world: World, history: History, seed: int, pause: float) -> None:
        self._world = world
        self._history = history
        self._chance = random.Random(seed)
        self._pause = pause
        self._number = history.next_client()
        self._count = 0
        self._lines = {server.id: Line(server) for server in world.servers.values()}
        self._hint = ""
        self._last_read: dict[str, Any] = {}

    def run(self, ended: threading.Event) -> None:
        """Send operations until the end."""
        while not ended.wait(self._chance.random() * 2 * self._pause):
            self._send(self._draw())
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for line in self._lines.values():
            line.hang_up()

    def read(self, key: str) -> bool:
        """Read one key; True when there was an answer."""
        return self._send({"do": "read", "key": key})

    def _draw(self) -> dict[str, Any]:
        key = self._history.next_key(self._chance)
        kind = self._chance.choice(("read", "read", "write", "write", "cas"))
        if kind == "read":
            return {"do": "read", "key": key}
        self._count += 1
        value = f"{self._number}.{self._count}"
        if kind == "write":
            return {"do": "write", "key": key, "value": value}
        return {"do": "cas", "key": key, "value": value, "expected": self._last_read.get(key)}

    def _target(self) -> ServerProcess:
        servers = self._world.servers
        leader = servers.get(self._hint) or self._world.leader()
        if leader is None or self._chance.random() < WANDER_CHANCE:
            return self._chance.choice(list(servers.values()))
        return leader

    def _send(self, order: dict[str, Any]) -> bool:
        target = self._target()
        called = time.monotonic_ns()
        try:
            answer = self._lines[target.id].ask(order)
        except NothingSentError:
            self._hint = ""
            self._history.note("nothing sent", None)
            return False
        except NoAnswerError:
            answer = {"unknown": "no answer"}
        returned = time.monotonic_ns()
        if "ok" in answer:
            self._hint = target.id
            self._answered(order, called, returned, answer["ok"])
            return True
        self._hint = answer.get("leader", "")
        if "refused" in answer:
            self._history.note("refused", None)
        elif order["do"] == "read":
            self._history.note("read without answer", None)
        else:
            self._history.note("unknown", self._operation(order, called, None))
            self._number = self._history.next_client()
        return False

    def _answered(self, order: dict[str, Any], called: int, returned: int, answer: Any) -> None:
        operation = self._operation(order, called, returned, answer)
        if order["do"] == "read":
            self._last_read[order["key"]] = answer
        self._history.note("acknowledged", operation)

    def _operation(
        self, order: dict[str, Any], called: int, returned: int | None, answer: Any = None
    ) -> Operation:
        kind = Kind(order["do"])
        return Operation(
            self._number,
            order["key"],
            kind,
            called,
            returned,
            answer if kind is Kind.READ else order["value"],
            order.get("expected"),
            swapped=kind is Kind.CAS and answer is True,
        )


class Clients:
    """Several clients at work; `end` joins them."""

    def __init__(self, world: World, history: History, count: int, pause: float, seed: int) -> None:
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(
                target=Client(world, history, seed * 1000 + number, pause).run, args=[self._ended]
            )
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each end what it is at."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def read_everything(world: World, history: History) -> None:
    """Read every key once more, through a leader, after all faults are over."""
    client = Client(world, history, 0, 0.0)
    for key in history.keys_used():
        world.wait_for(f"a read of {key}", lambda key=key: client.read(key), SETTLE_SECONDS)
    client.hang_up()
