"""Transports: how nodes talk to each other."""

from raft.transport.inmem import InmemTransport

__all__ = ["InmemTransport"]
