"""Simulated disks: what was acknowledged survives a crash, what was under way may or may not.

A `SimDisk` outlives the incarnations of its server. Each gets a `SimStore` and a
`SimSnapshotStore` over it, which stop having any effect when their process dies. A write takes
virtual time; until then it is not synced and stands apart. A crash or an error keeps it, drops it,
or, where the store has no transactions over several entries, tears it: a part of them is there.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from raft.codec import decode_hard_state
from raft.engine.damage import DAMAGE_KEY, REPLACED_KEY
from raft.engine.state import HARD_STATE_KEY
from raft.errors import KeyNotFoundError, LogNotFoundError, SnapshotError
from raft.interfaces import SnapshotSink
from raft.messages import SnapshotReader
from raft.testing.invariants import Invariants, Vote
from raft.testing.simulation.runtime import ProcessState, Scheduler, SimRuntime
from raft.types import (
    NO_ENTRY,
    NO_INDEX,
    NO_TERM,
    SNAPSHOT_VERSION,
    Configuration,
    EntryID,
    Log,
    ServerID,
    SnapshotMeta,
)

_SHORTEST_SYNC = 0.0002  # seconds that one transaction takes
_LONGEST_SYNC = 0.005
_KEEP_CHANCE = 0.5  # that a write which was not synced survives a crash
_TEAR_CHANCE = 0.25  # that a part of it does, if it can be torn
_SNAPSHOTS_KEPT = 2


@dataclass(slots=True)
class Content:
    """What is on a disk."""

    logs: dict[int, Log] = field(default_factory=dict)
    commit_index: int = NO_INDEX
    values: dict[bytes, bytes] = field(default_factory=dict)
    numbers: dict[bytes, int] = field(default_factory=dict)
    snapshots: dict[str, tuple[SnapshotMeta, bytes]] = field(default_factory=dict)

    def vote(self) -> Vote:
        """Return what the vote record says."""
        record = self.values.get(HARD_STATE_KEY)
        return Vote(NO_TERM, "") if record is None else _vote(record)


Change = Callable[[Content], None]


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What one call of a store writes; `torn`, if it can be torn, draws what a crash leaves."""

    change: Change
    torn: Callable[[], Change] | None = None


