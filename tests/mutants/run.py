"""Break the rules that decide, one at a time, and see whether the tests notice: `make mutants`.

Each mutant of `table` is applied to a temporary copy of the tree, and the tests of the engine, the
roles and the paper's claims run there until the first failure. A test that hangs counts as one
that failed. Survivors are printed: each is a rule that no test holds to.

Exit status: 0 when at least 95 % are caught, 1 when fewer, 2 when the check itself is wrong (a
mutant whose text is not found exactly once, or that cannot be imported; tests that fail anyway).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutants.table import TARGETS, Mutant, Target
from tests.patching import Change, Workshop, WrongCheckError, try_all

TESTS = ("tests/engine", "tests/roles", "tests/paper")
WANTED = 0.95  # of the mutants must be caught
LONGEST_RUN = 120.0  # seconds; the tests take about ten
PASSED, FAILED = 0, 1  # what pytest exits with; other numbers say that it could not even begin


@dataclass(frozen=True)
class Job:
    """One mutant of one file."""

    target: Target
    mutant: Mutant

    def __str__(self) -> str:
        return f"{self.target.file}: {self.mutant.rule}\n    {self.mutant.old!r}"

    def change(self) -> Change:
        """Return what to change."""
        return Change(self.target.file, self.mutant.old, self.mutant.new)


def check(shop: Workshop) -> None:
    """Raise unless the tests pass without any mutant."""
    ran = run_tests(shop, ())
    if ran.returncode != PASSED:
        raise WrongCheckError(f"the tests fail without any mutant:\n{ran.stdout[-3000:]}")


def is_caught(shop: Workshop, job: Job) -> bool:
    """Tell whether a test fails, or hangs, with a mutant in place."""
    with shop.changed([job.change()]):
        try:
            ran = run_tests(shop, job.target.tests)
        except subprocess.TimeoutExpired:
            return True
    if ran.returncode not in (PASSED, FAILED):
        raise WrongCheckError(f"{job}\ncannot even be imported:\n{ran.stdout[-2000:]}")
    return ran.returncode == FAILED


def run_tests(shop: Workshop, first: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the tests until the first failure, some of them before the others."""
    options = ("-x", "-q", "--no-header", "-p", "no:cacheprovider")
    return shop.python("-m", "pytest", *options, *first, *TESTS, timeout=LONGEST_RUN)


def survivors_of(jobs: Sequence[Job]) -> list[Job]:
    """Try all mutants; return those that no test has caught."""
    outcomes = try_all(jobs, is_caught, check)
    return [job for job, caught in zip(jobs, outcomes, strict=True) if not caught]


def chosen(text: str) -> list[Job]:
    """Return the mutants whose file or rule holds a text, each known to fit its file."""
    jobs = [Job(target, mutant) for target in TARGETS for mutant in target.mutants]
    for job in jobs:
        job.change().check()
    return [job for job in jobs if text in f"{job.target.file}: {job.mutant.rule}"]


def main() -> int:
    """Run the check, print what survived and the score."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="part of a file's name or of a rule")
    begun = time.monotonic()
    try:
        jobs = chosen(parser.parse_args().only)
        survivors = survivors_of(jobs)
    except WrongCheckError as error:
        print(error, file=sys.stderr)
        return 2
    for job in survivors:
        print(f"SURVIVED {job}")
    caught = len(jobs) - len(survivors)
    seconds = time.monotonic() - begun
    print(f"{caught} of {len(jobs)} caught, {caught / max(1, len(jobs)):.1%}, {seconds:.0f} s")
    return 0 if caught >= WANTED * len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
