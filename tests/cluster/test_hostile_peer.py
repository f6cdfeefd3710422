"""A stranger that answers at a peer's address harms nobody but the calls made to it."""

from __future__ import annotations

import socket
import struct
import threading
import zlib

import pytest

from raft import Configuration, Raft, Server
from raft.codec import dumps
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import fast_config
from raft.testing.fsm import RecordingFSM
from raft.transport import TCPTransport
from tests.cluster.helpers import ANSWER

HUGE = 1 << 20_000  # Python refuses to write so many digits


def greeting(fields):
    payload = dumps(fields)
    return struct.pack(">8sHI", b"RAFTPY\r\n", len(payload), zlib.crc32(payload)) + payload


def frame(code, payload):
    head = struct.pack(">IB", len(payload), code)
    return head + struct.pack(">I", zlib.crc32(payload, zlib.crc32(head))) + payload


ANSWERS = {
    "greeting": greeting([HUGE, HUGE, None, "n2", "n1", "", ""]),
    "error": greeting([1, 1, None, "n2", "n1", "", ""]) + frame(128, dumps([HUGE, "no"])),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_with_an_endless_number_costs_a_call_and_not_the_node(what):
    listener = socket.create_server(("127.0.0.1", 0))
    answered, again = threading.Event(), threading.Event()

    def answer() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(ANSWER)
                sock.recv(10_000)
                (again if answered.is_set() else answered).set()
                sock.sendall(ANSWERS[what])
                sock.recv(10_000)

    threading.Thread(target=answer, daemon=True).start()
    store = InmemStore()
    transport = TCPTransport("127.0.0.1:0", timeout=ANSWER)
    config = fast_config("n1")
    with Raft(config, RecordingFSM(), store, store, InmemSnapshotStore(), transport) as node:
        node.bootstrap_cluster(Configuration([Server("n1", transport.local_addr())])).result(ANSWER)
        node.wait_for_leader(ANSWER)
        node.add_nonvoter("n2", f"127.0.0.1:{listener.getsockname()[1]}").result(ANSWER)

        assert answered.wait(ANSWER)
        assert again.wait(ANSWER)  # so what was answered first has been looked at
        node.apply(b"1", ANSWER).result(ANSWER)
        assert node.failure is None
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
