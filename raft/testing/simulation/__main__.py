"""Run seeds from the command line: one to look at, or many for the figures.

python -m raft.testing.simulation --seed 17 --nodes 3 --verbose
python -m raft.testing.simulation --seed 0 --count 50 --nodes 5
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from raft.testing.simulation.runtime import SimulationError
from raft.testing.simulation.scenario import Result, run_seed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds asked for; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m raft.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on")
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[3], help="voters at the start; several: run each"
    )
    parser.add_argument("--seconds", type=float, default=13.0, help="virtual seconds of faults")
    parser.add_argument("--verbose", action="store_true", help="print what happens")
    options = parser.parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.CRITICAL + 1
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    failed = 0
    results = []
    began = time.monotonic()
    seeds = range(options.seed, options.seed + options.count)
    for seed, nodes in ((seed, nodes) for nodes in options.nodes for seed in seeds):
        try:
            result = run_seed(seed, nodes, options.seconds)
        except SimulationError as error:
            failed += 1
            print(f"FAILED seed={seed}\n{error}", flush=True)
        else:
            results.append(result)
            print(result.line(), flush=True)
    print(summary(results, failed, time.monotonic() - began), flush=True)
    return 1 if failed else 0


def summary(results: Sequence[Result], failed: int, seconds: float) -> str:
    """Return the averages of many runs in one line."""
    count = max(len(results), 1)
    return (
        f"passed={len(results)} failed={failed} took={seconds:.1f}s averages:"
        f" faults={sum(r.faults for r in results) / count:.1f}"
        f" leader_changes={sum(r.leader_changes for r in results) / count:.1f}"
        f" acknowledged={sum(r.acknowledged for r in results) / count:.0f}"
        f" unknown={sum(r.unknown for r in results) / count:.1f}"
        f" installs={sum(r.installs for r in results) / count:.1f}"
        f" recovery={sum(r.recovery for r in results) / count:.2f}s"
        f" virtual={sum(r.seconds for r in results) / count:.1f}s"
    )


if __name__ == "__main__":
    sys.exit(main())
