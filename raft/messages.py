"""The five RPCs of Raft, and the envelope in which one reaches the main loop.

Fields follow the original: AppendEntries and RequestVote are Figure 3.1 of the thesis,
InstallSnapshot Figure 5.3 (one stream, no chunks), TimeoutNow section 3.10, pre-vote section 9.6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from raft.types import (
    EMPTY_CONFIGURATION,
    PROTOCOL_VERSION,
    SNAPSHOT_VERSION,
    Configuration,
    Log,
    ServerAddress,
    ServerID,
)


class SnapshotReader(Protocol):
    """A readable stream of bytes; `close` may be called twice."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RPCHeader:
    """Who sends: part of every request and response."""

    id: ServerID = ""
    address: ServerAddress = ""
    protocol_version: int = PROTOCOL_VERSION
    incarnation: str = ""  # of the sender's data directory (departure 21); "" says nothing


class Note(NamedTuple):
    """Which incarnation of a voter was counted on, when the configuration at `since` was new."""

    server_id: ServerID
    incarnation: str
    since: int


@dataclass(frozen=True, slots=True)
class AppendEntriesRequest:
    """Replicate entries, or just be heard: a request without entries and position is a heartbeat.

    The leader is named by the header. `notes` come along when they have changed (departure 21).
    """

    header: RPCHeader
    term: int
    prev_log_index: int = 0
    prev_log_term: int = 0
    entries: tuple[Log, ...] = ()
    leader_commit: int = 0
    notes: tuple[Note, ...] = ()

    def is_heartbeat(self) -> bool:
        """Tell whether this may be answered off the main thread, as the original's fast path."""
        return (
            self.term != 0
            and self.prev_log_index == 0
            and self.prev_log_term == 0
            and not self.entries
            and self.leader_commit == 0
            and not self.notes
            and self.header.address != ""
        )


@dataclass(frozen=True, slots=True)
class AppendEntriesResponse:
    """`last_log` is a hint where to go on after a refusal (§5.3)."""

    header: RPCHeader
    term: int
    last_log: int = 0
    success: bool = False
    no_retry_backoff: bool = False


@dataclass(frozen=True, slots=True)
class RequestVoteRequest:
    """Ask for a vote (§5.2, §5.4.1); `leadership_transfer` overrides a known leader (3.10)."""

    header: RPCHeader
    term: int
    last_log_index: int
    last_log_term: int
    leadership_transfer: bool = False


@dataclass(frozen=True, slots=True)
class RequestVoteResponse:
    """The answer to a vote request; `reason` says why it is refused, for people."""

    header: RPCHeader
    term: int
    granted: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestPreVoteRequest:
    """Ask whether a vote in `term` could be won (9.6); changes nothing at the receiver."""

    header: RPCHeader
    term: int
    last_log_index: int
    last_log_term: int


@dataclass(frozen=True, slots=True)
class RequestPreVoteResponse:
    """The answer to a pre-vote request; `reason` says why it is refused, for people."""

    header: RPCHeader
    term: int
    granted: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InstallSnapshotRequest:
    """Announce a snapshot; its bytes follow as a stream (§7)."""

    header: RPCHeader
    term: int
    last_log_index: int
    last_log_term: int
    configuration: Configuration = EMPTY_CONFIGURATION
    configuration_index: int = 0
    size: int = 0
    snapshot_version: int = SNAPSHOT_VERSION
    unsettled: bool = False


@dataclass(frozen=True, slots=True)
class InstallSnapshotResponse:
    """Whether the snapshot is durable at the receiver."""

    header: RPCHeader
    term: int
    success: bool = False


@dataclass(frozen=True, slots=True)
class TimeoutNowRequest:
    """Tell the receiver to campaign at once (3.10)."""

    header: RPCHeader


@dataclass(frozen=True, slots=True)
class TimeoutNowResponse:
    """The receiver heard; no more."""

    header: RPCHeader


Request: TypeAlias = (
    AppendEntriesRequest
    | RequestVoteRequest
    | RequestPreVoteRequest
    | InstallSnapshotRequest
    | TimeoutNowRequest
)
Response: TypeAlias = (
    AppendEntriesResponse
    | RequestVoteResponse
    | RequestPreVoteResponse
    | InstallSnapshotResponse
    | TimeoutNowResponse
)

RPC_TYPES: dict[type[Any], type[Any]] = {
    AppendEntriesRequest: AppendEntriesResponse,
    RequestVoteRequest: RequestVoteResponse,
    RequestPreVoteRequest: RequestPreVoteResponse,
    InstallSnapshotRequest: InstallSnapshotResponse,
    TimeoutNowRequest: TimeoutNowResponse,
}
"""Each request type with the type of its answer."""


@dataclass(slots=True)
class RPC:
    """One request on its way through the node, made by a transport.

    `answer` is called exactly once with (response, error), of which one is None; it must neither
    block nor raise. `reader` carries the bytes of a snapshot and may be read by another thread than
    the transport's, until the request is answered. `cluster_id` is what the sender said in its
    handshake, None when it has none or the protocol does not say.
    """

    command: Request
    answer: Callable[[Response | None, Exception | None], None]
    reader: SnapshotReader | None = None
    cluster_id: str | None = None
    _answered: bool = field(default=False, init=False)

    def respond(self, response: Response | None, error: Exception | None = None) -> None:
        """Answer the request; only the first answer counts."""
        if not self._answered:
            self._answered = True
            self.answer(response, error)
