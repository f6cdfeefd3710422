"""What is recorded: programs that use the stores, step by step, and the state after each step.

    python -m tests.crash.workload SCENARIO FOLDER MARKS

A scenario is a list of phases, each a process of its own, that all work on one folder. Each begins
by opening the stores, and ends by closing them or by dying. A step is announced before it begins
and acknowledged when it has returned: what it wrote must be found from then on.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raft.snapshots.file
import raftsqlite.schema
import raftsqlite.store
from raft.engine.state import CLUSTER_ID_KEY, HARD_STATE_KEY, HardState
from raft.errors import KeyNotFoundError
from raft.files import sync_directory
from raft.snapshots import FileSnapshotStore
from raft.stores import InmemStore
from raft.testing.contracts import CONFIGURATION, entries
from raft.types import SnapshotMeta
from raftsqlite import SQLiteStore

GOLDEN = Path(__file__).resolve().parents[1] / "vectors" / "store-v1"

BEGUN, DONE = "begun", "done"

State = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One call; `is_upkeep` if it changes nothing that a user of the store can see."""

    name: str
    act: Callable[[Any], object]
    is_upkeep: bool = False


class WrongStateError(Exception):
    """A store that was opened holds what it must not; the message says what."""


# ---- the log and stable store ----

KEYS = (HARD_STATE_KEY, CLUSTER_ID_KEY, b"key")
NUMBERS = (b"number", b"other")


def vote(term: int, candidate: str) -> Step:
    """A vote record, as the node writes it."""
    record = HardState(term, candidate, f"{candidate}:1")
    return Step(f"vote for {candidate} in term {term}", record.save)


def append(first: int, last: int, term: int = 1, size: int = 40) -> Step:
    """A group of entries, in one transaction."""
    logs = entries(first, last, term=term, size=size)
    return Step(f"append {first} to {last}", lambda store: store.store_logs(logs))


def replace(first: int, last: int, term: int) -> Step:
    """A suffix replaced."""
    logs = entries(first, last, term=term, size=60)
    return Step(f"replace from {first}", lambda store: store.replace_suffix(first, logs))


def delete(first: int, last: int) -> Step:
    """A range deleted."""
    return Step(f"delete {first} to {last}", lambda store: store.delete_range(first, last))


def number(key: bytes, value: int) -> Step:
    """A number stored."""
    return Step(f"number {value}", lambda store: store.set_uint64(key, value))


def value(data: bytes) -> Step:
    """A value stored."""
    return Step(f"value of {len(data)} bytes", lambda store: store.set(b"key", data))


def append_committed(first: int, last: int, commit_index: int) -> Step:
    """Entries together with a commit index."""

    def act(store: Any) -> None:
        store.stage_commit_index(commit_index)
        store.store_logs(entries(first, last))

    return Step(f"append {first} to {last}, {commit_index} committed", act)


def back_up(store: Any) -> None:
    """Copy the store, and take the copy away again, for good."""
    path = os.path.join(os.path.dirname(store._database.path), COPY)
    store.backup(path)
    os.unlink(path)
    sync_directory(os.path.dirname(path))


COPY = "copy.db"
UPKEEP = Step("maintain", lambda store: store.maintain(), is_upkeep=True)
REOPEN = Step("reopen", lambda store: store.reopen(), is_upkeep=True)
BACKUP = Step("backup", back_up, is_upkeep=True)
CLOSE = Step("close", lambda store: store.close(), is_upkeep=True)

LIFE_OF_A_LOG: Sequence[Sequence[Step]] = (
    (
        *(Step("cluster id", lambda store: store.set(CLUSTER_ID_KEY, b"0123456789abcdef")),),
        *(append(1, 1), vote(1, "n1"), append(2, 2), append(3, 5), vote(2, "")),
        *(append(6, 20, size=300), vote(2, "n2"), append(21, 24), number(b"number", 2**64 - 1)),
        *(append(25, 25, size=9_000), UPKEEP, append(26, 26), append(27, 180, term=2)),
        *(UPKEEP, UPKEEP, append(181, 182, term=2), vote(3, "n3"), append(183, 183, term=3)),
        *(replace(170, 172, term=4), append(173, 176, term=4), value(b"v" * 700), CLOSE),
    ),
    (
        *(append(177, 178, term=4), delete(1, 16), UPKEEP, delete(17, 40), UPKEEP),
        *(append(179, 179, term=4), UPKEEP, UPKEEP, UPKEEP, vote(5, ""), vote(5, "n1")),
        *(append_committed(180, 183, 181), append(184, 190, term=5, size=5_000), UPKEEP),
        *(append(191, 191, term=5), append(192, 200, term=5), delete(198, 200)),
    ),
    (
        *(append(198, 199, term=6), REOPEN, append(200, 201, term=6), BACKUP, vote(7, "n2")),
        *(replace(190, 260, term=7), UPKEEP, append(261, 262, term=7), delete(41, 262)),
        *(UPKEEP, UPKEEP, append(500, 505, term=8), number(b"other", 0), UPKEEP),
    ),
    (append(506, 507, term=8), vote(9, "n1"), replace(507, 507, term=9), REOPEN, CLOSE),
)

