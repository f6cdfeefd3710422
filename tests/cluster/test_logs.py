"""The log of the process: who does not read it, or cannot write it, stops no node."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from raft import RaftState, logs
from raft.testing.cluster import Cluster
from tests.cluster.helpers import ANSWER, apply_count

RAFT = logging.getLogger("raft")


class Stuck(logging.Handler):
    """Writes to a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.go_on.wait(60)


@pytest.fixture
def level() -> Iterator[None]:
    RAFT.setLevel(logging.DEBUG)
    yield
    RAFT.setLevel(logging.NOTSET)


@pytest.fixture
def stuck(level: None) -> Iterator[Stuck]:
    handler = Stuck()
    RAFT.addHandler(handler)
    yield handler
    handler.go_on.set()
    RAFT.removeHandler(handler)
    logs.flush(ANSWER)


def refuse(record: logging.LogRecord) -> bool:
    raise RuntimeError("working outside of request context")


@pytest.fixture
def refusing(level: None) -> Iterator[None]:
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "raft"]
    for name in names:
        logging.getLogger(name).addFilter(refuse)
    yield
    logs.flush(ANSWER)
    for name in names:
        logging.getLogger(name).removeFilter(refuse)


def test_a_log_that_nobody_reads_stops_neither_elections_nor_writes_nor_shutdown(stuck):
    with Cluster(3) as cluster:
        apply_count(cluster.leader(), 10)
        cluster.stop(cluster.leader())
        apply_count(cluster.leader(), 10)

        cluster.leader().node.shutdown().result(ANSWER)


def test_a_filter_that_raises_halts_no_node(refusing):
    with Cluster(3) as cluster:
        apply_count(cluster.leader(), 10)
        cluster.stop(cluster.leader())
        apply_count(cluster.leader(), 10)

        assert [m.node.failure for m in cluster.running()] == [None, None]


def test_a_leader_whose_replication_thread_dies_shuts_down_though_nobody_can_log(refusing):
    with Cluster(3) as cluster:
        leader = cluster.leader()

        def append_entries(*args: object) -> None:
            raise AttributeError("a fault of the transport")

        leader.transport.append_entries = append_entries
        leader.transport.append_entries_pipeline = append_entries

        cluster.disconnect(leader)
        cluster.wait_for(lambda: leader.node.state() is RaftState.SHUTDOWN)
        assert isinstance(leader.node.failure, AttributeError)


FULL_PIPE = """
import logging, os
from raft import *
logging.basicConfig(level=logging.DEBUG)
os.set_blocking(2, False)
try:
    while os.write(2, b"x" * 4096):
        pass
except BlockingIOError:
    os.set_blocking(2, True)
from raft.testing.cluster import Cluster
with Cluster(3) as cluster:
    cluster.leader().node.apply(b"x").result(10)
    cluster.leader().node.shutdown().result(10)
os.write(1, b"done")
os._exit(0)
"""


def test_a_full_pipe_of_stderr_stops_no_cluster():
    child = subprocess.Popen(
        [sys.executable, "-c", FULL_PIPE], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        try:
            assert child.stdout is not None
            watchdog = threading.Timer(3 * ANSWER, child.kill)
            watchdog.start()
            assert child.stdout.read() == b"done"
        finally:
            watchdog.cancel()
            child.kill()
