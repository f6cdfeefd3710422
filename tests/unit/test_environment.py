"""What a node cannot run in is named at once."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from raft import Config, InvalidConfigError, Raft
from raft.codec import _check_library
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.fsm import RecordingFSM
from raft.transport import InmemTransport, TCPTransport


@pytest.fixture
def eventlet(monkeypatch):
    module = types.ModuleType("eventlet.patcher")
    module.is_monkey_patched = lambda name: name == "thread"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eventlet.patcher", module)


def test_eventlet_is_refused_by_name(eventlet):
    store = InmemStore()
    stores, transport = (store, store, InmemSnapshotStore()), InmemTransport("n1:1")

    with pytest.raises(InvalidConfigError, match="eventlet"):
        Raft(Config(local_id="n1"), RecordingFSM(), *stores, transport)
    with pytest.raises(InvalidConfigError, match="eventlet"):
        TCPTransport("127.0.0.1:0")


@pytest.mark.parametrize("version", ["5.6.5", "4.2", "5"])
def test_an_old_cbor2_is_called_that(version):
    with pytest.raises(ImportError, match=rf"not {version}.*--upgrade cbor2"):
        _check_library(version)


@pytest.mark.parametrize("version", ["6.1.1", "7", "10.0rc1"])
def test_a_new_cbor2_will_do(version):
    _check_library(version)


def run(script: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=10
    )
    return found.stdout


@pytest.mark.parametrize("package", ["raft", "raftsqlite"])
def test_windows_is_named_when_the_package_is_imported(package):
    script = f"""
import os, sys, raftsqlite
for name in [name for name in sys.modules if name.split(".")[0] in ("raft", "raftsqlite")]:
    del sys.modules[name]
os.name = sys.platform = "win32"
try:
    import {package}
except ImportError as error:
    print(error)
"""

    assert "not on win32" in run(script)


def test_a_lack_of_threads_at_the_end_of_the_program_is_called_that():
    script = """
import threading
from raft.runtime import no_thread

def late():
    threading.main_thread().join()
    print(no_thread("vote-n2", RuntimeError("can't create new thread at interpreter shutdown")))

threading.Thread(target=late).start()
print(no_thread("vote-n2", RuntimeError("can't start new thread")))
"""

    first, second = run(script).splitlines()
    assert "container" in first
    assert "container" not in second
    assert "The program is ending" in second