LIFE_OF_AN_OLD_LOG: Sequence[Sequence[Step]] = (
    (append(10, 12, term=3), vote(4, "n2"), delete(3, 4), replace(12, 13, term=4)),
    (append(14, 14, term=4), BACKUP, vote(5, "n1"), append(15, 30, term=4, size=700), CLOSE),
)


LIFE_OF_A_TORN_LOG: Sequence[Sequence[Step]] = (
    (append(13, 13, term=3), vote(3, "n2")),
    (append(14, 30, term=3, size=300), CLOSE),
)


def leave_old_log(folder: Path) -> None:
    """Have a file of version 1, closed in good order."""
    shutil.copy(GOLDEN / "raft.db", folder / "raft.db")
    (folder / "raft.db").chmod(0o600)  # or the log says so, on a thread beside


def leave_torn_log(folder: Path) -> None:
    """Have what the loss of power leaves of a store when its last transaction was under way."""
    with tempfile.TemporaryDirectory() as other, _open(Path(other)) as store:
        store.store_logs(entries(1, 9, size=700))
        vote(1, "n1").act(store)
        store.replace_suffix(9, entries(9, 12, term=2, size=700))
        store.store_logs(entries(13, 40, term=2, size=700))
        for name in ("raft.db", "raft.db-wal"):
            shutil.copy(store._database.path.replace("raft.db", name), folder / name)
    wal = folder / "raft.db-wal"
    os.truncate(wal, wal.stat().st_size - 3_000)


def _open(folder: Path) -> SQLiteStore:
    return SQLiteStore(folder / "raft.db", reserve_bytes=64 << 10, low_water_bytes=1)


class LogScenario:
    """A `SQLiteStore`, new or as `leave` leaves it in a folder."""

    passed_over = (".lock", ".reserve", "-shm")  # what no store reads

    def __init__(
        self, phases: Sequence[Sequence[Step]], leave: Callable[[Path], None] = lambda folder: None
    ) -> None:
        self.phases = phases
        self._leave = leave

    def prepare(self, folder: Path) -> None:
        """Have the folder as the scenario begins."""
        folder.mkdir()
        self._leave(folder)

    def open(self, folder: Path) -> SQLiteStore:
        """Open the store."""
        return _open(folder)

    def states(self) -> list[State]:
        """Return the state at the beginning and after each step."""
        model = InmemStore()
        with tempfile.TemporaryDirectory() as folder:
            self.prepare(Path(folder) / "old")
            with self.open(Path(folder) / "old") as old:
                _copy_store(old, model)
        found = [state_of(model)]
        for phase in self.phases:
            for step in phase:
                if not step.is_upkeep:
                    step.act(model)
                found.append(state_of(model))
        return found

    def recover(self, folder: Path) -> State:
        """Open what a crash has left, return its state, and see that it can be written to."""
        with self.open(folder) as store:
            state = state_of(store)
            last = store.last_index()
            more = entries(last + 1, last + 2, term=99)
            store.store_logs(more)
            store.set(b"after", b"the crash")
            if store.get_range(last + 1, last + 2, 1000) != more or store.get(b"after") == b"":
                raise WrongStateError("what was written after the crash is not there")
        if os.path.exists(folder / COPY):
            with SQLiteStore(folder / COPY, low_water_bytes=0) as copy:
                if state_of(copy) != state:
                    raise WrongStateError("the backup holds something else")
        return state


