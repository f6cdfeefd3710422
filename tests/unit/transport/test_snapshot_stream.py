"""A snapshot over one connection: whole, broken, refused, stalled; and memory on both sides."""

import hashlib
import io
import queue
import tracemalloc

import pytest

from raft.errors import (
    ConnectionLostError,
    ProtocolError,
    RPCTimeoutError,
    SnapshotError,
    TransportError,
)
from raft.messages import InstallSnapshotRequest, InstallSnapshotResponse, RPCHeader
from raft.runtime import THREADS
from raft.testing.transport_contract import InBackground, Zeros, raised_by
from raft.transport import snapshot_stream
from raft.transport.connection import CHUNK_FRAME, END_FRAME, WORKING_FRAME
from raft.transport.snapshot_stream import SnapshotStream, send_snapshot
from tests.unit.transport.tools import PATIENCE, connected

INSTALLED = InstallSnapshotResponse(RPCHeader("b"), 3, True)


def request(size):
    return InstallSnapshotRequest(RPCHeader("a"), 3, 9, 2, size=size)


def sending(connection, size, reader, timeout=PATIENCE):
    return InBackground(lambda: send_snapshot(connection, request(size), reader, timeout, THREADS))


def received(connection, size, *, frames):
    """What a receiver reads when these frames come."""
    near, far = connection
    for code, payload in frames:
        far.send(code, payload, PATIENCE)
    return SnapshotStream(near, size, 0.05)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 3_000_000])
@pytest.mark.parametrize("piece", [-1, 1000, 256 * 1024, 10**7])
def test_what_is_sent_is_read_in_pieces_of_any_size(size, piece):
    data = hashlib.shake_128(b"snapshot").digest(size)
    with connected() as (ours, theirs):
        call = sending(ours, size, io.BytesIO(data))
        theirs.receive(PATIENCE)
        stream = SnapshotStream(theirs, size, PATIENCE)

        pieces = list(iter(lambda: stream.read(piece), b""))
        theirs.send_message(INSTALLED, PATIENCE)

        assert b"".join(pieces) == data
        assert all(len(p) == piece for p in pieces[:-1])
        assert stream.is_complete
        assert call.outcome()[0] == 66


@pytest.mark.parametrize(
    "frames",
    [
        [(CHUNK_FRAME, b"12345"), (END_FRAME, b"")],
        [(CHUNK_FRAME, b"12345"), (CHUNK_FRAME, b"678901")],
        [(CHUNK_FRAME, b"1234567890"), (CHUNK_FRAME, b"1")],
        [(CHUNK_FRAME, b""), (CHUNK_FRAME, b"1234567890")],
        [(CHUNK_FRAME, b"12345"), (7, b"")],
        [(END_FRAME, b"")],
    ],
)
def test_a_stream_of_another_size_than_announced_is_refused(frames):
    with connected() as link:
        stream = received(link, 10, frames=frames)

        assert isinstance(raised_by(lambda: stream.read(10)), ProtocolError)
        assert isinstance(raised_by(lambda: stream.read(1)), ProtocolError)


def test_the_last_byte_waits_for_the_end():
    with connected() as link:
        stream = received(link, 10, frames=[(CHUNK_FRAME, b"1234567890")])

        assert isinstance(raised_by(lambda: stream.read(10)), RPCTimeoutError)


def test_a_sender_that_stalls_is_not_waited_for():
    with connected() as link:
        stream = received(link, 10, frames=[(CHUNK_FRAME, b"12345")])

        assert stream.read(5) == b"12345"
        assert isinstance(raised_by(lambda: stream.read(5)), RPCTimeoutError)


def test_a_sender_that_dies_is_noticed():
    with connected() as (near, far):
        far.close()

        assert isinstance(
            raised_by(lambda: SnapshotStream(near, 10, PATIENCE).read(5)), ConnectionLostError
        )


def test_an_answered_request_has_nothing_more_to_read():
    with connected() as link:
        stream = received(link, 10, frames=[(CHUNK_FRAME, b"12345")])
        stream.detach()

        assert isinstance(raised_by(lambda: stream.read(5)), TransportError)


def test_a_receiver_that_stalls_is_not_waited_for():
    size = 64 * 1024 * 1024
    with connected() as (ours, _):
        assert isinstance(sending(ours, size, Zeros(size), 0.1).outcome(), RPCTimeoutError)


def test_an_early_answer_ends_the_sending():
    size = 64 * 1024 * 1024
    reader = Zeros(size)
    with connected() as (ours, theirs):
        call = sending(ours, size, reader)
        theirs.receive(PATIENCE)
        theirs.send_message(INSTALLED, PATIENCE)
        waste = memoryview(bytearray(1024 * 1024))
        draining = InBackground(
            lambda: all(iter(lambda: theirs.stream.receive_into(waste, PATIENCE), 0))
        )

        assert call.outcome()[0] == 66
        assert reader.left > 0
        ours.close()
        draining.outcome()


@pytest.mark.parametrize("data", [b"123456789", b"12345678901"])
def test_a_sender_does_not_send_what_it_did_not_announce(data):
    with connected() as (ours, _):
        assert isinstance(sending(ours, 10, io.BytesIO(data)).outcome(), SnapshotError)


def test_what_the_senders_reader_raises_passes_through():
    class Broken(Zeros):
        def read(self, size=-1, /):
            raise OSError("disk is gone")

    with connected() as (ours, _):
        error = sending(ours, 10, Broken(10)).outcome()

    assert type(error) is OSError


def test_signs_of_life_keep_the_sender_waiting(monkeypatch):
    monkeypatch.setattr(snapshot_stream, "_SILENCE", 1.0)
    with connected() as (ours, theirs):
        call = sending(ours, 0, io.BytesIO(), 1.0)
        for _ in range(4):
            with pytest.raises(queue.Empty):
                call.outcome(0.4)
            theirs.send(WORKING_FRAME, b"", PATIENCE)
        theirs.send_message(INSTALLED, PATIENCE)

        assert call.outcome()[0] == 66


def test_silence_after_the_last_byte_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(snapshot_stream, "_SILENCE", 0.05)
    with connected() as (ours, _):
        assert isinstance(sending(ours, 0, io.BytesIO(), 0.05).outcome(), RPCTimeoutError)


def test_signs_of_life_do_not_keep_it_waiting_for_ever(monkeypatch):
    monkeypatch.setattr(snapshot_stream, "_ANSWER_LIMIT", 0.1)
    with connected() as (ours, theirs):
        call = sending(ours, 0, io.BytesIO(), 0.1)
        stop = []

        def show_life():
            while not stop:
                theirs.send(WORKING_FRAME, b"", PATIENCE)

        life = InBackground(show_life)
        error = call.outcome()
        stop.append(True)
        ours.close()
        life.outcome()

    assert isinstance(error, RPCTimeoutError)


def test_neither_side_holds_more_than_a_few_chunks():
    size = 64 * 1024 * 1024
    with connected() as (ours, theirs):
        tracemalloc.start()
        try:
            call = sending(ours, size, Zeros(size))
            theirs.receive(PATIENCE)
            stream = SnapshotStream(theirs, size, PATIENCE)
            count = sum(map(len, iter(lambda: stream.read(256 * 1024), b"")))
            theirs.send_message(INSTALLED, PATIENCE)
            call.outcome()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert count == size
    assert peak < 8 * 1024 * 1024
