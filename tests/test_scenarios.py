"""Counts the rows of the scenario catalogue: each has a test that names it, or a reason why not.

The catalogue lists what the test-suites of hashicorp/raft, raft-boltdb and etcd-io/raft check. Its
rows are named by area and number, as in LIF-01; a test names those it shows in its docstring or in
a comment. `docs/porting.md` has the rows that do not apply.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Area: its numbers. What is missing between was never given out.
AREAS = {
    "LIF": "1-10",  # lifecycle, bootstrap, futures
    "ELE": "1-17",  # elections, lease, verification
    "PRE": "1-10",  # pre-vote
    "REP": "1-9",  # apply and replication
    "MEM": "1-9",  # membership
    "SNP": "1-39",  # snapshots, restore, recovery
    "XFR": "1-18",  # leadership transfer
    "CFG": "1-3",  # reloading, capabilities of stores
    "COM": "1-7",  # commitment
    "CON": "1-14 20-45",  # configurations
    "LOG": "1-5",  # log store, cache, metrics
    "SST": "1-12",  # snapshot stores
    "TRA": "1-8 10-33",  # transports
    "PEE": "1-3",  # peers files
    "UTL": "1-12",  # small parts
    "INT": "1-4",  # integration over TCP
    "FUZ": "1-9",  # random faults
    "GAP": "1-17",  # wanted there, and not written
    "BLT": "1-23",  # raft-boltdb
    "PAP": "1-29",  # sentences of the paper
    "ETC": "1-28 30-38 40-57 60-68 70-74 80-89",  # etcd's other scenarios
}
MOST_EXCUSED = 59


def numbers(text: str) -> list[int]:
    """Return the numbers of "1-3 5"."""
    pairs = [part.partition("-") for part in text.split()]
    return [n for first, _, last in pairs for n in range(int(first), int(last or first) + 1)]


ROWS = {f"{area}-{number:02}" for area, text in AREAS.items() for number in numbers(text)}


def rows_in(text: str) -> set[str]:
    """Return the rows that a text names; "A-01 to A-03" and "A-01…03" name three."""
    found = set(re.findall(r"\b[A-Z]{3}-\d\d\b", text))
    for area, first, last in re.findall(r"\b([A-Z]{3})-(\d\d)…(\d\d)\b", text):
        found |= {f"{area}-{n:02}" for n in range(int(first), int(last) + 1)}
    return found


def covered() -> set[str]:
    """Return the rows named in tests, those shipped for users included."""
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "raft" / "testing").rglob("*contract*.py")]
    texts = [path.read_text() for path in paths if path != Path(__file__)]
    return ROWS & set().union(*(rows_in(text) for text in texts))


def excused() -> set[str]:
    """Return the rows of the table of those that do not apply."""
    text = (ROOT / "docs" / "porting.md").read_text()
    table = text.partition("## Scenarios that do not apply")[2]
    lines = [line for line in table.splitlines() if re.match(r"\| [A-Z]{3}-", line)]
    return set().union(*(rows_in(line.split("|")[1]) for line in lines))


def test_every_row_is_covered_or_excused() -> None:
    missing = ROWS - covered() - excused()

    print(f"{len(covered())} covered, {len(excused())} excused, {len(missing)} missing")
    assert sorted(missing) == []


def test_what_is_excused_is_a_row_that_no_test_names() -> None:
    assert excused() <= ROWS
    assert sorted(excused() & covered()) == []
    assert len(excused()) <= MOST_EXCUSED


def test_there_are_as_many_rows_as_in_the_catalogue() -> None:
    assert len(ROWS) == 387
