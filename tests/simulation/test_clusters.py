"""Whole clusters from a seed: elections, faults, recovery; and the same again, bit for bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raft.testing.simulation.scenario import SeedFailedError, run_seed

ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments, hash_seed="0"):
    """Start the command line program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "raft.testing.simulation", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process):
    text, _ = process.communicate()
    return process.returncode, text


def averages(text):
    last = text.strip().splitlines()[-1]
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", last)}


@pytest.mark.timeout(180)  # a minute on two quiet cores
def test_a_hundred_seeds_of_three_and_five_nodes_hold_every_invariant():
    runs = [simulate("--seed", 0, "--count", 50, "--nodes", 3)]
    runs += [simulate("--seed", 50, "--count", 50, "--nodes", 5)]

    found = []
    for code, text in map(output, runs):
        assert code == 0, text
        print(text.strip().splitlines()[-1])
        found.append(averages(text))

    # Idle virtual time proves nothing: this much happens to an average seed.
    mean = {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}
    assert mean["passed"] == 50
    assert mean["faults"] >= 10
    assert mean["leader_changes"] >= 2
    assert mean["acknowledged"] >= 150
    assert mean["installs"] >= 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nodes", [3, 5])
def test_a_seed_gives_the_same_trace_under_two_hash_seeds(nodes):
    arguments = ("--seed", 7, "--count", 2, "--nodes", nodes, "--seconds", 8)

    (code, first), (_, second) = map(
        output, [simulate(*arguments, hash_seed="1"), simulate(*arguments, hash_seed="2")]
    )

    assert code == 0
    assert len(set(re.findall("trace=[0-9a-f]{32}", first))) == 2
    assert first.splitlines()[:2] == second.splitlines()[:2]


def test_a_seed_that_fails_says_how_to_see_it_again(monkeypatch):
    def fail(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("raft.testing.simulation.scenario.Scenario._check_end", fail)

    with pytest.raises(SeedFailedError) as caught:
        run_seed(4, nodes=3, seconds=1.0)

    assert "leader" in str(caught.value)
    assert "RuntimeError: broken on purpose" in str(caught.value)
    assert str(caught.value).endswith(
        "python -m raft.testing.simulation --seed 4 --nodes 3 --seconds 1"
    )
