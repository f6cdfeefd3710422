"""The program: run seeds, one to look at, or many for the figures.

python -m raft.testing.simulation --seed 17 --nodes 3 --verbose
python -m raft.testing.simulation --count 300 --jobs 2
python -m raft.testing.simulation --count 20 --verify-determinism

Exit status: 0 when all seeds passed, 1 when one failed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from typing import NamedTuple

from raft.logs import write_directly
from raft.testing.simulation.runtime import SimulationError
from raft.testing.simulation.scenario import SECONDS, Result, run_seed

_HASH_SEEDS = ("1", "2")  # of the two interpreters whose traces must be equal
_MANY = 50  # seeds in which every fault must have struck
_BUSY = {"faults": 10.0, "leader_changes": 2.0, "acknowledged": 200.0}  # an average seed, at least


class Run(NamedTuple):
    """One seed to run."""

    seed: int
    nodes: int
    seconds: float


class Outcome(NamedTuple):
    """What came of it: a result, or a failure as text."""

    run: Run
    result: Result | None
    failure: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds asked for; 1 when one of them failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.verify_determinism:
        given.remove("--verify-determinism")
        return 0 if verify_determinism(given) else 1
    _log_to_stdout(options.verbose)
    seeds = range(options.seed, options.seed + options.count)
    runs = [Run(seed, options.nodes[seed % len(options.nodes)], options.seconds) for seed in seeds]
    began = time.monotonic()
    results, failed = [], 0
    for outcome in _outcomes(runs, options.jobs):
        if outcome.result is None:
            failed += 1
            print(f"FAILED seed={outcome.run.seed}\n{outcome.failure}", flush=True)
        else:
            results.append(outcome.result)
            print(outcome.result.line(), flush=True)
    print(summary(results, failed, time.monotonic() - began), flush=True)
    quiet = too_quiet(results) if options.strict else []
    for text in quiet:
        print(f"FAILED: idle time proves nothing: {text}")
    return 1 if failed or quiet else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raft.testing.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on")
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=[3, 5],
        help="voters at the start; of several, seeds take one in turn",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="virtual seconds of faults")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run seeds")
    parser.add_argument("--strict", action="store_true", help="fail when too little happens, too")
    parser.add_argument(
        "--verify-determinism",
        action="store_true",
        help="run the seeds in two interpreters with other hash seeds, and compare the traces",
    )
    parser.add_argument("--verbose", action="store_true", help="print what happens")
    return parser


def _log_to_stdout(is_verbose: bool) -> None:
    level = logging.DEBUG if is_verbose else logging.CRITICAL + 1
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    write_directly(is_verbose)  # in the order of events, and all of them


def _outcomes(runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    """Run seeds one after the other, or in several processes; yield what came of each, in order."""
    if jobs == 1:
        yield from map(_run, runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _log_to_stdout, (False,)) as pool:
        yield from pool.map(_run, runs)


def _run(run: Run) -> Outcome:
    try:
        return Outcome(run, run_seed(*run))
    except SimulationError as error:
        return Outcome(run, None, str(error))


def summary(results: Sequence[Result], failed: int, seconds: float) -> str:
    """Return the averages of many runs in one line."""
    count = max(len(results), 1)
    virtual = sum(r.seconds for r in results)
    return (
        f"passed={len(results)} failed={failed} took={seconds:.1f}s"
        f" seeds_per_second={len(results) / max(seconds, 1e-9):.2f}"
        f" virtual_hours={virtual / 3600:.2f} averages:"
        f" faults={sum(r.faults for r in results) / count:.1f}"
        f" leader_changes={sum(r.leader_changes for r in results) / count:.1f}"
        f" acknowledged={sum(r.acknowledged for r in results) / count:.0f}"
        f" unknown={sum(r.unknown for r in results) / count:.1f}"
        f" reads={sum(r.reads for r in results) / count:.0f}"
        f" installs={sum(r.installs for r in results) / count:.1f}"
        f" rebuilt={sum(r.rebuilt for r in results) / count:.1f}"
        f" recovery={sum(r.recovery for r in results) / count:.2f}s"
        f" virtual={virtual / count:.1f}s"
    )


def too_quiet(results: Iterable[Result]) -> list[str]:
    """Return what happened too rarely in an average seed, and what did not happen in so many."""
    found = list(results)
    means = {name: sum(getattr(r, name) for r in found) / max(len(found), 1) for name in _BUSY}
    quiet = [
        f"{name} is {means[name]:.1f} on average, at least {least:g} is wanted"
        for name, least in _BUSY.items()
        if means[name] < least
    ]
    if len(found) >= _MANY:
        quiet += [
            f"{name} never struck in {len(found)} seeds"
            for name in found[0].strikes
            if not any(result.strikes[name] for result in found)
        ]
    return quiet


def verify_determinism(arguments: Sequence[str]) -> bool:
    """Run seeds in two interpreters with different hash seeds; tell whether all is equal."""
    command = [sys.executable, "-m", "raft.testing.simulation", *arguments]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in _HASH_SEEDS
    ]
    first, second = [process.communicate()[0].splitlines()[:-1] for process in started]
    different = [pair for pair in zip_longest(first, second) if pair[0] != pair[1]]
    for one, other in different:
        print(f"NOT DETERMINISTIC\n  {one}\n  {other}")
    passed = sum("trace=" in line for line in first)
    print(f"{passed} seeds run twice, {len(different)} of them differ")
    return passed == len(first) > 0 and not different
