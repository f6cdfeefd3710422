"""Simulated disks: what was acknowledged survives a crash, what was under way may or may not.

A `SimDisk` outlives the incarnations of its server. Each gets a `SimStore` and a
`SimSnapshotStore` over it, which stop having any effect when their process dies. A write is one
transaction: it takes virtual time, and a crash meanwhile keeps or loses it whole.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from raft.errors import KeyNotFoundError, LogNotFoundError, SnapshotError
from raft.interfaces import SnapshotSink
from raft.messages import SnapshotReader
from raft.testing.invariants import Invariants
from raft.testing.simulation.runtime import ProcessState, Scheduler, SimRuntime
from raft.types import NO_INDEX, SNAPSHOT_VERSION, Configuration, Log, ServerID, SnapshotMeta

_SHORTEST_SYNC = 0.0002  # seconds that one transaction takes
_LONGEST_SYNC = 0.005
_KEEP_CHANCE = 0.5  # that a transaction under way survives a crash
_SNAPSHOTS_KEPT = 2


@dataclass(slots=True)
class Content:
    """What is on a disk."""

    logs: dict[int, Log] = field(default_factory=dict)
    commit_index: int = NO_INDEX
    values: dict[bytes, bytes] = field(default_factory=dict)
    numbers: dict[bytes, int] = field(default_factory=dict)
    snapshots: dict[str, tuple[SnapshotMeta, bytes]] = field(default_factory=dict)


Change = Callable[[Content], None]


class SimDisk:
    """One server's disk. `slowness` multiplies the time of every write; `failures` fail next."""

    def __init__(self, scheduler: Scheduler, server_id: ServerID, invariants: Invariants) -> None:
        self._scheduler = scheduler
        self._server_id = server_id
        self._invariants = invariants
        self._under_way: list[Change] = []
        self.content = Content()
        self.slowness = 1.0
        self.failures = 0
        self.snapshot_count = 0  # for ids that are never used again

    def commit(self, process: SimRuntime, change: Change) -> None:
        """Make a change durable; returns when it is. A dead process changes nothing."""
        scheduler = self._scheduler
        self._under_way.append(change)
        spread = _LONGEST_SYNC - _SHORTEST_SYNC
        scheduler.sleep((_SHORTEST_SYNC + spread * process.random()) * self.slowness)
        if process.state is ProcessState.DEAD:
            raise OSError("a write of a process that is dead")
        self._under_way.remove(change)
        if self.failures:
            self.failures -= 1
            if process.random() < _KEEP_CHANCE:
                change(self.content)
            raise OSError("simulated disk error")
        change(self.content)

    def crash(self) -> None:
        """Keep or lose, each whole, the transactions that were under way."""
        under_way, self._under_way = self._under_way, []
        for change in under_way:
            if self._scheduler.chance.random() < _KEEP_CHANCE:
                change(self.content)

    def stored(self, logs: Sequence[Log]) -> None:
        """Report entries that are given to this disk."""
        before = self.content.logs.get(logs[0].index - 1)
        prev_term = 0 if logs[0].index == 1 else None if before is None else before.term
        self._invariants.stored(self._server_id, prev_term, logs)

    def has_durably(self, index: int, term: int) -> bool:
        """Tell whether an entry would survive a crash now, in the log or in a snapshot."""
        log = self.content.logs.get(index)
        if log is not None:
            return log.term == term
        return any(meta.index >= index for meta, _ in self.content.snapshots.values())

    def settled_last(self) -> tuple[int, int]:
        """Return index and term of the last entry on disk."""
        last = max(self.content.logs, default=NO_INDEX)
        return last, self.content.logs[last].term if last else 0


