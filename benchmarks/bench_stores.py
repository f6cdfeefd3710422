"""Single operations of the stores: `make bench-stores`.

The operations are those of the original's store benchmarks, BEN-02 to BEN-11, and so BLT-14 to
BLT-23 for the durable store; indexes begin at 1, for 0 is no index here. Each runs for a while on
one thread; a durable write costs at least the disk's own fsync, which stands beside.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from benchmarks.bench_apply import measure_fsync
from raft.stores import InmemStore
from raft.types import Log
from raftsqlite import SQLiteStore

Store: TypeAlias = InmemStore | SQLiteStore
Operation = Callable[[], object]

_BATCH = 16  # operations between two looks at the clock


def _entry(index: int) -> Log:
    return Log(index, 1, data=b"data").sealed()


def _nine_entries(store: Store) -> None:
    store.store_logs([_entry(index) for index in range(1, 10)])


def first_index(store: Store) -> Operation:
    """BEN-02: the first index of nine entries."""
    _nine_entries(store)
    return store.first_index


def last_index(store: Store) -> Operation:
    """BEN-03: the last index of nine entries."""
    _nine_entries(store)
    return store.last_index


def get_log(store: Store) -> Operation:
    """BEN-04: the entry in the middle."""
    _nine_entries(store)
    return lambda: store.get_log(5)


def store_log(store: Store) -> Operation:
    """BEN-05: one entry a call, at growing indexes."""
    indexes = itertools.count(1)
    return lambda: store.store_log(_entry(next(indexes)))


def store_logs(store: Store) -> Operation:
    """BEN-06: three entries a call."""
    firsts = itertools.count(1, 3)

    def operate() -> None:
        first = next(firsts)
        store.store_logs([_entry(index) for index in range(first, first + 3)])

    return operate


def delete_range(store: Store) -> Operation:
    """BEN-07: three entries in every ten indexes; ranges wider than what is there.

    When all are gone they are stored anew, which counts as one operation of a thousand.
    """
    blocks: Iterator[int] = iter(())

    def operate() -> None:
        nonlocal blocks
        block = next(blocks, None)
        if block is None:
            blocks = iter(range(1000))
            starts = (10 * number for number in range(1000))
            store.store_logs([_entry(first + n) for first in starts for n in (5, 6, 7)])
        else:
            store.delete_range(10 * block, 10 * block + 9)

    return operate


def set_value(store: Store) -> Operation:
    """BEN-08: a value under a key of one byte; another one each time, or nothing is written."""
    numbers = itertools.count()
    return lambda: store.set(b"a", b"%d" % next(numbers))


def get_value(store: Store) -> Operation:
    """BEN-09: the same, read."""
    store.set(b"a", b"b")
    return lambda: store.get(b"a")


def set_uint64(store: Store) -> Operation:
    """BEN-10: a number; another one each time."""
    numbers = itertools.count()
    return lambda: store.set_uint64(b"a", next(numbers))


def get_uint64(store: Store) -> Operation:
    """BEN-11: the same, read."""
    store.set_uint64(b"a", 7)
    return lambda: store.get_uint64(b"a")


OPERATIONS: tuple[Callable[[Store], Operation], ...] = (
    first_index,
    last_index,
    get_log,
    store_log,
    store_logs,
    delete_range,
    set_value,
    get_value,
    set_uint64,
    get_uint64,
)


def measure(operate: Operation, seconds: float) -> float:
    """Return how many microseconds one operation takes."""
    operate()
    count = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for _ in range(_BATCH):
            operate()
        count += _BATCH
    return spent / count * 1e6


def run(folder: Path, seconds: float) -> None:
    """Print the table."""
    print(f"fsync of 4 KiB: p50 {measure_fsync(folder) * 1e3:.0f} us")
    print(f"{'us an operation':<16}{'InmemStore':>12}{'SQLiteStore':>14}")
    for prepare in OPERATIONS:
        memory = measure(prepare(InmemStore()), seconds)
        with SQLiteStore(folder / f"{prepare.__name__}.db") as store:
            durable = measure(prepare(store), seconds)
        print(f"{prepare.__name__:<16}{memory:>12.2f}{durable:>14.2f}")
    print(f"fsync of 4 KiB: p50 {measure_fsync(folder) * 1e3:.0f} us")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each run")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.seconds)


if __name__ == "__main__":
    main()
