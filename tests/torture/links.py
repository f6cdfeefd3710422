"""All links between the servers of the bench, in one process: one proxy for each directed link.

Run as `python -m tests.torture.links SERVERS`, SERVERS being the JSON of {id: host:port}. It prints
{from: {to: port}}, then obeys one JSON a line and answers each with one. What server `a` says to
server `b` travels on the connections that `a` dialed, and as answers on those that `b` dialed: a
way that is closed holds both up. What is held up is not lost, as in any network that TCP runs on;
`cut` ends the connections.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

CHUNK = 64 * 1024
ANSWER_SECONDS = 30.0
Pair = tuple[str, str]  # (from, to)


class Way:
    """What one server says to one other."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.delay = 0.0  # seconds for each piece

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until the end of the stream."""
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self.is_open.wait()
            writer.write(data)
            await writer.drain()


class Proxies:
    """A listener for each directed link, and the connections that came through it."""

    def __init__(self, servers: dict[str, str]) -> None:
        self._servers = servers
        self._ways: dict[Pair, Way] = {}
        self._writers: defaultdict[Pair, set[asyncio.StreamWriter]] = defaultdict(set)

    async def listen(self) -> dict[str, dict[str, int]]:
        """Open all listeners; return their ports."""
        pairs = [(a, b) for a in self._servers for b in self._servers if a != b]
        self._ways = {pair: Way() for pair in pairs}
        ports: dict[str, dict[str, int]] = {a: {} for a in self._servers}
        for pair in pairs:
            server = await asyncio.start_server(self._acceptor(pair), "127.0.0.1", 0)
            ports[pair[0]][pair[1]] = server.sockets[0].getsockname()[1]
        return ports

    def _acceptor(self, pair: Pair) -> Any:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers = self._writers[pair]
            writers.add(writer)
            ends = [writer]
            try:
                there, back = self._ways[pair], self._ways[pair[::-1]]
                await there.is_open.wait()  # nobody answers a call that does not arrive
                await back.is_open.wait()
                host, _, port = self._servers[pair[1]].rpartition(":")
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
                ends.append(far_writer)
                writers.add(far_writer)
                tasks = [
                    asyncio.ensure_future(there.carry(reader, far_writer)),
                    asyncio.ensure_future(back.carry(far_reader, writer)),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            except OSError:
                pass  # the far end is down, or has closed
            finally:
                for end in ends:
                    writers.discard(end)
                    end.transport.abort()

        return accepted

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out one order."""
        what = order["do"]
        if what == "heal":
            for way in self._ways.values():
                way.is_open.set()
                way.delay = 0.0
            return
        for pair in map(tuple, order["pairs"]):
            way = self._ways[pair]
            if what == "close":
                way.is_open.clear()
            elif what == "slow":
                way.delay = order["delay"]
            elif what == "cut":
                for writer in list(self._writers[pair]):
                    writer.transport.abort()
            else:
                raise ValueError(f"unknown order {what}")


async def run(servers: dict[str, str]) -> None:
    """Serve until standard input ends."""
    proxies = Proxies(servers)
    print(json.dumps(await proxies.listen()), flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        proxies.obey(json.loads(line))
        print("{}", flush=True)


class Links:
    """The bench's end of the process; use it with `with`."""

    def __init__(self, servers: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.links", json.dumps(servers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: dict[str, dict[str, int]] = self._read()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        with self._bounded():
            self._process.communicate()

    def close(self, pairs: Iterable[Pair]) -> None:
        """Hold up all that travels these ways."""
        self._order({"do": "close", "pairs": list(pairs)})

    def slow(self, pairs: Iterable[Pair], delay: float) -> None:
        """Let each piece take so many seconds more."""
        self._order({"do": "slow", "pairs": list(pairs), "delay": delay})

    def cut(self, pairs: Iterable[Pair]) -> None:
        """End all connections that were dialed along these ways."""
        self._order({"do": "cut", "pairs": list(pairs)})

    def heal(self) -> None:
        """Open all ways, at full speed."""
        self._order({"do": "heal"})

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        with self._bounded():
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the links has died, or did not answer")
        return json.loads(line)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Give the process a while; one that hangs is killed, which ends every wait for it."""
        timer = threading.Timer(ANSWER_SECONDS, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
