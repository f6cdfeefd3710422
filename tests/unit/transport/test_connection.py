"""The bytes of one connection: greetings, frames, and what comes instead of them."""

import math
import struct
import tracemalloc
import zlib

import pytest

from raft.codec import decode_message, dumps
from raft.errors import (
    ClusterMismatchError,
    ConnectionLostError,
    PeerUnreachableError,
    ProtocolError,
    RemoteError,
    RPCTimeoutError,
    TransportError,
    UnsupportedProtocolError,
    WrongServerError,
)
from raft.testing.transport_contract import InBackground, raised_by
from raft.transport.connection import ERROR_FRAME, MAX_FRAME, Greeting
from tests.unit.transport.tools import PATIENCE, REQUEST, bare, connected, identity


def handshake(dialing, dialed, wanted="b", versions=(1, 1), dialed_versions=(1, 1)):
    """What the two sides raise when they greet each other, None for nothing."""
    with connected() as (ours, theirs):
        other = InBackground(lambda: theirs.welcome(dialed, PATIENCE, dialed_versions))
        try:
            error = ours.greet(dialing, wanted, PATIENCE, versions)
        except Exception as exc:  # noqa: BLE001 - the tests look at it
            error = exc
        return error, other.outcome(), ours.version, theirs.version


def test_two_sides_learn_who_the_other_is():
    with connected() as (ours, theirs):
        other = InBackground(lambda: theirs.welcome(identity("b", "c1"), PATIENCE))
        ours.greet(identity("a", "c1"), "b", PATIENCE)
        other.outcome()

        assert (ours.peer.server_id, ours.peer.cluster_id) == ("b", "c1")
        assert (theirs.peer.server_id, theirs.peer.wanted_id) == ("a", "b")


@pytest.mark.parametrize(
    ("ours", "theirs", "used"),
    [((1, 1), (1, 5), 1), ((1, 5), (1, 1), 1), ((2, 4), (1, 3), 3), ((1, 2), (2, 9), 2)],
)
def test_the_highest_common_version_is_used(ours, theirs, used):
    error, refusal, *versions = handshake(
        identity("a"), identity("b"), versions=ours, dialed_versions=theirs
    )

    assert (error, refusal) == (None, None)
    assert versions == [used, used]


@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (2, 5)), ((3, 4), (1, 2))])
def test_without_a_common_version_both_sides_say_which_they_speak(ours, theirs):
    error, refusal, *_ = handshake(
        identity("a"), identity("b"), versions=ours, dialed_versions=theirs
    )

    assert isinstance(error, UnsupportedProtocolError)
    assert isinstance(refusal, UnsupportedProtocolError)
    assert f"speaks {ours[0]} to {ours[1]}" in str(error)
    assert f"speaks {theirs[0]} to {theirs[1]}" in str(error)


def test_the_dialed_side_refuses_to_be_taken_for_another():
    error, refusal, *_ = handshake(identity("a"), identity("b"), wanted="c")

    assert isinstance(error, WrongServerError)
    assert isinstance(refusal, WrongServerError)


def test_the_dialing_side_does_not_trust_the_dialed_one_to_refuse():
    with connected() as (ours, theirs):
        mine = Greeting(1, 1, None, "x", "a").encode()
        theirs.stream.send(mine, PATIENCE)

        with pytest.raises(WrongServerError, match="server x answers"):
            ours.greet(identity("a"), "b", PATIENCE)


@pytest.mark.parametrize(("wanted", "actual"), [("", "b"), ("b", "")])
def test_an_id_that_is_not_known_matches_all(wanted, actual):
    error, refusal, *_ = handshake(identity("a"), identity(actual), wanted=wanted)

    assert (error, refusal) == (None, None)


def test_servers_of_two_clusters_do_not_talk():
    error, refusal, *_ = handshake(identity("a", "c1"), identity("b", "c2"))

    assert isinstance(error, ClusterMismatchError)
    assert isinstance(refusal, ClusterMismatchError)


@pytest.mark.parametrize(("ours", "theirs"), [("c", None), (None, None), ("c", "c")])
def test_a_blank_server_takes_anybody(ours, theirs):
    error, refusal, *_ = handshake(identity("a", ours), identity("b", theirs))

    assert (error, refusal) == (None, None)


def test_who_names_no_cluster_is_refused_by_one_that_has_it():
    """A stranger that says nothing passed where one that names another cluster did not."""
    error, refusal, *_ = handshake(identity("a", None), identity("b", "c"))

    assert isinstance(error, ClusterMismatchError)
    assert "names no cluster" in str(refusal)


def test_a_peer_that_hangs_up_in_the_handshake_counts_as_unreachable():
    with bare() as (ours, sock):
        sock.close()

        with pytest.raises(TransportError) as caught:
            ours.greet(identity("a"), "b", PATIENCE)

    assert isinstance(caught.value, PeerUnreachableError | ConnectionLostError)


def greeting_of(payload, magic=b"RAFTPY\r\n", crc=None, length=None):
    crc = zlib.crc32(payload) if crc is None else crc
    length = len(payload) if length is None else length
    return struct.pack(">8sHI", magic, length, crc) + payload


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(64),
        greeting_of(b"\xff\xff"),
        greeting_of(dumps("hello")),
        greeting_of(dumps([1, 1])),
        greeting_of(dumps(["1", 1, None, "a", "b", "", ""])),
        greeting_of(dumps([1, 1, None, "a", "b", "", ""]), crc=1),
        greeting_of(b"", length=60000),
    ],
)
def test_what_is_no_greeting_is_refused(data):
    with bare() as (ours, sock):
        sock.sendall(data)

        with pytest.raises(ProtocolError):
            ours.welcome(identity("b"), PATIENCE)