def state_of(store: Any) -> State:
    """Return all that a store says, the log as a digest; raise if an entry is not as written."""
    first, last = store.first_index(), store.last_index()
    logs = store.get_range(first, last, 1 << 30) if last else []
    if last and len(logs) != last - first + 1:
        raise WrongStateError(f"the log has a hole behind {first + len(logs) - 1}")
    for log in logs:
        if not log.is_intact():
            raise WrongStateError(f"entry {log.index} is damaged")
    content = hash(tuple(log.checksum for log in logs))  # which cover all else
    terms = (logs[0].term, logs[-1].term) if logs else ()
    keys = tuple(_get(store.get, key) for key in KEYS)
    numbers = tuple(_get(store.get_uint64, key) for key in NUMBERS)
    return (first, last, terms, content, store.get_commit_index(), *keys, *numbers)


def _get(get: Callable[[bytes], Any], key: bytes) -> Any:
    try:
        return get(key)
    except KeyNotFoundError:
        return None


def _copy_store(old: SQLiteStore, model: InmemStore) -> None:
    model.stage_commit_index(old.get_commit_index())
    first, last = old.first_index(), old.last_index()
    if last:
        model.store_logs(old.get_range(first, last, 1 << 30))
    for get, put, keys in (
        (old.get, model.set, KEYS),
        (old.get_uint64, model.set_uint64, NUMBERS),
    ):
        for key in keys:
            if (found := _get(get, key)) is not None:
                put(key, found)


# ---- the snapshot store ----

RETAIN = 2


class Snapshots:
    """A snapshot store as the steps see it: snapshots are named by their index."""

    def __init__(self, folder: Path) -> None:
        self._store = FileSnapshotStore(folder / "node", retain=RETAIN)

    def begin(self, index: int, size: int, *, unsettled: bool = False) -> Any:
        """Begin a snapshot and write its content."""
        sink = self._store.create(1, index, 3, CONFIGURATION, 2, unsettled=unsettled)
        data = content(index, size)
        for start in range(0, size, 1000):
            sink.write(data[start : start + 1000])
        return sink

    def take(self, index: int, size: int, *, unsettled: bool = False) -> None:
        """Take a snapshot."""
        self.begin(index, size, unsettled=unsettled).close()

    def cancel(self, index: int, size: int) -> None:
        """Throw one away."""
        self.begin(index, size).cancel()

    def settle(self, index: int) -> None:
        """Take the mark off."""
        self._store.settle(self._id(index))

    def remove(self, index: int) -> None:
        """Remove one."""
        self._store.remove(self._id(index))

    def _id(self, index: int) -> str:
        return next(meta.id for meta in self._store.list() if meta.index == index)

    def read(self) -> State:
        """Return index, size and mark of all that are listed, each opened and read."""
        return tuple(self._read(meta) for meta in self._store.list())

    def _read(self, meta: SnapshotMeta) -> tuple[int, int, bool]:
        opened, reader = self._store.open(meta.id)
        data = b"".join(iter(lambda: reader.read(1 << 16), b""))
        reader.close()
        if opened != meta or data != content(meta.index, meta.size):
            raise WrongStateError(f"snapshot {meta.id} is not what was written")
        return (meta.index, meta.size, meta.unsettled)


