"""A new process takes over from an old one, as in a restart of a web server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raft import InvalidConfigError, StoreLockedError
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

HOLDER = """
import sys
from raftsqlite import SQLiteStore
with SQLiteStore(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.readline()
"""

OPENER = """
import sys
from raft import StoreLockedError
from raftsqlite import SQLiteStore
try:
    SQLiteStore(sys.argv[1])
except StoreLockedError as error:
    print(error)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft.db"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child
        child.kill()


def test_a_store_is_opened_once_its_former_owner_has_closed_it(path, holder):
    later = threading.Timer(0.3, holder.stdin.close)
    later.start()

    with SQLiteStore(path, lock_timeout=20) as store:
        assert store.last_index() == 0
    later.join()


def test_a_store_that_stays_open_is_refused_in_time(path, holder):
    began = time.monotonic()

    with pytest.raises(StoreLockedError, match="stayed so for"):
        SQLiteStore(path, lock_timeout=0.2)

    assert 0.2 <= time.monotonic() - began < 5


def test_a_reloader_s_child_is_told_of_reloaders(path):
    with SQLiteStore(path):
        found = subprocess.run(
            [sys.executable, "-c", OPENER, path], capture_output=True, text=True, check=True
        )

    assert "use_reloader=False" in found.stdout


def test_a_second_store_in_one_process_is_called_that(path):
    with SQLiteStore(path), pytest.raises(StoreLockedError, match="This very process has it"):
        SQLiteStore(path)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def test_an_address_is_bound_once_its_former_owner_has_left(listener):
    host, port = listener.getsockname()
    later = threading.Timer(0.3, listener.close)
    later.start()

    TCPTransport(f"{host}:{port}", bind_timeout=20).close()
    later.join()


def test_an_address_that_stays_in_use_is_refused_in_time(listener):
    host, port = listener.getsockname()

    with pytest.raises(OSError, match=rf"{port} is in use.*bind_timeout=30"):
        TCPTransport(f"{host}:{port}", bind_timeout=0.2)


def test_waits_without_sense_are_refused(path):
    for seconds in (-1.0, float("nan"), 1e9):
        with pytest.raises(ValueError, match="lock_timeout"):
            SQLiteStore(path, lock_timeout=seconds)
        with pytest.raises(InvalidConfigError, match="bind_timeout"):
            TCPTransport("127.0.0.1:0", bind_timeout=seconds)
