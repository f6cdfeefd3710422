"""What the README prints runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(60)  # two starts with an election each
def test_the_ten_line_program_runs_as_printed_and_runs_again(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "program.py").write_text(program)

    assert run("program.py", folder=tmp_path).split() == ["3"]
    assert run("program.py", folder=tmp_path).split() == ["6"]


@pytest.mark.timeout(60)  # two starts with an election each
def test_the_counter_counts_its_starts(tmp_path: Path) -> None:
    run("-m", "examples.counter", "data", folder=tmp_path)

    assert run("-m", "examples.counter", "data", folder=tmp_path).startswith("started 2 times")


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./]+)\)", README))
def test_the_map_of_the_documents_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\w+)", README, re.MULTILINE))))
def test_the_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_nodes_help_explains_its_options() -> None:
    text = run("-m", "examples.kv.node", "--help", folder=ROOT)

    assert all(option in text for option in ("--id", "--raft", "--http", "--data", "--join"))


def test_a_node_that_cannot_run_says_why_in_one_line(tmp_path: Path) -> None:
    arguments = ["--id", "n1", "--raft", "nowhere", "--http", "127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-m", "examples.kv.node", *arguments, "--data", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("the node cannot run: ")
    assert "host:port" in done.stderr
    assert len(done.stderr.splitlines()) == 1
