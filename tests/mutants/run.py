"""Break the rules that decide, one at a time, and see whether the tests notice: `make mutants`.

Each mutant of `table` is applied to a temporary copy of the tree, and the tests of the engine, the
roles and the paper's claims run there until the first failure. A test that hangs counts as one
that failed. Survivors are printed: each is a rule that no test holds to.

Exit status: 0 when at least 95 % are caught, 1 when fewer, 2 when the check itself is wrong (a
mutant whose text is not found exactly once, or that cannot be imported; tests that fail anyway).
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.table import TARGETS, Mutant, Target

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("raft", "raftsqlite", "tests")
SETTINGS = ("pyproject.toml",)
TESTS = ("tests/engine", "tests/roles", "tests/paper")
WANTED = 0.95  # of the mutants must be caught
AT_ONCE = 2
LONGEST_RUN = 120.0  # seconds; the tests take about ten
PASSED, FAILED = 0, 1  # what pytest exits with; other numbers say that it could not even begin


class WrongCheckError(Exception):
    """The check cannot be trusted; the message names what to mend."""


@dataclass(frozen=True)
class Job:
    """One mutant of one file."""

    target: Target
    mutant: Mutant

    def __str__(self) -> str:
        return f"{self.target.file}: {self.mutant.rule}\n    {self.mutant.old!r}"


class Workshop:
    """A copy of the tree in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = 1_000_000_000  # each text gets a time of its own: no stale bytecode is run
        for part in PARTS:
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in SETTINGS:
            shutil.copy(ROOT / name, folder / name)

    def check(self) -> None:
        """Raise unless the tests pass here, and run the copy's code."""
        found = self._python("-c", "import raft; print(raft.__file__)").stdout.strip()
        if not Path(found).is_relative_to(self._folder):
            raise WrongCheckError(f"the tests would run {found}, not the copy's code")
        ran = self._test(())
        if ran.returncode != PASSED:
            raise WrongCheckError(f"the tests fail without any mutant:\n{ran.stdout[-3000:]}")

    def is_caught(self, job: Job) -> bool:
        """Tell whether a test fails, or hangs, with a mutant in place."""
        path = self._folder / job.target.file
        original = path.read_text()
        self._write(path, mutate(original, job))
        try:
            ran = self._test(job.target.tests)
        except subprocess.TimeoutExpired:
            return True
        finally:
            self._write(path, original)
        if ran.returncode not in (PASSED, FAILED):
            raise WrongCheckError(f"{job}\ncannot even be imported:\n{ran.stdout[-2000:]}")
        return ran.returncode == FAILED

    def _write(self, path: Path, text: str) -> None:
        self._stamp += 1
        path.write_text(text)
        os.utime(path, (self._stamp, self._stamp))

    def _test(self, first: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        options = ("-x", "-q", "--no-header", "-p", "no:cacheprovider")
        return self._python("-m", "pytest", *options, *first, *TESTS)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(self._folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_RUN,
            check=False,
        )


def mutate(text: str, job: Job) -> str:
    """Return a file's text with a mutant in place; its old text must be there exactly once."""
    count = text.count(job.mutant.old)
    if count != 1 or job.mutant.old == job.mutant.new:
        raise WrongCheckError(f"{job}\nstands there {count} times, not once, or changes nothing")
    return text.replace(job.mutant.old, job.mutant.new)


def survivors_of(jobs: list[Job], folder: Path) -> list[Job]:
    """Try all mutants, two at a time; return those that no test has caught."""
    shops: queue.SimpleQueue[Workshop] = queue.SimpleQueue()
    for number in range(AT_ONCE):
        shops.put(shop := Workshop(folder / str(number)))
        shop.check()

    def survives(job: Job) -> bool:
        shop = shops.get()
        try:
            return not shop.is_caught(job)
        finally:
            shops.put(shop)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = pool.map(survives, jobs)
        try:
            return [job for job, outcome in zip(jobs, outcomes, strict=True) if outcome]
        except WrongCheckError:
            pool.shutdown(cancel_futures=True)
            raise


def chosen(text: str) -> list[Job]:
    """Return the mutants whose file or rule holds a text, each known to fit its file."""
    jobs = [Job(target, mutant) for target in TARGETS for mutant in target.mutants]
    for job in jobs:
        mutate((ROOT / job.target.file).read_text(), job)
    return [job for job in jobs if text in f"{job.target.file}: {job.mutant.rule}"]


def main() -> int:
    """Run the check, print what survived and the score."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="part of a file's name or of a rule")
    begun = time.monotonic()
    try:
        jobs = chosen(parser.parse_args().only)
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            survivors = survivors_of(jobs, Path(folder).resolve())
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
