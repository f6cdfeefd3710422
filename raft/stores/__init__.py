"""Log and stable stores in memory: for tests, and before a store on disk."""

from raft.stores.cache import LogCache
from raft.stores.inmem import InmemStore

__all__ = ["InmemStore", "LogCache"]
