"""The native protocol's bytes are those of every release: golden files, both ways.

A test that fails here tells of a change that servers of an earlier release would not understand.
`wire_vectors.py` says how new cases are added.
"""

import io
import socket

import pytest

from raft.codec import decode_message
from raft.errors import UnsupportedProtocolError
from raft.runtime import THREADS
from raft.testing.transport_contract import InBackground, raised_by
from raft.transport import TCPTransport
from raft.transport.connection import decode_greeting
from raft.transport.delivery import error_kind, remote_error
from raft.transport.snapshot_stream import SnapshotStream, send_snapshot
from raft.types import LogType
from tests.unit.transport import wire_vectors
from tests.unit.transport.tools import (
    PATIENCE,
    REQUEST,
    RESPONSE,
    FakePeer,
    bare,
    dial,
    identity,
    is_closed_by_peer,
)
from tests.unit.transport.wire_vectors import CHUNKS, ERRORS, GREETINGS, INSTALLED, MESSAGES, plain

VECTORS = wire_vectors.read()


def golden(kind, name):
    return bytes.fromhex(VECTORS[kind][name]["hex"])


def transfer(side):
    frames = VECTORS["snapshot"]["transfer"]["frames"]
    return [bytes.fromhex(frame["hex"]) for frame in frames if frame["from"] == side]


def test_every_case_is_in_the_file_and_the_other_way_round():
    assert VECTORS["greetings"].keys() == GREETINGS.keys()
    assert VECTORS["messages"].keys() == MESSAGES.keys()
    assert VECTORS["errors"].keys() == ERRORS.keys()


def test_every_type_of_message_and_entry_is_among_the_cases():
    entries = MESSAGES["append entries"].entries

    assert {log.type for log in entries} == set(LogType)
    assert {type(m).__name__ for m in MESSAGES.values()} == {
        f"{name}{end}"
        for name in (
            "AppendEntries",
            "RequestVote",
            "RequestPreVote",
            "InstallSnapshot",
            "TimeoutNow",
        )
        for end in ("Request", "Response")
    }


# ---- greetings ----


@pytest.mark.parametrize("name", GREETINGS)
def test_greetings_are_written_and_read_as_ever(name):
    data = golden("greetings", name)

    assert GREETINGS[name].encode() == data
    assert decode_greeting(data[14:]) == GREETINGS[name]
    assert plain(GREETINGS[name]) == VECTORS["greetings"][name]["values"]


def test_the_dialing_side_says_and_hears_what_the_file_has():
    with bare() as (link, sock):
        sock.sendall(golden("greetings", "answer"))
        link.greet(identity("node-a", "cluster-1"), "node-b", PATIENCE)

        assert sock.recv(65536) == golden("greetings", "request")
        assert link.peer == GREETINGS["answer"]


def test_the_dialed_side_says_and_hears_what_the_file_has():
    with bare() as (link, sock):
        sock.sendall(golden("greetings", "request"))
        link.welcome(identity("node-b", "cluster-1"), PATIENCE)

        assert sock.recv(65536) == golden("greetings", "answer")
        assert link.peer == GREETINGS["request"]


# ---- frames ----


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_written_and_read_as_ever(name):
    data, message = golden("messages", name), MESSAGES[name]

    assert wire_vectors.message_bytes(message) == data
    with bare() as (link, sock):
        sock.sendall(data)
        assert decode_message(*link.receive(PATIENCE)) == message
    assert plain(message) == VECTORS["messages"][name]["values"]
    assert type(message).__name__ == VECTORS["messages"][name]["type"]


def test_checksums_of_entries_are_those_of_ever():
    """They stand in the golden bytes and are taken over, so each is computed anew here."""
    *sealed, unsealed = MESSAGES["append entries"].entries

    assert all(log.is_intact() for log in sealed)
    assert unsealed.checksum == 0


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_written_and_read_as_ever(name):
    data, error = golden("errors", name), ERRORS[name]
    expected = remote_error(error_kind(error), str(error))

    assert wire_vectors.error_bytes(error) == data
    with bare() as (link, sock):
        sock.sendall(data)
        raised = raised_by(lambda: link.receive_answer(PATIENCE))
    assert (type(raised), str(raised)) == (type(expected), str(expected))
    assert str(raised) == VECTORS["errors"][name]["text"]


