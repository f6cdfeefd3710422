"""Trying changes of the sources: a copy of the tree, in which one change at a time is made.

Shared by the mutants (`tests/mutants`) and the seeded bugs (`tests/simulation/bugs`).
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("raft", "raftsqlite", "tests")
SETTINGS = ("pyproject.toml",)
AT_ONCE = 2  # copies that work side by side, unless told otherwise

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


class WrongCheckError(Exception):
    """The check cannot be trusted; the message names what to mend."""


@dataclass(frozen=True)
class Change:
    """One change of one file; `old` stands there exactly once."""

    file: str
    old: str
    new: str

    def apply_to(self, text: str) -> str:
        """Return the file's text with the change made."""
        count = text.count(self.old)
        if count != 1 or self.old == self.new:
            raise WrongCheckError(
                f"{self.file}: {self.old!r}\nstands there {count} times, not once, or changes"
                " nothing"
            )
        return text.replace(self.old, self.new)

    def check(self) -> None:
        """Raise unless the change fits the sources as they are."""
        self.apply_to((ROOT / self.file).read_text())


class Workshop:
    """A copy of the tree, in a folder of its own, in which changes are made and taken back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = 1_000_000_000  # each text gets a time of its own: no stale bytecode is run
        for part in PARTS:
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in SETTINGS:
            shutil.copy(ROOT / name, folder / name)
        found = self.python("-c", "import raft; print(raft.__file__)").stdout.strip()
        if not Path(found).is_relative_to(folder):
            raise WrongCheckError(f"the tests would run {found}, not the copy's code")

    @contextmanager
    def changed(self, changes: Sequence[Change]) -> Iterator[None]:
        """Have some changes made meanwhile."""
        paths = [self._folder / change.file for change in changes]
        originals = {path: path.read_text() for path in paths}
        texts = dict(originals)
        for path, change in zip(paths, changes, strict=True):
            texts[path] = change.apply_to(texts[path])
        try:
            self._write(texts)
            yield
        finally:
            self._write(originals)

    def _write(self, texts: dict[Path, str]) -> None:
        for path, text in texts.items():
            self._stamp += 1
            path.write_text(text)
            os.utime(path, (self._stamp, self._stamp))

    def python(
        self, *arguments: str, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the copy's code; may raise `subprocess.TimeoutExpired`."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(self._folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )


def try_all(
    jobs: Sequence[Job],
    attempt: Callable[[Workshop, Job], Outcome],
    prepare: Callable[[Workshop], None] = lambda _: None,
    at_once: int = AT_ONCE,
) -> Iterator[Outcome]:
    """Yield what `attempt` returns for each job, in order; so many jobs at a time.

    Each copy is prepared once. Raises the first `WrongCheckError` of any of them.
    """
    shops: queue.SimpleQueue[Workshop] = queue.SimpleQueue()

    def work(job: Job) -> Outcome:
        shop = shops.get()
        try:
            return attempt(shop, job)
        finally:
            shops.put(shop)

    with tempfile.TemporaryDirectory(prefix="workshop-") as folder:
        for number in range(at_once):
            shop = Workshop(Path(folder).resolve() / str(number))
            prepare(shop)
            shops.put(shop)
        with ThreadPoolExecutor(at_once) as pool:
            try:
                yield from pool.map(work, jobs)
            except WrongCheckError:
                pool.shutdown(cancel_futures=True)
                raise
