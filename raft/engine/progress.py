"""Streams that count what passes, hold it to a rate, and report on it."""

from __future__ import annotations

import logging

from raft.errors import SnapshotError
from raft.messages import SnapshotReader
from raft.runtime import Event, Runtime
from raft.types import SnapshotMeta

_log = logging.getLogger(__name__)

_BURST_SECONDS = 0.05  # a rate is kept over this long, so that small reads need no waiting
_PIECE_SECONDS = 0.25  # of the rate in one read: whoever waits for the next one sees progress
_REPORT_SECONDS = 10.0  # between two reports on a restore


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
        """Read from the stream inside, after the time that the rate asks for; perhaps less."""
        if self._stopped.is_set():
            raise SnapshotError("transfer was stopped")
        if self._rate:
            due = self._begun + self._count / self._rate - _BURST_SECONDS
            wait = due - self._runtime.monotonic()
            if wait > 0:
                self._stopped.wait(wait)
            most = max(1, int(self._rate * _PIECE_SECONDS))
            size = min(size, most) if size >= 0 else most
        data = self._reader.read(size)
        self._count += len(data)
        return data

    def close(self) -> None:
        """Close the stream inside."""
        self._reader.close()


class RestoreReader:
    """Logs how far an FSM has read a snapshot: every ten seconds, and at the end."""

    def __init__(self, runtime: Runtime, reader: SnapshotReader, meta: SnapshotMeta) -> None:
        self._runtime = runtime
        self._reader = reader
        self._meta = meta
        self._count = 0
        self._report_at = runtime.monotonic() + _REPORT_SECONDS
        self._is_closed = False

    def wrapped(self) -> SnapshotReader:
        """Return the stream inside."""
        return self._reader

    def read(self, size: int = -1, /) -> bytes:
        """Read from the stream inside."""
        data = self._reader.read(size)
        self._count += len(data)
        if self._runtime.monotonic() >= self._report_at:
            self._report()
        return data

    def close(self) -> None:
        """Report for the last time, and close the stream inside; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._report()
        self._reader.close()

    def _report(self) -> None:
        self._report_at = self._runtime.monotonic() + _REPORT_SECONDS
        size = self._meta.size
        _log.info(
            "snapshot restore progress id=%s read_bytes=%d size=%d percent_complete=%.2f%%",
            self._meta.id,
            self._count,
            size,
            100 * self._count / size if size else 100,
        )