def test_a_greeting_of_a_later_version_may_say_more():
    with bare() as (ours, sock):
        sock.sendall(greeting_of(dumps([1, 7, None, "a", "b", "", "", "more", 5])))
        ours.welcome(identity("b"), PATIENCE)

        assert ours.peer.highest == 7


# ---- frames ----


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 64 * 1024, 300_000, 3_000_000])
def test_frames_of_any_size_arrive_whole(size):
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with connected() as (ours, theirs):
        sending = InBackground(lambda: [ours.send(0, payload, PATIENCE) for _ in range(3)])

        assert [theirs.receive(PATIENCE) for _ in range(3)] == [(0, payload)] * 3
        sending.outcome()


def test_a_message_comes_out_as_it_went_in():
    with connected() as (ours, theirs):
        ours.send_message(REQUEST, PATIENCE)

        assert decode_message(*theirs.receive(PATIENCE)) == REQUEST


def test_receiving_can_go_on_after_a_timeout_in_the_middle_of_a_frame():
    with connected() as (ours, theirs), bare() as (spy, sock):
        spy.send(7, b"payload", PATIENCE)
        frame = sock.recv(100)

        for byte in frame[:-1]:
            ours.stream.send(bytes([byte]), PATIENCE)
            with pytest.raises(RPCTimeoutError):
                theirs.receive(0)
        ours.stream.send(frame[-1:], PATIENCE)

        assert theirs.receive(PATIENCE) == (7, b"payload")


@pytest.mark.parametrize("timeout", [30 * 86_400.0, 1e9, math.inf])
def test_a_wait_may_be_longer_than_the_system_waits_at_once(timeout):
    """As long as any duration of `Config`: a month for `disk_stall_timeout` halted the leader."""
    with connected() as (ours, theirs):
        frame = InBackground(lambda: ours.receive(timeout))
        theirs.send(7, b"late", PATIENCE)
        assert frame.outcome() == (7, b"late")

        theirs.send(7, b"later", PATIENCE)
        assert ours.stream.wait_readable(timeout)


def test_a_damaged_frame_is_no_frame():
    with bare() as (ours, sock), bare() as (spy, tap):
        spy.send(7, b"payload", PATIENCE)
        frame = bytearray(tap.recv(100))

        for at in range(4, len(frame)):  # all but the length: that one is judged by what follows
            frame[at] ^= 0x10
            sock.sendall(frame)
            error = raised_by(lambda: ours.receive(PATIENCE))
            ours._start = ours._end = 0
            frame[at] ^= 0x10
            assert isinstance(error, ProtocolError), at


@pytest.mark.parametrize(
    ("code", "length"),
    [
        (0, MAX_FRAME + 1),
        (0, 2**32 - 1),
        (2, (2 << 20) + 1),
        (129, (1 << 20) + 1),
        *((code, 65_537) for code in (1, 3, 64, 131, 255)),
    ],
)
def test_a_frame_too_long_is_refused_by_its_announcement(code, length):
    with bare() as (ours, sock):
        sock.sendall(struct.pack(">IBI", length, code, 0))

        with pytest.raises(ProtocolError, match="announced"):
            ours.receive(PATIENCE)


def test_memory_follows_what_came_and_not_what_was_announced():
    with bare() as (ours, sock):
        sock.sendall(struct.pack(">IBI", MAX_FRAME, 0, 0) + bytes(30_000))
        tracemalloc.start()
        try:
            error = raised_by(lambda: ours.receive(0.05))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert isinstance(error, RPCTimeoutError)
    assert peak < 300_000


def test_a_large_message_is_not_even_sent():
    with connected() as (ours, _), pytest.raises(TransportError, match="too large"):
        ours.send(7, bytes(MAX_FRAME + 1), PATIENCE)


def test_the_end_within_a_frame_is_a_lost_connection():
    with bare() as (ours, sock):
        sock.sendall(b"\0\0")
        sock.close()

        with pytest.raises(ConnectionLostError):
            ours.receive(PATIENCE)


def test_an_error_frame_is_raised():
    with connected() as (ours, theirs):
        theirs.send_error(ValueError("no such luck"), PATIENCE)

        with pytest.raises(RemoteError, match="no such luck"):
            ours.receive_answer(PATIENCE)


@pytest.mark.parametrize(
    "error", [UnsupportedProtocolError("x"), ClusterMismatchError("x"), WrongServerError("x")]
)
def test_errors_that_a_caller_acts_on_keep_their_type(error):
    with connected() as (ours, theirs):
        theirs.send_error(error, PATIENCE)

        with pytest.raises(type(error)):
            ours.receive_answer(PATIENCE)


def test_a_malformed_error_frame_is_no_frame():
    with connected() as (ours, theirs):
        theirs.send(ERROR_FRAME, dumps("oops"), PATIENCE)

        with pytest.raises(ProtocolError):
            ours.receive_answer(PATIENCE)


# ---- streams ----


def test_closing_wakes_a_receiver():
    with connected() as (ours, _):
        waiting = InBackground(lambda: ours.receive(60.0))
        ours.close()

        assert isinstance(waiting.outcome(), ConnectionLostError)


def test_closing_wakes_a_sender():
    with connected() as (ours, _):
        waiting = InBackground(lambda: ours.send(7, bytes(MAX_FRAME), 60.0))
        assert not ours.has_input()
        ours.close()

        assert isinstance(waiting.outcome(), ConnectionLostError)


def test_sending_to_a_peer_that_does_not_read_times_out():
    with connected() as (ours, _), pytest.raises(RPCTimeoutError):
        ours.send(7, bytes(MAX_FRAME), 0.05)
