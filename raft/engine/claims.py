"""Which stores the nodes of this process use: a store has one node, and one program at a time.

Two nodes over one store, or a recovery beside a running node, delete what the other has
acknowledged. `SQLiteStore` locks its file against other processes; this is for the objects.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

from raft.errors import StoreLockedError
from raft.interfaces import WithStoreBelow

_claims: dict[int, Claim] = {}  # by the identity of a store; each step is one, without a lock


class Claim:
    """A node's claim to its stores, until `release`; stores that are gone are nobody's.

    Raises `StoreLockedError` for a store that a node uses.
    """

    def __init__(self, owner: str, *stores: object) -> None:
        self.owner = owner
        self._pid = os.getpid()
        self._stores: dict[int, weakref.ref[Any]] = {}
        for key, claim in list(_claims.items()):
            if claim.is_void(key):
                _claims.pop(key, None)
        try:
            for store in map(_innermost, stores):
                self._take(store)
        except BaseException:
            self.release()
            raise

    def _take(self, store: object) -> None:
        key = id(store)
        try:
            ref = weakref.ref(store)
        except TypeError:
            return  # of a class whose objects nobody can watch: it may be another one later
        if key not in self._stores:
            self._stores[key] = ref
            other = _claims.setdefault(key, self)
            if other is not self:
                del self._stores[key]
                raise StoreLockedError(
                    f"the store {store!r} belongs to node {other.owner}, which runs: shut that one"
                    " down first. Every node has stores of its own"
                )

    def is_void(self, key: int) -> bool:
        """Tell whether a store is gone, or the node, in the process before a fork."""
        ref = self._stores.get(key)
        return ref is None or ref() is None or self._pid != os.getpid()

    def release(self) -> None:
        """Give the stores back; may be called twice."""
        for key in list(self._stores):
            if _claims.get(key) is self:
                del _claims[key]
        self._stores.clear()


def _innermost(store: object) -> object:
    while isinstance(store, WithStoreBelow):
        store = store.store_below()
    return store