class SimStore:
    """Log and stable store of one incarnation: with ranges, and a commit index beside the log."""

    def __init__(self, disk: SimDisk, process: SimRuntime) -> None:
        self._disk = disk
        self._process = process
        self._staged = NO_INDEX  # the commit index that the next append makes durable

    def _content(self) -> Content:
        """Be a switch point, then read."""
        self._process.scheduler.pause()
        return self._disk.content

    def _commit(self, change: Change) -> None:
        self._disk.commit(self._process, change)

    # ---- LogStore ----

    def first_index(self) -> int:
        """Return the first index stored, 0 when empty."""
        return min(self._content().logs, default=NO_INDEX)

    def last_index(self) -> int:
        """Return the last index stored, 0 when empty."""
        return max(self._content().logs, default=NO_INDEX)

    def get_log(self, index: int) -> Log:
        """Return one entry, or raise `LogNotFoundError`."""
        log = self._content().logs.get(index)
        if log is None:
            raise LogNotFoundError(f"log entry {index} not found")
        return log

    def get_range(self, first: int, last: int, max_bytes: int) -> list[Log]:
        """Return entries from `first` on, cut at `last` and `max_bytes`, always at least one."""
        found = [self.get_log(first)]
        size = found[0].size()
        logs = self._disk.content.logs
        for index in range(first + 1, last + 1):
            log = logs.get(index)
            if log is None or size + log.size() > max_bytes:
                break
            size += log.size()
            found.append(log)
        return found

    def store_log(self, log: Log) -> None:
        """Store one entry."""
        self.store_logs([log])

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries, all or none."""
        if logs:
            self._commit(self._append(logs))

    def _append(self, logs: Sequence[Log]) -> Change:
        kept = list(logs)
        self._disk.stored(kept)
        commit_index, self._staged = min(self._staged, kept[-1].index), NO_INDEX

        def change(content: Content) -> None:
            content.logs.update((log.index, log) for log in kept)
            content.commit_index = commit_index or content.commit_index

        return change

    def delete_range(self, first: int, last: int) -> None:
        """Delete the entries from `first` to `last`, both included."""
        self._commit(lambda content: _delete(content, first, last))

    def stage_commit_index(self, index: int) -> None:
        """Remember the commit index; the next append stores it."""
        self._staged = index

    def get_commit_index(self) -> int:
        """Return the durable commit index, 0 for none; never above the last index."""
        return min(self._disk.content.commit_index, self.last_index())

    # ---- StableStore ----

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""
        self._commit(lambda content: content.values.update({key: value}))

    def get(self, key: bytes) -> bytes:
        """Return a value, or raise `KeyNotFoundError`."""
        value = self._content().values.get(key)
        if value is None:
            raise KeyNotFoundError(f"no value for the key {key!r}")
        return value

    def set_uint64(self, key: bytes, value: int) -> None:
        """Store a number."""
        self._commit(lambda content: content.numbers.update({key: value}))

    def get_uint64(self, key: bytes) -> int:
        """Return a number, or raise `KeyNotFoundError`."""
        number = self._content().numbers.get(key)
        if number is None:
            raise KeyNotFoundError(f"no value for the key {key!r}")
        return number


class SimReplacingStore(SimStore):
    """A `SimStore` that truncates and appends in one transaction."""

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Delete all entries from `first` on and store `logs`, all of it or nothing."""
        append = self._append(logs) if logs else _change_nothing

        def change(content: Content) -> None:
            _delete(content, first, max(content.logs, default=NO_INDEX))
            append(content)

        self._commit(change)


def _change_nothing(_: Content) -> None:
    """Append nothing."""


def _delete(content: Content, first: int, last: int) -> None:
    for index in range(first, last + 1):
        content.logs.pop(index, None)


class SimSnapshotStore:
    """Snapshots of one incarnation's disk; only those that were closed survive a crash."""

    def __init__(self, disk: SimDisk, process: SimRuntime) -> None:
        self._disk = disk
        self._process = process

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
        """Begin a snapshot; it is listed once its sink is closed."""
        self._process.scheduler.pause()
        if version != SNAPSHOT_VERSION:
            raise SnapshotError(f"unsupported snapshot version {version}")
        self._disk.snapshot_count += 1
        meta = SnapshotMeta(
            f"{term}-{index}-{self._disk.snapshot_count:06d}",
            index,
            term,
            configuration,
            configuration_index,
            version=version,
            unsettled=unsettled,
        )
        return SimSink(meta, self._disk, self._process)

    def list(self) -> Sequence[SnapshotMeta]:
        """Return the snapshots kept, newest first."""
        self._process.scheduler.pause()
        return _newest_first(self._disk.content)

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, SnapshotReader]:
        """Return a snapshot's metadata and content, or raise `SnapshotError`."""
        self._process.scheduler.pause()
        found = self._disk.content.snapshots.get(snapshot_id)
        if found is None:
            raise SnapshotError(f"there is no snapshot {snapshot_id!r}")
        return found[0], io.BytesIO(found[1])

    def settle(self, snapshot_id: str) -> None:
        """Take the mark off an unsettled snapshot."""

        def change(content: Content) -> None:
            if snapshot_id in content.snapshots:
                meta, data = content.snapshots[snapshot_id]
                content.snapshots[snapshot_id] = (replace(meta, unsettled=False), data)
                _reap(content)

        self._disk.commit(self._process, change)

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is absent does not matter."""
        self._disk.commit(self._process, lambda content: _forget(content, snapshot_id))


class SimSink:
    """The sink of one snapshot."""

    def __init__(self, meta: SnapshotMeta, disk: SimDisk, process: SimRuntime) -> None:
        self._meta = meta
        self._disk = disk
        self._process = process
        self._data = bytearray()
        self._done = False

    def write(self, data: bytes, /) -> int:
        """Append bytes to the snapshot."""
        self._process.scheduler.pause()
        if self._done:
            raise SnapshotError(f"snapshot {self._meta.id} is closed")
        self._data += data
        return len(data)

    def close(self) -> None:
        """Make the snapshot durable and visible."""
        if self._done:
            return
        self._done = True
        meta, data = replace(self._meta, size=len(self._data)), bytes(self._data)

        def change(content: Content) -> None:
            content.snapshots[meta.id] = (meta, data)
            _reap(content)

        self._disk.commit(self._process, change)

    def cancel(self) -> None:
        """Throw the snapshot away."""
        self._done = True

    def id(self) -> str:
        """Return the snapshot's id."""
        return self._meta.id


def _forget(content: Content, snapshot_id: str) -> None:
    content.snapshots.pop(snapshot_id, None)


def _reap(content: Content) -> None:
    settled = [meta for meta in _newest_first(content) if not meta.unsettled]
    for old in settled[_SNAPSHOTS_KEPT:]:
        _forget(content, old.id)


def _newest_first(content: Content) -> list[SnapshotMeta]:
    metas = [meta for meta, _ in content.snapshots.values()]
    return sorted(metas, key=lambda m: (m.term, m.index, m.id), reverse=True)
