"""The stores of `raft.stores` keep the contracts that third parties' stores are tested for."""

import pytest

from raft.stores import InmemStore, LogCache
from raft.testing.contracts import (
    CommitTrackingContract,
    LogStoreContract,
    RangeContract,
    StableStoreContract,
    SuffixReplacingContract,
)


class TestInmemStore(
    LogStoreContract,
    SuffixReplacingContract,
    RangeContract,
    CommitTrackingContract,
    StableStoreContract,
):
    @pytest.fixture
    def store(self):
        return InmemStore()


@pytest.mark.parametrize("capacity", [1, 16, 4096])
class TestLogCache(
    LogStoreContract, SuffixReplacingContract, RangeContract, CommitTrackingContract
):
    @pytest.fixture
    def store(self, capacity):
        return LogCache(capacity, InmemStore())
