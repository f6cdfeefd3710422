"""What no honest server sends: refused before anything is decided by it.

Terms and indexes travel as unsigned 64-bit numbers, but a term near the end of that range would
leave no later one to elect a leader in, and stores count in signed ones. So a term may be ahead of
ours by as much as no absence can explain, and no more: the end of the range is out of reach.
"""

from __future__ import annotations

from raft.errors import RemoteError
from raft.messages import (
    AppendEntriesRequest,
    InstallSnapshotRequest,
    Request,
    TimeoutNowRequest,
)
from raft.types import NO_INDEX, NO_TERM

FURTHEST_AHEAD = 2**24
"""Terms that a server may have missed: half a year of elections, one a second without a pause."""
LARGEST_INDEX = 2**62
"""The largest index that is believed: at a million entries a second, 146,000 years."""


def check_term(own_term: int, term: int) -> None:
    """Raise `RemoteError` for a term that the cluster cannot have reached meanwhile."""
    if term > own_term + FURTHEST_AHEAD:
        raise RemoteError(f"term {term} cannot be: this server is in term {own_term}")


def check_request(own_term: int, request: Request) -> None:
    """Raise `RemoteError` for a request that contradicts itself, or has impossible numbers."""
    if isinstance(request, TimeoutNowRequest):
        return
    check_term(own_term, request.term)
    if isinstance(request, AppendEntriesRequest):
        _check_entries(request)
    elif isinstance(request, InstallSnapshotRequest):
        _check_snapshot(request)


def _check_entries(request: AppendEntriesRequest) -> None:
    if request.prev_log_index == NO_INDEX and request.prev_log_term != NO_TERM:
        raise RemoteError("there is no entry before the first that could have a term")
    expected = request.prev_log_index
    for log in request.entries:
        expected += 1
        if log.index != expected:
            raise RemoteError(f"entries are not in order: {log.index} instead of {expected}")
        if log.term > request.term:
            raise RemoteError(f"entry {log.index} of term {log.term} came in term {request.term}")


def _check_snapshot(request: InstallSnapshotRequest) -> None:
    index, term = request.last_log_index, request.last_log_term
    if not NO_INDEX < index <= LARGEST_INDEX or term > request.term:
        raise RemoteError(f"a snapshot up to {index} of term {term} came in term {request.term}")