class SimDisk:
    """One server's disk.

    `slowness` multiplies the time of every write; so many `failures` fail next; with `is_full` the
    stores say that there is hardly any room left.
    """

    def __init__(self, scheduler: Scheduler, server_id: ServerID, invariants: Invariants) -> None:
        self._scheduler = scheduler
        self._server_id = server_id
        self.invariants = invariants
        self._unsynced: list[Write] = []
        self._former: list[Content] = []  # before each harm that was done to it
        self._lost = NO_ENTRY  # the end of snapshots that were lost while the node ran
        self.content = Content()
        self.slowness = 1.0
        self.vote_seconds = 0.0  # that a vote record takes longer to write
        self.failures = 0
        self.is_full = False
        self.was_replaced = False  # by an empty one, and its server is a member still
        self.snapshot_count = 0  # for ids that are never used again
        # Told of each snapshot before it is durable, and once it is.
        self.on_store: Callable[[SnapshotMeta, bytes], None] = lambda _meta, _data: None
        self.on_snapshot: Callable[[], None] = lambda: None

    def commit(self, process: SimRuntime, write: Write, longer: float = 0.0) -> None:
        """Make a write durable; returns when it is. A dead process changes nothing."""
        scheduler = self._scheduler
        self._unsynced.append(write)
        spread = _LONGEST_SYNC - _SHORTEST_SYNC
        scheduler.sleep((_SHORTEST_SYNC + spread * process.random()) * self.slowness + longer)
        if process.state is ProcessState.DEAD:
            raise OSError("a write of a process that is dead")
        self._unsynced.remove(write)
        if self.failures:
            self.failures -= 1
            self._leave(write)
            raise OSError("simulated disk error")
        write.change(self.content)

    def crash(self) -> None:
        """Keep, drop or tear what was not synced."""
        self._lost = NO_ENTRY
        unsynced, self._unsynced = self._unsynced, []
        for write in unsynced:
            self._leave(write)

    def _leave(self, write: Write) -> None:
        """Draw what is there of a write that did not return."""
        roll = self._scheduler.chance.random()
        if roll < _KEEP_CHANCE:
            write.change(self.content)
        elif roll < _KEEP_CHANCE + _TEAR_CHANCE and write.torn is not None:
            write.torn()(self.content)

    # ---- what happens to a disk ----

    def spoil(self, index: int) -> None:
        """Change some bits of an entry; its checksum tells."""
        self._keep_former()
        log = self.content.logs[index]
        self.content.logs[index] = replace(log, data=log.data + b"\0")

    def wipe(self) -> None:
        """Lose everything."""
        self._keep_former()
        self.content = Content()

    def lose_snapshots(self) -> None:
        """Lose all snapshots, and nothing else; a node that runs has in memory what they held."""
        self._keep_former()
        self._lost = max((_end(m) for m, _ in self.content.snapshots.values()), default=NO_ENTRY)
        self.content.snapshots.clear()

    def lacks_snapshot(self) -> bool:
        """Tell whether the log begins behind entries that no snapshot stands for."""
        content = self.content
        replaced = content.values.get(REPLACED_KEY, b"0 0").split()
        needed = min(content.logs) - 1 if content.logs else int(replaced[1])
        return needed > max((m.index for m, _ in content.snapshots.values()), default=NO_INDEX)

    def _keep_former(self) -> None:
        content = self.content
        self._former.append(Content(logs=dict(content.logs), snapshots=dict(content.snapshots)))

    # ---- reports and questions ----

    def stored(self, logs: Sequence[Log]) -> None:
        """Report entries that are given to this disk."""
        before = self.content.logs.get(logs[0].index - 1)
        prev_term = 0 if logs[0].index == 1 else None if before is None else before.term
        self.invariants.stored(self._server_id, prev_term, logs)

    def voted(self, before: Vote, record: bytes) -> None:
        """Report that a vote record is replaced."""
        self.invariants.recorded(self._server_id, before, _vote(record))

    def cut(self, content: Content, first: int, last: int, then: Change = lambda _: None) -> None:
        """Delete entries and do what belongs to it; report it if that was the end of the log.

        What was spoiled is acknowledged all the same: nobody wanted it to go.
        """
        is_end = last >= max(content.logs, default=NO_INDEX)
        gone = [log for i in range(first, last + 1) if (log := content.logs.pop(i, None))]
        then(content)
        if is_end and not self.is_damaged() and all(log.is_intact() for log in gone):
            self.invariants.overruled(self._server_id, content.vote().term, self.last_entry())

    def check(self) -> None:
        """Report the whole log, as a node finds it at its start; it must have no hole."""
        logs = sorted(self.content.logs.values(), key=lambda log: log.index)
        if logs and logs[-1].index - logs[0].index >= len(logs):
            self.invariants.fail(f"{self._server_id} has a hole in its log")
        # What was spoiled is not the library's doing.
        for before, log in itertools.pairwise(logs):
            if before.is_intact() and log.is_intact():
                self.invariants.stored(self._server_id, before.term, [log])

    def has_durably(self, index: int, term: int) -> bool:
        """Tell whether an entry is in log or snapshot, or was when the node looked last."""
        return _has(self.content, index, term) or index <= self._lost.index

    def had_durably(self, index: int, term: int) -> bool:
        """Tell the same of an entry that may have been spoiled or lost since."""
        return any(_has(content, index, term) for content in (self.content, *self._former))

    def is_damaged(self) -> bool:
        """Tell whether the node waits for entries that it had to give up."""
        return int(self.content.values.get(DAMAGE_KEY, b"0").split()[0]) > NO_INDEX

    def has_unsettled(self) -> bool:
        """Tell whether the newest snapshot is a user restore that is not known to be committed."""
        metas = [meta for meta, _ in self.content.snapshots.values()]
        newest = max(metas, key=lambda meta: (meta.term, meta.index), default=None)
        return newest is not None and newest.unsettled

    def last_entry(self) -> EntryID:
        """Return where the log ends, in an entry or a snapshot, as the node knows it."""
        ends = [self._lost, *(_end(meta) for meta, _ in self.content.snapshots.values())]
        if self.content.logs:
            last = max(self.content.logs)
            ends.append(EntryID(self.content.logs[last].term, last))
        return max(ends)


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

    def _commit(self, change: Change, torn: Callable[[], Change] | None = None) -> None:
        self._disk.commit(self._process, Write(change, torn))

    def is_full(self) -> bool:
        """Tell whether client entries shall be refused."""
        return self._disk.is_full

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
        """Store entries; a crash meanwhile may leave the first of them."""
        if logs:
            self._commit(self._append(logs), partial(self._torn, list(logs)))

    def _torn(self, logs: Sequence[Log]) -> Change:
        """Draw how many of several entries are there."""
        kept = logs[: int(self._process.random() * len(logs))]
        return lambda content: content.logs.update((log.index, log) for log in kept)

    def _append(self, logs: Sequence[Log]) -> Change:
        kept = list(logs)
        self._disk.stored(kept)
        commit_index, self._staged = min(self._staged, kept[-1].index), NO_INDEX

        def change(content: Content) -> None:
            content.logs.update((log.index, log) for log in kept)
            content.commit_index = commit_index or content.commit_index
            behind = content.logs.get(kept[-1].index + 1)
            if behind is not None:  # of a past that should have been cut off?
                self._disk.stored([behind])

        return change

    def delete_range(self, first: int, last: int) -> None:
        """Delete the entries from `first` to `last`, both included."""
        self._commit(lambda content: self._disk.cut(content, first, last))

    def stage_commit_index(self, index: int) -> None:
        """Remember the commit index; the next append stores it."""
        self._staged = index

    def get_commit_index(self) -> int:
        """Return the durable commit index, 0 for none; never above the last index."""
        return min(self._disk.content.commit_index, self.last_index())

    # ---- StableStore ----

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""

        def change(content: Content) -> None:
            if key == HARD_STATE_KEY:
                self._disk.voted(content.vote(), value)
            content.values[key] = value

        longer = self._disk.vote_seconds if key == HARD_STATE_KEY else 0.0
        self._disk.commit(self._process, Write(change), longer)

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
    """A `SimStore` with transactions: it truncates and appends in one, and nothing is torn."""

    def store_logs(self, logs: Sequence[Log]) -> None:
        """Store entries, all or none."""
        if logs:
            self._commit(self._append(logs))

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        """Delete all entries from `first` on and store `logs`, all of it or nothing."""
        append = self._append(logs) if logs else _change_nothing

        def change(content: Content) -> None:
            self._disk.cut(content, first, max(content.logs, default=NO_INDEX), append)

        self._commit(change)


def _has(content: Content, index: int, term: int) -> bool:
    log = content.logs.get(index)
    if log is not None:
        return log.term == term
    return any(meta.index >= index for meta, _ in content.snapshots.values())


def _end(meta: SnapshotMeta) -> EntryID:
    return EntryID(meta.term, meta.index)


def _vote(record: bytes) -> Vote:
    term, candidate, _ = decode_hard_state(record)
    return Vote(term, candidate)


def _change_nothing(_: Content) -> None:
    """Append nothing."""


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

        self._disk.commit(self._process, Write(change))

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is absent does not matter."""
        forget = Write(lambda content: _forget(content, snapshot_id))
        self._disk.commit(self._process, forget)


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

        self._disk.on_store(meta, data)
        self._disk.commit(self._process, Write(change))
        self._disk.on_snapshot()

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
