"""Streams that count what passes, hold it to a rate, and report on it."""

from __future__ import annotations

import io
from typing import Any

from raft.errors import SnapshotError
from raft.logs import get_logger
from raft.messages import SnapshotReader
from raft.runtime import Event, Runtime
from raft.types import SnapshotMeta

_log = get_logger(__name__)

BUFFER_BYTES = 64 * 1024  # of a snapshot, read ahead for an FSM that wants little at a time

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


class RestoreReader(io.BufferedReader):
    """What an FSM reads a snapshot from: a file for whatever wants one, `pickle.load` say.

    Logs how far it has got: every ten seconds, and at the end. `wrapped()` gives the stream inside.
    """

    def __init__(self, runtime: Runtime, reader: SnapshotReader, meta: SnapshotMeta) -> None:
        self._inside = reader
        super().__init__(_ReportedStream(runtime, reader, meta), BUFFER_BYTES)

    def wrapped(self) -> SnapshotReader:
        """Return the stream inside."""
        return self._inside


class _ReportedStream(io.RawIOBase):
    def __init__(self, runtime: Runtime, reader: SnapshotReader, meta: SnapshotMeta) -> None:
        self._runtime = runtime
        self._reader = reader
        self._meta = meta
        self._count = 0
        self._report_at = runtime.monotonic() + _REPORT_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(-1)

    def close(self) -> None:
        """Report for the last time, and close the stream inside; may be called twice."""
        if not self.closed:
            self._report()
            self._reader.close()
        super().close()

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        self._count += len(data)
        if self._runtime.monotonic() >= self._report_at:
            self._report()
        return data

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
