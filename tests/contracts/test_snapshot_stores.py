"""The stores of `raft.snapshots` keep the contract that third parties' stores are tested for."""

import pytest

from raft.snapshots import FileSnapshotStore, InmemSnapshotStore
from raft.testing.contracts import SnapshotStoreContract


class TestFileSnapshotStore(SnapshotStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        self.base = tmp_path
        return FileSnapshotStore(tmp_path, retain=3)

    def restarted(self, store):
        return FileSnapshotStore(self.base, retain=3)


class TestInmemSnapshotStore(SnapshotStoreContract):
    @pytest.fixture
    def store(self):
        return InmemSnapshotStore()
