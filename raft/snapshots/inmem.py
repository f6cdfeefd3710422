"""A snapshot store in memory that keeps the newest snapshot, and one that is not settled.

For tests and simulations. As in every store, a snapshot appears when its sink is closed; the
original shows it, and has lost the older one, as soon as it is begun.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

from raft.errors import SnapshotError
from raft.interfaces import SnapshotSink
from raft.messages import SnapshotReader
from raft.runtime import THREADS, Runtime
from raft.snapshots.crc64 import crc64
from raft.snapshots.metadata import with_checksum
from raft.types import SNAPSHOT_VERSION, Configuration, SnapshotMeta


class InmemSnapshotStore:
    """A `SnapshotStore` for one snapshot, and one unsettled; safe from any thread."""

    def __init__(self, *, runtime: Runtime = THREADS) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()  # guards all below
        self._kept: dict[bool, tuple[SnapshotMeta, bytes]] = {}  # by whether it is unsettled
        self._last_stamp = 0

    def create(
        self,
        version: int,
        index: int,
        term: int,
        configuration: Configuration,
        configuration_index: int,
        *,
        unsettled: bool = False,
    ) -> SnapshotSink:
        """Begin a snapshot; it replaces the one kept once its sink is closed."""
        if version != SNAPSHOT_VERSION:
            raise SnapshotError(f"unsupported snapshot version {version}")
        with self._lock:
            stamp = max(self._runtime.wall_time_ns() // 1_000_000, self._last_stamp + 1)
            self._last_stamp = stamp
        meta = SnapshotMeta(
            f"{term}-{index}-{stamp}",
            index,
            term,
            configuration,
            configuration_index,
            version=version,
            unsettled=unsettled,
        )
        return InmemSnapshotSink(meta, self._keep)

    def list(self) -> Sequence[SnapshotMeta]:
        """Return what is kept, newest first."""
        with self._lock:
            return sorted((meta for meta, _ in self._kept.values()), key=_rank, reverse=True)

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, SnapshotReader]:
        """Return a snapshot's metadata and a reader of its content, or raise `SnapshotError`."""
        with self._lock:
            for meta, data in self._kept.values():
                if meta.id == snapshot_id:
                    return with_checksum(meta, crc64(data)), io.BytesIO(data)
        raise SnapshotError(f"there is no snapshot {snapshot_id!r}")

    def settle(self, snapshot_id: str) -> None:
        """Take the mark off an unsettled snapshot; it may then replace the older one."""
        with self._lock:
            meta, data = self._kept.get(True, (None, b""))
            if meta is not None and meta.id == snapshot_id:
                del self._kept[True]
                self._put(replace(meta, unsettled=False), data)

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is absent does not matter."""
        with self._lock:
            self._kept = {u: kept for u, kept in self._kept.items() if kept[0].id != snapshot_id}

    def _keep(self, meta: SnapshotMeta, data: bytes) -> None:
        with self._lock:
            self._put(meta, data)

    def _put(self, meta: SnapshotMeta, data: bytes) -> None:
        older = self._kept.get(meta.unsettled)
        if older is None or _rank(older[0]) < _rank(meta):
            self._kept[meta.unsettled] = (meta, data)


def _rank(meta: SnapshotMeta) -> tuple[int, int, str]:
    return meta.term, meta.index, meta.id


class InmemSnapshotSink:
    """The sink of one snapshot; used by one thread."""

    def __init__(self, meta: SnapshotMeta, keep: Callable[[SnapshotMeta, bytes], None]) -> None:
        self._meta = meta
        self._keep = keep
        self._data = bytearray()
        self._done = False

    def write(self, data: bytes, /) -> int:
        """Append bytes to the snapshot."""
        if self._done:
            raise SnapshotError(f"snapshot {self._meta.id} is closed")
        self._data += data
        return len(data)

    def close(self) -> None:
        """Put the snapshot in place of the older one."""
        if not self._done:
            self._done = True
            self._keep(replace(self._meta, size=len(self._data)), bytes(self._data))

    def cancel(self) -> None:
        """Throw the snapshot away."""
        self._done = True

    def id(self) -> str:
        """Return the snapshot's id."""
        return self._meta.id
