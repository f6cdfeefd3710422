"""Transports: how nodes talk to each other."""

from raft.transport.inmem import InmemTransport
from raft.transport.network import NetworkTransport
from raft.transport.stream import Stream, StreamLayer
from raft.transport.tcp import TCPStreamLayer, TCPTransport

__all__ = [
    "InmemTransport",
    "NetworkTransport",
    "Stream",
    "StreamLayer",
    "TCPStreamLayer",
    "TCPTransport",
]