# ---- snapshots ----


class InChunks(io.BytesIO):
    """A snapshot that is read in the chunks of the golden file."""

    def __init__(self):
        super().__init__(b"".join(CHUNKS))
        self._sizes = iter(len(chunk) for chunk in CHUNKS)

    def read(self, size=-1, /):
        return super().read(next(self._sizes, 0))


def test_a_snapshot_is_sent_as_ever():
    expected = b"".join(transfer("sender"))
    with bare() as (link, sock):
        sending = InBackground(
            lambda: send_snapshot(link, MESSAGES["install snapshot"], InChunks(), PATIENCE, THREADS)
        )
        sent = b""
        while len(sent) < len(expected):
            sent += sock.recv(65536)
        sock.sendall(b"".join(transfer("receiver")))

        assert decode_message(*sending.outcome()) == INSTALLED
    assert sent == expected


def test_a_snapshot_is_received_as_ever():
    with bare() as (link, sock):
        sock.sendall(b"".join(transfer("sender")))
        request = decode_message(*link.receive(PATIENCE))
        stream = SnapshotStream(link, request.size, PATIENCE)

        assert stream.read() == bytes.fromhex(VECTORS["snapshot"]["transfer"]["content"])
        assert stream.is_complete


def test_the_frames_of_a_transfer_are_those_of_ever():
    frames = VECTORS["snapshot"]["transfer"]["frames"]

    assert [(f["from"], f["what"], bytes.fromhex(f["hex"])) for f in frames] == (
        wire_vectors.snapshot_bytes()
    )


# ---- versions ----


@pytest.fixture
def make():
    made = []

    def transport(server_id):
        one = TCPTransport("127.0.0.1:0", timeout=PATIENCE)
        one.identify(server_id, lambda: "cluster-1")
        made.append(one)
        return one

    yield transport
    for one in made:
        one.close()


def test_a_later_release_that_dials_is_refused_and_nothing_else_happens(make, caplog):
    requests = []

    def take(rpc):
        requests.append(rpc.command)
        rpc.respond(RESPONSE)

    b = make("node-b")
    b.deliver_to(take)
    with dial(b) as sock:
        message = golden("messages", "append entries")
        sock.sendall(golden("greetings", "request of a later release") + message)
        head = sock.recv(14, socket.MSG_WAITALL)
        length = int.from_bytes(head[8:10], "big")
        answer = decode_greeting(sock.recv(length, socket.MSG_WAITALL))
        assert is_closed_by_peer(sock)

    assert (answer.lowest, answer.highest, answer.refusal) == (1, 1, "unsupported-protocol")
    assert "speaks 1 to 1, server node-a speaks 2 to 9" in answer.refusal_text
    assert make("node-a").append_entries("node-b", b.local_addr(), REQUEST) == RESPONSE
    assert requests == [REQUEST]
    b.close()
    assert ["speaks 2 to 9" in record.getMessage() for record in caplog.records] == [True]


def test_a_later_release_that_is_dialed_is_refused_and_gets_no_request(make):
    heard = []

    def later(link):
        link.stream.send(golden("greetings", "answer of a later release"), PATIENCE)
        buffer = memoryview(bytearray(65536))
        while count := link.stream.receive_into(buffer, PATIENCE):
            heard.append(bytes(buffer[:count]))

    a = make("node-a")
    with FakePeer(later) as peer:
        error = raised_by(lambda: a.append_entries("node-b", peer.address, REQUEST))

    assert isinstance(error, UnsupportedProtocolError)
    assert "speaks 1 to 1, server node-b speaks 2 to 9" in str(error)
    assert b"".join(heard) == golden("greetings", "request")
    assert a._pool.idle_count(("node-b", peer.address)) == 0


# ---- the script ----


def test_adding_cases_changes_none_that_are_there(tmp_path, monkeypatch):
    file = tmp_path / "frames.json"
    file.write_text('{"errors": {"error": {"hex": "00"}}}')
    monkeypatch.setattr(wire_vectors, "FILE", file)

    wire_vectors.add_missing()

    held = wire_vectors.read()
    assert held["errors"]["error"] == {"hex": "00"}
    assert held["greetings"] == VECTORS["greetings"]
