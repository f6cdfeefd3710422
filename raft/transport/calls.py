"""The calls of a transport that one message asks and one message answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    Request,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.types import ServerAddress, ServerID

R = TypeVar("R", bound=Response)


class Calls(ABC):
    """These methods of `raft.interfaces.Transport`, for a transport that has one way to call."""

    @abstractmethod
    def _call(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        kind: type[R],
        timeout: float | None,
    ) -> R:
        """Send a request and return its answer, or raise `TransportError` if it is of no such kind.

        `timeout` is in seconds, None for the transport's default.
        """

    def append_entries(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: AppendEntriesRequest,
        timeout: float | None = None,
    ) -> AppendEntriesResponse:
        """Send AppendEntries and wait for the answer."""
        return self._call(server_id, address, request, AppendEntriesResponse, timeout)

    def request_vote(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: RequestVoteRequest,
        timeout: float | None = None,
    ) -> RequestVoteResponse:
        """Ask for a vote and wait for the answer."""
        return self._call(server_id, address, request, RequestVoteResponse, timeout)

    def request_pre_vote(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: RequestPreVoteRequest,
        timeout: float | None = None,
    ) -> RequestPreVoteResponse:
        """Ask whether a vote could be won and wait for the answer."""
        return self._call(server_id, address, request, RequestPreVoteResponse, timeout)

    def timeout_now(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: TimeoutNowRequest,
        timeout: float | None = None,
    ) -> TimeoutNowResponse:
        """Tell a server to campaign at once and wait until it has heard."""
        return self._call(server_id, address, request, TimeoutNowResponse, timeout)
