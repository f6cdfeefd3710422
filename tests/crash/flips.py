"""Flip single bits in the files of a stopped store: is each noticed that matters?

    python -m tests.crash.flips --flips N

Each flip is made in a copy of a store's files, which is then opened, read, written to and read
again. It is harmless if everything comes back as it was, and detected if there was an error or an
entry that does not match its checksum before. Anything else is silent: an entry, vote or value that
is gone, or another one. Exit status 1 if there was any.

Three stores are tried: one that was closed; one whose process was killed, with its last writes in
the write-ahead log; and that one without its mark, as the loss of power may leave it. There the
last transaction of the write-ahead log has no guard, so that silence is counted and no failure.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import RaftError
from raft.testing.contracts import entries
from raftsqlite import SQLiteStore
from tests.crash.disk import Image, read_image, write_image
from tests.crash.run import scratch_parent
from tests.crash.workload import State, WrongStateError, state_of

PAGE = 4096
DATABASE, LOG_AHEAD, MARK = "raft.db", "raft.db-wal", "raft.db.mark"
UNGUARDED = "no mark"
HARMLESS, AT_OPEN, ON_READING, SILENT = "harmless", "at open", "on reading", "SILENT"
OUTCOMES = (HARMLESS, AT_OPEN, ON_READING, SILENT)

_KINDS = {0x0D: "table leaf", 0x05: "table interior", 0x0A: "index leaf", 0x02: "index interior"}


def closed_store(folder: Path) -> None:
    """Make a store with pages of every kind, shut down in good order."""
    with _open(folder) as store:
        _fill(store)


def killed_store(folder: Path, target: Path) -> None:
    """Make a copy of a store in use, as it is found when its process was killed."""
    with _open(folder) as store:
        _fill(store)
        store.reopen()  # all that is in the file; what follows is in the write-ahead log
        for first in range(100, 112):
            store.store_logs(entries(first, first, term=3, size=200))
        HardState(4, "n2", "n2:1").save(store)
        store.replace_suffix(110, entries(110, 113, term=4, size=3_000))
        store.store_logs(entries(114, 115, term=4))
        write_image(read_image(folder), target)


def _fill(store: SQLiteStore) -> None:
    store.set(CLUSTER_ID_KEY, b"0123456789abcdef")
    store.store_logs(entries(1, 60, size=900))
    store.store_logs(entries(61, 61, size=10_000))
    store.store_logs(entries(62, 99, term=2, size=150))
    HardState(3, "n1", "n1:1").save(store)
    store.set_uint64(b"number", 2**63 + 7)
    store.delete_range(1, 40)


def _open(folder: Path) -> SQLiteStore:
    return SQLiteStore(folder / DATABASE, low_water_bytes=0)


class Victim:
    """The files of a store, and what they hold."""

    def __init__(self, image: Image, scratch: Path) -> None:
        self.image = image
        self._scratch = scratch
        self._state, outcome = self._use(None)
        assert outcome == HARMLESS

    def flip(self, name: str, bit: int) -> str:
        """Return what comes of one flipped bit of a file."""
        content = bytearray(self.image[name] or b"")
        content[bit // 8] ^= 1 << bit % 8
        write_image(self.image | {name: bytes(content)}, self._scratch)
        return self._use(self._state)[1]

    def _use(self, expected: State | None) -> tuple[State, str]:
        """Open the files, read, write, and read again."""
        if expected is None:
            write_image(self.image, self._scratch)
        state: State = ()
        outcome = AT_OPEN
        try:
            with _open(self._scratch) as store:
                outcome = ON_READING
                state = state_of(store)
                if expected is not None and state != expected:
                    return state, SILENT
                last = store.last_index()
                store.store_logs(entries(last + 1, last + 60, size=1_000))  # takes free pages
                store.delete_range(last + 1, last + 60)
                if state_of(store) != state:
                    return state, SILENT
                return state, HARMLESS
        except (RaftError, WrongStateError):
            return state, outcome
        finally:
            shutil.rmtree(self._scratch)


def kinds_of_pages(database: bytes) -> list[str]:
    """Return what each page of a database file is for."""
    kinds = [_KINDS.get(database[at], "overflow") for at in range(0, len(database), PAGE)]
    kinds[0], kinds[1] = "first page", "pointer map"
    trunk = _number(database, 32)
    while trunk:
        start = (trunk - 1) * PAGE
        kinds[trunk - 1] = "free trunk"
        for at in range(_number(database, start + 4)):
            kinds[_number(database, start + 8 + 4 * at) - 1] = "free leaf"
        trunk = _number(database, start)
    return kinds


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def bits_of(image: Image) -> list[tuple[str, str, int]]:
    """Return all bits that are tried: the kind of place, the file, and the number in it."""
    database, wal = image[DATABASE] or b"", image.get(LOG_AHEAD) or b""
    if wal:
        return [("write-ahead log", LOG_AHEAD, bit) for bit in range(len(wal) * 8)]
    kinds = kinds_of_pages(database)
    return [(kinds[bit // 8 // PAGE], DATABASE, bit) for bit in range(len(database) * 8)]


def try_flips(victim: Victim, flips: int, chance: random.Random) -> dict[str, Counter[str]]:
    """Return how often what came of flips, by the kind of place."""
    bits = bits_of(victim.image)
    found: dict[str, Counter[str]] = {}
    for kind, name, bit in chance.sample(bits, min(flips, len(bits))):
        outcome = victim.flip(name, bit)
        found.setdefault(kind, Counter())[outcome] += 1
    return found


def victims(folder: Path) -> dict[str, Victim]:
    """Return a store that was closed, one that was killed, and that one without its mark."""
    closed_store(folder / "closed")
    killed_store(folder / "used", folder / "killed")
    killed = read_image(folder / "killed")
    unmarked = {name: data for name, data in killed.items() if name != MARK}
    images = {"closed": read_image(folder / "closed"), "killed": killed, UNGUARDED: unmarked}
    return {name: Victim(image, folder / "scratch") for name, image in images.items()}


def main() -> int:
    """Flip bits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=2_000, help="in each of the two stores")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()
    began = time.monotonic()
    failed = False
    print(f"{'':<28}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES))
    with tempfile.TemporaryDirectory(prefix="flips-", dir=scratch_parent()) as folder:
        for name, victim in victims(Path(folder).resolve()).items():
            found = try_flips(victim, arguments.flips, random.Random(arguments.seed))
            for kind, counts in sorted(found.items()):
                print(f"{name + ', ' + kind:<28}" + "".join(f"{counts[o]:>12}" for o in OUTCOMES))
                failed |= bool(counts[SILENT]) and name != UNGUARDED
    print(f"{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
