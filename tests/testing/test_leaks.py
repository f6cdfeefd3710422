"""The suite's own check: a leak is blamed on the test that leaked, and on no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LEAKING = """
import tests.conftest
from raft import Config, Raft
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport, TCPTransport
from tests.conftest import leaves_nothing_behind

tests.conftest._GRACE = 0.5
held = []


def test_leaks_a_transport():
    held.append(TCPTransport("127.0.0.1:0"))
    held[0].identify("n1", lambda: None)
    held[0].deliver_to(print)


def test_leaks_a_node():
    store = InmemStore()
    transport = InmemTransport("n1:1")
    Raft(Config(local_id="n1"), RecordingFSM(), store, store, InmemSnapshotStore(), transport)
    raise ValueError("before it could be shut down")


def test_leaks_nothing():
    pass
"""


def test_a_leak_is_blamed_on_the_test_that_leaked_once(tmp_path: Path) -> None:
    (tmp_path / "test_leaking.py").write_text(LEAKING)

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    ran = subprocess.run(
        [*command, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    summary = {line.split(" - ")[0] for line in ran.stdout.splitlines() if "::" in line}
    assert summary == {
        "ERROR test_leaking.py::test_leaks_a_transport",
        "FAILED test_leaking.py::test_leaks_a_node",
        "ERROR test_leaking.py::test_leaks_a_node",
    }, ran.stdout
    assert "1 failed, 2 passed, 2 errors" in ran.stdout
