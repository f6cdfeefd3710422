"""A fork that runs no hooks of Python, as uWSGI's with a master, while a node runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, faulthandler, os, sys
from raft import *
from raft.snapshots import InmemSnapshotStore
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

store, transport = SQLiteStore(sys.argv[1]), TCPTransport("127.0.0.1:0")
with store, Raft(
    Config(local_id="n1"), RecordingFSM(), store, store, InmemSnapshotStore(), transport
) as node:
    node.bootstrap_cluster(Configuration([Server("n1", transport.local_addr())])).result(5)
    node.wait_for_leader(10)
    pending = node.apply(b"x")
    pending.result(5)
    calls = [
        node.state, node.stats, node.leader_with_id, node.snapshot, node.shutdown,
        lambda: node.apply(b"y"), store.last_index, store.stats, lambda: store.get_log(1),
        lambda: store.set(b"k", b"v"), store.close, transport.local_addr, transport.close,
    ]
    # Whoever waits for the interpreter at a fork leaves a child that hands it over to nobody.
    sys.setswitchinterval(10)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        faulthandler.dump_traceback_later(5, exit=True)
        told = 0
        for call in calls:
            try:
                call()
            except ForkedProcessError:
                told += 1
        sys.exit(0 if told == len(calls) else 100 + told)
    _, status = os.waitpid(child, 0)
    sys.setswitchinterval(0.005)
    print("child", os.waitstatus_to_exitcode(status), flush=True)
    node.apply(b"z").result(5)
with SQLiteStore(sys.argv[1]) as again:
    print("last", again.last_index())
"""


@pytest.mark.timeout(30)
def test_the_child_uses_nothing_of_its_parent_s_and_leaves_in_good_order(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "raft.db"],
        capture_output=True,
        text=True,
        timeout=25,
        check=True,
    )

    assert found.stdout == "child 0\nlast 4\n"
