"""Streams that count what passes, and hold it to a rate."""

from __future__ import annotations

from raft.errors import SnapshotError
from raft.messages import SnapshotReader
from raft.runtime import Event, Runtime

_BURST_SECONDS = 0.05  # a rate is kept over this long, so that small reads need no waiting


class CountingReader:
    """Counts the bytes read through it, and reads no faster than `rate` bytes a second.

    Once `stopped` is set reading raises, so that the transfer ends. `wrapped()` gives the stream
    inside to an FSM that wants it.
    """

    def __init__(
        self, runtime: Runtime, reader: SnapshotReader, *, rate: int = 0, stopped: Event
    ) -> None:
        self._runtime = runtime
        self._reader = reader
        self._rate = rate
        self._stopped = stopped
        self._begun = runtime.monotonic()
        self._count = 0

    def count(self) -> int:
        """Return how many bytes have been read."""
        return self._count

    def wrapped(self) -> SnapshotReader:
        """Return the stream inside."""
        return self._reader

    def read(self, size: int = -1, /) -> bytes:
        """Read from the stream inside, after the time that the rate asks for."""
        if self._stopped.is_set():
            raise SnapshotError("transfer was stopped")
        if self._rate:
            due = self._begun + self._count / self._rate - _BURST_SECONDS
            wait = due - self._runtime.monotonic()
            if wait > 0:
                self._stopped.wait(wait)
        data = self._reader.read(size)
        self._count += len(data)
        return data

    def close(self) -> None:
        """Close the stream inside."""
        self._reader.close()
