"""Lose power at every point of what the stores do, and see what is found: `make crash-images`.

Each scenario of `workload` is run once under strace. What it wrote and synced is then played back
on the model of `disk`, and at each point states that a crash may leave there, images, are drawn:
only what is durable, all that was written, and parts of it. Each is made a real folder, in memory
where there is such a file system, and opened by the stores. It must hold what had been
acknowledged, nothing that was never written, and take new entries or snapshots. A call that had
begun and not returned may have been made or not, whole.

Exit status: 0 when nothing was lost in at least the wanted number of different images, 1 when
something was, 2 when the check itself cannot be made.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests.crash.disk import (
    Chance,
    Disk,
    Everything,
    Image,
    Nothing,
    digest,
    read_image,
    write_image,
)
from tests.crash.recording import Event, Mark, RecordingError, record
from tests.crash.workload import DONE, SCENARIOS, State

# Kinds of syncs that can be left out of the playback: a scenario that must then lose something,
# and whose syncs they are.
SYNCS = {
    "wal": ("log", "*-wal"),
    "database": ("log", "raft.db"),
    "creation": ("log", "raft.db.new*"),
    "names": ("log", ""),
    "backup": ("old log", "copy.db.*.new"),
    "state": ("snapshots", "*/state.bin"),
    "meta": ("snapshots", "*/meta.json*"),
    "snapshot-names": ("snapshots", "*.tmp"),
    "snapshots-names": ("snapshots", "*/snapshots"),
}
SHARES = {
    "old log": 0.05,
    "torn log": 0.05,
    "snapshots": 0.2,
    "log": 1,
}  # of the images that are still wanted
ENOUGH = 10  # faults shown
_MOST_DRAWN = 12  # images drawn at a point in one round
_PATIENCE = 4  # rounds without a new image before a point is left alone


@dataclass(slots=True)
class Result:
    """What was found."""

    points: int = 0
    tried: int = 0
    different: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Point:
    """A moment between two events: the steps that were done and begun, and images drawn there."""

    done: int = 0
    begun: int = 0
    rounds: int = 0
    fruitful: int = 0  # the last round that brought something new
    seen: set[bytes] = field(default_factory=set)

    def is_promising(self) -> bool:
        """Tell whether there may be images that were not seen here."""
        return self.rounds - self.fruitful <= _PATIENCE

    def note(self, key: bytes) -> None:
        """Take note of an image."""
        if key not in self.seen:
            self.seen.add(key)
            self.fruitful = self.rounds


class Bench:
    """One scenario, recorded; `check` may be called more than once."""

    def __init__(self, name: str, folder: Path) -> None:
        self._scenario = scenario = SCENARIOS[name]
        (work := folder / name.replace(" ", "-")).mkdir()
        target = work / "recorded"
        scenario.prepare(target)
        self._base = read_image(target)
        command = [sys.executable, "-m", "tests.crash.workload", name, str(target), f"{work}/marks"]
        self._events: list[Event] = record(command, target, work / "marks")
        self._states = scenario.states()
        self._steps = ["the beginning"] + [s.name for phase in scenario.phases for s in phase]
        self._scratch = work / "image"
        self._faults = work / "faults"
        self._faults.mkdir()

    def check(
        self, images: int, seed: int, *, without: str | None = None, enough: int = ENOUGH
    ) -> Result:
        """Try images until this many were different, there are no more, or there are enough faults.

        `without` is a class of syncs to leave out.
        """
        result = Result(points=len(self._events))
        is_ignored = _matches(SYNCS[without][1] if without else None)
        chance = random.Random(seed)
        points = [_Point() for _ in self._events]
        known: dict[bytes, State | str] = {}
        while any(point.is_promising() for point in points):
            for point, image in self._play(points, chance, is_ignored):
                result.tried += 1
                key = digest(image, self._scenario.passed_over)
                point.note(key)
                if key not in known:
                    known[key] = self._recover(image)
                    result.different = len(known)
                fault = self._fault(known[key], point)
                if fault:
                    result.faults.append(fault)
                    write_image(image, Path(tempfile.mkdtemp(dir=self._faults)) / "image")
                if len(known) >= images or len(result.faults) >= enough:
                    return result
        return result

    def _play(
        self,
        points: list[_Point],
        chance: random.Random,
        is_ignored: Callable[[str], bool],
    ) -> Iterator[tuple[_Point, Image]]:
        """Play everything back, and draw images at each point where there may be new ones."""
        disk = Disk.holding(self._base, is_ignored)
        done = begun = 0
        for point, event in zip(points, self._events, strict=True):
            disk.apply(event)
            if isinstance(event, Mark):
                word, step = event.text.split()
                begun = int(step)
                done = begun if word == DONE else begun - 1
            point.done, point.begun = done, begun
            if point.is_promising():
                draws = [Chance(chance)] * min(disk.uncertain(), _MOST_DRAWN)
                for choice in draws if point.rounds else [Nothing(), Everything()]:
                    yield point, disk.image(choice)
                point.rounds += 1

    def _recover(self, image: Image) -> State | str:
        """Return what the stores find in an image, or what is wrong with it."""
        write_image(image, self._scratch)
        try:
            return self._scenario.recover(self._scratch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the image cannot be used
            return f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(self._scratch)

    def _fault(self, found: State | str, point: _Point) -> str:
        done, begun = point.done, point.begun
        if found in (self._states[done], self._states[begun]):
            return ""
        where = f"after {self._steps[done]!r}"
        if begun > done:
            where += f", during {self._steps[begun]!r}"
        if isinstance(found, str):
            return f"{where}: {found}"
        return f"{where}: found {found}, not {self._states[done]}"


def _matches(pattern: str | None) -> Callable[[str], bool]:
    return lambda path: pattern is not None and fnmatch(path, pattern)


def scratch_parent() -> Path | None:
    """Return a folder in memory, None if there is none."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def main() -> int:
    """Check all scenarios and print what was found."""
    parser = argparse.ArgumentParser(prog="make crash-images", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="different ones, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=SYNCS, help="leave out syncs of this kind: must fail")
    parser.add_argument("--only", choices=SCENARIOS, help="this scenario")
    parser.add_argument("--keep", type=Path, help="copy the images with faults to this new folder")
    arguments = parser.parse_args()
    logging.disable()
    names = [arguments.only] if arguments.only else list(SHARES)
    found, faults = 0, 0
    with tempfile.TemporaryDirectory(prefix="crash-", dir=scratch_parent()) as folder:
        for name in names:
            began = time.monotonic()
            try:
                bench = Bench(name, Path(folder).resolve())
                share = 1 if name == names[-1] else SHARES[name]
                wanted = round((arguments.images - found) * share)
                result = bench.check(wanted, arguments.seed, without=arguments.without)
            except RecordingError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            found, faults = found + result.different, faults + len(result.faults)
            for fault in result.faults:
                print(f"LOST {name}: {fault}")
            print(
                f"{name}: {result.points} points, {result.tried} images, {result.different}"
                f" different, {len(result.faults)} faults, {time.monotonic() - began:.0f} s",
                flush=True,
            )
        if faults and arguments.keep:
            shutil.copytree(folder, arguments.keep)
    print(f"{found} different images, {faults} faults, seed {arguments.seed}")
    if not faults and found < arguments.images:
        print(f"there are not {arguments.images} different images", file=sys.stderr)
        return 2
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
