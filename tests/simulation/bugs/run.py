"""Put known bugs into the sources, one at a time: the simulation must find each (`make bugs`).

Each bug of the catalogue is made in a copy of the tree, and seeds run there from the recorded one
on, until one of them finds it: at most 300. With `--from-zero` they run from seed 0 on; what is
printed is what `recorded` should say.

Exit status: 0 when all were found, 1 when one was not, 2 when the check itself is wrong (a bug that
does not fit the sources any more).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass

from tests.patching import AT_ONCE, Workshop, WrongCheckError, try_all
from tests.simulation.bugs.catalogue import BUGS
from tests.simulation.bugs.model import Bug
from tests.simulation.bugs.recorded import RECORDED

MOST_SEEDS = 300


@dataclass(frozen=True)
class Found:
    """What came of the search for one bug."""

    bug: Bug
    seed: int | None  # that found it
    by: str
    text: str
    tried: int
    crashes: int
    seconds: float

    def row(self) -> str:
        """Return a line of the table."""
        where = f"seed {self.seed}" if self.seed is not None else "NOT FOUND"
        return (
            f"{self.bug.name:34} {self.by:10} {where:>10} {self.tried:4} tried"
            f" {self.crashes:3} crashed {self.seconds:6.1f} s  {self.text[:90]}"
        )


def search(shop: Workshop, bug: Bug, first: int, most: int) -> Found:
    """Run seeds with a bug in place."""
    began = time.monotonic()
    with shop.changed(bug.changes):
        ran = shop.python("-m", "tests.simulation.bugs.hunt", str(first), str(most))
    try:
        answer = json.loads(ran.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise WrongCheckError(f"{bug}: the hunt failed:\n{ran.stdout[-3000:]}") from None
    seed = answer["seed"]
    tried = most if seed is None else seed - first + 1
    text = answer["text"].splitlines()[0] if answer["text"] else ""
    seconds = time.monotonic() - began
    return Found(bug, seed, answer["by"], text, tried, answer["crashes"], seconds)


def main() -> int:
    """Search for all bugs, or some; print the table."""
    parser = argparse.ArgumentParser(prog="make bugs", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="parts of the names of those to search for")
    parser.add_argument("--from-zero", action="store_true", help="all bugs, from seed 0 on")
    parser.add_argument("--most", type=int, default=MOST_SEEDS, help="seeds to try for each")
    parser.add_argument("--jobs", type=int, default=AT_ONCE, help="searches at a time")
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if not options.only or any(n in bug.name for n in options.only)]

    def attempt(shop: Workshop, bug: Bug) -> Found:
        first = 0 if options.from_zero else RECORDED[bug.name][0]
        return search(shop, bug, first, options.most)

    began = time.monotonic()
    found = 0
    try:
        for bug in bugs:
            for change in bug.changes:
                change.check()
        for outcome in try_all(bugs, attempt, at_once=options.jobs):
            print(outcome.row(), flush=True)
            found += outcome.seed is not None
    except WrongCheckError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{found} of {len(bugs)} bugs found in {time.monotonic() - began:.0f} s")
    return 0 if found == len(bugs) else 1


if __name__ == "__main__":
    sys.exit(main())
