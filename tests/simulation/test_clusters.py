"""Whole clusters from a seed: elections, faults, recovery; and the same again, bit for bit."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raft.testing.invariants import InvariantViolation
from raft.testing.simulation import campaign, scenario
from raft.testing.simulation.cluster import NodeFailedError
from raft.testing.simulation.runtime import DeadlockFoundError, Scheduler, SimulationError
from raft.testing.simulation.scenario import Scenario, SeedFailedError, run_seed

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


@pytest.mark.timeout(180)  # a quarter of a minute on two quiet cores; `make simulate` runs more
def test_eight_seeds_in_two_processes_hold_every_invariant():
    code, text = output(simulate("--count", 8, "--jobs", 2, "--strict"))

    assert code == 0, text
    print(text.strip().splitlines()[-1])
    found = averages(text)
    assert found["passed"] == 8
    assert found["installs"] >= 1
    assert found["reads"] >= 50
    assert re.findall(r"seed=(\d+) nodes=(\d)", text)[:4] == [
        ("0", "3"),
        ("1", "5"),
        ("2", "3"),
        ("3", "5"),
    ]


@pytest.mark.timeout(120)
def test_seeds_give_the_same_traces_under_two_hash_seeds():
    code, text = output(simulate("--count", 4, "--seconds", 10, "--verify-determinism"))

    assert (code, text) == (0, "4 seeds run twice, 0 of them differ\n")


def test_seeds_whose_traces_differ_are_found(monkeypatch, capsys):
    class Printing:
        def __init__(self, _, env, **__):
            self.lines = f"seed=1 trace={env['PYTHONHASHSEED']}\nseed=2 trace=0\nsummary\n"

        def communicate(self):
            return self.lines, None

    monkeypatch.setattr(campaign.subprocess, "Popen", Printing)

    assert campaign.main(["--count", "2", "--verify-determinism"]) == 1
    assert "2 seeds run twice, 1 of them differ" in capsys.readouterr().out


def test_a_campaign_without_anything_happening_is_no_proof(capsys):
    assert campaign.main(["--seconds", "0.1", "--strict"]) == 1

    assert "idle time proves nothing: faults is" in capsys.readouterr().out


def test_a_fault_that_never_struck_is_named():
    result = run_seed(0, seconds=1.0)
    seen = replace(result, faults=99, leader_changes=9, acknowledged=999)
    busy = [replace(seen, strikes={"rare": 0, "common": 1})] * 60

    assert campaign.too_quiet(busy) == ["rare never struck in 60 seeds"]


def test_at_the_end_every_voter_leads_once():
    scheduler = Scheduler(4)
    world = Scenario(scheduler, seed=4, nodes=3, seconds=0.1)
    led, voters = [], []
    world.cluster.on_leader = led.append

    def run():
        world.run()
        voters.extend(s for s in world.cluster.up() if world._is_voter(s))

    scheduler.run(run)

    assert len(voters) >= 2
    assert {s.id for s in voters} <= {s.id for s in led[-len(voters) :]}


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
    assert caught.value.found_by == "crash"


def test_a_failed_seed_fails_the_campaign(monkeypatch, capsys):
    monkeypatch.setattr(scenario.Scenario, "_is_settled", lambda _: False)

    assert campaign.main(["--seed", "4", "--seconds", "1"]) == 1

    printed = capsys.readouterr().out
    assert "FAILED seed=4" in printed
    assert "for equal logs" in printed
    assert "passed=0 failed=1" in printed


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (InvariantViolation("vote: n1 voted for n2 and n3"), "invariant"),
        (InvariantViolation("oracle: stale read at n1"), "oracle"),
        (scenario.WrongEndError("n1 lost acknowledged b'x'"), "oracle"),
        (DeadlockFoundError("nothing can run"), "liveness"),
        (SimulationError("waited 8 s for equal logs"), "liveness"),
        (NodeFailedError("n1 failed"), "crash"),
        (AttributeError("no such name"), "crash"),
    ],
)
def test_what_has_found_a_fault_has_a_name(error, name):
    assert scenario.found_by(error) == name
