"""A snapshot store that accepts snapshots and forgets them.

For benchmarks of the log, and for clusters that only ever live in memory: the log is compacted and
nothing can be restored, so a member that falls behind the log can never catch up.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.errors import SnapshotError
from raft.interfaces import SnapshotSink
from raft.messages import SnapshotReader
from raft.types import SNAPSHOT_VERSION, Configuration, SnapshotMeta


class DiscardSnapshotStore:
    """A `SnapshotStore` that keeps nothing; safe from any thread."""

    def create(
        self,
        version: int,
        index: int,
        term: int,
        configuration: Configuration,
        configuration_index: int,
        *,
        unsettled: bool = False,
    ) -> SnapshotSink:
        """Return a sink that swallows what is written."""
        if version != SNAPSHOT_VERSION:
            raise SnapshotError(f"unsupported snapshot version {version}")
        return DiscardSnapshotSink()

    def list(self) -> Sequence[SnapshotMeta]:
        """Return nothing."""
        return []

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, SnapshotReader]:
        """Refuse."""
        raise SnapshotError(f"snapshot {snapshot_id} was discarded: open is not supported")

    def settle(self, snapshot_id: str) -> None:
        """Do nothing."""

    def remove(self, snapshot_id: str) -> None:
        """Do nothing."""


class DiscardSnapshotSink:
    """A `SnapshotSink` that swallows what is written."""

    def write(self, data: bytes, /) -> int:
        """Claim to have written all of it."""
        return len(data)

    def close(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """Do nothing."""

    def id(self) -> str:
        """Return the id that all discarded snapshots share."""
        return "discard"
