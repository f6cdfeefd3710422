"""What several files of this folder need: hand-made requests, quiet times, many commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from raft import ApplyFuture
from raft.messages import RPCHeader
from raft.testing.cluster import SCALE, Cluster, Member
from raft.transport import InmemTransport

HEARTBEAT = 0.1 * SCALE  # of `fast_config`
PROPAGATION = 2 * HEARTBEAT + 0.005 * SCALE  # scenarios' "prop"
ANSWER = 10.0 * SCALE  # seconds that any answer may take


def apply_all(member: Member, commands: Iterable[bytes]) -> list[ApplyFuture]:
    """Send commands without waiting for the one before; return their futures, all answered."""
    futures = [member.node.apply(command) for command in commands]
    for future in futures:
        future.exception(ANSWER)
    return futures


def apply_count(member: Member, count: int, prefix: bytes = b"command") -> list[ApplyFuture]:
    """Apply numbered commands; all must succeed."""
    futures = apply_all(member, (prefix + b"-%d" % n for n in range(count)))
    for future in futures:
        future.result(ANSWER)
    return futures


def stranger(target: Member) -> InmemTransport:
    """Return a transport that can call one member and belongs to no node."""
    transport = InmemTransport("stranger:1", ANSWER)
    transport.connect(target.address, target.transport)
    return transport


def header_of(member: Member) -> RPCHeader:
    """Return the header that a member puts on its requests."""
    return RPCHeader(member.id, member.address)


def stays_so(cluster: Cluster, what: str, seconds: float, predicate: Callable[[], bool]) -> None:
    """Assert that a predicate holds at every look for so long."""
    until = time.monotonic() + seconds
    cluster.wait_for(lambda: not predicate() or time.monotonic() >= until, seconds + 5, what)
    assert predicate(), f"did not stay so: {what}"
