"""Fail when the last `coverage run` has left too much out: the end of `make coverage`.

coverage.py knows one bound for lines and branches together; ours are two.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage

WANTED = {"lines": 95.0, "branches": 90.0}  # percent of `raft` and `raftsqlite` together


def main() -> int:
    """Print both shares; return 1 when one is below its bound."""
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(report))
        totals = json.loads(report.read_text())["totals"]
    found = {
        "lines": 100 * totals["covered_lines"] / totals["num_statements"],
        "branches": 100 * totals["covered_branches"] / totals["num_branches"],
    }
    for what, wanted in WANTED.items():
        print(f"{what}: {found[what]:.1f} % run, at least {wanted:.0f} % wanted")
    return 0 if all(found[what] >= wanted for what, wanted in WANTED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
