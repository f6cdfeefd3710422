"""Which way requests go in, and how what was raised goes back."""

from dataclasses import replace

import pytest

from raft.errors import (
    ClusterMismatchError,
    RaftShutdownError,
    RemoteError,
    RPCTimeoutError,
    UnsupportedProtocolError,
    WrongServerError,
)
from raft.messages import RPC, AppendEntriesRequest, RequestVoteRequest, RPCHeader
from raft.runtime import THREADS
from raft.transport.delivery import Delivery, check_proof, error_kind, remote_error
from raft.types import Log

HEARTBEAT = AppendEntriesRequest(RPCHeader("a", "a:1"), 10)


@pytest.mark.parametrize(
    ("request_", "is_heartbeat"),
    [
        (HEARTBEAT, True),
        (replace(HEARTBEAT, term=0), False),
        (replace(HEARTBEAT, header=RPCHeader("a")), False),
        (replace(HEARTBEAT, prev_log_index=1), False),
        (replace(HEARTBEAT, prev_log_term=1), False),
        (replace(HEARTBEAT, entries=(Log(1, 1),)), False),
        (replace(HEARTBEAT, leader_commit=1), False),
        (RequestVoteRequest(RPCHeader("a", "a:1"), 10, 0, 0), False),
    ],
)
def test_a_heartbeat_has_a_leader_and_a_term_and_no_more(request_, is_heartbeat):
    """TRA-12."""
    delivery, beats = Delivery(THREADS), []
    delivery.heartbeat_handler = beats.append
    rpc = RPC(request_, lambda *_: None)

    delivery.deliver(rpc, 1.0)

    assert beats == ([rpc] if is_heartbeat else [])
    assert delivery.queue.qsize() == (0 if is_heartbeat else 1)


def test_what_is_delivered_directly_leaves_the_queue_alone():
    delivery, taken = Delivery(THREADS, 1), []
    delivery.put = taken.append
    rpcs = [RPC(HEARTBEAT, lambda *_: None) for _ in range(3)]

    for rpc in rpcs:
        delivery.deliver(rpc, 0.0)

    assert taken == rpcs
    assert delivery.queue.qsize() == 0


def test_a_full_queue_is_waited_for_no_longer_than_the_timeout():
    delivery = Delivery(THREADS, 1)
    delivery.deliver(RPC(HEARTBEAT, lambda *_: None), 0.0)

    with pytest.raises(RPCTimeoutError, match="queue is full"):
        delivery.deliver(RPC(HEARTBEAT, lambda *_: None), 0.01)


@pytest.mark.parametrize(
    "error", [UnsupportedProtocolError("x"), ClusterMismatchError("x"), WrongServerError("x")]
)
def test_errors_of_identity_keep_their_type_on_the_way(error):
    assert type(remote_error(error_kind(error), str(error))) is type(error)


@pytest.mark.parametrize("error", [ValueError("x"), RaftShutdownError("x")])
def test_all_other_errors_are_the_other_sides(error):
    assert type(remote_error(error_kind(error), str(error))) is RemoteError


def test_of_a_text_that_fills_a_frame_only_the_beginning_is_kept():
    assert str(remote_error("other", "x" * 1000)) == "x" * 1000
    assert str(remote_error("other", "x" * 8_000_000)) == "x" * 1000 + "..."


def test_only_a_proved_id_counts_where_ids_are_proved():
    check_proof(None, "b", "peer:1")
    check_proof(frozenset("ab"), "b", "peer:1")
    for proven in (frozenset(), frozenset("a"), frozenset(["B"])):
        with pytest.raises(WrongServerError, match="does not name server b"):
            check_proof(proven, "b", "peer:1")


def test_a_certificate_of_many_names_is_not_listed_whole():
    proven = frozenset(f"n{number:02}" for number in range(50))

    with pytest.raises(WrongServerError) as caught:
        check_proof(proven, "b", "peer:1")

    assert "n04" in str(caught.value)
    assert "n05" not in str(caught.value)
