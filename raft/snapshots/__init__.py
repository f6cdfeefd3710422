"""Where snapshots are kept: on disk, in memory, or nowhere."""

from raft.snapshots.discard import DiscardSnapshotStore
from raft.snapshots.file import FileSnapshotStore
from raft.snapshots.inmem import InmemSnapshotStore

__all__ = ["DiscardSnapshotStore", "FileSnapshotStore", "InmemSnapshotStore"]
