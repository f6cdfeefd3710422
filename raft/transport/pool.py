"""Idle outbound connections, kept for the next call to the same server at the same address.

Last in, first out: the connection used most recently is the least likely to be stale, and those
not needed stay untouched. A connection on which anything can be read is no longer fit, for the peer
has closed it or speaks out of turn; looking costs one system call and spares the caller an error
after each restart of a peer.
"""

from __future__ import annotations

from raft.errors import ConnectionLostError
from raft.runtime import Runtime
from raft.transport.connection import Connection
from raft.types import ServerAddress, ServerID

Target = tuple[ServerID, ServerAddress]


class ConnectionPool:
    """At most `size` idle connections for each target. Thread-safe; closes nothing under its lock.

    Invariant: a connection is either in here or in use by one call, never both.
    """

    def __init__(self, size: int, runtime: Runtime) -> None:
        self._size = size
        self._lock = runtime.lock()  # guards all below
        self._idle: dict[Target, list[Connection]] = {}
        self._closed = False
        self.generation = 0
        """How often the pool was cleared; to be remembered before a connection is taken or made."""

    def take(self, target: Target, cluster_id: str | None) -> Connection | None:
        """Return an idle connection that is still good, or None; stale ones are closed.

        One whose handshake named another cluster than `cluster_id` is stale: this server has
        learnt its cluster's id since.
        """
        while True:
            with self._lock:
                idle = self._idle.get(target)
                if not idle:
                    return None
                connection = idle.pop()
                if not idle:
                    del self._idle[target]
            if connection.said_cluster_id == cluster_id and _is_quiet(connection):
                return connection
            connection.close()

    def give_back(self, target: Target, connection: Connection, generation: int) -> None:
        """Keep a connection for the next call, or close it when there are enough.

        Also when the pool was cleared meanwhile: `generation` is the pool's of before the
        connection was taken or made.
        """
        with self._lock:
            idle = self._idle.get(target, [])
            is_current = not self._closed and generation == self.generation
            keep = is_current and len(idle) < self._size
            if keep:
                idle.append(connection)
                self._idle[target] = idle
        if not keep:
            connection.close()

    def sweep(self) -> None:
        """Close what is not fit any more, of servers and addresses that nobody asks for, too.

        Whoever comes meanwhile finds nothing and dials.
        """
        with self._lock:
            generation = self.generation
            everything, self._idle = self._idle, {}
        for target, idle in everything.items():
            for connection in idle:
                if _is_quiet(connection):
                    self.give_back(target, connection, generation)
                else:
                    connection.close()

    def idle_count(self, target: Target) -> int:
        """Return how many connections wait for the next call to a target."""
        with self._lock:
            return len(self._idle.get(target, ()))

    def clear(self) -> None:
        """Close all idle connections, and those in use when they are given back."""
        with self._lock:
            self.generation += 1
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close all idle connections, and from now on whatever is given back."""
        with self._lock:
            self._closed = True
        self.clear()


def _is_quiet(connection: Connection) -> bool:
    try:
        return not connection.has_input()
    except ConnectionLostError:
        return False