class ModelSnapshots:
    """What `Snapshots` must show after the same steps."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, bool]] = []  # newest first

    def take(self, index: int, size: int, *, unsettled: bool = False) -> None:
        """Take a snapshot."""
        self._keep([*self._kept, (index, size, unsettled)])

    def cancel(self, index: int, size: int) -> None:
        """Throw one away."""

    def begin(self, index: int, size: int) -> None:
        """Begin a snapshot that never comes to its end."""

    def settle(self, index: int) -> None:
        """Take the mark off."""
        self._keep([(at, size, mark and at != index) for at, size, mark in self._kept])

    def remove(self, index: int) -> None:
        """Remove one."""
        self._keep([found for found in self._kept if found[0] != index])

    def read(self) -> State:
        """Return index, size and mark of all that are kept, newest first."""
        return tuple(self._kept)

    def _keep(self, found: list[tuple[int, int, bool]]) -> None:
        newest = sorted(found, reverse=True)
        settled = [one for one in newest if not one[2]][:RETAIN]
        self._kept = [one for one in newest if one[2] or one in settled]


def content(index: int, size: int) -> bytes:
    """Return what a snapshot holds."""
    return (b"%d and so on; " % index * (size // 10 + 1))[:size]


def take(index: int, size: int, *, unsettled: bool = False) -> Step:
    """A whole snapshot."""
    kind = "an unsettled snapshot" if unsettled else "a snapshot"
    return Step(f"take {kind} of {index}", lambda s: s.take(index, size, unsettled=unsettled))


LIFE_OF_SNAPSHOTS: Sequence[Sequence[Step]] = (
    (
        *(take(10, 5_000), take(20, 20_000), Step("cancel one", lambda s: s.cancel(25, 4_000))),
        *(take(30, 700), take(40, 5_000), Step("begin one and die", lambda s: s.begin(50, 9_000))),
    ),
    (
        *(take(60, 9_000), take(70, 5_000, unsettled=True), take(64, 3_000)),
        *(Step("settle 70", lambda s: s.settle(70)), take(80, 12_000)),
        *(take(90, 5_000, unsettled=True), Step("remove 90", lambda s: s.remove(90))),
        *(take(100, 0), Step("begin one and die", lambda s: s.begin(110, 7_000))),
    ),
    (take(120, 4_100), take(130, 512), Step("remove 130", lambda s: s.remove(130))),
)


class SnapshotScenario:
    """A `FileSnapshotStore`."""

    passed_over = ()

    def __init__(self, phases: Sequence[Sequence[Step]]) -> None:
        self.phases = phases

    def prepare(self, folder: Path) -> None:
        """Have the folder as the scenario begins."""
        folder.mkdir()

    def open(self, folder: Path) -> Snapshots:
        """Open the store."""
        return Snapshots(folder)

    def states(self) -> list[State]:
        """Return the state at the beginning and after each step."""
        model = ModelSnapshots()
        found = [model.read()]
        for phase in self.phases:
            for step in phase:
                step.act(model)
                found.append(model.read())
        return found

    def recover(self, folder: Path) -> State:
        """Open what a crash has left, return its state, and see that it can be written to."""
        snapshots = self.open(folder)
        state = snapshots.read()
        snapshots.take(9_999, 100)
        if snapshots.read()[0] != (9_999, 100, False):
            raise WrongStateError("a snapshot taken after the crash is not there")
        left = [path.name for path in (folder / "node" / "snapshots").glob("*.tmp")]
        if left:
            raise WrongStateError(f"leftovers were not removed: {left}")
        return state


Scenario = LogScenario | SnapshotScenario

SCENARIOS: dict[str, Scenario] = {
    "log": LogScenario(LIFE_OF_A_LOG),
    "old log": LogScenario(LIFE_OF_AN_OLD_LOG, leave_old_log),
    "torn log": LogScenario(LIFE_OF_A_TORN_LOG, leave_torn_log),
    "snapshots": SnapshotScenario(LIFE_OF_SNAPSHOTS),
}


def run(scenario: Scenario, folder: Path, say: Callable[[str], object]) -> None:
    """Run all phases, each in a process of its own that ends on the spot."""
    number = 1
    for phase in scenario.phases:
        child = os.fork()
        if child == 0:
            try:
                _run_phase(scenario.open(folder), phase, number, say)
            except Exception:  # noqa: BLE001 - a child of a fork must not go on as its parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"a phase ended with status {status}")
        number += len(phase)


def _run_phase(store: Any, phase: Sequence[Step], first: int, say: Callable[[str], object]) -> None:
    for number, step in enumerate(phase, first):
        say(f"{BEGUN} {number}")
        step.act(store)
        say(f"{DONE} {number}")


def lower_thresholds() -> None:
    """Have upkeep come as early as it would come for a log some hundred times as large."""
    raftsqlite.store._CHECKPOINT_AT = 64 << 10
    raftsqlite.store._SPARE_PAGES = 4
    raftsqlite.store._VACUUM_PAGES = 5
    raftsqlite.schema._WAL_LIMIT = 96 << 10
    raft.snapshots.file._BLOCK = 1 << 10
    raft.snapshots.file._SYNC_EVERY = 16 << 10


def main() -> None:
    """Run a scenario under strace, whose caller reads the marks."""
    name, folder, marks = sys.argv[1:]
    lower_thresholds()
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT, 0o600)
    run(SCENARIOS[name], Path(folder), lambda text: os.write(descriptor, text.encode()))


if __name__ == "__main__":
    main()
