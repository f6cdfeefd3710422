"""What no honest server sends: refused before anything is decided by it.

Terms and indexes travel as unsigned 64-bit numbers, but a term near the end of that range would
leave no later one to elect a leader in, and stores count in signed ones.
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

LARGEST = 2**62
"""The largest term or index that is believed; no cluster gets there in the life of a star."""


def check_term(term: int) -> None:
    """Raise `RemoteError` for a term that no cluster can have reached."""
    if term > LARGEST:
        raise RemoteError(f"term {term} cannot be: no cluster has held so many elections")


def check_request(request: Request) -> None:
    """Raise `RemoteError` for a request that contradicts itself, or has impossible numbers."""
    if isinstance(request, TimeoutNowRequest):
        return
    check_term(request.term)
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
    if not NO_INDEX < index <= LARGEST or term > request.term:
        raise RemoteError(f"a snapshot up to {index} of term {term} came in term {request.term}")
